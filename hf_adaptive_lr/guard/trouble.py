"""Counts the trouble of a guarded run: when skipping has been tried for long enough, and when the data is to blame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .thresholds import has_grown

_PAID_BACK = 0.25  # a healthy update makes up for this many skipped ones
_CALM = 8  # healthy updates since the last trouble before the next snapshot
_PERSISTS = 3  # updates in succession with a finite loss or gradient out of bounds: the weights are damaged
_DATA_PATIENCE = 4  # times max_skips: how long finite trouble that the data brings is skipped before it is accepted
_SOON = 128  # updates after a rollback in which the same shift again is the data's
_SCALER_SKIPS = 20  # overflows in a row that are left to a gradient scaler; it needs them to find its scale


@dataclass
class TroubleCount:
    """Skipped and healthy updates, and rollbacks that did not help."""

    max_skips: int
    unpaid: float = 0.0  # skips that healthy updates have not paid back yet
    failed_rollbacks: int = 0  # rollbacks since the last healthy update
    in_a_row: int = 0  # skips since then
    overflows: int = 0  # in a row, left to a gradient scaler
    healthy: int = _CALM  # healthy updates since the last trouble
    last_back: list[Any] | None = (
        None  # the last rollback for a finite reason: reason, update, loss, where it went, LR
    )

    @property
    def calm(self) -> bool:
        """Whether the last trouble is over and paid back."""
        return self.healthy >= _CALM and not self.unpaid

    @property
    def data_has_changed(self) -> bool:
        """Whether good weights have met finite trouble for so long that it is the new normal."""
        return self.unpaid > _DATA_PATIENCE * self.max_skips

    def count_healthy(self) -> None:
        """Count a healthy update."""
        self.unpaid = max(0.0, self.unpaid - _PAID_BACK)
        self.healthy += 1
        self.overflows = self.failed_rollbacks = self.in_a_row = 0

    def count_trouble(self) -> None:
        """Count an update in trouble."""
        self.healthy = 0
        self.unpaid += 1.0

    def left_to_scaler(self) -> bool:
        """Count an overflow, if a gradient scaler may still deal with it."""
        left = self.overflows < _SCALER_SKIPS
        self.overflows += left
        return left

    def persists(self, *, finite: bool, at_once: bool) -> bool:
        """Whether to go back now instead of skipping once more: `at_once`, or as skipping has not helped."""
        self.in_a_row += 1
        lasts = at_once or (finite and self.in_a_row >= _PERSISTS)
        return lasts or self.unpaid > self.max_skips * 2**self.failed_rollbacks

    def comes_again(self, seen: Mapping[str, Any], target: int | None, rise: float, lr: float) -> bool:
        """Whether going back, to the update `target`, has been tried for such a shift before and has not helped."""
        if self.last_back is None or seen["reason"] != "loss_shift":
            return False
        reason, update, loss, there, lr_then = self.last_back
        same = reason == "loss_shift" and target is not None and target <= there
        soon = seen["update"] - update <= _SOON
        # A season or another source brings the same loss again, whatever the rate; one that is too large drives it to
        # any height, less high once it has been cut, and if it grows again after going back it is the likelier cause.
        alike = loss <= rise**2 * seen["loss"] and seen["loss"] <= rise * loss
        return bool((same or soon) and alike and not has_grown(lr, lr_then))

    def count_rollback(self, seen: Mapping[str, Any], lr: float) -> None:
        """Count a rollback, which failed until a healthy update follows; `lr` is the rate after it, without cuts."""
        self.failed_rollbacks += 1
        self.unpaid, self.overflows = 0.0, 0
        finite = seen["restored_update"] is not None and not seen["reason"].startswith("non_finite")
        told = [seen[n] for n in ("reason", "update", "loss", "restored_update")]
        self.last_back = [*told, lr] if finite else None

    def accept(self) -> None:
        """Forget the trouble: it is normal now."""
        self.unpaid, self.failed_rollbacks, self.last_back = 0.0, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        numbers = {name: getattr(self, name) for name in ("in_a_row", "overflows", "healthy")}
        more = {"last_back": self.last_back}
        return {"trouble": self.unpaid, "fruitless": self.failed_rollbacks, **numbers, **more}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict`."""
        self.unpaid, self.failed_rollbacks = state["trouble"], state["fruitless"]
        self.last_back = state.get("last_back")  # version 0.1 had none
        self.in_a_row, self.overflows, self.healthy = state["in_a_row"], state["overflows"], state["healthy"]
