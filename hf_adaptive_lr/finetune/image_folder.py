"""Which files of a folder of images are read: the folders in it are its classes, or its splits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import FinetuneError, some

if TYPE_CHECKING:
    from datasets import Dataset

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def split_files(folder: Path) -> dict[str, list[str]]:
    """For each split patterns of its files in `folder`.

    There are splits where all folders in it are named as such, and `train` is one. `datasets` by itself takes every
    folder and file with such a word in its name for a split (`test_positive`), and leaves out all others.
    """
    inside = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    splits: dict[str, list[str]] = {}
    for name in sorted(inside):
        splits.setdefault(_SPLITS.get(name.lower(), ""), []).append(f"{name}/**")
    if "train" in splits and "" not in splits:
        return splits
    if len(inside) == 1 and "" in splits:  # photos/data/train/cat
        deeper = split_files(folder / inside[0])
        return {split: [f"{inside[0]}/{pattern}" for pattern in found] for split, found in deeper.items()}
    return {"train": ["**"]}


def check_all_read(folder: Path, splits: Mapping[str, Dataset]) -> None:
    """Fail where metadata files are about some of the images only: `datasets` leaves out the others.

    Raises:
        FinetuneError: names them.
    """
    from datasets import Image

    files = list(_files(folder))
    columns = [(rows, name) for rows in splits.values() for name, kind in rows.features.items() if kind == Image()]
    if not columns or not any(path.name in _METADATA for path in files):
        return
    read: set[str] = set()
    for rows, name in columns:
        stored = rows.cast_column(name, Image(decode=False))[name]
        read.update(os.path.realpath(image["path"]) for image in stored if image and image["path"])
    images = [path for path in files if _is_image(path)]
    missing = [path for path in images if os.path.realpath(path) not in read]
    if missing:
        names = some(sorted(str(path.relative_to(folder)) for path in missing))
        raise FinetuneError(
            f"data '{folder}': {len(missing)} of {len(images)} images are in no metadata file ({names}); add rows for "
            "them, or move them elsewhere"
        )


def _files(folder: Path) -> Iterator[Path]:
    """All files that `datasets` looks at."""
    for where, inside, names in os.walk(folder, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith((".", "__"))]
        yield from (Path(where, name) for name in names if not name.startswith("."))


def _is_image(path: Path) -> bool:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return path.suffix.lower() in ImageFolder.EXTENSIONS
