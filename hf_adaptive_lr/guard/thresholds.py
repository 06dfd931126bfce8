"""When an update counts as divergent: the thresholds of the [`Detector`], with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .._checks import check_range

FIRST = 3  # updates; so few can a far too large LR not yet have spoilt
_GROWN = 1.2  # times a learning rate that did no harm


def has_grown(lr: float, since: float) -> bool:
    """Whether a learning rate is so much above an earlier one that a loss above that of then may be its doing."""
    return lr >= _GROWN * since > 0.0


@dataclass(frozen=True)
class Thresholds:
    """When an update counts as divergent.

    The defaults alarm in well under 1 % of healthy runs of 300 to 500 updates (tests/test_guard.py), also where losses
    swing around zero or are negative (tests/test_guard_restless.py): there a value must also be out of the scatter in
    its own units.

    A value spikes when it is above the reference by `z` robust standard deviations of its level *and* `rise` times
    above the largest value, in each of the windows. The reference is the window's median, but at least `floor` times
    the run's first loss or norm: a run that has learnt its data by heart has hard batches that are a thousand times
    above its median and do no harm.

    Args:
        windows: lengths, in healthy updates, of the windows for median, MAD and maximum; ascending, each in [4, 4096].
        burn_in: first updates that can only alarm by being non-finite; in [3, 1000].
        z: robust standard deviations of the level, [1, 100].
        loss_rise: a loss spike is at least this many times the largest loss of the windows, [1.1, 1e6].
        gradient_rise: the same for gradient norms; large, because clipping and Adam tame the rest, [1.1, 1e9].
        floor: least reference, as a fraction of the first loss or norm, [0, 10].
        slow_window: updates whose median loss is followed for slow divergence, [3, 4096].
        slow_rise: slow divergence is that median above this many times the first loss, [1.05, 1e6] ...
        slow_far: ... or this many times its own best and above half the first loss, [1.05, 1e6] ...
        slow_patience: ... at this many healthy updates in succession; 0 turns slow divergence off, [0, 1e6]. Above
            the best by `slow_rise`, and by `creep_z` standard deviations of a mean, with a learning rate that has
            grown since then, `slow_window` of them will do, twice in a run.
        shift_window: the loss has shifted when it is above the largest and above the median of so many healthy
            updates, [4, 4096] ...
        shift_rise: ... above that median by this ratio, [1.05, 1e6] ...
        shift_z: ... and by so many standard deviations of a level, [1, 100]; of the differences of successive levels
            over 32 updates, so that a falling loss does not widen it; being above all of the last 40 will do, too ...
        shift_patience: ... at this many updates in succession, [1, 1000]; 0 turns it off.
        creep_updates: a smaller shift shows when so many losses in succession are above the median of the window
            before them, [4, 1000]; 0 turns it off ...
        creep_window: ... of this length, [4, 4096] ...
        creep_rise: ... their mean level by this ratio, [1.05, 1e6] ...
        creep_z: ... and by so many standard deviations of such a mean, [1, 100].
        opening: first updates in which a loss that rises at once is looked into, [4, 1000]; 0 turns it off.
        opening_rise: it rises when the median of 3 losses is this many times the first one, [1.05, 1e6] ...
        opening_drift: ... and it is divergence when the weights have moved by more than this share of their norm per
            update, [0, 1e3]. Healthy fine-tuning moves them by 0.002 ... 0.02.
        slow_sigmas: both thresholds widen by so many standard deviations, [0, 10], of a level for the first loss,
            which is known no better than that, and of a mean for the best one. A level's above 1 counts as 1.
    """

    windows: tuple[int, ...] = (16, 64)
    burn_in: int = 8
    z: float = 7.0
    loss_rise: float = 3.0
    gradient_rise: float = 30.0
    floor: float = 0.25
    slow_window: int = 16
    slow_rise: float = 1.5
    slow_far: float = 4.0
    slow_patience: int = 48
    slow_sigmas: float = 1.5
    shift_window: int = 12
    shift_rise: float = 1.5
    shift_z: float = 3.5
    shift_patience: int = 4
    creep_updates: int = 10
    creep_window: int = 16
    creep_rise: float = 1.3
    creep_z: float = 7.0
    opening: int = 12
    opening_rise: float = 1.2
    opening_drift: float = 0.03

    def __post_init__(self) -> None:
        windows = tuple(self.windows)
        if not windows or list(windows) != sorted(set(windows)):
            raise ValueError(f"Thresholds: windows={self.windows} must be one or more lengths in ascending order")
        object.__setattr__(self, "windows", windows)
        wholes = [("windows", w, 4, 4096) for w in windows]
        wholes += [("burn_in", self.burn_in, FIRST, 1000), ("slow_window", self.slow_window, FIRST, 4096)]
        wholes += [("slow_patience", self.slow_patience, 0, 1_000_000)]
        wholes += [("shift_window", self.shift_window, 4, 4096), ("shift_patience", self.shift_patience, 0, 1000)]
        wholes += [("creep_window", self.creep_window, 4, 4096)]
        wholes += [("creep_updates", self.creep_updates, 4, 1000)] if self.creep_updates else []
        wholes += [("opening", self.opening, 4, 1000)] if self.opening else []
        for name, value, low, high in wholes:
            check_range(self, name, value, low, high, hint="it is a number of updates")
            if not isinstance(value, int):
                raise TypeError(f"Thresholds: {name} must be a whole number of updates, got {value!r}")
        for name in ("loss_rise", "slow_rise", "slow_far", "shift_rise", "creep_rise", "opening_rise"):
            low_ratio = 1.1 if name == "loss_rise" else 1.05
            check_range(self, name, getattr(self, name), low_ratio, 1e6, hint="it is a ratio of losses")
        check_range(self, "z", self.z, 1.0, 100.0, hint="7 is the default")
        check_range(self, "gradient_rise", self.gradient_rise, 1.1, 1e9, hint="it is a ratio of gradient norms")
        check_range(self, "floor", self.floor, 0.0, 10.0, hint="it is a fraction of the first loss")
        check_range(self, "shift_z", self.shift_z, 1.0, 100.0, hint="3.5 is the default")
        check_range(self, "creep_z", self.creep_z, 1.0, 100.0, hint="7 is the default")
        check_range(self, "opening_drift", self.opening_drift, 0.0, 1e3, hint="it is a share of the weights' norm")
        check_range(self, "slow_sigmas", self.slow_sigmas, 0.0, 10.0, hint="1.5 is the default")

    @classmethod
    def of(cls, given: Thresholds | Mapping[str, Any] | None) -> Thresholds:
        """Thresholds from what differs from the defaults; a value of this class is returned as it is."""
        if isinstance(given, Thresholds):
            return given
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(given or {}) - set(names))
        if unknown:
            raise ValueError(f"thresholds have no '{unknown[0]}'; they have: {', '.join(names)}")
        return cls(**(given or {}))
