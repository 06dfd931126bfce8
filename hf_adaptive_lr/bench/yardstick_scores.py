"""From the benchmark's rows to the scores that its tables and plots are made of.

A run that ended in an error, or in a loss that is not finite, is a NaN here and counts as the worst there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .rows import Row
from .stat_compare import Difference, corrected, paired_difference
from .stat_runs import Array, log_regret
from .yardstick_methods import METHODS, Method
from .yardstick_plan import (
    DEFAULT,
    PRIMARY,
    Book,
    Profile,
    budget_runs,
    changed_runs,
    is_variant,
    own_lr_runs,
    reference_runs,
    studies,
    sweep_lrs,
    sweep_runs,
    tuned_lr,
    tuning_runs,
)
from .yardstick_tasks import Task

TARGET = 1.02
"""The target of steps and seconds: the reference's median final validation loss, times this."""


@dataclass(frozen=True)
class Reference:
    """The tuned linear schedule on a task."""

    lr: float
    at_edge: bool  # whether it is the smallest or largest that was tried
    test_loss: float  # geometric mean over the seeds that count
    target: float  # validation loss to be reached
    seconds: float  # mean over the seeds
    tuning_runs: int  # number of runs that chose it


@dataclass(frozen=True)
class Scores:
    """A method on the tasks of the self-tuning track that it has all rows of; arrays are (tasks, seeds)."""

    tasks: tuple[str, ...]
    test_loss: Array  # NaN for a failed run
    first_loss: Array  # validation loss before the first update
    valid_loss: Array  # the last one
    regret: Array  # clipped log-regret
    steps: Array  # share of the run until the target; infinite for a miss
    seconds: Array  # until the target; infinite for a miss
    cost: Array  # seconds of the whole run over the reference's
    # Share of the run after which the best of all the reference's learning rates, chosen anew at every point of the
    # curve, has a validation loss as low as this run's last one; infinite when it never has.
    envelope: Array

    def part(self, tasks: Sequence[str]) -> Scores:
        """The same on some of the tasks, in their order."""
        at = [self.tasks.index(task) for task in tasks]
        arrays = (getattr(self, name) for name in list(Scores.__dataclass_fields__)[1:])
        return Scores(tuple(tasks), *(array[at] for array in arrays))


class Results:
    """The scores of a comparison, from its rows."""

    def __init__(self, tasks: Sequence[Task], methods: Sequence[Method], profile: Profile, book: Book) -> None:
        self.profile, self.book = profile, book
        self.references = {t.name: r for t in tasks if (r := self._reference(t)) is not None}
        there = [task for task in tasks if task.name in self.references]
        self.tasks = [task for task in there if not is_variant(task)]
        self.variants = [task for task in there if is_variant(task)]
        self.methods = list({m.name: m for m in (DEFAULT, *methods)}.values())
        self.scores, self.on_variants = self._all_scores(self.tasks), self._all_scores(self.variants)

    def _all_scores(self, tasks: Sequence[Task]) -> dict[str, Scores]:
        found = {method.name: self._scores(method, tasks) for method in self.methods}
        return {name: scores for name, scores in found.items() if scores is not None}

    def _reference(self, task: Task) -> Reference | None:
        lr = tuned_lr(task, self.profile, self.book)
        rows = self.book.all(reference_runs(task, self.profile, self.book))
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
        return self.book.all(own_lr_runs(task, method, self.profile, self.book)) if method.fits(task) else None

    def _scores(self, method: Method, tasks: Sequence[Task]) -> Scores | None:
        found = {task.name: rows for task in tasks if (rows := self.own_rows(task, method)) is not None}
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
        swept = [self._envelope(task) for task in tasks if task.name in found]
        envelope = np.array([[first_below(e, x) for x in row] for e, row in zip(swept, last, strict=True)])
        return Scores(tuple(found), test, first, last, log_regret(test, loss), steps, spent, seconds / base, envelope)

    def _envelope(self, task: Task) -> list[tuple[float, float]]:
        """Lowest loss so far of any of the reference's learning rates, mean over the seeds that tune, by share."""
        curves: dict[float, list[list[float]]] = {}
        for run in tuning_runs(task, self.profile):
            row = self.book.get(run) or {}
            if "valid_curve" in row:
                values = [math.inf if loss is None else loss for _, loss in row["valid_curve"]]
                curves.setdefault(run.lr, []).append(values)
                shares = [step / row["updates"] for step, _ in row["valid_curve"]]
        lowest = np.min([np.mean(same, axis=0) for same in curves.values()], axis=0)
        return best_so_far(list(zip(shares, lowest.tolist(), strict=True)))

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
        return corrected(found)

    def sweep(self, task: Task, method: Method) -> tuple[tuple[float, ...], Array, float] | None:
        """Learning rates, test losses of shape (learning rates, seeds), and the mean loss before the first update."""
        rows = self.book.all(sweep_runs(task, method, self.profile)) if method.fits(task) else None
        if rows is None:
            return None
        lrs = sweep_lrs(task, method)
        losses = np.array([number(row, "test_loss") for row in rows]).reshape(len(lrs), -1)
        first = [number(row, "first_loss") for row in rows]
        return lrs, losses, float(np.nanmean(first)) if np.isfinite(first).any() else math.nan

    def equal_budget(self, method: Method) -> Array | None:
        """Regret of each study's best trial by validation loss, of shape (tasks, studies); None without rows."""
        found = []
        for task in self.tasks:
            tuning = self.book.all(budget_runs(task, method, self.profile)) if method.fits(task) else None
            sweep = self.sweep(task, method)
            if tuning is None or sweep is None:
                continue
            valid = np.array([number(row, "valid_loss") for row in tuning]).reshape(len(sweep[0]), -1).mean(1)
            valid = np.nan_to_num(valid, nan=math.inf)
            best = [min(study, key=lambda trial: valid[trial]) for study in studies()]
            regret = log_regret(sweep[1], np.array([self.references[task.name].test_loss]))
            found.append(regret[best].mean(1))
        return np.array(found) if found else None

    def changed(self, method: Method, other: Method) -> Array:
        """Mean ln(test loss of `other` / that of the same seed undisturbed) by task, clipped as regret is."""
        ratios = []
        for task in self.tasks:
            found = self.book.all(changed_runs(task, [other], self.profile)) if method.fits(task) else None
            own = self.own_rows(task, method) if found else None
            if found is None or own is None:
                continue
            a, b = (np.array([number(row, "test_loss") for row in rows]) for rows in (found, own))
            both = np.isfinite(b) & (b > 0)  # what was lost undisturbed cannot be lost again
            if both.any():
                ratios.append(float(log_regret(a[both], b[both]).mean()))
        return np.array(ratios)


def number(row: Row, what: str) -> float:
    """A measurement; NaN when the run has none, ended in an error, or came apart before its end."""
    value: Any = row.get(what)
    return math.nan if value is None else float(value)


def _share(row: Row, target: float) -> float:
    """Share of the run until the target was first met."""
    points = row.get("valid_curve")
    if not points:
        return math.inf
    # Step 0 would be no time at all, and a ratio of times could not be had.
    return first_below([(max(step, 0.5) / row["updates"], loss) for step, loss in points], target)


def first_below(curve: Sequence[tuple[float, float | None]], level: float) -> float:
    """The first point at or below a level, as in AlgoPerf even if the run falls apart later; infinite without one."""
    return next((at for at, value in curve if value is not None and value <= level), math.inf)


def best_so_far(points: Sequence[Sequence[Any]]) -> list[tuple[Any, float]]:
    """A curve's running minimum; points that are not finite change nothing."""
    out, best = [], math.inf
    for step, loss in points:
        best = best if loss is None or not math.isfinite(loss) else min(best, loss)
        out.append((step, best))
    return out
