"""The data of a task as tensors: four disjoint parts, functions of the task alone, kept on disk.

What cannot be had raises `DemoDataError`, whose message ends with the command to get it; nothing is downloaded here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from ..artifacts import replace_file
from ..demo.data import balanced_order, cache_folder
from .encode import encoded
from .raw_rows import Raw
from .rows import digest
from .sources import SOURCES
from .tasks import ROWS_VERSION, Task

PARTS = ("train", "valid", "controller", "test")
FILES_VERSION = 2
"""Changes with the code that deals rows out, so that no file of rows from before is read."""
IGNORED = -100
"""Label of a token that counts nowhere."""

Batch = dict[str, Tensor]


class Rows(Dataset[Batch]):
    """Rows of tensors: `labels`, and arguments of the model."""

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, row: int) -> Batch:
        return {name: column[row] for name, column in self.columns.items()}

    def part(self, first: int, size: int) -> Rows:
        """`size` rows from row `first` on."""
        return Rows({name: column[first : first + size] for name, column in self.columns.items()})


def collate(rows: list[Batch]) -> Batch:
    """A batch of rows."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class Parts:
    """The four parts of a task's data, and what the best constant answer reaches on the test rows."""

    train: Rows
    valid: Rows
    controller: Rows
    test: Rows
    chance_loss: float
    chance_metric: float


@cache
def load(task: Task) -> Parts:
    """The data of a task; kept in memory once it was asked for."""
    file = cache_folder() / "bench" / f"rows-{_key(task)}.safetensors"
    if not file.exists():
        rows = _made(task)
        file.parent.mkdir(parents=True, exist_ok=True)
        flat = {f"{part} {name}": c.contiguous() for part, rows_ in rows.items() for name, c in rows_.columns.items()}
        replace_file(file, lambda draft: save_file(flat, draft))
    parts: dict[str, Batch] = {part: {} for part in PARTS}
    for name, column in load_file(file).items():
        part, column_name = name.split(" ")
        parts[part][column_name] = column
    train, valid, controller, test = (Rows(parts[part]) for part in PARTS)
    return Parts(train, valid, controller, test, *_chance(task, train, test))


def classes(task: Task) -> int:
    """Number of classes of a task: what its model answers with for a row, or for a token of it."""
    return len(task.topics) or SOURCES[task.data].classes


def _key(task: Task) -> str:
    training = (
        "batch_size",
        "updates",
        "optimizer",
        "momentum",
        "weight_decay",
        "max_grad_norm",
        "init_std",
        "frozen",
    )
    spec = {name: value for name, value in task.spec().items() if name not in training}
    return digest(spec | {"model": task.model_name, "version": ROWS_VERSION, "files": FILES_VERSION})


def _made(task: Task) -> dict[str, Rows]:
    """The parts out of the source's rows: dealt out, chosen, spoilt where the task says so, and encoded."""
    pool, test = (_windows(raw, task.tokens) if task.objective == "language" else raw for raw in _read(task.data))
    sizes = (task.train_rows, task.valid_rows, task.controller_rows)
    dealt = [pool.rows(numbers) for numbers in _deal(pool, sizes, task.split_seed)]
    dealt.append(test.rows(_order(test, task.split_seed)[: task.test_rows]))
    for part, raw, size in zip(PARTS, dealt, (*sizes, task.test_rows), strict=True):
        if len(raw) < size:
            raise ValueError(
                f"{task.data} has {len(raw)} rows for {part} of task {task.name!r}, which asks for {size}."
            )
    rows = encoded(task, dealt)
    parts = {part: _chosen(Rows(columns), task) for part, columns in zip(PARTS, rows, strict=True)}
    if task.shots:  # who has few rows for training has no more for a controller
        for part in ("train", "controller"):
            labels = parts[part].columns["labels"]
            parts[part] = _subset(parts[part], _at_most(labels, [task.shots] * classes(task)))
    train = parts["train"]
    if task.label_noise:
        train = Rows({**train.columns, "labels": corrupt(train.columns["labels"], task.label_noise, classes(task))})
    return _distinct(parts | {"train": train}) if not task.overlap else parts | {"train": train}


def _distinct(parts: dict[str, Rows]) -> dict[str, Rows]:
    """Without rows that the model could not tell from one of an earlier part: texts are the same once they are cut."""
    seen: set[bytes] = set()
    found = {}
    for part, rows in parts.items():
        inputs = [column.flatten(1).numpy() for name, column in sorted(rows.columns.items()) if name != "labels"]
        keys = [b"".join(column[row].tobytes() for column in inputs) for row in range(len(rows))]
        found[part] = _subset(rows, torch.tensor([key not in seen for key in keys]))
        seen.update(keys)
    return found


@cache
def _read(name: str) -> tuple[Raw, Raw]:
    return SOURCES[name].read()


def _order(raw: Raw, seed: int) -> list[int]:
    """Row numbers in an order whose every prefix has the class shares of the whole."""
    if raw.ordered and seed == 0:
        return list(range(len(raw)))
    return balanced_order([label if isinstance(label, int) else 0 for label in raw.labels], seed)


def _deal(pool: Raw, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Row numbers of each part: one after the other in the seed's order; with groups, whole groups to each."""
    if not pool.groups:
        order, ends = _order(pool, seed), list(accumulate(sizes, initial=0))
        return [order[first:last] for first, last in zip(ends, ends[1:], strict=False)]
    members: dict[str, list[int]] = {}
    for number in _order(pool, seed):
        members.setdefault(pool.groups[number], []).append(number)
    names, part_of = sorted(members), {}
    draw = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    # Of ten groups seven are for training, two for tuning and one for controllers, whatever their sizes.
    for place, group in enumerate(draw):
        part_of[names[group]] = (0, 0, 1, 0, 0, 2, 0, 1, 0, 0)[place % 10]
    dealt: list[list[int]] = [[], [], []]
    for number in _order(pool, seed):
        part = part_of[pool.groups[number]]
        if len(dealt[part]) < sizes[part]:
            dealt[part].append(number)
    return dealt


def _windows(raw: Raw, size: int) -> Raw:
    """Running text of every group, or text, cut into windows of `size` characters."""
    groups = raw.groups or [str(number) for number in range(len(raw))]
    joined: dict[str, list[str]] = {}
    for group, text in zip(groups, raw.inputs, strict=True):
        joined.setdefault(group, []).append(text)
    cut, names = [], []
    for group, texts in joined.items():
        text = "\n".join(texts).encode("ascii", "ignore").decode()
        cut += [text[first : first + size] for first in range(0, len(text) - size + 1, size)]
        names += [group] * (len(text) // size)
    return Raw(cut, [0] * len(cut), names)


def _chosen(rows: Rows, task: Task) -> Rows:
    """The rows of the task's topics, labelled by topic, and of each class as many as its imbalance allows."""
    if task.topics:
        topic = torch.full((SOURCES[task.data].classes,), -1)
        for number, labels in enumerate(task.topics):
            topic[list(labels)] = number
        rows = Rows({**rows.columns, "labels": topic[rows.columns["labels"]]})
        rows = _subset(rows, rows.columns["labels"] >= 0)
    if task.imbalance != 1.0:
        count = classes(task)
        most = int(torch.bincount(rows.columns["labels"], minlength=count).max())
        sizes = [round(most * task.imbalance ** (-k / (count - 1))) for k in range(count)]
        rows = _subset(rows, _at_most(rows.columns["labels"], sizes))
    return rows


def _subset(rows: Rows, kept: Tensor) -> Rows:
    return Rows({name: column[kept] for name, column in rows.columns.items()})


def _at_most(labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Which rows are among the first so many of their class."""
    kept = torch.zeros(len(labels), dtype=torch.bool)
    for label, size in enumerate(sizes):
        kept[(labels == label).nonzero().flatten()[:size]] = True
    return kept


def corrupt(labels: Tensor, share: float, classes: int) -> Tensor:
    """Labels of which a share, drawn with a fixed seed, is replaced by uniform draws from all classes."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(classes, labels.shape, generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, drawn, labels)


def _chance(task: Task, train: Rows, test: Rows) -> tuple[float, float]:
    """What the best answer that is the same for every row reaches on the test rows: loss and metric.

    The loss is of the best one to the training rows. The metric is the most that any can have, as whoever learned
    nothing may still have found out which answer is the most frequent.
    """
    if task.objective == "pairs":
        return math.log(task.batch_size), 1 / task.batch_size
    fitted, asked = (rows.columns["labels"].double() for rows in (train, test))
    if task.objective == "value":
        return float(((asked - fitted.mean()) ** 2).mean()), 0.0
    if task.objective == "density":
        return _normal_loss(fitted, asked), -_normal_loss(asked, asked)
    if task.objective == "language":
        fitted, asked = fitted[:, 1:], asked[:, 1:]  # the first token is not predicted
    fitted, asked = fitted.flatten().long(), asked.flatten().long()
    fitted, asked = fitted[fitted != IGNORED], asked[asked != IGNORED]
    counts = torch.bincount(fitted, minlength=256 if task.objective == "language" else classes(task)) + 1.0
    loss = -float((counts / counts.sum()).log()[asked].mean())
    return loss, float(torch.bincount(asked, minlength=1).max() / len(asked))


def _normal_loss(fitted: Tensor, asked: Tensor) -> float:
    """Nats per row of the normal density that fits some rows best, on others."""
    variance = fitted.var(correction=0)
    return float((0.5 * (asked - fitted.mean()) ** 2 / variance + 0.5 * torch.log(2 * math.pi * variance)).mean())
