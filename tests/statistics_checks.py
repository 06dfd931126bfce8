"""Does the benchmark measure? What it finds where there is nothing, and whether it finds what was put there.

A comparison is repeated over made-up scores that resemble real ones. Use losses of a real method's own, other seeds,
where there are enough of them: noise that is made up is kinder than noise that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from hf_adaptive_lr.bench.stat_compare import Difference, corrected, paired_difference

Losses = Mapping[str, ArrayLike]
"""Positive losses by method, each of shape (tasks, seeds)."""


def compare(scores: Losses, baseline: str, **options) -> dict[str, Difference]:
    """All methods minus the baseline, as the benchmark's primary endpoint compares them."""
    others = {name: values for name, values in scores.items() if name != baseline}
    return corrected({name: paired_difference(mine, scores[baseline], **options) for name, mine in others.items()})


@dataclass(frozen=True)
class Rate:
    """How often something happened, with Clopper and Pearson's 95 % interval."""

    share: float
    low: float
    high: float
    trials: int


def rate(times: int, trials: int) -> Rate:
    interval = binomtest(times, trials).proportion_ci(method="exact")
    return Rate(times / trials, float(interval.low), float(interval.high), trials)


def aa_test(generate, baseline: str, *, pipeline=compare, trials: int = 200, seed: int = 0, level=0.05) -> Rate:
    """How often a whole comparison finds any difference where there is none; should be at most the level."""

    def finds(losses: Losses) -> bool:
        return any(difference.found(level) for difference in pipeline(_logs(losses), baseline).values())

    return _rate(generate, trials, seed, finds)


def power_test(
    generate, baseline: str, method: str, *, by=0.10, pipeline=compare, trials: int = 200, seed: int = 0, level=0.05
) -> Rate:
    """How often a method whose losses were changed by a share is found to be worse, or better, as it should."""
    if by == 0 or not by > -1:
        raise ValueError(f"an effect must not be 0 and must be above -1, not {by}")

    def finds(losses: Losses) -> bool:
        planted = {**losses, method: np.asarray(losses[method]) * (1 + by)}
        difference = pipeline(_logs(planted), baseline)[method]
        return difference.found(level) and difference.value * by > 0

    return _rate(generate, trials, seed, finds)


def _logs(losses: Losses) -> dict[str, np.ndarray]:
    return {name: np.log(np.asarray(values, dtype=np.float64)) for name, values in losses.items()}


def _rate(generate, trials: int, seed: int, happened: Callable[[Losses], bool]) -> Rate:
    return rate(sum(happened(generate(np.random.default_rng([seed, i]))) for i in range(trials)), trials)
