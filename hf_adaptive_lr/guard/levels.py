"""Losses and gradient norms of recent updates as levels, and the limits that the next one should stay under.

Values are compared as *levels*, `asinh(x / 2u)` with a unit `u` far below the run's first values. Above the unit that
is a logarithm, and the logarithm is right for two reasons: minibatch losses and gradient norms scatter by ratios
(log-normal, so a robust z-score of raw values alarms on about every hundredth healthy update of a noisy run, one of
levels on none), and a threshold in ratios is the same for a loss that starts at 0.7 and one that starts at 11.
Unlike a logarithm it takes zero and negative losses; for a loss that swings around zero the scatter of levels is so
wide that only non-finite values alarm, which is the honest answer there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .thresholds import FIRST, Thresholds

_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
_UNIT = 1e-6  # the unit of levels over the median size of the first values
SHIFT_SPREAD = 32  # healthy updates from which the scatter of successive losses is taken
RANKED = 40  # healthy updates, all of which a shift may be above


class Track:
    """The recent healthy values of one quantity, as levels."""

    def __init__(self, thresholds: Thresholds, keep: int) -> None:
        self._thresholds, self._keep = thresholds, keep
        self.early: list[float] = []  # raw, until the unit is known
        self.levels: list[float] = []
        self.unit, self.start = 0.0, 0.0

    def level(self, value: float) -> float:
        """Of a value, once the unit is known."""
        return math.asinh(max(-1e300, min(1e300, value / (2.0 * self.unit))))

    def value(self, level: float) -> float:
        """With this level."""
        return 2.0 * self.unit * math.sinh(min(level, 600.0)) if self.unit else 0.0

    def push(self, value: float) -> None:
        """Take in a healthy value; the first `burn_in` of them make the unit."""
        if self.unit:
            self.levels.append(self.level(value))
            del self.levels[: -self._keep]
            return
        self.early.append(value)
        if len(self.early) < self._thresholds.burn_in:
            return
        self.unit = max(_UNIT * median([abs(v) for v in self.early]), 1e-12)
        # A far too large LR spoils all but the very first values, and a lucky first batch is no level either.
        self.start = min(median(self.early[:FIRST]), median(self.early))
        self.levels, self.early = [self.level(v) for v in self.early][-self._keep :], []

    def spike_limit(self, value: float, rise: float) -> float | None:
        """The level that `value` should have stayed under, or None when it did."""
        if not self.unit or not self.levels:
            return None
        level, step = self.level(value), math.log(rise)
        floor = self.level(self._thresholds.floor * abs(self.start))
        limit = max(floor, max(self.levels)) + step
        if level <= limit:  # nearly always, and cheap
            return None
        for window in self._thresholds.windows:
            levels = self.levels[-window:]
            limit = max(limit, max(median(levels), floor) + self._thresholds.z * sigma(levels))
        return limit if level > limit else None

    def shift_limit(self, value: float) -> float | None:
        """The level above which `value` is out of the band of the last updates, or None when it is not."""
        t = self._thresholds
        near = self.levels[-t.shift_window :]
        level = self.level(value) if self.unit else 0.0
        if not self.unit or len(near) < t.shift_window or level <= max(near):  # nearly always, and cheap
            return None
        floor = self.level(t.floor * abs(self.start))
        limit = max(*near, max(median(near), floor) + math.log(t.shift_rise))
        if level > limit:
            wide = max(median(near), floor) + t.shift_z * spread(self.levels[-SHIFT_SPREAD:])
            # Some lucky batches make the scatter wide on both sides. But four losses in succession above the last 40
            # have a chance of 1 in 135,751 when nothing has changed, whatever they are distributed like.
            if len(self.levels) >= RANKED:
                wide = min(wide, max(self.levels[-RANKED:]))
            limit = max(limit, wide)
        return limit if level > limit else None

    def creep_limit(self) -> dict[str, float] | None:
        """Limit for the mean of the last losses, and the typical loss; None when the mean is under the limit."""
        t = self._thresholds
        last, ref = self.levels[-t.creep_updates :], self.levels[: -t.creep_updates]
        if len(ref) < t.creep_window or last[-1] <= ref[-1]:  # half of the time, and cheap
            return None
        middle = max(median(ref[-t.creep_window :]), self.level(t.floor * abs(self.start)))
        mean = sum(last) / len(last)
        if min(last) <= middle or mean <= middle + math.log(t.creep_rise):
            return None
        rise = t.creep_z * spread(ref[-SHIFT_SPREAD:]) / math.sqrt(len(last))
        limit = middle + max(math.log(t.creep_rise), rise)
        return {"typical": self.value(middle), "limit": self.value(limit)} if mean > limit else None

    def state_dict(self, name: str) -> dict[str, Any]:
        """Plain numbers and lists, under keys that begin with `name`."""
        return {
            f"{name}_early": list(self.early),
            f"{name}_levels": list(self.levels),
            f"{name}_unit": self.unit,
            f"{name}_start": self.start,
        }

    def load_state_dict(self, state: Mapping[str, Any], name: str) -> None:
        """Restore from `state_dict`."""
        self.early, self.levels = list(state[f"{name}_early"]), list(state[f"{name}_levels"])
        self.unit, self.start = state[f"{name}_unit"], state[f"{name}_start"]


def median(values: Sequence[float]) -> float:
    """Middle value, or the mean of the two; much faster than `statistics.median`, which would show."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def sigma(levels: Sequence[float]) -> float:
    """Robust standard deviation: the median absolute deviation, scaled for normal values."""
    middle = median(levels)
    return _SIGMA * median([abs(level - middle) for level in levels])


def spread(levels: Sequence[float]) -> float:
    """Standard deviation of a level about its trend: successive ones differ by the square root of 2 times as much."""
    steps = [after - before for before, after in zip(levels, levels[1:], strict=False)]
    return sigma(steps) / math.sqrt(2.0) if steps else 0.0
