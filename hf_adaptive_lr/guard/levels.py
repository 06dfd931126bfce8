"""Losses and gradient norms of recent updates as levels, and the limits that the next one should stay under.

Values are compared as *levels*, `asinh(x / 2u)` with a unit `u` far below the run's first values. Above the unit that
is a logarithm, and the logarithm is right for two reasons: minibatch losses and gradient norms scatter by ratios
(log-normal, so a robust z-score of raw values alarms on about every hundredth healthy update of a noisy run, one of
levels on none), and a threshold in ratios is the same for a loss that starts at 0.7 and one that starts at 11.
Unlike a logarithm it takes zero and negative losses. But for a loss that swings around zero, as a policy gradient's or
a density's does, a ratio means nothing. So a value is out of bounds only if it is so by two measures: in levels, and
in its own units, above the middle by a multiple of the scatter. For positive values the second one hardly ever
decides, as `exp(z * scatter)` is above `1 + z * scatter`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .thresholds import FIRST, Thresholds

_SIGMA = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
_UNIT = 1e-6  # the unit of levels over the median size of the first values
SHIFT_SPREAD = 32  # healthy updates from which the scatter of successive losses is taken
RANKED = 50  # healthy updates, all of which a shift may be above
_KNOWN = 8  # values other than zero, in a window of zeros, before one can be too large
_CEILING_MEMORY = 512  # updates in which a ceiling loses two thirds of its distance from the median


class Track:
    """The recent healthy values of one quantity, as levels."""

    def __init__(self, thresholds: Thresholds, keep: int) -> None:
        self._thresholds, self._keep = thresholds, keep
        self.early: list[float] = []  # raw, until the unit is known
        self.levels: list[float] = []
        self.unit, self.start = 0.0, 0.0
        self.top = 0.0  # largest of the first values
        self.ceiling: float | None = None
        """A value that the data has been seen to bring: the least reference; it sinks to the median, slowly."""

    @property
    def floor(self) -> float:
        """Level that counts as the least reference: a share of the first value, or the ceiling."""
        least = self.level(self._thresholds.floor * abs(self.start))
        return least if self.ceiling is None else max(least, self.level(self.ceiling))

    def tolerate(self, value: float) -> None:
        """The data brings values like this one: from now on they are normal."""
        self.ceiling = value if self.ceiling is None else max(value, self.ceiling)

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
            self._sink_ceiling(value)
            return
        self.early.append(value)
        if len(self.early) < self._thresholds.burn_in:
            return
        self.unit = max(_UNIT * median([abs(v) for v in self.early]), 1e-12)
        # A far too large LR spoils all but the very first values, and a lucky first batch is no level either.
        self.start = min(median(self.early[:FIRST]), median(self.early))
        self.top = max(self.early[:FIRST])
        self.levels, self.early = [self.level(v) for v in self.early][-self._keep :], []

    def _sink_ceiling(self, value: float) -> None:
        if self.ceiling is None:
            return
        level = self.level(self.ceiling)
        sunk = level + min(0.0, median(self.levels) - level) / _CEILING_MEMORY
        self.ceiling = max(value, self.value(sunk))

    def _raw(self) -> list[float]:
        return [self.value(level) for level in self.levels]

    def _middle(self, values: Sequence[float]) -> float:
        """Median, or the ceiling."""
        return max(median(values), -math.inf if self.ceiling is None else self.ceiling)

    def spike_limit(self, value: float, rise: float) -> float | None:
        """The level that `value` should have stayed under, or None when it did."""
        if not self.unit or not self.levels:
            return None
        level, step = self.level(value), math.log(rise)
        floor = self.floor
        limit = max(floor, max(self.levels)) + step
        if level <= limit:  # nearly always, and cheap
            return None
        for window in self._thresholds.windows:
            levels = self.levels[-window:]
            limit = max(limit, max(median(levels), floor) + self._thresholds.z * sigma(levels))
        values = self._raw()
        middle = self._middle(values)
        apart = [abs(v - middle) for v in values]
        if middle == 0.0 and sum(a > 0.0 for a in apart) < _KNOWN:
            return None
        # The largest of a few says little of the next one's size, and of values that change their sign even less.
        few = len(values) < self._thresholds.windows[0] or min(values) <= 0.0
        most = max(apart) * (rise * rise if few else rise)
        limit = max(limit, self.level(middle + max(most, self._thresholds.z * scatter(values))))
        return limit if level > limit else None

    def shift_limit(self, value: float) -> float | None:
        """The level above which `value` is out of the band of the last updates, or None when it is not."""
        t = self._thresholds
        near = self.levels[-t.shift_window :]
        level = self.level(value) if self.unit else 0.0
        if not self.unit or len(near) < t.shift_window or level <= max(near):  # nearly always, and cheap
            return None
        floor = self.floor
        limit = max(*near, max(median(near), floor) + math.log(t.shift_rise))
        if level > limit:
            wide = max(median(near), floor) + t.shift_z * spread(self.levels[-SHIFT_SPREAD:])
            values = self._raw()
            raw = self._middle(values[-t.shift_window :]) + t.shift_z * scatter(values[-SHIFT_SPREAD:])
            wide = max(wide, self.level(raw))
            # Some lucky batches make the scatter wide on both sides. But four losses in succession above the last 50
            # have a chance of 1 in 316,251 when nothing has changed, whatever they are distributed like.
            if len(self.levels) >= RANKED:
                wide = min(wide, max(*self.levels[-RANKED:], floor))
            limit = max(limit, wide, crest(self.levels, t.shift_patience, math.log(t.shift_rise)))
        return limit if level > limit else None

    def slow_limit(self, bound: float, best: float | None) -> float:
        """Level that the median has to pass to be out of the scatter around `bound`, also in the values' own units.

        There it is above the first values, or above the level `best` where that is given and all values are positive.
        """
        t, values = self._thresholds, self._raw()
        sigmas = t.slow_sigmas / (1.0 if best is None else math.sqrt(t.slow_window))
        least = self.top if best is None or min(values) <= 0.0 else self.value(best)
        if sorted(values)[len(values) // 4] <= least:  # a quarter is as before
            return math.inf
        raw = self.level(least + sigmas * scatter(values[-SHIFT_SPREAD:]))
        return max(raw, bound + sigmas * min(sigma(self.levels), 1.0))

    def creep_limit(self) -> dict[str, float] | None:
        """Limit for the mean of the last losses, and the typical loss; None when the mean is under the limit."""
        t = self._thresholds
        last, ref = self.levels[-t.creep_updates :], self.levels[: -t.creep_updates]
        if len(ref) < t.creep_window or last[-1] <= ref[-1]:  # half of the time, and cheap
            return None
        middle = max(median(ref[-t.creep_window :]), self.floor)
        mean = sum(last) / len(last)
        if min(last) <= middle or mean <= middle + math.log(t.creep_rise):
            return None
        rise = t.creep_z * spread(ref[-SHIFT_SPREAD:]) / math.sqrt(len(last))
        limit = middle + max(math.log(t.creep_rise), rise)
        if mean <= limit:
            return None
        values = [self.value(level) for level in ref]
        raw = self.value(middle) + t.creep_z * scatter(values[-SHIFT_SPREAD:]) / math.sqrt(len(last))
        limit = max(limit, self.level(raw), crest(ref, t.shift_patience or 1, math.log(t.creep_rise)))
        return {"typical": self.value(middle), "limit": self.value(limit)} if mean > limit else None

    def state_dict(self, name: str) -> dict[str, Any]:
        """Plain numbers and lists, under keys that begin with `name`."""
        return {
            f"{name}_early": list(self.early),
            f"{name}_levels": list(self.levels),
            f"{name}_unit": self.unit,
            f"{name}_start": self.start,
            f"{name}_top": self.top,
            f"{name}_ceiling": self.ceiling,
        }

    def load_state_dict(self, state: Mapping[str, Any], name: str) -> None:
        """Restore from `state_dict`."""
        self.early, self.levels = list(state[f"{name}_early"]), list(state[f"{name}_levels"])
        self.unit, self.start = state[f"{name}_unit"], state[f"{name}_start"]
        # Version 0.1 knew neither.
        self.top, self.ceiling = state.get(f"{name}_top", self.start), state.get(f"{name}_ceiling")


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


def crest(levels: Sequence[float], width: int, rise: float) -> float:
    """Highest level in a wave: `width` in succession that are `rise` above some before them; -inf without any.

    A season or another source that has come and gone makes one, a loss that falls does not.
    """
    low, high = math.inf, -math.inf
    for end in range(width, len(levels) + 1):
        stretch = levels[end - width : end]
        mean = sum(stretch) / width
        low = min(low, mean)
        if mean >= low + rise:
            high = max(high, max(stretch))
    return high


def scatter(values: Sequence[float]) -> float:
    """As `spread`, from the mean size of the steps: not blind to values of which most are equal, or to long tails."""
    steps = [abs(after - before) for before, after in zip(values, values[1:], strict=False)]
    return math.sqrt(math.pi) / 2.0 * sum(steps) / len(steps) if steps else 0.0
