"""Many runs in one number.

Scores are arrays of shape (tasks, seeds). Failed runs are never dropped: whoever has a NaN must first say what it
counts as (`stat_runs.log_regret` does); infinities are the best or the worst score, by their sign. A task with fewer
seeds than the others has failed runs or has not been run, so there is no way to leave a place empty.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Statistic = Callable[[Array], Array]
"""Reduces the last two axes, tasks and seeds, and keeps those before them: a bootstrap sends all its draws at once."""


def as_scores(scores: ArrayLike) -> Array:
    """Scores as an array that can be aggregated.

    Args:
        scores: shape (..., tasks, seeds).

    Raises:
        ValueError: fewer than two axes, nothing in them, NaN, or infinities of both signs (they have no mean).
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"scores have the shape (tasks, seeds), at least one of each, not {array.shape}")
    if np.isnan(array).any():
        raise ValueError("scores hold NaN: say first what a failed run counts as, see stat_runs.log_regret")
    if np.isposinf(array).any() and np.isneginf(array).any():
        raise ValueError("scores hold infinities of both signs")
    return array


def matrix(scores: ArrayLike) -> Matrix:
    """One method's scores.

    Raises:
        ValueError: not of the shape (tasks, seeds), and see `as_scores`.
    """
    array = as_scores(scores)
    if array.ndim != 2:
        raise ValueError(f"scores have the shape (tasks, seeds), not {array.shape}")
    return array.reshape(array.shape[0], array.shape[1])


def runs_of(scores: ArrayLike) -> Array:
    """Tasks and seeds in one axis, checked by `as_scores`."""
    array = as_scores(scores)
    return array.reshape(*array.shape[:-2], -1)


# --- aggregates ---------------------------------------------------------------------------------------------------


def mean(scores: ArrayLike) -> Array:
    """Mean over tasks and seeds; one infinite run makes it infinite.

    Args:
        scores: shape (..., tasks, seeds).

    Returns:
        Shape (...).

    Raises:
        ValueError: see `as_scores`.
    """
    return np.asarray(runs_of(scores).mean(-1))


def iqm(scores: ArrayLike) -> Array:
    """Interquartile mean over all runs of all tasks (Agarwal et al. 2021, arXiv 2108.13264; `rliable`).

    Of n runs the int(n / 4) lowest and as many of the highest are left out, as in `scipy.stats.trim_mean`. What the
    worst quarter of the runs did is thus not in it: report `stat_runs.failure_rate` and `harm_rate` beside it.
    An infinite run is left out like any other extreme one; the mean is infinite when more than a quarter are.

    Args:
        scores: shape (..., tasks, seeds).

    Returns:
        Shape (...).

    Raises:
        ValueError: see `as_scores`.

    Example:
        >>> float(iqm([[1.0, 2.0], [3.0, float("inf")]]))
        2.5
    """
    runs = np.sort(runs_of(scores), axis=-1)
    cut = runs.shape[-1] // 4
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(-1))


def median(scores: ArrayLike) -> Array:
    """Median over tasks of a task's mean over seeds, which is what `rliable` and the literature before it call median.

    One infinite run makes its task's mean infinite.

    Args:
        scores: shape (..., tasks, seeds).

    Returns:
        Shape (...).

    Raises:
        ValueError: see `as_scores`.

    Example:
        >>> float(median([[0.0, 2.0], [5.0, 5.0], [9.0, 9.0]]))
        5.0
    """
    return np.asarray(np.median(as_scores(scores).mean(-1), axis=-1))


def optimality_gap(scores: ArrayLike, gamma: float = 1.0) -> Array:
    """How far runs fall short of a score that is good enough (Agarwal et al. 2021); more than enough earns nothing.

    Args:
        scores: shape (..., tasks, seeds), higher is better; -infinity makes the gap infinite.
        gamma: the score that is good enough.

    Returns:
        Shape (...), at least 0.

    Raises:
        ValueError: see `as_scores`.

    Example:
        >>> float(optimality_gap([[0.5, 2.0]]))
        0.25
    """
    return np.asarray(gamma - np.minimum(runs_of(scores), gamma).mean(-1))


def profile_area(scores: ArrayLike, low: float, high: float) -> Array:
    """Mean of a profile of costs between two thresholds, in [0, 1]; AlgoPerf's score, with low = 1 and high = 4.

    Args:
        scores: shape (..., tasks, seeds), lower is better, such as times over the best method's time; a miss is
            infinite and adds nothing.
        low: threshold below which being better earns nothing more.
        high: threshold above which being worse costs nothing more.

    Returns:
        Shape (...).

    Raises:
        ValueError: low is not below high, and see `as_scores`.

    Example:
        >>> float(profile_area([[1.0, 2.5], [4.0, float("inf")]], 1, 4))  # 1, 1/2, 0 and 0
        0.375
    """
    if not low < high:
        raise ValueError(f"low must be below high: {low}, {high}")
    return np.asarray((high - np.clip(runs_of(scores), low, high)).mean(-1) / (high - low))
