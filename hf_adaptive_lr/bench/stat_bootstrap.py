"""How far to trust an aggregate: bootstrap intervals and performance profiles.

There are two claims, and `new_tasks` says which is made. Of *these* tasks (False), only the seeds could have come out
differently; of tasks *not yet seen* (True), the tasks were drawn as well, and there are far fewer of them than runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .stat_scores import Array, Statistic, iqm, matrix, runs_of


@dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Args:
        value: of the scores as they are.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def resampled(shape: tuple[int, int], *, reps: int, seed: int, new_tasks: bool) -> tuple[NDArray[np.int64], ...]:
    """Draws with replacement: `scores[resampled(...)]` has the shape (reps, tasks, seeds).

    One result indexes all methods, so that paired runs stay pairs.

    Args:
        shape: numbers of tasks and seeds.
        reps: number of draws.
        seed: of the draws.
        new_tasks: draw tasks, then seeds within each of them; otherwise seeds within each task.

    Raises:
        ValueError: a single task, which says nothing of others; a single seed, without draws of tasks; no draws.
    """
    tasks, seeds = shape
    if new_tasks and tasks < 2:
        raise ValueError("one task says nothing of tasks not yet seen: new_tasks=False")
    if not new_tasks and seeds < 2:
        raise ValueError("an interval over seeds needs at least two of them")
    if reps < 1:
        raise ValueError(f"reps must be at least 1, not {reps}")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(tasks, size=(reps, tasks, 1)) if new_tasks else np.arange(tasks).reshape(1, tasks, 1)
    return drawn, rng.integers(seeds, size=(reps, tasks, seeds))


def ends(draws: Array, confidence: float, *, widened_for: int | None = None) -> tuple[Array, Array]:
    """Ends of a percentile interval.

    They are draws themselves, rounded outwards and not interpolated, so that an infinite end stays infinite.

    Args:
        draws: values of a statistic, shape (reps, ...).
        confidence: of the interval, in (0, 1).
        widened_for: number n of independent units that were drawn. A bootstrap's spread is too small by
            sqrt((n - 1) / n) and its tails are the normal's instead of Student's, which for eight tasks makes a 95 %
            interval one of 90 %; Hesterberg's expanded percentiles (arXiv 1411.5279) undo both. None: as is.

    Raises:
        ValueError: confidence out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    tail = (1 - confidence) / 2
    if widened_for is not None:
        from scipy.stats import norm, t

        tail = float(norm.cdf(math.sqrt(widened_for / (widened_for - 1)) * t.ppf(tail, widened_for - 1)))
    # The small number keeps 0.025 * 1000 from falling to 24.
    below = min(math.floor(tail * len(draws) + 1e-9), (len(draws) - 1) // 2)
    in_order = np.sort(draws, axis=0)
    return in_order[below], in_order[len(draws) - 1 - below]


def stratified_bootstrap(
    scores: ArrayLike, statistic: Statistic = iqm, *, reps: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """Percentile interval with the seeds of each task drawn anew (Agarwal et al. 2021): a claim about these tasks.

    It covers less than it says, the fewer the seeds: 94 % instead of 95 % with ten, 91 % with five, 87 % with three
    (8 tasks, made-up normal scores). `rliable` does the same, and it is kept so that numbers can be compared.

    Args:
        scores: shape (tasks, seeds), at least two seeds; infinities are the best or the worst score.
        statistic: what to estimate.
        reps: number of draws.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: see `as_scores`, `resampled` and `ends`.

    Example:
        >>> from hf_adaptive_lr.bench.stat_scores import mean
        >>> stratified_bootstrap([[1.0, 1.0], [2.0, 2.0]], mean)  # seeds make no difference
        Estimate(value=1.5, low=1.5, high=1.5)
    """
    return _bootstrap(scores, statistic, reps, seed, confidence, new_tasks=False)


def hierarchical_bootstrap(
    scores: ArrayLike, statistic: Statistic = iqm, *, reps: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """Interval with tasks drawn anew, then seeds within each: a claim about tasks not yet seen.

    Percentiles are expanded for the number of tasks, see `ends`: 95 % covers 95 to 97 % with 8 or 15 tasks, instead of
    89 to 94 %; 93 % with five; with three it may be 80 %, and no bootstrap can do better (made-up normal scores that
    differ more between tasks than between seeds). Where it is the seeds that differ it covers 99 %, being up to 1.4
    times too wide: the spread of the tasks' means has the seeds' in it already (Davison & Hinkley 1997, section 3.8).

    Args:
        scores: shape (tasks, seeds), at least two tasks; infinities are the best or the worst score.
        statistic: what to estimate.
        reps: number of draws.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: see `as_scores`, `resampled` and `ends`.

    Example:
        >>> from hf_adaptive_lr.bench.stat_scores import mean
        >>> hierarchical_bootstrap([[1.0, 1.0], [2.0, 2.0]], mean)
        Estimate(value=1.5, low=1.0, high=2.0)
    """
    return _bootstrap(scores, statistic, reps, seed, confidence, new_tasks=True)


def _bootstrap(
    scores: ArrayLike, statistic: Statistic, reps: int, seed: int, confidence: float, *, new_tasks: bool
) -> Estimate:
    array = matrix(scores)
    draws = statistic(array[resampled(array.shape, reps=reps, seed=seed, new_tasks=new_tasks)])
    low, high = ends(draws, confidence, widened_for=len(array) if new_tasks else None)
    return Estimate(float(statistic(array)), float(low), float(high))


# --- profiles -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Share of the runs that do as well as each threshold asks.

    Args:
        thresholds: shape (thresholds,).
        share: of the runs, same shape.
        low: lower ends of the intervals, each threshold for itself.
        high: upper ends.
    """

    thresholds: Array
    share: Array
    low: Array
    high: Array


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    *,
    lower_is_better: bool,
    new_tasks: bool = False,
    reps: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Profile:
    """Distribution of the scores of runs (Agarwal et al. 2021), with an interval for every threshold.

    Args:
        scores: shape (tasks, seeds); an infinite run is above or below all finite thresholds, by its sign.
        thresholds: shape (thresholds,), finite.
        lower_is_better: count runs at or below a threshold, as for times to a target; otherwise runs above it.
        new_tasks: what the intervals are about, see the module.
        reps: number of draws.
        seed: of the draws.
        confidence: of each interval, in (0, 1).

    Raises:
        ValueError: a threshold is not finite, and see `as_scores`, `resampled` and `ends`.

    Example:
        >>> steps = [[100.0, 300.0], [200.0, float("inf")]]
        >>> performance_profile(steps, [100.0, 250.0, 1e9], lower_is_better=True).share.tolist()
        [0.25, 0.5, 0.75]
    """
    array, levels = matrix(scores), np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
    if not np.isfinite(levels).all():
        raise ValueError(f"thresholds must be finite, not {levels}")
    drawn = array[resampled(array.shape, reps=reps, seed=seed, new_tasks=new_tasks)]

    def share(of: Array) -> Array:
        # One threshold at a time: all at once would hold draws x runs x thresholds.
        return np.stack(
            [runs_of(of <= level if lower_is_better else of > level).mean(-1) for level in levels], axis=-1
        )

    low, high = ends(share(drawn), confidence, widened_for=len(array) if new_tasks else None)
    return Profile(levels, share(array), low, high)
