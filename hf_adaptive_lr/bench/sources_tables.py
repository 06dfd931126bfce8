"""Readers of tables of people, bicycles and tumours."""

from __future__ import annotations

import csv
import io
import math
import zipfile

import numpy as np

from .packages import kept
from .raw_rows import Raw, divided
from .sources_images import sklearn_data

Split = tuple[Raw, Raw]


def _islp(name: str) -> list[dict[str, str]]:
    """Rows of a table of James et al.'s Introduction to Statistical Learning."""
    with zipfile.ZipFile(kept("islp")) as wheel:
        return list(csv.DictReader(io.TextIOWrapper(wheel.open(f"ISLP/data/{name}.csv"), "utf-8")))


def defaulters() -> Split:
    """Holders of credit cards by student, balance and income: 1 did not pay, as 3 % did not."""
    rows = _islp("Default")
    inputs = [[float(row["student"] == "Yes"), float(row["balance"]), float(row["income"])] for row in rows]
    return divided(Raw(np.array(inputs, dtype=np.float32), [int(row["default"] == "Yes") for row in rows]))


def bikes() -> Split:
    """Hours of Washington's shared bicycles: ln of how many were hired, from calendar, clock and weather."""
    rows = _islp("Bikeshare")
    measures = ("season", "day", "hr", "holiday", "weekday", "workingday", "temp", "atemp", "hum", "windspeed")
    weathers = ("clear", "cloudy/misty", "light rain/snow", "heavy rain/snow")
    inputs = [[*(float(row[name]) for name in measures), float(weathers.index(row["weathersit"]))] for row in rows]
    return divided(Raw(np.array(inputs, dtype=np.float32), [math.log(float(row["bikers"])) for row in rows]))


def wages() -> Split:
    """Men of the mid-Atlantic region: ln of the wage, from year, age, marriage, schooling, job and health."""
    rows = _islp("Wage")
    inputs = [
        [
            float(row["year"]),
            float(row["age"]),
            float(row["maritl"] == "2. Married"),
            float(row["education"][0]),
            float(row["jobclass"][0]),
            float(row["health"][0]),
            float(row["health_ins"][0]),
        ]
        for row in rows
    ]
    return divided(Raw(np.array(inputs, dtype=np.float32), [float(row["logwage"]) for row in rows]))


def tumours() -> Split:
    """scikit-learn's 569 breast tumours by thirty measures of their cells: 1 is benign, 63 % are (UCI)."""
    inputs, labels = sklearn_data("load_breast_cancer")
    return divided(Raw(inputs.astype(np.float32), labels.tolist()))
