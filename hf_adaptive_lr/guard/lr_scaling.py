"""Cuts the learning rate of a guarded run and takes cuts back, in the optimizer or in the scheduler that writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer

_LARGEST_CUT = 1e-3
_CUT_HOLD = 8  # healthy updates, at least, before a cut is taken back
_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # the last two are OneCycleLR's
_SCHEDULER_RATES = ("base_lrs", "max_lrs", "_last_lr")


@runtime_checkable
class ScalesLR(Protocol):
    """A scheduler that writes learning rates at every update and scales them itself."""

    def set_scale(self, scale: float) -> None:
        """From the next update on, write `scale` times the scheduled rates; absolute, 1.0 at the start."""


@runtime_checkable
class GuardedScheduler(ScalesLR, Protocol):
    """A scheduler with a controller that a guard can fall back from; [`ControlledLR`] is one."""

    @property
    def can_fall_back(self) -> bool:
        """Whether the controller is still in charge and there is a schedule to fall back to."""

    def fall_back(self, reason: str) -> None:
        """Go on without the controller, by a plain schedule."""

    def note_loss(self, loss: float) -> None:
        """Take in the loss of a healthy update, the mean over all ranks."""

    def drop_pending(self) -> None:
        """Forget the losses of an update that will not happen."""


class LRScaling:
    """The factor on all learning rates: `lr_cut` to the number of cuts in force.

    `optimizer` is the raw one, `scheduler` perhaps in Accelerate's wrapper, or None; the others are as in
    [`DivergenceGuard`].
    """

    def __init__(self, optimizer: Optimizer, scheduler: Any, lr_cut: float, safe_drift: float, recover: bool) -> None:
        while scheduler is not None and hasattr(scheduler, "scheduler"):  # Accelerate's wrapper
            scheduler = scheduler.scheduler
        self.optimizer, self.scheduler = optimizer, scheduler
        self.controlled = scheduler if isinstance(scheduler, GuardedScheduler) else None
        self._scales = scheduler if isinstance(scheduler, ScalesLR) else None
        self._lr_cut, self._safe_drift, self._recover = lr_cut, safe_drift, recover
        self.factor = 1.0
        self._written = 1.0  # the factor in force when the rates in place were written
        self.last_cut = 1.0
        self.cut_hold = 0  # healthy updates until the last cut is taken back; 0 for never

    def now(self) -> float:
        """The learning rate of the first group that has a positive one; 0 if none has."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return next((rate for rate in rates if rate > 0), 0.0)

    def uncut(self) -> float:
        """The same without the cuts."""
        return self.now() / (self.factor if self._scales is None else self._written)

    def count_update(self) -> None:
        """An update has been applied: a scheduler that scales by itself has written the factor in force."""
        self._written = self.factor

    def after(self, expected: float) -> float:
        """The learning rate after a change: `expected` where a scheduler scales by itself, at its next update."""
        return self.now() if self._scales is None else expected

    def cut_ratio(self, drift: float | None) -> float:
        """Factor of a cut: `lr_cut`, or in the opening of a run the one after which an update drifts safely."""
        if not drift:  # after the opening, or the weights have not moved yet
            return self._lr_cut
        if not math.isfinite(drift):
            return self._lr_cut / 5
        return min(self._lr_cut, max(_LARGEST_CUT, self._safe_drift / drift))

    def cut(self, ratio: float, *, lost: int | None, factor_then: float | None) -> None:
        """Multiply all rates by `ratio`, in (0, 1].

        A sudden accident may come from anywhere. So its first cut lasts until it did not happen again when it would
        have; if the learning rate was the cause, it happens later, and then the cut is for good. `lost` are the
        updates between the state restored and the trouble, for a run's first sudden accident, else None.
        `factor_then` was in force when the rates in place were written, where they have been restored.
        """
        then = self._written = self.factor if factor_then is None else factor_then
        self.factor *= ratio
        back = lost is not None and self._recover and ratio < 1.0
        self.last_cut, self.cut_hold = ratio, max(_CUT_HOLD, (lost or 0) + 4) if back else 0
        self.scale(self.factor / then)

    def undo_cut(self) -> float:
        """Take the last cut back; its factor."""
        ratio = self.last_cut
        if ratio != 1.0:
            self.factor = min(1.0, self.factor / ratio)  # never a rounding above 1
            self.scale(1.0 / ratio)
        self.last_cut, self.cut_hold = 1.0, 0
        return ratio

    def scale(self, ratio: float) -> None:
        """Bring all rates to the factor in force: by `ratio`, or by the factor itself in a scheduler that scales."""
        self._apply_factor()
        if self._scales is not None:
            return
        for group in self.optimizer.param_groups:
            for name in _GROUP_RATES:
                if name in group:
                    group[name] = group[name].mul_(ratio) if isinstance(group[name], Tensor) else group[name] * ratio
        _scale_scheduler(self.scheduler, ratio)

    def _apply_factor(self) -> None:
        if self._scales is not None:
            self._scales.set_scale(self.factor)

    def drop_pending(self) -> None:
        """Let a controller's scheduler forget the losses of an update that will not happen."""
        if self.controlled is not None:
            self.controlled.drop_pending()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        # `parole` is the key of version 0.1.
        return {"factor": self.factor, "last_cut": self.last_cut, "parole": self.cut_hold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict`; the rates themselves are restored by the caller."""
        self.factor, self.last_cut, self.cut_hold = state["factor"], state["last_cut"], state["parole"]
        self._written = self.factor
        self._apply_factor()


def _scale_scheduler(scheduler: Any, ratio: float) -> None:
    for name in _SCHEDULER_RATES:
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list):
            setattr(scheduler, name, [rate * ratio for rate in rates])
    for inner in getattr(scheduler, "_schedulers", []):  # SequentialLR, ChainedScheduler
        _scale_scheduler(inner, ratio)
