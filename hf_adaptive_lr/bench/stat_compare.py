"""One method against another on paired seeds: differences with intervals and p-values, corrected for their number.

The runs in one place of all methods' arrays are a pair: one seed, so the same weights and batches to begin with.
`new_tasks` says what a claim is about, see `stat_bootstrap`; it decides what is drawn anew for the interval and what
is swapped for the p-value.

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

from .stat_bootstrap import Estimate, ends, resampled
from .stat_scores import Matrix, Statistic, matrix, mean

SWAPS = 2**14
"""Ways of swapping that a test looks at; up to fifteen tasks these are all there are, and the p-value is exact."""
_AT_ONCE = 2_000_000  # scores


@dataclass(frozen=True)
class Difference:
    """A method minus another, and whether that may be chance.

    Args:
        value: statistic of the method minus statistic of the other.
        low: lower end of the interval of this comparison alone.
        high: upper end.
        p: two-sided p-value of this comparison alone.
        p_adjusted: after Holm's correction for all comparisons made together; `p` when it was made alone.
        least_p: smallest p-value that any scores could have had. If it, times the number of comparisons, is above
            the level then nothing can be found, and "no difference" says nothing.
    """

    value: float
    low: float
    high: float
    p: float
    p_adjusted: float
    least_p: float

    def found(self, level: float = 0.05) -> bool:
        """Whether there is a difference, by the adjusted p-value."""
        return self.p_adjusted <= level


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = mean,
    *,
    new_tasks: bool = True,
    reps: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    swaps: int = SWAPS,
) -> Difference:
    """Statistic of a minus statistic of b, over the same tasks and seeds in every draw.

    The p-value is of a permutation test, see `swap_test`; the interval of a bootstrap, see
    `stat_bootstrap.hierarchical_bootstrap` and, for new_tasks=False, `stratified_bootstrap`. Of a few tasks the two
    need not agree to the last digit. What is *found* is the p-value's affair, the interval says how large it is.

    The mean is the default: every task has a say in it. `iqm` leaves a quarter of the runs out at either end, which
    can be all those of some tasks, and so finds much less (8 tasks: 3 % of the effects of which the mean finds 91 %).
    The difference of two IQMs is not the IQM of the differences; for that compare `a - b` with zeros.

    Args:
        a: scores of the method, shape (tasks, seeds), finite: a failed run needs a stated worst value first.
        b: scores of the other, same shape.
        statistic: what is compared.
        new_tasks: what the claim is about, see the module.
        reps: number of draws for the interval.
        seed: of draws and swaps.
        confidence: of the interval, in (0, 1).
        swaps: number of ways of swapping that are looked at.

    Raises:
        ValueError: shapes differ, scores that are not finite, too few tasks or seeds (`resampled`), `ends`.

    Example:
        >>> b = np.arange(16.0).reshape(8, 2)
        >>> difference = paired_difference(b + 1, b)
        >>> difference.value, difference.low, difference.high, difference.p  # 2 of the 2**8 ways
        (1.0, 1.0, 1.0, 0.0078125)
    """
    mine, other = _pair(a, b)
    drawn = resampled(mine.shape, reps=reps, seed=seed, new_tasks=new_tasks)
    draws = statistic(mine[drawn]) - statistic(other[drawn])
    low, high = ends(draws, confidence, widened_for=len(mine) if new_tasks else None)
    p, least = swap_test(mine, other, statistic, new_tasks=new_tasks, swaps=swaps, seed=seed)
    return Difference(float(statistic(mine) - statistic(other)), float(low), float(high), p, p, least)


def swap_test(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic = mean,
    *,
    new_tasks: bool = True,
    swaps: int = SWAPS,
    seed: int = 0,
) -> tuple[float, float]:
    """Two-sided permutation test of paired scores: how often would chance names give as large a difference?

    With new_tasks the names of the methods are swapped for whole tasks. This is valid however few the tasks are,
    provided that a method is as likely to be ahead by some amount on a task as behind by it, which no bootstrap
    p-value is. The price is that T tasks give no p-value below 2 / 2**T. Without new_tasks names are swapped for
    every pair of runs: far finer, and valid for "it made no difference in any run of these tasks". It is no evidence
    about others: where methods are each better on some tasks, though equal over all, it called every fourth or fifth
    table of 3 comparisons different, instead of every twentieth.

    Args:
        a: scores of the method, shape (tasks, seeds), finite.
        b: scores of the other, same shape.
        statistic: what is compared.
        new_tasks: what the claim is about, see the module.
        swaps: if there are more ways than this, so many drawn ones are looked at, and the data's own.
        seed: of the drawn ones.

    Returns:
        The p-value, and the smallest that it could have been.

    Raises:
        ValueError: shapes differ, scores that are not finite, no swaps.

    Example:
        >>> swap_test([[4.0], [2.0], [0.0]], [[0.0], [0.0], [1.0]])  # 4 + 2 - 1; only 4 + 2 + 1 is larger
        (0.5, 0.25)
    """
    mine, other = _pair(a, b)
    if swaps < 1:
        raise ValueError(f"swaps must be at least 1, not {swaps}")
    units = len(mine) if new_tasks else mine.size
    # The first unit stays: to swap all of them turns the sign of the difference, no more.
    exact = 2.0 ** (units - 1) <= swaps
    ways = _all_ways(units) if exact else np.random.default_rng(seed).random((swaps, units)) < 0.5
    shape = (-1, len(mine), 1) if new_tasks else (-1, *mine.shape)
    differences = [
        statistic(np.where(way, other, mine)) - statistic(np.where(way, mine, other))
        for way in np.array_split(ways.reshape(shape), math.ceil(len(ways) * mine.size / _AT_ONCE))
    ]
    seen = abs(float(statistic(mine) - statistic(other)))
    # Sums of the same numbers in another order differ in the last digits, and equal is "as large".
    slack = 1e-12 * float(np.abs([mine, other]).max())
    as_large = int(np.count_nonzero(np.abs(np.concatenate(differences)) >= seen - slack))
    return (as_large / len(ways), 1 / len(ways)) if exact else ((1 + as_large) / (1 + swaps), 1 / (1 + swaps))


def _all_ways(units: int) -> NDArray[np.bool_]:
    numbers = np.arange(2 ** (units - 1))[:, None]
    return (numbers >> np.arange(units) & 1).astype(np.bool_)


def _pair(a: ArrayLike, b: ArrayLike, *, finite: bool = True) -> tuple[Matrix, Matrix]:
    mine, other = matrix(a), matrix(b)
    if mine.shape != other.shape:
        raise ValueError(f"paired scores have one shape, not {mine.shape} and {other.shape}")
    if finite and not (np.isfinite(mine).all() and np.isfinite(other).all()):
        raise ValueError("differences need finite scores: say what a failed run counts as, see stat_runs.log_regret")
    return mine, other


# --- probability of improvement -----------------------------------------------------------------------------------


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

    Args:
        a: scores of the method, shape (tasks, seeds); infinite ones are the best or worst, and tie with their like.
        b: scores of the other, same shape.
        lower_is_better: of the scores.
        new_tasks: what the interval is about, see the module.
        reps: number of draws.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: shapes differ, and see `as_scores`, `resampled` and `ends`.

    Example:
        >>> probability_of_improvement([[3.0, 1.0]], [[2.0, 1.0]], lower_is_better=False, new_tasks=False).value
        0.625
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

    Args:
        p_values: by comparison, in [0, 1]; all that were made, also those that one would rather not show.

    Raises:
        ValueError: a value outside [0, 1] or NaN.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"{name}: a p-value lies between 0 and 1, not {p}")
    adjusted, most = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = most
    return {name: adjusted[name] for name in p_values}


def compare(
    scores: Mapping[str, ArrayLike],
    baseline: str,
    statistic: Statistic = mean,
    *,
    new_tasks: bool = True,
    reps: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    swaps: int = SWAPS,
) -> dict[str, Difference]:
    """All methods against one, with Holm's correction: the headline table.

    With T tasks, new ones meant, m comparisons can find something at level 0.05 only if m * 2 / 2**T is at most that:
    6 comparisons with 8 tasks, 25 with 10.

    Args:
        scores: by method, each of shape (tasks, seeds), finite.
        baseline: the method that the others are compared with.
        statistic: and the others: see `paired_difference`.
        new_tasks: what the claim is about, see the module.
        reps: number of draws for each interval.
        seed: of draws and swaps, the same for all.
        confidence: of each interval, in (0, 1).
        swaps: number of ways of swapping that are looked at.

    Returns:
        Method minus baseline, by method, in the order of the scores.

    Raises:
        ValueError: no scores of the baseline, and see `paired_difference`.
    """
    if baseline not in scores:
        raise ValueError(f"no scores of {baseline!r} among {sorted(scores)}")
    found = {
        name: paired_difference(
            mine,
            scores[baseline],
            statistic,
            new_tasks=new_tasks,
            reps=reps,
            seed=seed,
            confidence=confidence,
            swaps=swaps,
        )
        for name, mine in scores.items()
        if name != baseline
    }
    adjusted = holm({name: difference.p for name, difference in found.items()})
    return {name: replace(difference, p_adjusted=adjusted[name]) for name, difference in found.items()}
