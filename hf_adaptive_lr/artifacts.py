"""Files of runs and controllers: their names, and writes that leave the old file or the new one; free of torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROGRAM = "hf-adaptive-lr"

CONFIG_NAME = "config.json"


WEIGHTS_NAME = "model.safetensors"


TRAINING_NAME = "training.json"


EVAL_NAME = "eval_results.json"


CHECKPOINT_NAME = "checkpoint.pt"
"""Of a training of a controller that goes on."""

TRACE_NAME = "lr_trace.jsonl"
"""The learning rate of every update and why, one JSON object per line."""

CONTROLLER_NAME = "controller.json"
"""Who decided: the controller's type, config and origin."""

EVENTS_NAME = "events.jsonl"
"""What a divergence guard did, one JSON object per line; no file where it did nothing."""

RESULTS_NAME = "results.json"
"""Result of one run of the main job."""

CURVES_NAME = "curves.png"
"""Its picture."""

MODEL_NAME = "model"
"""Its folder with the trained model."""


def library_version() -> str:
    """Installed version of hf_adaptive_lr, "unknown" when it runs from a tree that was never installed."""
    try:
        return version("hf_adaptive_lr")
    except PackageNotFoundError:
        return "unknown"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path` and move it into place, so that a crash leaves the old file or the new one.

    A link of that name is replaced, not followed.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.unlink(missing_ok=True)
        draft.touch()
        usual = draft.stat().st_mode
        write(draft)
        draft.chmod(usual)  # some writers make files that nobody else may read
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
