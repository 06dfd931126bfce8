"""The paper study's paired comparisons over seeds: Student's t intervals of means and of mean differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.95
"""Confidence of every interval."""

Word = Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class Interval:
    """The mean of `n` values and half the width of its interval, NaN for a single value."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval of the mean of independent values."""
    if not values:
        raise ValueError("an interval needs at least one value")
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Interval(mean, math.nan, n)
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, half, n)


def paired_difference(mine: Mapping[int, float], other: Mapping[int, float], level: float = LEVEL) -> Interval:
    """Interval of mine minus the other's, over the seeds that both have."""
    seeds = sorted(mine.keys() & other.keys())
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(mine)} and {sorted(other)}")
    return mean_interval([mine[seed] - other[seed] for seed in seeds], level)


def judge(difference: Interval, *, lower_is_better: bool) -> Word:
    """Which of the two is better; "no difference" when the interval holds 0, or there is none."""
    gain_low, gain_high = gain(difference, lower_is_better=lower_is_better)
    if gain_low > 0:
        return "better"
    return "worse" if gain_high < 0 else "no difference"


def gain(difference: Interval, *, lower_is_better: bool) -> tuple[float, float]:
    """Ends of the interval, turned so that more is better."""
    return (-difference.high, -difference.low) if lower_is_better else (difference.low, difference.high)
