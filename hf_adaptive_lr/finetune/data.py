"""Loads the data of `hf-adaptive-lr finetune`: rows with a text or image and a label, wherever they are kept.

Whatever the source, the job sees a training and a report set with two columns, `input` and `label` (whole numbers from
0), and the labels' names. Whatever is wrong is one sentence that names the file, column or row: `FinetuneError`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import printable
from ..demo.data import demo_image, demo_text

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

_BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_REPORT_SPLITS = ("test", "validation")
SPLIT_SEED = 0
"""Seed of the rows that are picked or held out: the same rows for every seed of the run, so that runs compare."""
_MOST_RARE = 20  # labels that are named
HELD_OUT_SHARE = 0.2
"""Part of the training data that is reported on when the data has no test or validation split."""


class FinetuneError(ValueError):
    """The request cannot be carried out as it stands; the message is one line for the person who asked."""


@dataclass(frozen=True)
class JobData:
    """The data of one job; both sets have the columns `input` (text, or an image's file or bytes) and `label`."""

    name: str  # for the results
    train: Dataset
    report: Dataset  # read once, after training
    report_split: str  # where the report rows come from
    labels: list[str]
    left_out: int = 0  # rows without an input or a label

    def majority_accuracy(self) -> float:
        """Share of the most frequent label among the report rows, in (0, 1]: what no constant answer can beat."""
        return max(Counter(self.report["label"]).values()) / len(self.report)

    def rare_labels(self) -> dict[str, list[int]]:
        """Labels of fewer than `RARE` training rows: how many of these, and of report rows, they have."""
        train, report = Counter(self.train["label"]), Counter(self.report["label"])
        found = [(name, [train[i], report[i]]) for i, name in enumerate(self.labels) if train[i] < RARE]
        return dict(found[:_MOST_RARE])


RARE = 10
"""Training rows below which a label is called rare: about it the accuracy of all says nothing."""


def load_data(
    task: str,
    data: str | None,
    *,
    data_config: str | None = None,
    input_column: str,
    label_column: str,
    train_size: int | None = None,
    eval_size: int = 1000,
) -> JobData:
    """Load, check and split the data of a job; rows are picked by `SPLIT_SEED`, of those with an input and a label.

    `data` may be None for the demo's data; a CSV, JSON, JSON-lines or Parquet file; a folder of such files, of images
    in one folder per class, or written by `save_to_disk`; or the id of a data set on the Hub. Labels are a
    `ClassLabel`, strings or whole numbers. The sizes are upper bounds.

    Raises:
        FinetuneError: no such data, unreadable, no such column, or less than two labels or rows that have one.
        DemoDataError: a part of the demo's data is missing; the message ends with the command to get it.
    """
    with _quiet(local=data is None or Path(data).expanduser().exists()):
        if data is None:
            demo = demo_text if task == "text" else demo_image
            size = {} if train_size is None else {"train_size": train_size}
            loaded = demo(**size, test_size=eval_size)
            name, splits = loaded.name, {"train": loaded.train, "test": loaded.test}
        else:
            name, splits = data, _read(task, data, data_config)
        train = _training_split(name, splits)
        for column, role in ((input_column, task), (label_column, "label")):
            if column not in train.column_names:
                raise FinetuneError(f"{name} has no {role} column '{column}'; {_instead(role, column, train)}")
        read = len(train)
        train = _complete(train, input_column, label_column)
        if len(train) < 2 <= read:
            raise FinetuneError(
                f"{name}: {read - len(train)} of {read} rows have no {task} in '{input_column}' or no "
                f"label in '{label_column}'; at least 2 that have both are needed"
            )
        left_out = read - len(train)
        train, report, report_split = _with_report(train, splits, input_column, label_column, eval_size)
        read = len(report)
        report = _complete(report, input_column, label_column)
        left_out += read - len(report)
        train, report = _pick(train, train_size), _pick(report, eval_size)
        labels, ids = _labels(name, label_column, train, report)
        train, report = (
            part.select_columns([input_column]).rename_column(input_column, "input").add_column("label", part_ids)
            for part, part_ids in zip((train, report), ids, strict=True)
        )
        check = _checked_texts if task == "text" else _checked_images
        train, report = (check(name, input_column, part) for part in (train, report))
        return JobData(name, train, report, report_split, labels, left_out)


def check_source(what: str, source: str) -> None:
    """Fail fast where a data or model source can only be a path, and nothing is there; the Hub is not asked."""
    path = Path(source).expanduser()
    looks_so = source.startswith((".", "~")) or source.endswith("/") or path.suffix in _BUILDERS
    is_path = looks_so or path.is_absolute() or len(path.parts) > 2
    if is_path and not path.exists():
        raise FinetuneError(f"{what} '{source}' does not exist; pass a local folder or file, or an id on the Hub")
    if what == "data" and path.is_file() and path.suffix not in _BUILDERS:
        raise FinetuneError(f"data file '{source}' must end in one of: {', '.join(_BUILDERS)}")
    if what == "model" and path.exists() and not (path / "config.json").is_file():
        raise FinetuneError(f"model '{source}' is not a folder with config.json; save_pretrained writes one")


def need_package(module: str, why: str) -> None:
    """Fail fast, with the command to get it, where an optional package is missing."""
    if importlib.util.find_spec(module) is None:
        raise FinetuneError(f"{why} needs the package that has '{module}'; pip install 'hf_adaptive_lr[demo]'")


def open_image(stored: Mapping[str, Any]) -> Image:
    """An image as `datasets` stores it (bytes or path) as RGB; what is transparent becomes white."""
    from PIL import Image

    with _opened(stored) as image:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


@contextlib.contextmanager
def _opened(stored: Mapping[str, Any]) -> Iterator[Image]:
    """The image, not decoded; an error in it, also while it is used, names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open(stored["path"], "rb") if stored["bytes"] is None else BytesIO(stored["bytes"]) as file:
            yield Image.open(file)
    except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for broken PNG chunks
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise FinetuneError(f"image {stored['path'] or '(embedded)'} cannot be read: {reason}") from error


def one_line(error: BaseException) -> str:
    """First line of an exception's message, or its type."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0], longest=300)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(task: str, data: str, data_config: str | None) -> dict[str, Dataset]:
    from datasets import DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    path = Path(data).expanduser()
    try:
        if path.is_file():
            loaded = load_dataset(_BUILDERS[path.suffix], data_files={"train": str(path)})
        elif path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            loaded = load_from_disk(str(path))
        elif path.is_dir() and task == "image":
            loaded = load_dataset("imagefolder", data_dir=str(path))
        else:
            loaded = load_dataset(str(path) if path.is_dir() else data, data_config)
    except (OSError, ValueError, DatasetsError) as error:
        # Around a reader's error `datasets` says no more than that there was one.
        reason = one_line(error.__cause__ or error if isinstance(error, DatasetsError) else error)
        where = "" if path.exists() else " from the Hub (no such file or folder here)"
        raise FinetuneError(f"data '{data}' cannot be read{where}: {reason}") from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the Hub's client from reporting every try to reach it; the last word is the error's one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Keep `datasets` from reporting in its own words what is about to be reported in one line."""
    from datasets.utils import logging as datasets_logging

    level, bars = datasets_logging.get_verbosity(), datasets_logging.is_progress_bar_enabled()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    if local:  # a download may take its time and shows how far it is
        datasets_logging.disable_progress_bar()
    try:
        with quiet_hub():
            yield
    finally:
        datasets_logging.set_verbosity(level)
        if bars:
            datasets_logging.enable_progress_bar()


# --- splits and labels -----------------------------------------------------------------------------------------------


def _training_split(name: str, splits: Mapping[str, Dataset]) -> Dataset:
    if "train" not in splits and len(splits) > 1:
        raise FinetuneError(f"{name} has no split 'train'; its splits are: {', '.join(splits)}")
    return splits["train"] if "train" in splits else next(iter(splits.values()))


def _with_report(
    train: Dataset, splits: Mapping[str, Dataset], input_column: str, label_column: str, eval_size: int
) -> tuple[Dataset, Dataset, str]:
    """The training rows, the report rows and where those come from; public test sets without labels don't count."""
    for split in _REPORT_SPLITS:
        report = splits.get(split)
        if report is None or report is train or not {input_column, label_column} <= set(report.column_names):
            continue
        if not all(value in (None, -1) for value in report.unique(label_column)):
            return train, report, split
    if len(train) < 2:
        raise FinetuneError(f"{len(train)} training rows are too few; at least 2 are needed")
    count = min(eval_size, max(1, int(len(train) * HELD_OUT_SHARE)))
    parts = train.train_test_split(test_size=count, seed=SPLIT_SEED)
    return parts["train"], parts["test"], f"{count} rows held out of train (seed {SPLIT_SEED})"


def _complete(rows: Dataset, input_column: str, label_column: str) -> Dataset:
    """The rows that have both; public sets mark a missing label with -1."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    bare = rows.select_columns([input_column, label_column])
    if isinstance(bare.features[input_column], ImageFeature):
        bare = bare.cast_column(input_column, ImageFeature(decode=False))
    is_class = isinstance(bare.features[label_column], ClassLabel)
    pairs = zip(bare[input_column], bare[label_column], strict=True)
    kept = [
        row
        for row, (value, label) in enumerate(pairs)
        if value is not None and label is not None and not (is_class and label < 0)
    ]
    return rows if len(kept) == len(rows) else rows.select(kept)


def _instead(role: str, column: str, rows: Dataset) -> str:
    """The columns that are there where one is missing."""
    if role == "label" and rows.column_names == ["image"]:
        return "a folder of images has one folder for each class in it, such as photos/cat/1.png"
    columns = ", ".join(rows.column_names) or "none"
    return f"its columns are: {columns}; name one with --{role}-column"


def _pick(rows: Dataset, size: int | None) -> Dataset:
    if size is None or size >= len(rows):
        return rows
    return rows.shuffle(seed=SPLIT_SEED).select(range(size))


def _labels(name: str, column: str, train: Dataset, report: Dataset) -> tuple[list[str], list[list[int]]]:
    """Names of the labels, and the labels of both sets as numbers."""
    from datasets import ClassLabel

    values = [list(train[column]), list(report[column])]
    known = train.features[column]
    is_class = isinstance(known, ClassLabel)
    if is_class and report.features[column] != known:
        raise FinetuneError(f"{name}: column '{column}' has other classes in the report split than in train")
    if not is_class and not all(isinstance(value, str | int) for part in values for value in part):
        raise FinetuneError(f"{name}: column '{column}' holds {_dtype(known)}; labels are strings or whole numbers")
    order = list(range(len(known.names))) if is_class else sorted({value for part in values for value in part})
    if len(order) < 2:
        raise FinetuneError(f"{name}: column '{column}' has {len(order)} label; at least 2 are needed")
    number = {value: index for index, value in enumerate(order)}
    names = list(known.names) if is_class else [str(value) for value in order]
    return names, [[number[value] for value in part] for part in values]


def _checked_texts(name: str, column: str, rows: Dataset) -> Dataset:
    if _dtype(rows.features["input"]) not in ("string", "large_string"):
        raise FinetuneError(f"{name}: text column '{column}' holds {_dtype(rows.features['input'])}, not text")
    return rows


def _checked_images(name: str, column: str, rows: Dataset) -> Dataset:
    """The rows undecoded, so that a broken file can be named; each file's header is read once here."""
    from datasets import Image as ImageFeature

    if not isinstance(rows.features["input"], ImageFeature):
        raise FinetuneError(f"{name}: image column '{column}' holds {_dtype(rows.features['input'])}, not images")
    rows = rows.cast_column("input", ImageFeature(decode=False))
    for stored in rows["input"]:
        with _opened(stored):
            pass
    return rows


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)
