"""Does the yardstick measure? What it finds where there is nothing, and whether it finds what was put there.

A comparison is repeated over made-up scores that resemble real ones. Use losses of a real method's own, other seeds,
where there are enough of them: noise that is made up is kinder than noise that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from .stat_compare import Difference, compare
from .stat_scores import Array

Generate = Callable[[np.random.Generator], Mapping[str, ArrayLike]]
"""Positive losses by method, each of shape (tasks, seeds), between which there is no difference but chance."""


class Pipeline(Protocol):
    """What makes findings of scores; `stat_compare.compare`, or a partial of it with other options."""

    def __call__(self, scores: Mapping[str, ArrayLike], baseline: str, /) -> Mapping[str, Difference]:
        """Differences by method."""


@dataclass(frozen=True)
class Rate:
    """How often something happened.

    Args:
        share: of the trials.
        low: lower end of Clopper and Pearson's 95 % interval.
        high: upper end.
        trials: number of trials.
    """

    share: float
    low: float
    high: float
    trials: int


def rate(times: int, trials: int) -> Rate:
    """A rate from counts.

    Args:
        times: in [0, trials].
        trials: at least 1.

    Raises:
        ValueError: counts out of range.

    Example:
        >>> found = rate(5, 100)
        >>> found.share, round(found.low, 3), round(found.high, 3)
        (0.05, 0.016, 0.113)
    """
    from scipy.stats import binomtest

    interval = binomtest(times, trials).proportion_ci(method="exact")
    return Rate(times / trials, float(interval.low), float(interval.high), trials)


def aa_test(
    generate: Generate,
    baseline: str,
    *,
    pipeline: Pipeline = compare,
    trials: int = 200,
    seed: int = 0,
    level: float = 0.05,
) -> Rate:
    """How often a whole comparison finds any difference where there is none; should be at most the level.

    Args:
        generate: scores with no effect.
        baseline: the method that the others are compared with.
        pipeline: from scores to findings; gets log losses, whose differences are those of log-regret.
        trials: number of comparisons.
        seed: of the scores.
        level: of the finding, in (0, 1).

    Raises:
        ValueError: see the pipeline and `rate`.

    Example:
        >>> same = lambda rng: {name: np.ones((8, 5)) for name in ("linear", "cosine")}
        >>> aa_test(same, "linear", trials=3).share
        0.0
    """

    def finds(losses: Mapping[str, ArrayLike]) -> bool:
        return any(difference.found(level) for difference in pipeline(_logs(losses), baseline).values())

    return _rate(generate, trials, seed, finds)


def power_test(
    generate: Generate,
    baseline: str,
    method: str,
    *,
    by: float = 0.10,
    pipeline: Pipeline = compare,
    trials: int = 200,
    seed: int = 0,
    level: float = 0.05,
) -> Rate:
    """How often a method whose losses were made worse is found to be worse, among others that were not.

    Args:
        generate: scores with no effect.
        baseline: the method that the others are compared with.
        method: the method that is made worse.
        by: relative increase of its losses; negative makes it better, and better is then what must be found.
        pipeline: from scores to findings; gets log losses, whose differences are those of log-regret.
        trials: number of comparisons.
        seed: of the scores.
        level: of the finding, in (0, 1).

    Raises:
        ValueError: an effect of 0, or below -1; see the pipeline and `rate`.

    Example:
        >>> same = lambda rng: {name: np.ones((8, 5)) for name in ("linear", "cosine")}
        >>> power_test(same, "linear", "cosine", trials=3).share
        1.0
    """
    if by == 0 or not by > -1:
        raise ValueError(f"an effect must not be 0 and must be above -1, not {by}")

    def finds(losses: Mapping[str, ArrayLike]) -> bool:
        planted = {**losses, method: np.asarray(losses[method]) * (1 + by)}
        difference = pipeline(_logs(planted), baseline)[method]
        return difference.found(level) and difference.value * by > 0

    return _rate(generate, trials, seed, finds)


def _logs(losses: Mapping[str, ArrayLike]) -> dict[str, Array]:
    return {name: np.log(np.asarray(values, dtype=np.float64)) for name, values in losses.items()}


def _rate(generate: Generate, trials: int, seed: int, happened: Callable[[Mapping[str, ArrayLike]], bool]) -> Rate:
    return rate(sum(happened(generate(np.random.default_rng([seed, i]))) for i in range(trials)), trials)
