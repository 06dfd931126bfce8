"""From losses and curves to scores: what is measured of every run, before anything is aggregated.

Runs fail: they end in NaN, or never reach the target. Every function says what such a run counts as; none drops it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .stat_scores import Array

WORST = math.log(100)
"""Log-regret of a failed run: a loss a hundred times the reference's, where the scale ends."""


def log_regret(loss: ArrayLike, reference_loss: ArrayLike, worst: float = WORST) -> Array:
    """ln(loss / reference loss): 0 is as good as the reference, 0.01 is 1 % worse; lower is better.

    Args:
        loss: any shape, not negative; non-finite ones count as `worst`. Others are clipped to [-worst, worst], so
            that no run which came through is worse than one which did not.
        reference_loss: of a shape that broadcasts, such as (tasks, 1); positive and finite.
        worst: the end of the scale, positive.

    Returns:
        Finite, of the common shape.

    Raises:
        ValueError: a negative loss, a reference that is not positive and finite, a worst that is not.

    Example:
        >>> log_regret([1.0, 2.0, float("nan")], 1.0).round(3).tolist()
        [0.0, 0.693, 4.605]
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
    """Share of the runs that ended non-finite or worse than they began.

    Args:
        loss: final losses, any shape, at least one; lower is better. Those that are not finite are failures.
        initial: losses before the first update, of a shape that broadcasts; infinity asks for finite losses only.

    Raises:
        ValueError: no runs, or an initial loss that is NaN.

    Example:
        >>> failure_rate([[0.3, float("nan")], [5.0, 0.2]], initial=2.3)
        0.5
    """
    losses, before = np.asarray(loss, dtype=np.float64), np.asarray(initial, dtype=np.float64)
    if not losses.size or np.isnan(before).any():
        raise ValueError("a failure rate needs runs, and initial losses that are not NaN")
    return float(np.mean(~np.isfinite(losses) | (losses > before)))


def harm_rate(a: ArrayLike, b: ArrayLike, margin: float = 0.02, *, lower_is_better: bool) -> float:
    """Share of the pairs of runs in which a is worse than b by more than a margin.

    Args:
        a: values of the method, shape (tasks, seeds). One that is not finite failed: harm, unless b failed too.
        b: values of what it is compared with, same shape. Where it failed and a did not, there is no harm.
        margin: relative to the size of b's value, at least 0.
        lower_is_better: of the values.

    Raises:
        ValueError: shapes differ or are empty, or a negative margin.

    Example:
        >>> harm_rate([[1.03, 1.01], [0.5, float("nan")]], [[1.0, 1.0], [1.0, 1.0]], lower_is_better=True)
        0.5
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


# --- steps to a target --------------------------------------------------------------------------------------------


def steps_to_target(
    curve: ArrayLike, target: ArrayLike, *, lower_is_better: bool, steps: ArrayLike | None = None
) -> Array:
    """Steps until a curve first meets its target; infinite when it never does.

    The first time counts, as in AlgoPerf, even if the run falls apart later: report the final loss beside it. Of a
    noisy curve, smooth it first or choose a target out of reach of the noise.

    Infinities may stay: `median` over tasks, `stat_compare.probability_of_improvement`, `performance_profile` and
    `profile_area` go by order or by a last threshold. For means and differences see `restricted`.

    Args:
        curve: shape (..., points); a point that is not finite meets no target.
        target: of a shape that broadcasts to (...), such as (tasks, 1) for curves of tasks x seeds; not NaN.
        lower_is_better: of the curve.
        steps: shape (points,), rising; 1, 2, 3, ... when not given.

    Returns:
        Shape (...).

    Raises:
        ValueError: no points, a target that is NaN, steps of another length or not rising.

    Example:
        >>> steps_to_target([[3.0, 2.0, 1.0], [3.0, 3.0, 3.0]], 2.5, lower_is_better=True, steps=[10, 20, 30]).tolist()
        [20.0, inf]
    """
    values, goal = np.asarray(curve, dtype=np.float64), np.asarray(target, dtype=np.float64)[..., None]
    points = values.shape[-1] if values.ndim else 0
    at = np.arange(1.0, points + 1) if steps is None else np.asarray(steps, dtype=np.float64)
    if not points or at.shape != (points,) or not (np.diff(at) > 0).all():
        raise ValueError(f"a curve of {points} points needs as many rising steps, at least one")
    if np.isnan(goal).any():
        raise ValueError("a target is NaN")
    met = np.isfinite(values) & (values <= goal if lower_is_better else values >= goal)
    return np.where(met.any(-1), at[met.argmax(-1)], math.inf)


def restricted(steps: ArrayLike, horizon: ArrayLike) -> Array:
    """Steps to a target as a share of the horizon; a miss counts as all of it.

    Its mean is the restricted mean time of survival analysis (Royston & Parmar 2013, doi 10.1186/1471-2288-13-152):
    always finite, comparable between tasks, and kind to misses, so report their number beside it.

    Args:
        steps: shape (..., tasks, seeds), not negative, infinite for a miss.
        horizon: of a shape that broadcasts, such as (tasks, 1); positive and finite.

    Returns:
        In [0, 1], of the common shape.

    Raises:
        ValueError: steps that are NaN or negative, a horizon that is not positive and finite.

    Example:
        >>> restricted([[50.0, float("inf")], [100.0, 400.0]], [[100], [200]]).tolist()
        [[0.5, 1.0], [0.5, 1.0]]
    """
    taken, most = np.asarray(steps, dtype=np.float64), np.asarray(horizon, dtype=np.float64)
    if not (taken >= 0).all():
        raise ValueError("steps are neither NaN nor negative; a miss is infinite")
    if not (np.isfinite(most).all() and (most > 0).all()):
        raise ValueError("a horizon must be positive and finite")
    return np.minimum(taken / most, 1.0)


# --- learning rates -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sensitivity:
    """How much a method's initial learning rate matters; fields have the shape of the losses without its last axis.

    Args:
        own_width: decades of learning rates that are as good as the method's own best, within the tolerance.
        reference_width: decades that are as good as the reference, within the tolerance; 0 when none is.
        mean_excess: mean over the grid of the loss beyond the method's own best (arXiv 2309.14322).
        area: the same between the grid's ends, integrated over log10 LR: loss x decades.
    """

    own_width: Array
    reference_width: Array
    mean_excess: Array
    area: Array


def lr_sensitivity(
    lrs: ArrayLike, losses: ArrayLike, *, initial: ArrayLike, reference: ArrayLike, tolerance: float = 0.05
) -> Sensitivity:
    """What is left of a method when its learning rate is not the best one.

    The loss is taken to be linear in log LR between neighbours of the grid. A width is the length in log10 LR of the
    part of the curve at or below (1 + tolerance) x best; if that is in pieces they are added up. No width goes beyond
    the grid, so one that fills it says "at least". The best of a method is the lowest point of its curve; one that is
    nowhere better than the initial loss has none: its own width is 0, and its excess and area are infinite.

    Args:
        lrs: shape (points,), positive, rising, at least two. `mean_excess` weighs points alike, whatever lies between.
        losses: shape (..., points), lower is better, not negative. Non-finite ones count as the initial loss in
            `mean_excess` and `area`; in the widths nothing up to the neighbours of such a point counts as good.
        initial: loss before the first update, of a shape that broadcasts to (...); worse losses count as this.
        reference: loss of the tuned reference, such as linear decay at its best learning rate; likewise.
        tolerance: relative to the loss that is compared with, at least 0.

    Raises:
        ValueError: a grid as it should not be, negative losses or tolerance, an initial loss or reference that is not
            finite and not negative.

    Example:
        >>> found = lr_sensitivity([1e-3, 1e-2, 1e-1], [2.0, 1.0, float("nan")], initial=3, reference=0.8)
        >>> round(float(found.own_width), 3), float(found.reference_width), float(found.mean_excess)
        (0.05, 0.0, 1.0)
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
        area=np.asarray(((excess[..., 1:] + excess[..., :-1]) / 2 * np.diff(at)).sum(-1)),
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
