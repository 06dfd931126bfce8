"""`universal` in the benchmark's rows, as numbers: accuracy by initial learning rate, pairs, harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .rows import Row
from .stat_compare import Estimate, hierarchical_bootstrap
from .stat_runs import Array, harm_rate, iqm
from .yardstick_methods import METHODS
from .yardstick_plan import DEFAULT, Book, Profile, own_lr_runs, reference_runs, sweep_lrs, sweep_runs
from .yardstick_tasks import TASKS, RealTask, Task

MINE = "universal_bundled"
Values = Sequence[float] | Array
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
    rows = book.all(sweep_runs(task, METHODS[method], profile)) if method in METHODS else None
    if rows is None:
        return None
    lrs = sweep_lrs(task, METHODS[method])
    found = np.array([figure(row, "test_accuracy") for row in rows]).reshape(len(lrs), -1).mean(1)
    return Curve(lrs, tuple(found.tolist()))


def figure(row: Row, what: str) -> float:
    """Test loss or accuracy of a run; the worst there is of one that ended in an error."""
    value = row.get(what)
    if value is None:
        return 0.0 if what == "test_accuracy" else math.inf
    return float(value)


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

    def values(task: Task, name: str | None) -> list[float] | None:
        if name is None:
            rows = book.all(reference_runs(task, profile, book))
        else:
            rows = book.all(own_lr_runs(task, METHODS[name], profile, book)) if name in METHODS else None
        return None if rows is None else [figure(row, what) for row in rows]

    return paired({task.name: (values(task, mine), values(task, other)) for task in tasks})


def paired(found: Mapping[str, tuple[Values | None, Values | None]]) -> Pairs:
    """Pairs on the tasks on which there are values of both."""
    there = {task: both for task, both in found.items() if both[0] is not None and both[1] is not None}
    return Pairs(tuple(there), *(np.array([both[side] for both in there.values()]) for side in (0, 1)))


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
    values = [each.accuracy for each in curves.values()]
    average, best, worst = (float(np.mean([of(v) for v in values])) for of in (np.mean, np.max, np.min))
    return average, best, worst
