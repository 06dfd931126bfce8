"""From losses and curves to scores, and many runs in one number.

Scores are arrays of shape (tasks, seeds). Runs fail: they end in NaN, or never reach the target. Every function says
how such a run counts; none drops it. Whoever has a NaN must first say what it counts as (`log_regret` does);
infinities are the best or the worst score, by their sign. A task with fewer seeds than the others has failed runs or
has not been run, so there is no way to leave a place empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Statistic = Callable[[Array], Array]
"""Reduces the last two axes, tasks and seeds, and keeps those before them: a bootstrap sends all its draws at once."""
WORST = math.log(100)
"""Log-regret of a failed run: a loss a hundred times the reference's, where the scale ends."""


def _runs(scores: ArrayLike) -> Array:
    """Checked scores of shape (..., tasks, seeds)."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"scores have the shape (tasks, seeds), at least one of each, not {array.shape}")
    if np.isnan(array).any():
        raise ValueError("scores hold NaN: say first what a failed run counts as, see stat_runs.log_regret")
    if np.isposinf(array).any() and np.isneginf(array).any():
        raise ValueError("scores hold infinities of both signs")  # they have no mean
    return array


def matrix(scores: ArrayLike) -> Matrix:
    """One method's scores, checked: of shape (tasks, seeds), no NaN, no infinities of both signs."""
    array = _runs(scores)
    if array.ndim != 2:
        raise ValueError(f"scores have the shape (tasks, seeds), not {array.shape}")
    return array.reshape(array.shape[0], array.shape[1])


def mean(scores: ArrayLike) -> Array:
    """Mean over tasks and seeds, the last two axes; one infinite run makes it infinite."""
    array = _runs(scores)
    return np.asarray(array.reshape(*array.shape[:-2], -1).mean(-1))


def iqm(scores: ArrayLike) -> Array:
    """Interquartile mean over all runs of all tasks (Agarwal et al. 2021, arXiv 2108.13264; `rliable`).

    Of n runs the int(n / 4) lowest and as many of the highest are left out, as in `scipy.stats.trim_mean`. What the
    worst quarter of the runs did is thus not in it: report `failure_rate` and `harm_rate` beside it. It is infinite
    when more than a quarter of the runs are.
    """
    array = _runs(scores)
    runs = np.sort(array.reshape(*array.shape[:-2], -1), axis=-1)
    cut = runs.shape[-1] // 4
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(-1))


# --- losses -------------------------------------------------------------------------------------------------------


def log_regret(loss: ArrayLike, reference_loss: ArrayLike, worst: float = WORST) -> Array:
    """ln(loss / reference loss): 0 is as good as the reference, 0.01 is 1 % worse; lower is better.

    Losses that are not finite count as `worst`; others are clipped to [-worst, worst], so that no run which came
    through is worse than one which did not. Shapes broadcast, such as (tasks, 1) for the reference.
    """
    losses, reference = np.asarray(loss, dtype=np.float64), np.asarray(reference_loss, dtype=np.float64)
    if not (np.isfinite(reference).all() and (reference > 0).all()):
        raise ValueError("reference losses must be positive and finite")
    if not 0 < worst < math.inf:
        raise ValueError(f"worst must be positive and finite, not {worst}")
    came_through = np.isfinite(losses)
    if (losses[came_through] < 0).any():
        raise ValueError("log-regret is for losses that are not negative")
    with np.errstate(divide="ignore"):  # a loss of 0 is at the other end of the scale
        regret = np.log(np.where(came_through, losses, 1.0)) - np.log(reference)
    return np.where(came_through, np.clip(regret, -worst, worst), worst)


def failure_rate(loss: ArrayLike, initial: ArrayLike = math.inf) -> float:
    """Share of the runs that ended non-finite or above their initial loss; an infinite one asks for finite losses."""
    losses, before = np.asarray(loss, dtype=np.float64), np.asarray(initial, dtype=np.float64)
    if not losses.size or np.isnan(before).any():
        raise ValueError("a failure rate needs runs, and initial losses that are not NaN")
    return float(np.mean(~np.isfinite(losses) | (losses > before)))


def harm_rate(a: ArrayLike, b: ArrayLike, margin: float = 0.02, *, lower_is_better: bool) -> float:
    """Share of the pairs of runs in which a is worse than b by more than a margin, relative to the size of b's value.

    A run of a that is not finite failed: harm, unless b failed too. Where b failed and a did not, there is no harm.
    """
    mine, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if mine.shape != other.shape or not mine.size:
        raise ValueError(f"pairs of runs need two arrays of one shape, not {mine.shape} and {other.shape}")
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, not {margin}")
    failed = ~np.isfinite(mine)
    both = ~failed & np.isfinite(other)
    worse = np.subtract(mine, other, out=np.zeros(mine.shape), where=both) * (1 if lower_is_better else -1)
    beyond = worse > margin * np.abs(np.where(both, other, 0.0))
    return float(np.mean((both & beyond) | (failed & np.isfinite(other))))


# --- learning rates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sensitivity:
    """How much a method's initial learning rate matters; fields have the shape of the losses without its last axis."""

    own_width: Array  # decades of learning rates that are as good as the method's own best, within the tolerance
    reference_width: Array  # decades that are as good as the reference, within the tolerance; 0 when none is
    mean_excess: Array  # mean over the grid of the loss beyond the method's own best (arXiv 2309.14322)


def lr_sensitivity(
    lrs: ArrayLike, losses: ArrayLike, *, initial: ArrayLike, reference: ArrayLike, tolerance: float = 0.05
) -> Sensitivity:
    """How much worse a method becomes when its learning rate is not the best one.

    The loss is taken to be linear in log LR between neighbours of the grid. A width is the length in log10 LR of the
    part of the curve at or below (1 + tolerance) x best; if that is in pieces they are added up. No width goes beyond
    the grid, so one that fills it says "at least". The best of a method is the lowest point of its curve; one that is
    nowhere better than the initial loss has none: its own width is 0, and its excess is infinite.

    Losses have the shape (..., points). Those that are not finite, or worse than `initial`, count as this in the
    excess; in the widths nothing up to the neighbours of a point that is not finite counts as good. The excess weighs
    points alike, whatever lies between. `reference` is the loss of a tuned method at its best learning rate.
    """
    grid, values = np.asarray(lrs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    start, other = np.asarray(initial, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if grid.ndim != 1 or len(grid) < 2 or not (grid > 0).all() or not (np.diff(grid) > 0).all():
        raise ValueError(f"learning rates must be positive and rising, at least two, not {grid}")
    if values.shape[-1:] != grid.shape:
        raise ValueError(f"{len(grid)} learning rates need as many losses, not {values.shape}")
    if not tolerance >= 0 or (values[np.isfinite(values)] < 0).any():
        raise ValueError("neither losses nor tolerance may be negative")
    if not all(np.isfinite(x).all() and (x >= 0).all() for x in (start, other)):
        raise ValueError("initial loss and reference must be finite and not negative")
    finite = np.isfinite(values)
    best = np.where(finite, values, math.inf).min(-1)
    learned = best < start  # otherwise all points would count as the initial loss: not sensitive in the least
    capped = np.minimum(np.where(finite, values, math.inf), start[..., None])
    excess = np.where(learned[..., None], capped - capped.min(-1, keepdims=True), math.inf)
    at = np.log10(grid)
    return Sensitivity(
        own_width=np.where(learned, _width(at, values, (1 + tolerance) * best), 0.0),
        reference_width=_width(at, values, (1 + tolerance) * other),
        mean_excess=np.asarray(excess.mean(-1)),
    )


def _width(at: Array, values: Array, level: Array) -> Array:
    """Length in `at` of the part of the curve at or below a level; segments with an end that is not finite are out."""
    finite = np.isfinite(values)
    whole = finite[..., 1:] & finite[..., :-1]
    filled = np.where(finite, values, 0.0)
    rise = np.abs(np.diff(filled, axis=-1))
    room = np.asarray(level)[..., None] - np.minimum(filled[..., 1:], filled[..., :-1])
    rise, room = np.broadcast_arrays(rise, room)
    with np.errstate(over="ignore"):  # a hair's breadth of a rise
        share = np.divide(room, rise, out=np.where(room >= 0, 1.0, 0.0), where=rise > 0)
    return np.asarray((whole * np.clip(share, 0.0, 1.0) * np.diff(at)).sum(-1))
