"""From the benchmark's rows to scores: ruin, harm, regret to tuned linear, accuracy, seconds, steps to a target.

Every function takes rows as they are; which rows count is the plan's affair. A run that ended in an error, or in a
loss that is not finite, came apart: it is ruined, and its regret is the worst there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .rows import Row
from .stats import Array

if TYPE_CHECKING:
    from .tasks import Task

RULE, DEFAULT, TUNED = "rule", "default", "tuned linear"
"""The rule of thumb, `Trainer` as it comes, and the better of the tuned linear schedules with and without warm-up."""
RUIN, HARM, TARGET = 0.10, 0.02, 0.02
"""A loss so much above `rule`'s is ruin, above the same seed's is harm, above tuned linear's is on target."""
WORST = math.log(100)
"""Regret of a run that came apart, where the scale ends on both sides."""
FLOOR = 0.01
"""A loss below this share of the best constant answer's counts as that: once a task is solved, ratios say nothing."""
SHARES = ("classes", "tokens", "language", "pairs")
"""Objectives whose metric is a share of right answers."""
Flags = NDArray[np.bool_]


# --- losses -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How losses of a task are compared: by ratios; those of densities, which may be negative, by nats."""

    nats: bool = False
    floor: float = 0.0  # a smaller loss counts as this one, unless they are compared by nats

    def level(self, loss: ArrayLike) -> Array:
        """Losses on the scale on which they are compared; infinite for what came apart."""
        losses = np.asarray(loss, dtype=np.float64)
        whole = np.where(np.isfinite(losses), losses, math.inf)
        if self.nats:
            return whole
        if (whole < 0).any():
            raise ValueError(f"a loss that is compared by ratios is never negative, but one is {whole.min()}")
        with np.errstate(divide="ignore"):
            return np.log(np.maximum(whole, self.floor))

    def excess(self, loss: ArrayLike, reference: ArrayLike) -> Array:
        """How far a loss lies above another: ln of their ratio, for densities nats; compare `margin`.

        What came apart (no finite loss) lies infinitely far above what did not, and level with its like.
        """
        mine, other = np.broadcast_arrays(self.level(loss), self.level(reference))
        with np.errstate(invalid="ignore"):
            return np.where(mine == other, 0.0, mine - other)

    def margin(self, share: float) -> float:
        """The excess of a loss that is larger by a share; for densities by as many nats."""
        return share if self.nats else math.log1p(share)

    def centre(self, loss: ArrayLike) -> float:
        """Mean of the runs that did not come apart, geometric unless by nats; infinite without one."""
        levels = self.level(loss)
        mean = float(levels[np.isfinite(levels)].mean()) if np.isfinite(levels).any() else math.inf
        return mean if self.nats else math.exp(mean)


def measured(rows: Sequence[Row], what: str) -> Array:
    """A measurement of every run; NaN of one that has none."""
    return np.array([math.nan if (value := row.get(what)) is None else float(value) for row in rows])


def points_in(task: Task) -> str:
    """The measurement that points are hundredths of; empty where the metric is no share of right answers.

    Where classes are of different size whoever answers the largest is often right, so there it is macro-F1.
    """
    if task.objective not in SHARES:
        return ""
    return "test_metric" if task.imbalance == 1.0 else "test_macro_f1"


# --- a method on a task -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskRows:
    """A task's rows: of every method that has all runs that count, and of the tuning of schedules."""

    task: Task
    wanted: Sequence[str]  # the methods that are to run on it
    reference: tuple[str, float] | None  # tuned linear: schedule and learning rate
    counted: Mapping[str, Sequence[Row]]  # by method, a row for each seed; `TUNED` among them
    tuning: Mapping[str, Mapping[float, Sequence[Row]]]  # by schedule and learning rate

    @property
    def complete(self) -> bool:
        """Whether scores can be had: all of them are against tuned linear and `rule`."""
        # A task on which all of `rule`'s runs come apart stays: that is what is asked of it.
        return RULE in self.counted and TUNED in self.counted and math.isfinite(self.centre(TUNED))

    @cached_property
    def scale(self) -> Scale:
        """How its losses are compared."""
        return Scale(self.task.objective == "density", FLOOR * self.constant("chance_loss"))

    def constant(self, what: str) -> float:
        """A measurement that is the same in all its rows, but for runs that ended in an error."""
        return next((float(row[what]) for rows in self.counted.values() for row in rows if what in row), math.nan)

    def centre(self, method: str, what: str = "test_loss") -> float:
        """A method's mean loss."""
        return self.scale.centre(measured(self.counted[method], what))

    def all(self) -> list[Row]:
        """Every row, each once: tuned linear's are those of a schedule."""
        counted = [row for name, rows in self.counted.items() if name != TUNED for row in rows]
        return counted + [row for by_lr in self.tuning.values() for rows in by_lr.values() for row in rows]


@dataclass(frozen=True)
class Ruin:
    """Which runs are ruined, in three ways."""

    ended_worse: Flags  # validation loss above that before the first update, or a loss that is not finite
    at_chance: Flags  # as the best constant answer, where tuned linear is better than that
    above_rule: Flags  # loss more than a tenth above `rule`'s mean

    @property
    def any(self) -> Flags:
        """In any of them."""
        return self.ended_worse | self.at_chance | self.above_rule


def ruin(rows: Sequence[Row], of: TaskRows, split: str = "test") -> Ruin:
    """Ruin by the test rows, or by the `valid`ation rows of tuning.

    Whether a run ended worse than it began is seen on the validation rows in any case, as the loss before the first
    update is theirs: test rows may be a little harder, and a run that learned little is not ruined by that.
    """
    scale, loss, chance = of.scale, measured(rows, f"{split}_loss"), beyond_chance(of, split)
    learned = _mean(of.counted[TUNED], f"{split}_metric") > chance
    return Ruin(
        ended_worse=~np.isfinite(loss) | (measured(rows, "valid_loss") > measured(rows, "first_loss")),
        at_chance=learned & (measured(rows, f"{split}_metric") <= chance),
        above_rule=scale.excess(loss, of.centre(RULE, f"{split}_loss")) > scale.margin(RUIN),
    )


def beyond_chance(of: TaskRows, split: str = "test") -> float:
    """The metric of the best constant answer and one standard error: of a share, else of a normal variable's mean.

    The error is by the number of answers that were judged: rows, tokens or questions.
    """
    chance = of.constant("chance_metric")
    spread = math.sqrt(chance * (1 - chance)) if of.task.objective in SHARES else 1.0
    return chance + spread / math.sqrt(of.constant(f"{split}_count"))


@dataclass(frozen=True)
class Cell:
    """A method on a task; arrays have a value for each seed."""

    loss: Array  # of the test rows
    regret: Array  # clipped excess over tuned linear's mean
    ruin: Ruin
    harm: Mapping[str, Flags]  # loss more than 2 % above that of `RULE`, `DEFAULT` with the same seed
    points: float  # mean of `points_in` minus tuned linear's, in hundredths; NaN where there is none
    seconds: float  # CPU seconds over tuned linear's, medians
    target: Array  # share of the run until tuned linear's last validation loss is met; infinite for a miss


def cell(rows: Sequence[Row], of: TaskRows) -> Cell:
    """A method's scores from its rows."""
    scale, tuned, loss = of.scale, of.counted[TUNED], measured(rows, "test_loss")
    against = {name: of.counted[name] for name in (RULE, DEFAULT) if name in of.counted}
    ends = [row["valid_curve"][-1][1] for row in tuned if row.get("valid_curve")]
    metric = points_in(of.task)
    return Cell(
        loss=loss,
        regret=np.clip(scale.excess(loss, of.centre(TUNED)), -WORST, WORST),
        ruin=ruin(rows, of),
        harm={
            name: scale.excess(loss, measured(other, "test_loss")) > scale.margin(HARM)
            for name, other in against.items()
        },
        points=100 * (_mean(rows, metric) - _mean(tuned, metric)),
        seconds=_middle(rows, "cpu_seconds") / _middle(tuned, "cpu_seconds"),
        target=np.array([_met(row, ends, scale) for row in rows]),
    )


def chance_harm(of: TaskRows) -> float:
    """Share of pairs of `RULE`'s runs with other seeds in which the first is above the second as far as harm is."""
    loss = measured(of.counted[RULE], "test_loss")
    above = of.scale.excess(loss[:, None], loss) > of.scale.margin(HARM)
    return float(above.sum() / (len(loss) * (len(loss) - 1))) if len(loss) > 1 else math.nan


def _mean(rows: Sequence[Row], what: str) -> float:
    """Mean of the runs that have it; NaN where none does."""
    values = measured(rows, what)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.nan


def _middle(rows: Sequence[Row], what: str) -> float:
    values = measured(rows, what)
    return float(np.nanmedian(values)) if np.isfinite(values).any() else math.nan


def _met(row: Row, ends: Sequence[float | None], scale: Scale) -> float:
    """Share of the run until a point of the validation curve is on target, even if the run falls apart later.

    Curves are of fewer rows than the final validation loss, so the target is where tuned linear's curves end.
    """
    curve: Sequence[Sequence[Any]] = row.get("valid_curve") or ()
    if not curve or not ends:
        return math.inf
    level = float(np.median([math.inf if loss is None else loss for loss in ends]))
    losses = [math.inf if loss is None else loss for _, loss in curve]
    met = np.isfinite(losses) & (scale.excess(losses, level) <= scale.margin(TARGET))
    return min((step / row["updates"] for (step, _), there in zip(curve, met, strict=True) if there), default=math.inf)


# --- tuning -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuning:
    """What a schedule's tuning on a task showed, by learning rate in rising order."""

    lrs: tuple[float, ...]
    losses: Array  # (learning rates, seeds), of the validation rows; infinite where a run came apart
    best: float
    good: tuple[float, float]  # from the lowest to the highest rate around the best with a loss within 2 % of its
    ruin: float  # lowest rate above the best at which half the runs are ruined; infinite where none is
    seconds: float  # CPU seconds of all these runs


def tuning(of: TaskRows, schedule: str) -> Tuning | None:
    """A schedule's tuning curve; None where there is none, or all of it came apart."""
    found, scale = of.tuning.get(schedule) or {}, of.scale
    lrs = sorted(found)
    losses = [np.nan_to_num(measured(found[lr], "valid_loss"), nan=math.inf) for lr in lrs]
    levels = [float(scale.level(loss).mean()) for loss in losses]
    at = int(np.argmin(levels)) if lrs else 0
    if not lrs or not math.isfinite(levels[at]):
        return None
    near = [level - levels[at] <= scale.margin(HARM) for level in levels]
    low = max((i + 1 for i in range(at) if not near[i]), default=0)
    high = min((i - 1 for i in range(at, len(lrs)) if not near[i]), default=len(lrs) - 1)
    ruined = (lr for lr in lrs[at + 1 :] if ruin(found[lr], of, "valid").any.mean() >= 0.5)
    seconds = sum(float(np.nansum(measured(rows, "cpu_seconds"))) for rows in found.values())
    return Tuning(tuple(lrs), np.array(losses), lrs[at], (lrs[low], lrs[high]), next(ruined, math.inf), seconds)
