"""Which snapshot of a guarded run is good: newer ones may hold damage that has not shown in the loss yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .snapshot import Snapshot

_CONFIRMED = 2  # healthy updates after a snapshot before it counts as good, where trouble shows at once
_SPAN = 16  # updates that snapshots reach back, at least: a slow rise of the loss shows after ten


class SnapshotHistory:
    """Snapshots with the number of healthy updates since each; one is due every `every` applied updates.

    `every=None` takes none; the other arguments are those of [`Snapshot`].
    """

    def __init__(self, every: int | None, model: Any, optimizer: Any, schedulers: Any, scaler: Any) -> None:
        self._every = every
        self.snapshots: Snapshot | None = None
        if every:
            slots = max(2, math.ceil(_SPAN / every))
            self.snapshots = Snapshot(model, optimizer, schedulers=schedulers, scaler=scaler, slots=slots)
        self.ages: list[int] = []  # healthy updates since each snapshot, newest first
        self._since = 0  # applied updates since the last one

    def __len__(self) -> int:
        return 0 if self.snapshots is None else len(self.snapshots)

    def count(self, *, healthy: bool) -> bool:
        """Count an applied update; whether a snapshot is due, and the newest one has proved good."""
        self._since += 1
        if healthy:
            self.ages = [age + 1 for age in self.ages]
        return self._every is not None and self._since >= self._every and self._confirmed(0)

    def take(self, meta: Mapping[str, Any]) -> None:
        """Add a snapshot of the run as it is now; the caller has checked that it is finite."""
        assert self.snapshots is not None
        self.snapshots.take(meta, check=False)
        # The first is the state that the user started from, and counts as good.
        self.ages = [0 if self.ages else _CONFIRMED, *self.ages][: self.snapshots.slots]
        self._since = 0

    def go_back(self, age: int, *, schedule: bool) -> Mapping[str, Any] | None:
        """Restore the newest good state of at least this age, and drop newer ones; its `meta`, None without any."""
        if self.snapshots is None or not len(self.snapshots):
            return None
        for _ in range(self._good(age)):
            self.snapshots.drop(0)
            self.ages.pop(0)
        meta: Mapping[str, Any] = self.snapshots.restore(0, schedule=schedule)
        # Trouble that comes back before this state has proved good again goes one state further back.
        self.ages[0], self._since = 0, 0
        return meta

    def target(self, age: int) -> int | None:
        """The update that `go_back` would restore, None without any."""
        return (
            int(self.snapshots.meta(self._good(age))["update"]) if self.snapshots is not None and self.ages else None
        )

    def forget_outdated(self) -> bool:
        """Drop the snapshots if other weights train now than when they were taken: none can be restored."""
        if self.snapshots is None or not len(self) or self.snapshots.fits():
            return False
        for _ in range(len(self)):
            self.snapshots.drop(0)
        self.ages = []
        return True

    def repair_buffers(self) -> dict[str, bool]:
        """Put non-finite buffers back; for the event, whether that was needed."""
        return {} if self.snapshots is None else {"buffers_repaired": self.snapshots.repair_buffers(self._good(0))}

    def drift(self) -> float:
        """Distance of the weights from the oldest snapshot, as a share of their norm there."""
        assert self.snapshots is not None
        return self.snapshots.drift(len(self) - 1)

    def _good(self, age: int) -> int:
        """Index of the newest snapshot that has proved good and is of this age, or of the oldest."""
        proved = (i for i in range(len(self.ages)) if self._confirmed(i, age))
        return next(proved, max(len(self.ages) - 1, 0))

    def _confirmed(self, index: int, age: int = 0) -> bool:
        return index >= len(self.ages) or self.ages[index] >= max(_CONFIRMED, age)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, without the snapshots."""
        return {"since_snapshot": self._since, "ages": list(self.ages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict`, for as many snapshots as there are."""
        self._since, self.ages = state["since_snapshot"], [*state["ages"], *[0] * len(self)][: len(self)]
