"""What a guard saves: the state that decides its next action, and the snapshots, in a checkpoint's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..artifacts import replace_file
from .detector import Detector
from .events import EventLog
from .history import SnapshotHistory
from .lr_scaling import LRScaling
from .snapshot import Snapshot
from .snapshot_file import FILE_NAME as SNAPSHOT_NAME
from .trouble import TroubleCount

FILE_NAME = "guard.pt"
STATE_FORMAT = 1


class GuardState:
    """The saved parts of a [`DivergenceGuard`]."""

    updates: int
    rollbacks: int
    stopped: bool
    detector: Detector
    snapshots: Snapshot | None
    _damaged: bool
    _trouble: TroubleCount
    _lr: LRScaling
    _history: SnapshotHistory
    _log: EventLog

    def state_dict(self) -> dict[str, Any]:
        """Plain values: all that decides the next action, but not the snapshots (see `save`)."""
        return {
            "format": STATE_FORMAT,
            "updates": self.updates,
            "rollbacks": self.rollbacks,
            "stopped": self.stopped,
            "damaged": self._damaged,
            **self._trouble.state_dict(),
            **self._lr.state_dict(),
            **self._history.state_dict(),
            "detector": self.detector.state_dict(),
            "events": [dict(event) for event in self._log.events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run whose weights, optimizer and scheduler the caller has restored (with them the cut LR).

        A scheduler with `set_scale` gets the factor again. Without `load` there is no snapshot until the run is
        calm; a rollback before that has nothing to go back to and only cuts the learning rate.
        """
        if state["format"] > STATE_FORMAT:
            raise ValueError(f"this guard state has format {state['format']}, newer than this library reads; upgrade")
        self.updates, self.rollbacks, self.stopped = state["updates"], state["rollbacks"], state["stopped"]
        self.detector.load_state_dict(state["detector"])
        self._trouble.load_state_dict(state)
        self._history.load_state_dict(state)
        self._lr.load_state_dict(state)
        self._log.events = [dict(event) for event in state["events"]]
        self._damaged = state.get("damaged", False)  # version 0.1 had none

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write state and snapshots into a checkpoint's folder, so that a resumed run can go back behind it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.snapshots is not None and len(self.snapshots):
            self.snapshots.to_disk(folder)
        replace_file(folder / FILE_NAME, lambda path: torch.save(self.state_dict(), path))

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Continue from a folder of `save`; the caller restores the training itself, as for `load_state_dict`."""
        if self.snapshots is not None and (Path(folder) / SNAPSHOT_NAME).exists():
            self.snapshots.from_disk(folder)
        self.load_state_dict(torch.load(Path(folder) / FILE_NAME, weights_only=True))
