"""The studies' statistics: intervals over seeds and over tasks, paired tests by task, corrected for their number.

A claim about seeds is about these tasks, of which only the seeds could have come out differently (`mean_interval`,
`paired_difference`: the paper study). A claim about tasks is about tasks *not yet seen*: they were drawn as well, and
there are far fewer of them than runs (`task_interval`, `task_difference`: the benchmark). Tasks whose data have one
origin are alike, so it is origins that are drawn; `origins` names each task's, and without it every task is its own.
Scores are arrays of shape (tasks, seeds), their mean is that over all tasks; one place in two methods' arrays is a
pair, which began with the same weights and batches.
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
"""Ways of swapping that a test looks at; up to fifteen origins these are all there are, and the p-value is exact."""


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
    """A mean and the ends of its interval, which are NaN where one value or one origin is all there is."""

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
    # Smallest p-value that any scores of so many origins could have had. If it, times the number of comparisons, is
    # above the level then nothing can be found, and "no difference" says nothing.
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


def _by_origin(tasks: int, origins: Sequence[str] | None) -> list[NDArray[np.intp]]:
    """Numbers of the tasks of each origin."""
    if origins is not None and len(origins) != tasks:
        raise ValueError(f"{tasks} tasks have one origin each, not {len(origins)}")
    _, place = np.unique(np.arange(tasks) if origins is None else np.array(origins), return_inverse=True)
    return [np.flatnonzero(place == each) for each in range(place.max() + 1)]


def task_interval(
    scores: ArrayLike,
    origins: Sequence[str] | None = None,
    *,
    reps: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Bootstrap interval of the mean over tasks with origins drawn anew, then tasks within each, then seeds.

    Percentiles are expanded for the number n of origins (Hesterberg, arXiv 1411.5279): a bootstrap's spread is too
    small by sqrt((n - 1) / n) and its tails are the normal's instead of Student's. 95 % then covers 94 to 98 % with 12
    origins of 19 tasks or 7 of 13 (one to four tasks of each), where drawing single tasks would cover 83 and 79 % if
    most of the variance lies in the origins; 93 to 99 % with 5 of 13, and with 3 as little as 83 % (made-up normal
    scores of three seeds). Where it is the seeds that differ it is up to 1.4 times too wide (Davison & Hinkley 1997,
    section 3.8) and covers nearly always.
    """
    array = _checked(scores)
    if not 0 < confidence < 1 or reps < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, and reps={reps} be at least 1")
    (tasks, seeds), mean, groups = array.shape, float(array.mean()), _by_origin(len(array), origins)
    n, sizes = len(groups), np.array([len(group) for group in groups])
    if n < 2:
        return Estimate(mean, math.nan, math.nan, tasks)
    rng, stats = np.random.default_rng(seed), _scipy_stats()
    # Every origin drawn has as many places as the largest, of which only its own number counts.
    member = np.array([np.resize(group, sizes.max()) for group in groups])
    drawn = rng.integers(n, size=(reps, n, 1))
    counts = np.arange(sizes.max()) < sizes[drawn]
    task = member[drawn, rng.integers(sizes[drawn], size=counts.shape)]
    values = array[task[..., None], rng.integers(seeds, size=(*task.shape, seeds))].mean(3)
    means = (values * counts).sum((1, 2)) / counts.sum((1, 2))
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), tasks)


def swap_test(gaps: ArrayLike, origins: Sequence[str] | None = None, *, seed: int = 0) -> tuple[float, float]:
    """P-value of a two-sided permutation test that a mean difference over tasks is 0, and the smallest possible.

    The names of the two methods are swapped for all tasks of an origin together. This is valid however few the origins
    are, provided that a method is as likely to be ahead by some amounts on an origin's tasks as behind by them, which
    no bootstrap p-value is. The price is that n origins give no p-value below 2 / 2**n; so count origins first. Of
    more than fifteen, `SWAPS` drawn ways are looked at, and the data's own. (`scipy.stats.permutation_test` says the
    same of single tasks, thirty times as slowly.)
    """
    array = np.asarray(gaps, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"a swap test needs one finite difference for each task, not {array}")
    # The mean over tasks is the sum of these, but for a factor.
    array = np.array([array[group].sum() for group in _by_origin(len(array), origins)])
    # The first origin stays: to swap all of them turns the sign of the difference, no more.
    exact = 2.0 ** (len(array) - 1) <= SWAPS
    if exact:
        swapped = (np.arange(2 ** (len(array) - 1))[:, None] >> np.arange(len(array)) & 1).astype(np.bool_)
    else:
        swapped = np.random.default_rng(seed).random((SWAPS, len(array))) < 0.5
    # Sums of the same numbers in another order differ in the last digits, and equal is "as large".
    least = abs(array.sum()) - 1e-12 * np.abs(array).sum()
    as_large = int(np.count_nonzero(np.abs(np.where(swapped, -array, array).sum(1)) >= least))
    return (as_large / len(swapped), 1 / len(swapped)) if exact else ((1 + as_large) / (1 + SWAPS), 1 / (1 + SWAPS))


def task_difference(
    a: ArrayLike, b: ArrayLike, origins: Sequence[str] | None = None, *, reps: int = 2000, seed: int = 0
) -> Difference:
    """Mean of a minus mean of b over the same tasks and seeds: `task_interval` and `swap_test`.

    Of a few origins the two need not agree to the last digit. What is *found* is the p-value's affair, the interval
    says how large it is.
    """
    mine, other = _checked(a), _checked(b)
    if mine.shape != other.shape:
        raise ValueError(f"paired scores have one shape, not {mine.shape} and {other.shape}")
    found = task_interval(mine - other, origins, reps=reps, seed=seed)
    p, least = swap_test((mine - other).mean(1), origins, seed=seed)
    return Difference(found.value, found.low, found.high, found.n, p, p, least)


def holm(p_values: Mapping[str, float], of: int = 0) -> dict[str, float]:
    """P-values adjusted so that the chance of any false finding among them is at most the level (Holm 1979).

    All comparisons that were made belong in it, also those that one would rather not show; `of` is their number where
    it was named in advance and not all have come to be.
    """
    of = max(of, len(p_values))
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{name}: a p-value lies between 0 and 1, not {p}")
    adjusted, most = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        most = max(most, min(1.0, (of - rank) * p_values[name]))
        adjusted[name] = most
    return {name: adjusted[name] for name in p_values}


def corrected(found: Mapping[str, Difference], of: int = 0) -> dict[str, Difference]:
    """All comparisons made together, with Holm's correction for their number, `of` as in [`holm`]."""
    adjusted = holm({name: difference.p for name, difference in found.items()}, of)
    return {name: replace(difference, p_adjusted=adjusted[name]) for name, difference in found.items()}
