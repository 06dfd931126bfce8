"""From rows to scores: what the yardstick's tables and plots are made of, without a word of Markdown.

A run that ended in an error, or in a loss that is not finite, is a NaN here and counts as the worst there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .runner import Row
from .stat_compare import Difference, holm, paired_difference
from .stat_runs import log_regret, steps_to_target
from .stat_scores import Array
from .yardstick_methods import METHODS, Method
from .yardstick_plan import (
    DEFAULT,
    PRIMARY,
    Book,
    Profile,
    own_lr_runs,
    reference_runs,
    sweep_lrs,
    sweep_runs,
    tuned_lr,
    tuning_runs,
)
from .yardstick_run import YardstickRun
from .yardstick_tasks import Task

TARGET = 1.02
"""The target of steps and seconds: the reference's median final validation loss, times this."""


@dataclass(frozen=True)
class Reference:
    """The tuned linear schedule on a task.

    Args:
        lr: its learning rate.
        at_edge: whether it is the smallest or largest that was tried.
        test_loss: geometric mean over the seeds that count.
        target: validation loss to be reached.
        seconds: mean over the seeds.
        tuning_runs: number of runs that chose it.
    """

    lr: float
    at_edge: bool
    test_loss: float
    target: float
    seconds: float
    tuning_runs: int


@dataclass(frozen=True)
class Scores:
    """A method on the tasks of the self-tuning track that it has all rows of; arrays are (tasks, seeds).

    Args:
        tasks: names.
        test_loss: NaN for a failed run.
        first_loss: validation loss before the first update.
        valid_loss: the last one.
        regret: clipped log-regret.
        steps: share of the run until the target; infinite for a miss.
        seconds: until the target; infinite for a miss.
        cost: seconds of the whole run over the reference's.
    """

    tasks: tuple[str, ...]
    test_loss: Array
    first_loss: Array
    valid_loss: Array
    regret: Array
    steps: Array
    seconds: Array
    cost: Array

    def part(self, tasks: Sequence[str]) -> Scores:
        """The same on some of the tasks, in their order."""
        at = [self.tasks.index(task) for task in tasks]
        arrays = (getattr(self, name) for name in list(Scores.__dataclass_fields__)[1:])
        return Scores(tuple(tasks), *(array[at] for array in arrays))


class Results:
    """What a comparison has come to.

    Args:
        tasks: what is compared on.
        methods: what is compared.
        profile: how much was to run.
        book: the rows.
    """

    def __init__(self, tasks: Sequence[Task], methods: Sequence[Method], profile: Profile, book: Book) -> None:
        self.profile, self.book = profile, book
        self.references = {t.name: r for t in tasks if (r := self._reference(t)) is not None}
        self.tasks = [task for task in tasks if task.name in self.references]
        self.methods = list({m.name: m for m in (DEFAULT, *methods)}.values())
        found = {method.name: self._scores(method) for method in self.methods}
        self.scores = {name: scores for name, scores in found.items() if scores is not None}

    def _rows(self, runs: Sequence[YardstickRun]) -> list[Row] | None:
        """The rows of runs, None when there are no runs or one is missing."""
        rows = [self.book.get(run) for run in runs]
        return None if not rows or any(row is None for row in rows) else [row for row in rows if row is not None]

    def _reference(self, task: Task) -> Reference | None:
        lr = tuned_lr(task, self.profile, self.book)
        rows = self._rows(reference_runs(task, self.profile, self.book))
        if lr is None or rows is None:
            return None
        tried = task.lrs[:: self.profile.tuning_stride]
        losses = np.array([number(row, "test_loss") for row in rows])
        if not (np.isfinite(losses) & (losses > 0)).all():
            return None
        loss = float(np.exp(np.log(losses).mean()))
        target = TARGET * float(np.median([number(row, "valid_loss") for row in rows]))
        seconds = float(np.mean([number(row, "seconds") for row in rows]))
        return Reference(lr, lr in (tried[0], tried[-1]), loss, target, seconds, len(tuning_runs(task, self.profile)))

    def own_rows(self, task: Task, method: Method) -> list[Row] | None:
        """The self-tuning track's rows, None when there are none or one is missing."""
        if not method.fits(task):
            return None
        return self._rows(own_lr_runs(task, method, self.profile, self.book))

    def _scores(self, method: Method) -> Scores | None:
        found = {task.name: rows for task in self.tasks if (rows := self.own_rows(task, method)) is not None}
        if not found:
            return None
        refs = [self.references[name] for name in found]
        test, first, last, seconds = (
            np.array([[number(row, what) for row in rows] for rows in found.values()])
            for what in ("test_loss", "first_loss", "valid_loss", "seconds")
        )
        steps = np.array(
            [[_share(row, ref.target) for row in rows] for rows, ref in zip(found.values(), refs, strict=True)]
        )
        loss = np.array([[ref.test_loss] for ref in refs])
        base = np.array([[ref.seconds] for ref in refs])
        # A run without seconds ended in an error; it has reached nothing.
        spent = np.where(np.isfinite(steps), steps * np.nan_to_num(seconds, nan=math.inf), math.inf)
        return Scores(tuple(found), test, first, last, log_regret(test, loss), steps, spent, seconds / base)

    # --- comparisons ----------------------------------------------------------------------------------------------

    def pair(self, name: str, other: str = DEFAULT.name) -> tuple[Scores, Scores] | None:
        """Two methods on the tasks that both have; None where there is none."""
        mine, base = self.scores.get(name), self.scores.get(other)
        if mine is None or base is None:
            return None
        common = [task for task in mine.tasks if task in base.tasks]
        return (mine.part(common), base.part(common)) if common else None

    def primary(self) -> dict[str, Difference]:
        """The primary endpoint: differences of mean regret from the default, corrected for their number."""
        named = [*PRIMARY, *(method.name for method in self.methods if method.name not in METHODS)]
        found = {}
        for name in named:
            pair = self.pair(name)
            if pair is not None and len(pair[0].tasks) > 1:
                found[name] = paired_difference(pair[0].regret, pair[1].regret)
        adjusted = holm({name: difference.p for name, difference in found.items()})
        return {name: _with(difference, adjusted[name]) for name, difference in found.items()}

    def sweep(self, task: Task, method: Method) -> tuple[tuple[float, ...], Array, float] | None:
        """Learning rates, test losses of shape (learning rates, seeds), and the mean loss before the first update."""
        if not method.fits(task):
            return None
        rows = self._rows(sweep_runs(task, method, self.profile))
        if rows is None:
            return None
        lrs = sweep_lrs(task, method)
        losses = np.array([number(row, "test_loss") for row in rows]).reshape(len(lrs), -1)
        first = [number(row, "first_loss") for row in rows]
        return lrs, losses, float(np.nanmean(first)) if np.isfinite(first).any() else math.nan


def _with(difference: Difference, adjusted: float) -> Difference:
    from dataclasses import replace

    return replace(difference, p_adjusted=adjusted)


def number(row: Row, what: str) -> float:
    """A measurement; NaN when the run has none, ended in an error, or came apart before its end."""
    value: Any = row.get(what)
    return math.nan if value is None else float(value)


def _share(row: Row, target: float) -> float:
    """Share of the run until the target was first met."""
    points = row.get("valid_curve")
    if not points:
        return math.inf
    values = [math.nan if loss is None else loss for _, loss in points]
    # Step 0 would be no time at all, and a ratio of times could not be had.
    steps = [max(step, 0.5) / row["updates"] for step, _ in points]
    return float(steps_to_target(values, target, lower_is_better=True, steps=steps))


def best_so_far(points: Sequence[Sequence[Any]]) -> list[tuple[int, float]]:
    """A curve's running minimum; points that are not finite change nothing.

    Example:
        >>> best_so_far([(0, 2.0), (5, 3.0), (9, None)])
        [(0, 2.0), (5, 2.0), (9, 2.0)]
    """
    out, best = [], math.inf
    for step, loss in points:
        best = best if loss is None or not math.isfinite(loss) else min(best, loss)
        out.append((step, best))
    return out
