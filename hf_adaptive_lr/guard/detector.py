"""Detects divergence from two numbers per update, its loss and its gradient norm, before the update is applied.

Nothing here knows a model: plain floats in, a reason code out, and a state of numbers and short lists. How values are
compared is in `levels.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .levels import RANKED, SHIFT_SPREAD, Track, median, spread
from .thresholds import Thresholds, has_grown

REASONS = (
    *("non_finite_loss", "non_finite_gradient", "loss_spike", "gradient_explosion"),
    *("loss_shift", "slow_divergence"),
)
"""Every answer of [`Detector.see`] besides None."""

EARLY = "early_divergence"
"""A guard's reason when the loss rises at once (`Detector.rising`) and the weights are already far from the start."""

_STRICT_WINDOW = 16  # healthy updates after a rollback until a shift has to last again
_EXPLODED = 30  # times the run's first losses
_BLAMED = 2  # rollbacks that a grown learning rate may bring about by itself
_JUMP = 4.0  # times the learning rate of the update before: a restart, which shows at once if it does harm


class Detector:
    """Judges from a run's losses and gradient norms whether the update about to be applied is divergent.

    Only healthy updates enter the windows, so that a series of bad ones cannot make itself normal. It costs about
    10 us per update.

    Example:
        >>> detector = Detector()
        >>> [detector.see(1.0 + 0.01 * (i % 3), 0.5) for i in range(20)].count(None)
        20
        >>> detector.see(100.0, 0.5), detector.see(float("nan"), 0.5), detector.see(1.0, 0.5)
        ('loss_spike', 'non_finite_loss', None)
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.seen: dict[str, float] = {}
        """The numbers behind the last alarm: `typical` and `limit` of what alarmed; empty for non-finite values."""
        t = self.thresholds
        before = max(t.creep_window, SHIFT_SPREAD, RANKED)
        keep = max(*t.windows, t.slow_window, t.shift_window, before + t.creep_updates)
        self.lasted = 0
        """Updates that the trouble behind the last alarm has been going on for; 0 if it came with this one."""
        self.unseen = 0
        """How many of these were called healthy and not even suspicious."""
        self._loss, self._norm = Track(self.thresholds, keep), Track(self.thresholds, keep)
        self._best: float | None = None  # lowest median level
        self.lr = 0.0
        """The learning rate of the update judged last, 0 if not known."""
        self._best_lr = 0.0  # when the lowest level was reached
        self.rate_blamed = 0
        """How often weights went back because of a learning rate that had grown."""
        self._slow = 0  # healthy updates in succession that were high
        self._highest = -math.inf  # loss of the shift behind the last alarm
        self._pending: list[list[float]] = []  # losses and norms in succession that may be a shift
        self._trouble = math.inf  # loss of the update at which the weights went back
        self._strict = 0  # healthy updates left until a shift has to last again
        self._opening: list[float] = []  # the run's first losses, one more than the opening is long
        self._met: list[float] = []  # largest loss and norm that good weights have met

    @property
    def calm(self) -> bool:
        """Whether nothing points to a divergence under way."""
        far = self._scattered
        return self._slow == 0 and not self._pending and (far == math.inf or self._recent() <= far)

    @property
    def lr_has_grown(self) -> bool:
        """Whether the learning rate has grown gradually since losses were lowest: higher ones may be its doing."""
        return has_grown(self.lr, self._best_lr)

    @property
    def suspicious(self) -> bool:
        """Whether the update judged last may be the beginning of a shift; it was called healthy."""
        return bool(self._pending)

    @property
    def opening(self) -> int:
        """Updates that were healthy before the one judged last, while the opening lasts; 0 afterwards."""
        return len(self._opening) - 1 if 1 < len(self._opening) <= self.thresholds.opening else 0

    @property
    def rising(self) -> bool:
        """Whether the loss has risen since the first update, and the opening lasts."""
        last = sorted(self._opening[-3:])
        ratios = self.opening >= 3 and min(self._opening) > 0.0
        return ratios and last[1] > self.thresholds.opening_rise * self._opening[0]

    def see(self, loss: float, grad_norm: float, lr: float = 0.0) -> str | None:
        """Judge an update by its mean loss and its gradient norm before clipping: None if healthy, or a reason.

        With its learning rate `lr` (0 if not known) a rate that has grown too large is found sooner.
        """
        loss, grad_norm = float(loss), float(grad_norm)
        if lr > _JUMP * self.lr:
            self._best_lr = lr
        self.lr = lr
        self.seen, self.lasted, self.unseen, self._highest = {}, 0, 0, -math.inf
        if not math.isfinite(loss):
            return "non_finite_loss"
        if not math.isfinite(grad_norm):
            return "non_finite_gradient"
        for reason, track, value, rise in (
            ("loss_spike", self._loss, loss, self.thresholds.loss_rise),
            ("gradient_explosion", self._norm, grad_norm, self.thresholds.gradient_rise),
        ):
            limit = track.spike_limit(value, rise)
            if limit is not None:
                self.seen = {"typical": track.value(median(track.levels)), "limit": track.value(limit)}
                return reason
        if self._shifts(loss, grad_norm):
            return "loss_shift" if not self._pending else None
        if len(self._opening) <= self.thresholds.opening:
            self._opening.append(loss)
        for healthy in [*self._pending, [loss, grad_norm]]:
            self._loss.push(healthy[0])
            self._norm.push(healthy[1])
        self._pending, self._strict = [], max(0, self._strict - 1)
        creep = self._loss.creep_limit() if self.thresholds.creep_updates else None
        if creep is not None:
            self.seen, self.lasted = creep, self.thresholds.creep_updates
            self.unseen = self.lasted
            return "loss_shift"
        return self._slow_divergence()

    def _shifts(self, loss: float, grad_norm: float) -> bool:
        """Whether the loss is out of its band; `_pending` is empty then if it has been for long enough."""
        limit = self._loss.shift_limit(loss) if self.thresholds.shift_patience else None
        if limit is None:
            return False
        self._pending.append([loss, grad_norm])
        if len(self._pending) >= self.thresholds.shift_patience or self._is_back(loss):
            self.lasted, self._highest = len(self._pending), max(pair[0] for pair in self._pending)
            self._pending = []
            self.seen = {"typical": self._loss.value(median(self._loss.levels)), "limit": self._loss.value(limit)}
        return True

    def be_strict(self, loss: float) -> None:
        """After a rollback: until the weights have proved good, a single loss like this one is a shift."""
        self._strict, self._pending = _STRICT_WINDOW, []
        self._trouble = loss if math.isfinite(loss) else math.inf

    def _is_back(self, loss: float) -> bool:
        """Whether a loss out of its band is nearer to that of the trouble before than to a normal one."""
        track = self._loss
        bad = track.level(min(self._trouble, 1e300))
        return self._strict > 0 and track.level(loss) > 0.5 * (median(track.levels) + bad)

    def blame_data(self, loss: float, grad_norm: float) -> None:
        """Good weights have met this trouble, so the data brings it; `tolerate` ends the series."""
        met = self._met or [loss, grad_norm]
        self._met = [max(met[0], loss, self._highest), max(met[1], grad_norm)]

    def blame_rate(self) -> None:
        """Weights went back because of a learning rate that had grown."""
        self.rate_blamed = min(self.rate_blamed + 1, _BLAMED)

    def tolerate(self) -> None:
        """What the data has been seen to bring is normal, should it come again; it sinks into oblivion, slowly."""
        if self._met:
            self._loss.tolerate(self._met[0])
            self._norm.tolerate(self._met[1])
        self._met = []

    def accept(self) -> None:
        """The data has changed: take the next losses for normal, whatever they are."""
        self.tolerate()
        self._loss.levels, self._norm.levels, self._pending = [], [], []
        self._best, self._best_lr, self._slow, self._strict = None, 0.0, 0, 0

    def exploded(self, loss: float) -> bool:
        """Whether a loss is so far above the first ones of the run that it is no shift any more."""
        return loss > _EXPLODED * abs(self._loss.top)

    def go_back(self, state: Mapping[str, Any] | None) -> None:
        """To an earlier state, None for a fresh one; what the data was seen to bring since is not forgotten."""
        known = self._met, self._loss.ceiling, self._norm.ceiling, self.rate_blamed
        self.load_state_dict(Detector(self.thresholds).state_dict() if state is None else state)
        self._met, self._loss.ceiling, self._norm.ceiling, self.rate_blamed = known

    def _recent(self) -> float:
        return median(self._loss.levels[-self.thresholds.slow_window :])

    @property
    def _scattered(self) -> float:
        """Level out of the scatter of a mean above the best one, where the rate has grown since; else infinite."""
        t, track = self.thresholds, self._loss
        if self._best is None or not self.lr_has_grown or min(track.levels) <= 0.0:
            return math.inf
        out = t.creep_z * spread(track.levels) / math.sqrt(t.slow_window)
        return self._best + max(math.log(t.slow_rise), out)

    @property
    def _risen(self) -> float:
        """Level above which a loss has risen with the learning rate; infinite where that is no evidence.

        There is a reason for the rise, so a smaller one will do. When this has sent the weights back twice it is
        spent: should the loss rise again with a lower rate, the data does it.
        """
        t, track = self.thresholds, self._loss
        if self.rate_blamed == _BLAMED:
            return math.inf
        return max(self._scattered, track.level(track.start) - math.log(2.0), track.floor + math.log(t.slow_rise))

    def _slow_divergence(self) -> str | None:
        t, track = self.thresholds, self._loss
        if not t.slow_patience or len(track.levels) < t.slow_window:
            return None
        level = self._recent()
        if self._best is None or level < self._best:
            self._best, self._best_lr = level, self.lr
        start = track.level(track.start)
        least, above_start = track.floor + math.log(t.slow_rise), start + math.log(t.slow_rise)
        above_best = max(self._best + math.log(t.slow_far), start - math.log(2.0))
        bound, patience = max(least, min(above_start, above_best)), t.slow_patience
        if level > (risen := self._risen):
            bound, patience = risen, min(patience, t.slow_window)
        elif level > bound:  # the scatter takes a sort, so it is asked for last
            best = self._best if above_best < above_start else None
            bound = max(least, track.slow_limit(min(above_start, above_best), best))
        self._slow = self._slow + 1 if level > bound else 0
        if self._slow < patience:
            return None
        self.seen = {"typical": track.value(level), "limit": track.value(bound)}
        return "slow_divergence"

    def state_dict(self) -> dict[str, Any]:
        """Numbers and short lists of numbers, all finite."""
        return {
            "slow": self._slow,
            "best": self._best,
            "lr": self.lr,
            "best_lr": self._best_lr,
            "rate_blamed": self.rate_blamed,
            "opening": list(self._opening),
            "pending": [list(pair) for pair in self._pending],
            "met": list(self._met),
            "wary": self._strict,  # key of version 0.1
            "trouble": self._trouble if math.isfinite(self._trouble) else None,
            **self._loss.state_dict("loss"),
            **self._norm.state_dict("norm"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self._slow, self._best = state["slow"], state["best"]
        # Version 0.1 knew no rates.
        self.lr, self._best_lr = state.get("lr", 0.0), state.get("best_lr", 0.0)
        self.rate_blamed = state.get("rate_blamed", 0)
        self._opening, self._strict = list(state["opening"]), state["wary"]
        self._pending = [list(pair) for pair in state["pending"]]
        self._trouble = math.inf if state["trouble"] is None else state["trouble"]
        self._met = list(state.get("met", []))  # version 0.1 had none
        self._loss.load_state_dict(state, "loss")
        self._norm.load_state_dict(state, "norm")
