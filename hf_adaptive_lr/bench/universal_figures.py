"""What the yardstick's rows say about `universal`, as numbers: accuracy by initial learning rate, pairs, harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .runner import Row
from .stat_compare import Estimate, hierarchical_bootstrap
from .stat_runs import Array, harm_rate, iqm
from .yardstick_methods import METHODS
from .yardstick_plan import DEFAULT, Book, Profile, own_lr_runs, reference_runs, sweep_lrs, sweep_runs
from .yardstick_run import YardstickRun
from .yardstick_tasks import TASKS, RealTask, Task

MINE = "universal_bundled"
SHOWN = ("linear", "cosine", "prodigy", "schedule_free", MINE)
"""Methods of the table and the picture of initial learning rates."""


def real_tasks(profile: Profile) -> list[RealTask]:
    """The profile's real tasks."""
    return [task for name in profile.tasks if isinstance(task := TASKS[name], RealTask)]


@dataclass(frozen=True)
class Curve:
    """Test accuracy of a method on a task by initial learning rate."""

    lrs: tuple[float, ...]
    accuracy: tuple[float, ...]  # mean over seeds for each; a run that failed counts with what it reached


def curve(task: RealTask, method: str, profile: Profile, book: Book) -> Curve | None:
    """The curve, None while rows are missing."""
    runs = sweep_runs(task, METHODS[method], profile) if method in METHODS else []
    rows = [book.get(run) for run in runs]
    if not rows or any(row is None for row in rows):
        return None
    lrs = sweep_lrs(task, METHODS[method])
    found = np.array([_accuracy(row) for row in rows if row is not None]).reshape(len(lrs), -1).mean(1)
    return Curve(lrs, tuple(found.tolist()))


def _accuracy(row: Row) -> float:
    """Of a run that ended in an error 0: its model answers nothing."""
    value = row.get("test_accuracy")
    return 0.0 if value is None else float(value)


@dataclass(frozen=True)
class Pairs:
    """Two methods on the same tasks and seeds; arrays are (tasks, seeds)."""

    tasks: tuple[str, ...]
    mine: Array
    other: Array

    def difference(self) -> Estimate | None:
        """Mine minus the other's, with an interval over tasks and seeds; None for fewer than two tasks."""
        return hierarchical_bootstrap(self.mine - self.other) if len(self.tasks) > 1 else None

    def difference_text(self) -> str:
        """The difference as it stands in tables."""
        found = self.difference()
        return "-" if found is None else found.signed()


def pairs(
    tasks: Sequence[Task], other: str | None, what: str, profile: Profile, book: Book, *, mine: str = MINE
) -> Pairs:
    """All tasks on which both have all seeds of "test_loss" or "test_accuracy".

    `other` is the name of a method at its default learning rate, None for the tuned linear schedule.
    """
    names, left, right = [], [], []
    for task in tasks:
        ours = _values(own_lr_runs(task, METHODS[mine], profile, book), what, book) if mine in METHODS else None
        runs = (
            reference_runs(task, profile, book) if other is None else own_lr_runs(task, METHODS[other], profile, book)
        )
        theirs = _values(runs, what, book)
        if ours is not None and theirs is not None:
            names.append(task.name)
            left.append(ours)
            right.append(theirs)
    return Pairs(tuple(names), np.array(left), np.array(right))


def _values(runs: Sequence[YardstickRun], what: str, book: Book) -> list[float] | None:
    rows = [book.get(run) for run in runs]
    if not rows or any(row is None for row in rows):
        return None
    if what == "test_accuracy":
        return [_accuracy(row) for row in rows if row is not None]
    values = [row.get(what) for row in rows if row is not None]
    return [math.inf if value is None else float(value) for value in values]


def log_ratio(found: Pairs) -> Array:
    """ln(mine / other's), a loss that is not finite counting as a hundred times the other's."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(found.mine / found.other)
    worst = math.log(100)
    out: Array = np.clip(np.nan_to_num(ratio, nan=worst, posinf=worst, neginf=-worst), -worst, worst)
    return out


def improved_by(found: Pairs, share: float = 0.05) -> int:
    """Number of tasks whose interquartile mean of the loss is lower by at least this share."""
    return int(sum(float(iqm(row[None])) <= math.log(1 - share) for row in log_ratio(found)))


def improvement(found: Pairs) -> float:
    """Probability that a run of mine has the lower loss, the same seed of both compared, ties counting half."""
    return float(np.mean((found.mine < found.other) + 0.5 * (found.mine == found.other)))


def harm(tasks: Sequence[Task], profile: Profile, book: Book) -> tuple[float, int]:
    """Share of the pairs that are more than 2 % worse than cosine at its default, and the number of pairs."""
    found = pairs(tasks, DEFAULT.name, "test_loss", profile, book)
    if not found.tasks:
        return math.nan, 0
    return harm_rate(found.mine, found.other, 0.02, lower_is_better=True), found.mine.size


def summary(curves: Mapping[str, Curve]) -> tuple[float, float, float]:
    """Mean over all learning rates, of the best and of the worst, each a mean over tasks."""
    values = [np.array(each.accuracy) for each in curves.values()]
    return (
        float(np.mean([v.mean() for v in values])),
        float(np.mean([v.max() for v in values])),
        float(np.mean([v.min() for v in values])),
    )
