"""One method against another on paired seeds: differences with intervals and p-values, corrected for their number.

The runs in one place of all methods' arrays are a pair: one seed, so the same weights and batches to begin with.
A claim is about tasks *not yet seen*: the tasks were drawn as well, and there are far fewer of them than runs. Where
`new_tasks` is False it is about these tasks, of which only the seeds could have come out differently.

How often a loss 10 % higher is found (level 5 %, standard deviations of the log loss 0.05 over seeds and 0.03 in what
a method gains on a task; made-up normal scores): 8 tasks x 5 seeds x 3 comparisons 91 %, 12 tasks 100 %; but never in
8 tasks x 10 seeds x 14 comparisons, because swaps of 8 tasks give no p-value below 1 / 128. Count tasks first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .stat_runs import Array, Matrix, Statistic, matrix, mean

SWAPS = 2**14
"""Ways of swapping that a test looks at; up to fifteen tasks these are all there are, and the p-value is exact."""


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float

    def signed(self) -> str:
        """The number with its sign and its interval in brackets, three decimals each."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Difference(Estimate):
    """A method minus another, and whether that may be chance; interval and `p` are of this comparison alone."""

    p: float  # two-sided
    p_adjusted: float  # after Holm's correction for all comparisons made together; `p` when it was made alone
    # Smallest p-value that any scores could have had. If it, times the number of comparisons, is above the level then
    # nothing can be found, and "no difference" says nothing.
    least_p: float

    def found(self, level: float = 0.05) -> bool:
        """Whether there is a difference, by the adjusted p-value."""
        return self.p_adjusted <= level


# --- intervals ----------------------------------------------------------------------------------------------------


def resampled(shape: tuple[int, int], *, reps: int, seed: int, new_tasks: bool) -> tuple[NDArray[np.int64], ...]:
    """Draws with replacement: `scores[resampled(...)]` has the shape (reps, tasks, seeds).

    One result indexes all methods, so that paired runs stay pairs.
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
    """Ends of a percentile interval over the first axis of `draws`.

    They are draws themselves, rounded outwards and not interpolated, so that an infinite end stays infinite. With
    `widened_for`, the number n of units that were drawn, Hesterberg's expanded percentiles (arXiv 1411.5279): a
    bootstrap's spread is too small by sqrt((n - 1) / n) and its tails are the normal's instead of Student's, which for
    eight tasks makes a 95 % interval one of 90 %.
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


def hierarchical_bootstrap(
    scores: ArrayLike, statistic: Statistic = mean, *, reps: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """Interval with tasks drawn anew, then seeds within each: a claim about tasks not yet seen.

    Percentiles are expanded for the number of tasks, see `ends`: 95 % covers 95 to 97 % with 8 or 15 tasks, instead of
    89 to 94 %; 93 % with five; with three it may be 80 %, and no bootstrap can do better (made-up normal scores that
    differ more between tasks than between seeds). Where it is the seeds that differ it covers 99 %, being up to 1.4
    times too wide: the spread of the tasks' means has the seeds' in it already (Davison & Hinkley 1997, section 3.8).
    """
    array = matrix(scores)
    draws = statistic(array[resampled(array.shape, reps=reps, seed=seed, new_tasks=True)])
    low, high = ends(draws, confidence, widened_for=len(array))
    return Estimate(float(statistic(array)), float(low), float(high))


# --- differences --------------------------------------------------------------------------------------------------


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    reps: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    swaps: int = SWAPS,
) -> Difference:
    """Mean of a minus mean of b, over the same tasks and seeds in every draw; scores are finite.

    The p-value is of `swap_test`, the interval of a bootstrap; of a few tasks the two need not agree to the last
    digit. What is *found* is the p-value's affair, the interval says how large it is. It is the mean and not `iqm`:
    every task has a say in it, while the quarter of the runs that an IQM leaves out at either end can be all those of
    some tasks, so that it finds much less (8 tasks: 3 % of the effects of which the mean finds 91 %).
    """
    mine, other = _pair(a, b)
    drawn = resampled(mine.shape, reps=reps, seed=seed, new_tasks=True)
    low, high = ends(mean(mine[drawn]) - mean(other[drawn]), confidence, widened_for=len(mine))
    p, least = swap_test(mine, other, swaps=swaps, seed=seed)
    return Difference(float(mean(mine) - mean(other)), float(low), float(high), p, p, least)


def swap_test(a: ArrayLike, b: ArrayLike, *, swaps: int = SWAPS, seed: int = 0) -> tuple[float, float]:
    """P-value of a two-sided permutation test of paired means, and the smallest that it could have been.

    The names of the methods are swapped for whole tasks. This is valid however few the tasks are, provided that a
    method is as likely to be ahead by some amount on a task as behind by it, which no bootstrap p-value is. The price
    is that T tasks give no p-value below 2 / 2**T. If there are more than `swaps` ways, so many drawn ones are looked
    at, and the data's own.
    """
    mine, other = _pair(a, b)
    if swaps < 1:
        raise ValueError(f"swaps must be at least 1, not {swaps}")
    gaps = (mine - other).mean(1)
    # The first task stays: to swap all of them turns the sign of the difference, no more.
    exact = 2.0 ** (len(gaps) - 1) <= swaps
    if exact:
        ways = (np.arange(2 ** (len(gaps) - 1))[:, None] >> np.arange(len(gaps)) & 1).astype(np.bool_)
    else:
        ways = np.random.default_rng(seed).random((swaps, len(gaps))) < 0.5
    # Sums of the same numbers in another order differ in the last digits, and equal is "as large".
    slack = 1e-12 * float(np.abs([mine, other]).max())
    as_large = int(np.count_nonzero(np.abs(np.where(ways, -gaps, gaps).mean(1)) >= abs(gaps.mean()) - slack))
    return (as_large / len(ways), 1 / len(ways)) if exact else ((1 + as_large) / (1 + swaps), 1 / (1 + swaps))


def _pair(a: ArrayLike, b: ArrayLike, *, finite: bool = True) -> tuple[Matrix, Matrix]:
    mine, other = matrix(a), matrix(b)
    if mine.shape != other.shape:
        raise ValueError(f"paired scores have one shape, not {mine.shape} and {other.shape}")
    if finite and not (np.isfinite(mine).all() and np.isfinite(other).all()):
        raise ValueError("differences need finite scores: say what a failed run counts as, see stat_runs.log_regret")
    return mine, other


def probability_of_improvement(
    a: ArrayLike,
    b: ArrayLike,
    *,
    lower_is_better: bool,
    new_tasks: bool = True,
    reps: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """Chance that a run of a beats a run of b on the same task, mean over tasks; ties count one half.

    All runs of a task are compared with all (Agarwal et al. 2021, `rliable`), and one draw of seeds serves both.
    Infinite scores are the best or worst, and tie with their like.
    """
    mine, other = _pair(a, b, finite=False)
    ahead, level = np.less if lower_is_better else np.greater, np.equal
    wins = ahead(mine[:, :, None], other[:, None, :]) + 0.5 * level(mine[:, :, None], other[:, None, :])
    tasks, seeds = resampled(mine.shape, reps=reps, seed=seed, new_tasks=new_tasks)
    # How often each seed was drawn stands for the draws: tasks x seeds numbers instead of tasks x seeds x seeds.
    times = (seeds[..., None] == np.arange(mine.shape[1])).sum(2)
    draws = np.einsum("rti,rtij,rtj->r", times, wins[tasks[:, :, 0]], times, optimize=True) / (
        mine.size * mine.shape[1]
    )
    low, high = ends(draws, confidence, widened_for=len(mine) if new_tasks else None)
    return Estimate(float(wins.mean()), float(low), float(high))


# --- many comparisons ---------------------------------------------------------------------------------------------


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
    """All comparisons made together, with Holm's correction for their number.

    With T tasks, new ones meant, m comparisons can find something at level 0.05 only if m * 2 / 2**T is at most that:
    6 comparisons with 8 tasks, 25 with 10.
    """
    adjusted = holm({name: difference.p for name, difference in found.items()})
    return {name: replace(difference, p_adjusted=adjusted[name]) for name, difference in found.items()}
