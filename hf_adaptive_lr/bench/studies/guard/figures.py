"""The figures of the guard study, from rows alone: tolerance, shares within it, differences, false alarms."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...plan import Book
from ...rows import Row, read_rows
from .injections import CLEAN, STREAMS
from .methods import GUARD, UNGUARDED
from .tasks import TASKS

MARGIN = 0.02
"""Loss of accuracy that is always tolerated."""
SPREADS = 2.0
"""Standard deviations of the clean runs that are tolerated, where that is more."""
GOAL = 0.95
"""Share of the guarded runs that are to end within the tolerance."""


@dataclass(frozen=True)
class Cell:
    """The runs of one injection and method, by seed."""

    runs: Mapping[int, Row]
    differences: Mapping[int, float]  # accuracy minus that of the run it is compared with, of seeds that have both
    tolerance: float  # how far below zero a difference may be

    @property
    def judged(self) -> int:
        """Runs that can be judged: those that have a run to be compared with, and those that raised."""
        return len(self.differences) + sum("error" in row for row in self.runs.values())

    @property
    def outside(self) -> list[int]:
        """Seeds of runs below the tolerance; one that raised is neither here nor within."""
        # Shares of rows are not exact in binary.
        return [seed for seed, difference in self.differences.items() if difference < -self.tolerance - 1e-9]

    @property
    def within(self) -> int:
        """Runs within the tolerance."""
        return len(self.differences) - len(self.outside)

    def counts(self, action: str) -> dict[int, int]:
        """How often the guard did something, by the seed of runs that were compared."""
        return {seed: self.runs[seed]["actions"].get(action, 0) for seed in self.differences}

    @property
    def left_alone(self) -> int:
        """Runs within the tolerance that the guard has not ended and in which it went back once at most."""
        stops, rollbacks = self.counts("stop"), self.counts("rollback")
        kept = self.differences.keys() - self.outside
        return sum(not stops[seed] and rollbacks[seed] <= 1 for seed in kept)


class Figures:
    """The figures of one task, from its rows in the order they were written.

    Rows of an older version of the task, or of older settings of a method, are left out: of each case those count
    that are of the same version as the newest.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = _newest(_newest(list(rows), "task"), "method")
        self._runs: dict[str, dict[int, Row]] = {}
        for row in sorted(rows, key=lambda row: row["seed"]):
            self._runs.setdefault(row["method"], {})[row["seed"]] = row
        self.all = rows
        self.clean = list(self._accuracies(CLEAN.name, UNGUARDED).values())
        self.spread = statistics.stdev(self.clean) if len(self.clean) > 1 else 0.0  # over seeds
        self.tolerance = max(MARGIN, SPREADS * self.spread)

    def runs(self, injection: str, method: str) -> Mapping[int, Row]:
        """The rows of one injection and method, by seed."""
        return self._runs.get(f"{injection}/{method}", {})

    def cell(self, injection: str, method: str) -> Cell:
        """The figures of one injection and method.

        A schedule is compared with its own clean runs, since it may be better or worse on these to begin with; a
        guard with runs without one, of the same stream where that is what is trained on.
        """
        stream = injection in STREAMS
        against = self._accuracies(injection if stream else CLEAN.name, UNGUARDED if method == GUARD else method)
        found = self._accuracies(injection, method)
        differences = {seed: accuracy - against[seed] for seed, accuracy in found.items() if seed in against}
        return Cell(self.runs(injection, method), differences, MARGIN if stream else self.tolerance)

    def _accuracies(self, injection: str, method: str) -> dict[int, float]:
        """Accuracy by seed, of runs that ended well."""
        return {s: row["test_metric"] for s, row in self.runs(injection, method).items() if "error" not in row}

    def overall(self, injections: Iterable[str], method: str) -> tuple[int, int]:
        """Runs within the tolerance, and runs, over several injections."""
        found = [self.cell(injection, method) for injection in injections]
        return sum(cell.within for cell in found), sum(cell.judged for cell in found)

    def false_alarms(self) -> tuple[int, int, int]:
        """Updates of the guard's clean runs that it took for trouble, updates, and runs."""
        runs = [row for row in self.runs(CLEAN.name, GUARD).values() if "error" not in row]
        return sum(len(_alarms(row)) for row in runs), sum(row["updates"] for row in runs), len(runs)


def book_of(folder: Path) -> Book:
    """The study's rows in a folder."""
    return Book(folder, "guard")


def read_figures(folder: Path) -> dict[str, Figures]:
    """The figures of both tasks."""
    return {task: Figures(read_rows(book_of(folder).path(task))) for task in TASKS}


def _newest(rows: list[Row], what: str) -> list[Row]:
    """Rows whose task or method is the same version as that of the last row of this name."""
    digests = {row[what]: row[f"{what}_digest"] for row in rows}
    return [row for row in rows if row[f"{what}_digest"] == digests[row[what]]]


def first_alarm(row: Row) -> int | None:
    """Updates from the beginning of the trouble to the guard's first alarm; None when there was none."""
    strike = row["strike"]
    return None if strike is None else min((step - strike for step in _alarms(row) if step >= strike), default=None)


def _alarms(row: Row) -> set[int]:
    """The updates that the guard took for trouble; it may also note that all is well again."""
    return {event["step"] for event in row.get("events", ()) if event.get("reason") is not None}
