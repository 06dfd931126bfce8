"""The studies' statistics: intervals over seeds and over tasks, paired tests by task, corrected for their number.

A claim about seeds is about these tasks, of which only the seeds could have come out differently (`mean_interval`,
`paired_difference`: the paper study). A claim about tasks is about tasks *not yet seen*: they were drawn as well, and
there are far fewer of them than runs (`task_interval`, `task_difference`: the benchmark). Scores are arrays of shape
(tasks, seeds); one place in two methods' arrays is a pair, which began with the same weights and batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Word = Literal["better", "worse", "no difference"]
SWAPS = 2**14
"""Ways of swapping that a test looks at; up to fifteen tasks these are all there are, and the p-value is exact."""


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "intervals and tests need scipy; pip install 'hf_adaptive_lr[bench]'", name="scipy"
        ) from error
    return stats


@dataclass(frozen=True)
class Estimate:
    """A mean and the ends of its interval, which are NaN where one value or one task is all there is."""

    value: float
    low: float
    high: float
    n: int  # values or tasks that it is the mean of

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def signed(self, digits: int = 3) -> str:
        """The number with its sign, and its interval in brackets if there is one."""
        value, low, high = (f"{round(end, digits) + 0.0:+.{digits}f}" for end in (self.value, self.low, self.high))
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Difference(Estimate):
    """A method minus another over tasks, and whether that may be chance; `low`, `high`, `p` are of it alone."""

    p: float  # two-sided
    p_adjusted: float  # after Holm's correction for all comparisons made together; `p` when it was made alone
    # Smallest p-value that any scores could have had. If it, times the number of comparisons, is above the level then
    # nothing can be found, and "no difference" says nothing.
    least_p: float

    def found(self, level: float = 0.05) -> bool:
        """Whether there is a difference, by the adjusted p-value."""
        return self.p_adjusted <= level


# --- over seeds ---------------------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Student's t interval of the mean of independent values."""
    if not values:
        raise ValueError("an interval needs at least one value")
    mean, n, half = statistics.fmean(values), len(values), math.nan
    if n > 1:
        half = float(_scipy_stats().t.ppf((1 + confidence) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(mine: Mapping[int, float], other: Mapping[int, float], confidence: float = 0.95) -> Estimate:
    """Student's t interval of mine minus the other's, over the seeds that both have."""
    seeds = sorted(mine.keys() & other.keys())
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(mine)} and {sorted(other)}")
    return mean_interval([mine[seed] - other[seed] for seed in seeds], confidence)


def gain(difference: Estimate, *, lower_is_better: bool) -> tuple[float, float]:
    """Ends of the interval, turned so that more is better."""
    return (-difference.high, -difference.low) if lower_is_better else (difference.low, difference.high)


def judge(difference: Estimate, *, lower_is_better: bool) -> Word:
    """Which of the two is better; "no difference" when the interval holds 0, or there is none."""
    low, high = gain(difference, lower_is_better=lower_is_better)
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no difference"


# --- over tasks ---------------------------------------------------------------------------------------------------


def _checked(scores: ArrayLike) -> Array:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"scores have the shape (tasks, seeds), at least one of each, not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("scores must be finite: say first what a failed run counts as, see scores.regret")
    return array


def task_interval(scores: ArrayLike, *, reps: int = 2000, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """Bootstrap interval of the mean with tasks drawn anew, then seeds within each.

    Percentiles are expanded for the number n of tasks (Hesterberg, arXiv 1411.5279): a bootstrap's spread is too small
    by sqrt((n - 1) / n) and its tails are the normal's instead of Student's. 95 % then covers 95 to 97 % with 8 or 15
    tasks instead of 89 to 94 %, and 93 % with five; three say next to nothing (made-up normal scores). Where it is
    the seeds that differ it is up to 1.4 times too wide (Davison & Hinkley 1997, section 3.8).
    """
    array = _checked(scores)
    if not 0 < confidence < 1 or reps < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, and reps={reps} be at least 1")
    (tasks, seeds), mean = array.shape, float(array.mean())
    if tasks < 2:
        return Estimate(mean, math.nan, math.nan, tasks)
    rng, stats = np.random.default_rng(seed), _scipy_stats()
    drawn = array[rng.integers(tasks, size=(reps, tasks, 1)), rng.integers(seeds, size=(reps, tasks, seeds))]
    tail = stats.norm.cdf(math.sqrt(tasks / (tasks - 1)) * stats.t.ppf((1 - confidence) / 2, tasks - 1))
    low, high = np.quantile(drawn.mean((1, 2)), [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), tasks)


def swap_test(gaps: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """P-value of a two-sided permutation test that a mean difference over tasks is 0, and the smallest possible.

    The names of the two methods are swapped for whole tasks. This is valid however few the tasks are, provided that a
    method is as likely to be ahead by some amount on a task as behind by it, which no bootstrap p-value is. The price
    is that T tasks give no p-value below 2 / 2**T; so count tasks first. Of more than fifteen, `SWAPS` drawn ways
    are looked at, and the data's own. (`scipy.stats.permutation_test` says the same, thirty times as slowly.)
    """
    array = np.asarray(gaps, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"a swap test needs one finite difference for each task, not {array}")
    # The first task stays: to swap all of them turns the sign of the difference, no more.
    exact = 2.0 ** (len(array) - 1) <= SWAPS
    if exact:
        swapped = (np.arange(2 ** (len(array) - 1))[:, None] >> np.arange(len(array)) & 1).astype(np.bool_)
    else:
        swapped = np.random.default_rng(seed).random((SWAPS, len(array))) < 0.5
    # Sums of the same numbers in another order differ in the last digits, and equal is "as large".
    least = abs(array.sum()) - 1e-12 * np.abs(array).sum()
    as_large = int(np.count_nonzero(np.abs(np.where(swapped, -array, array).sum(1)) >= least))
    return (as_large / len(swapped), 1 / len(swapped)) if exact else ((1 + as_large) / (1 + SWAPS), 1 / (1 + SWAPS))


def task_difference(a: ArrayLike, b: ArrayLike, *, reps: int = 2000, seed: int = 0) -> Difference:
    """Mean of a minus mean of b over the same tasks and seeds: `task_interval` and `swap_test`.

    Of a few tasks the two need not agree to the last digit. What is *found* is the p-value's affair, the interval says
    how large it is.
    """
    mine, other = _checked(a), _checked(b)
    if mine.shape != other.shape:
        raise ValueError(f"paired scores have one shape, not {mine.shape} and {other.shape}")
    found = task_interval(mine - other, reps=reps, seed=seed)
    p, least = swap_test((mine - other).mean(1), seed=seed)
    return Difference(found.value, found.low, found.high, found.n, p, p, least)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted so that the chance of any false finding among them is at most the level (Holm 1979).

    All comparisons that were made belong in it, also those that one would rather not show.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{name}: a p-value lies between 0 and 1, not {p}")
    adjusted, most = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = most
    return {name: adjusted[name] for name in p_values}


def corrected(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """All comparisons made together, with Holm's correction for their number."""
    adjusted = holm({name: difference.p for name, difference in found.items()})
    return {name: replace(difference, p_adjusted=adjusted[name]) for name, difference in found.items()}
