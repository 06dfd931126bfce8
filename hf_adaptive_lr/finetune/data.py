"""Loads the data of `hf-adaptive-lr finetune`: rows with a text or image and labels, wherever they are kept.

Whatever the source, the job sees a training and a report set with the columns `input`, `label` and, for pairs of
texts, `pair`; and the labels' names. Whatever is wrong is one sentence that names the file, column or row:
`FinetuneError`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..demo.data import balanced_order, demo_image, demo_text
from .errors import FinetuneError as FinetuneError
from .errors import some
from .images import looked_over
from .labels import CLASSES, NUMBER, SEVERAL, LabelColumns, encode, name_marks, without_missing
from .read import Source, other_delimiter, quiet

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_REPORT_SPLITS = ("test", "validation")
SPLIT_SEED = 0
"""Seed of the rows that are picked or held out: the same rows for every seed of the run, so that runs compare."""
_MOST_RARE = 20  # labels that are named
HELD_OUT_SHARE = 0.2
"""Part of the training data that is reported on when the data has no test or validation split."""
RARE = 10
"""Training rows below which a label is called rare: about it the accuracy of all says nothing."""


@dataclass(frozen=True)
class JobData:
    """The data of one job.

    Both sets have the columns `input` (text, or an image's file or bytes), `pair` where texts come in twos, and
    `label` (a class number, a 0 or 1 for each label, or a number, by `problem_type`).
    """

    name: str  # for the results
    train: Dataset
    report: Dataset  # read once, after training
    report_split: str  # where the report rows come from
    labels: list[str]
    left_out: int = 0  # rows without an input or a label
    problem_type: str = CLASSES
    unreadable: int = 0  # images that were left out because they cannot be read
    sixteen_bits: int = 0  # images with 16-bit greys, which only this job scales as they are meant

    def majority_accuracy(self) -> float:
        """Share of the most frequent label among the report rows, in (0, 1]: what no constant answer can beat."""
        return max(Counter(map(str, self.report["label"])).values()) / len(self.report)

    def rare_labels(self) -> dict[str, list[int]]:
        """Labels of fewer than `RARE` training rows: how many of these, and of report rows, they have."""
        if self.problem_type == NUMBER:
            return {}
        train, report = (self._counts(part) for part in (self.train, self.report))
        found = [(name, [train[i], report[i]]) for i, name in enumerate(self.labels) if train[i] < RARE]
        return dict(found[:_MOST_RARE])

    def _counts(self, rows: Dataset) -> Counter[int]:
        values = list(rows["label"])
        if self.problem_type != SEVERAL:
            return Counter(values)
        return Counter(index for value in values for index, marked in enumerate(value) if marked)


@dataclass(frozen=True)
class Wanted:
    """Which columns and rows of the data a job is about.

    `label_column` may name several, with commas between them. The sizes are upper bounds. `stratified` is False for
    runs that an earlier version began: their rows were picked without regard to labels.
    """

    task: str
    input_column: str
    label_column: str
    pair_column: str | None = None
    problem_type: str | None = None
    label_delimiter: str | None = None
    train_size: int | None = None
    eval_size: int = 1000
    skip_unreadable: bool = False
    stratified: bool = True


@dataclass(frozen=True)
class _Part:
    """Rows with the columns `input` and perhaps `pair`, and beside them their labels and what these have in common."""

    rows: Dataset
    labels: list[Any]
    keys: list[int] | None = None  # equal for rows of equal labels

    def select(self, chosen: Sequence[int]) -> _Part:
        keys = None if self.keys is None else [self.keys[row] for row in chosen]
        return _Part(self.rows.select(chosen), [self.labels[row] for row in chosen], keys)


def load_data(source: Source | None, wanted: Wanted) -> JobData:
    """Load, check and split the data of a job; rows are picked by `SPLIT_SEED`, of those with an input and a label.

    Rows that are picked or held out keep the shares of the labels, and every label that the data have is the model's,
    whether a row of it was picked or not.

    Args:
        source: a CSV, TSV, JSON, JSON-lines or Parquet file; a folder of such files, of images in one folder per
            class, or written by `save_to_disk`; or the id of a data set on the Hub. None is the demo's data.
        wanted: columns and rows.

    Raises:
        FinetuneError: no such data, unreadable, no such column, or less than two labels or rows that have one.
        DemoDataError: a part of the demo's data is missing; the message ends with the command to get it.
    """
    with quiet(local=source is None or source.path.exists()):
        name, splits = _splits(source, wanted)
        first = _training_split(name, splits)
        columns = _label_columns(name, wanted, first)
        report_split, second = _labelled_split(wanted, columns, splits, first)
        tables = [first] if second is None else [first, second]
        cells = [columns.read(rows) for rows in tables]
        without_missing(cells)
        name_marks(name, wanted.label_column, cells)
        parts = [_complete(name, wanted, rows, labels) for rows, labels in zip(tables, cells, strict=True)]
        left_out = sum(map(len, tables)) - sum(len(part.labels) for part in parts)
        _check_enough(name, wanted, len(parts[0].labels), len(first))
        values = [value for part in parts for value in part.labels]
        labels = encode(name, wanted.label_column, values, columns.known(first), wanted.problem_type)
        keys = labels.keys if wanted.stratified else None
        ends = [0, len(parts[0].labels), len(values)]
        coded = [
            _Part(part.rows, labels.values[low:high], None if keys is None else keys[low:high])
            for part, low, high in zip(parts, ends, ends[1:], strict=False)
        ]
        train, report = coded if len(coded) == 2 else _held_out(coded[0], wanted.eval_size)
        if second is None:
            report_split = f"{len(report.labels)} rows held out of train (seed {SPLIT_SEED})"
        train, report = _picked(train, wanted.train_size), _picked(report, wanted.eval_size)
        unread = deep = 0
        if wanted.task == "image":
            train, report, unread, deep = _readable(wanted, train, report)
        train_rows, report_rows = (part.rows.add_column("label", part.labels) for part in (train, report))
        kind = labels.problem_type
        return JobData(name, train_rows, report_rows, report_split, labels.names, left_out, kind, unread, deep)


def _splits(source: Source | None, wanted: Wanted) -> tuple[str, dict[str, Dataset]]:
    """The name of the data, and all their splits."""
    if source is not None:
        return source.data, source.read(wanted.task)
    demo = demo_text if wanted.task == "text" else demo_image
    size = {} if wanted.train_size is None else {"train_size": wanted.train_size}
    loaded = demo(**size, test_size=wanted.eval_size)
    return loaded.name, {"train": loaded.train, "test": loaded.test}


def _training_split(name: str, splits: Mapping[str, Dataset]) -> Dataset:
    if "train" not in splits and len(splits) > 1:
        raise FinetuneError(f"{name} has no split 'train'; its splits are: {', '.join(splits)}")
    return splits["train"] if "train" in splits else next(iter(splits.values()))


# --- columns ---------------------------------------------------------------------------------------------------------


def _label_columns(name: str, wanted: Wanted, rows: Dataset) -> LabelColumns:
    """The label columns, when all columns are there."""
    there = rows.column_names
    labels: tuple[str, ...] = (wanted.label_column,)
    if wanted.label_column not in there and "," in wanted.label_column:
        labels = tuple(word.strip() for word in wanted.label_column.split(","))
    pair = [] if wanted.pair_column is None else [(wanted.pair_column, "text-pair")]
    for column, role in ((wanted.input_column, wanted.task), *pair, *((label, "label") for label in labels)):
        if column not in there:
            raise FinetuneError(f"{name} has no {role} column '{column}'; {_instead(role, there)}")
    _check_columns(wanted, labels)
    return LabelColumns(labels, wanted.label_delimiter)


def _check_columns(wanted: Wanted, labels: tuple[str, ...]) -> None:
    """Each column has one role, and several label columns have no cells to split."""
    roles = [(wanted.input_column, wanted.task), *((label, "label") for label in labels)]
    if wanted.pair_column is not None:
        roles.append((wanted.pair_column, "text-pair"))
    for index, (column, role) in enumerate(roles):
        other = next((before for twin, before in roles[:index] if twin == column), None)
        if other is not None:
            names = role if other == role else f"{other} and {role}"
            raise FinetuneError(
                f"column '{column}' is named twice, as {names} column; name another with --{role}-column"
            )
    if len(labels) > 1 and wanted.label_delimiter is not None:
        raise FinetuneError(
            f"label_delimiter={wanted.label_delimiter!r} is for the cells of one label column, not for "
            f"{', '.join(labels)}; leave it out"
        )


def _instead(role: str, columns: list[str]) -> str:
    """The columns that are there where one is missing."""
    if role == "label" and columns == ["image"]:
        return "a folder of images has one folder for each class in it, such as photos/cat/1.png"
    listed = ", ".join(columns) or "none"
    return f"its columns are: {listed}{other_delimiter(columns) or f'; name one with --{role}-column'}"


def _labelled_split(
    wanted: Wanted, columns: LabelColumns, splits: Mapping[str, Dataset], train: Dataset
) -> tuple[str, Dataset | None]:
    """The split to report on, if there is one; public test sets without labels don't count."""
    needed = {wanted.input_column, *columns.names} | ({wanted.pair_column} if wanted.pair_column else set())
    for split in _REPORT_SPLITS:
        report = splits.get(split)
        if report is None or report is train or not needed <= set(report.column_names):
            continue
        if not all(value in (None, -1) for value in report[columns.names[0]]):
            return split, report
    return "", None


def _complete(name: str, wanted: Wanted, rows: Dataset, labels: list[Any]) -> _Part:
    """The rows that have an input and a label, with the columns `input` and `pair`."""
    columns = {wanted.input_column: "input"} | ({wanted.pair_column: "pair"} if wanted.pair_column else {})
    for column in columns:
        _check_input(name, wanted.task, column, rows.features[column])
    rows = rows.select_columns([*columns]).rename_columns(columns)
    if wanted.task == "image":
        from datasets import Image

        rows = rows.cast_column("input", Image(decode=False))
    cells = zip(*(rows[column] for column in columns.values()), strict=True)
    kept = [
        row
        for row, (inputs, label) in enumerate(zip(cells, labels, strict=True))
        if label is not None and all(cell is not None and (wanted.task == "image" or cell.strip()) for cell in inputs)
    ]
    whole = _Part(rows, labels)
    return whole if len(kept) == len(labels) else whole.select(kept)


def _check_input(name: str, task: str, column: str, feature: Any) -> None:
    from datasets import Image

    held = str(getattr(feature, "dtype", None) or type(feature).__name__)
    if task == "text" and held not in ("string", "large_string"):
        raise FinetuneError(f"{name}: text column '{column}' holds {held}, not text")
    if task == "image" and not isinstance(feature, Image):
        raise FinetuneError(f"{name}: image column '{column}' holds {held}, not images")


def _check_enough(name: str, wanted: Wanted, whole: int, read: int) -> None:
    if whole < 2 <= read:
        raise FinetuneError(
            f"{name}: {read - whole} of {read} rows have no {wanted.task} in '{wanted.input_column}' or no "
            f"label in '{wanted.label_column}'; at least 2 that have both are needed"
        )
    if whole < 2:
        raise FinetuneError(f"{whole} training rows are too few; at least 2 are needed")


# --- rows ------------------------------------------------------------------------------------------------------------


def _held_out(rows: _Part, eval_size: int) -> tuple[_Part, _Part]:
    """Training rows and report rows of data that have no split for them; every label keeps a row to train on."""
    total = len(rows.labels)
    count = min(eval_size, max(1, int(total * HELD_OUT_SHARE)))
    order = _order(rows)
    if rows.keys is not None:
        last = {rows.keys[row]: row for row in order}  # the last of each label is held out after all others
        order = [row for row in order if last[rows.keys[row]] != row] + [*last.values()]
    held = set(order[:count])
    return rows.select([row for row in order if row not in held]), rows.select(order[:count])


def _picked(rows: _Part, size: int | None) -> _Part:
    """At most `size` rows, one of each label at least where there is room for all."""
    if size is None or size >= len(rows.labels):
        return rows
    order = _order(rows)
    taken = order[:size]
    if rows.keys is not None and len(set(rows.keys)) <= size:
        keys, counts = rows.keys, Counter(rows.keys[row] for row in taken)
        for row in order[size:]:
            if counts[keys[row]]:
                continue
            spare = next(place for place in reversed(range(size)) if counts[keys[taken[place]]] > 1)
            counts[keys[taken[spare]]] -= 1
            counts[keys[row]] += 1
            taken[spare] = row
    return rows.select(taken)


def _order(rows: _Part) -> list[int]:
    """Row numbers in a random order whose every prefix has the shares of the labels, or any order without keys."""
    from datasets import Dataset

    if rows.keys is not None:
        return balanced_order(rows.keys, SPLIT_SEED)
    numbered = Dataset.from_dict({"row": range(len(rows.labels))})
    return list(numbered.shuffle(seed=SPLIT_SEED)["row"])


def _readable(wanted: Wanted, train: _Part, report: _Part) -> tuple[_Part, _Part, int, int]:
    """Both sets without images that cannot be read, how many these were, all named, and how many have 16 bits."""
    looks = [looked_over(part.rows["input"]) for part in (train, report)]
    found, deep = [bad for bad, _ in looks], sum(len(rows) for _, rows in looks)
    reasons = [reason for part in found for reason in part.values()]
    if not reasons:
        return train, report, 0, deep
    said = f"{len(reasons)} of {len(train.labels) + len(report.labels)} images cannot be read: {some(reasons)}"
    if not wanted.skip_unreadable:
        raise FinetuneError(f"{said}; mend or remove them, or leave them out with --skip-unreadable")
    kept = [
        part.select([row for row in range(len(part.labels)) if row not in bad])
        for part, bad in zip((train, report), found, strict=True)
    ]
    if not all(part.labels for part in kept):
        raise FinetuneError(f"{said}; none are left")
    logger.warning("%s; they are left out", said)
    return kept[0], kept[1], len(reasons), deep
