"""Figures of a training, as they come, to the trackers that Accelerate knows (TensorBoard, trackio, wandb, ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ValueError: names the tracker and those that are there.
    """
    available = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in names:
        if name not in available:
            raise ValueError(f"no tracker '{name}' is installed; installed: {', '.join(available) or 'none'}")


class Trackers:
    """Some trackers of one training; made on the first process only.

    Args:
        names: as Accelerate knows them, for example `("tensorboard",)`.
        folder: where those that write files write them.
        settings: what identifies the training.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        self._trackers = [_start(name, folder) for name in names]
        for tracker in self._trackers:
            tracker.store_init_configuration(dict(settings))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures of one iteration."""
        for tracker in self._trackers:
            tracker.log({f"train/{name}": value for name, value in figures.items()}, step=step)

    def close(self) -> None:
        """Finish all of them."""
        for tracker in self._trackers:
            tracker.finish()


def _start(name: str, folder: Path) -> Any:
    PartialState()  # what Accelerate's loggers ask which process this is
    cls = LOGGER_TYPE_TO_CLASS[name]
    places = {"logging_dir": str(folder)} if cls.requires_logging_directory else {}
    tracker = cls("hf_adaptive_lr", **places)
    tracker.main_process_only = False  # this is the first process; no need to find out
    tracker.start()
    return tracker
