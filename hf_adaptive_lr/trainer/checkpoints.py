"""Trainer's checkpoints: which of them continue a run exactly, and the order of writing that always leaves one.

Trainer loads what it finds and says nothing of the rest: without `optimizer.pt` the optimizer and the schedule begin
anew in mid-run. So a checkpoint is looked at before it is used.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..artifacts import STATE_NAME

_SCHEDULER = "scheduler.pt"
_POSITION = "AdaptiveLR"  # key in trainer_state.json, among the states of callbacks
_WEIGHTS = ("*.safetensors", "pytorch_model*", "adapter_model*", "*/*.safetensors", "*/pytorch_model*")
_ZIPPED = ("optimizer", "scheduler", "scaler", "rng_state", "snapshot", "pytorch_model")  # not what a user adds
_STATES = {  # all ways in which Trainer names them: one process or several, FSDP
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*"),
    _SCHEDULER: (_SCHEDULER,),
    "rng_state.pth": ("rng_state.pth", "rng_state_*.pth"),
}


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoint folders in an output folder, newest first, whole or not, with their numbers of updates."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted(((int(match[1]), path) for match, path in named if match and path.is_dir()), reverse=True)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in an output folder that continues its run exactly, or None."""
    return next((path for _, path in numbered(folder) if fault(path) is None), None)


def check_checkpoint(path: Path) -> None:
    """Fails fast (ValueError) for a checkpoint from which a run would not continue as if it had not stopped."""
    found = fault(path)
    if found is not None:
        raise ValueError(f"cannot resume from '{path}': {found}")


def fault(path: Path) -> str | None:
    """What keeps a checkpoint from continuing its run exactly, in one line; None where nothing does.

    All files are there and none is cut short; `trainer_state.json`, which Trainer writes last, the name of the folder
    and the schedule have counted the same updates.
    """
    if not path.is_dir():
        return "there is no such folder"
    missing = [name for name, kinds in _STATES.items() if not any(_found(path, kinds))]
    if len(missing) == len(_STATES) and any(_found(path, _WEIGHTS)):
        return (
            f"it has weights alone, as save_only_model=True writes it, and no {', '.join(missing)}; start a new run "
            "from its weights"
        )
    if missing or not any(_found(path, _WEIGHTS)):
        lacking = [*missing, *([] if any(_found(path, _WEIGHTS)) else ["model.safetensors"])]
        return f"it has no {', '.join(lacking)}; resume from another checkpoint"
    cut = next((file.name for file in sorted(path.iterdir()) if _cut_short(file)), None)
    if cut is not None:
        return f"{cut} is cut short or damaged; resume from another checkpoint"
    return _counts(path)


def sync(folder: Path) -> None:
    """Bring all files of a folder, and their names, onto the disk."""
    if os.name == "nt":
        return  # a folder cannot be opened there, and a file only for writing
    for path in (*(path for path in folder.rglob("*") if not path.is_symlink()), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def note_position(state: Any, updates: int) -> None:
    """Write down in a `TrainerState` how many of its updates the schedule has counted; skipped ones are not in it."""
    counts = {"step": state.global_step, "updates": updates}
    state.stateful_callbacks[_POSITION] = {"args": {}, "attributes": counts}


def check_position(updates: int, steps: int) -> None:
    """Fails fast (ValueError) where a loaded schedule has counted more updates than Trainer."""
    if updates > steps:
        raise ValueError(
            f"{STATE_NAME} has counted {steps} updates and {_SCHEDULER} {updates}: they are of different checkpoints; "
            "resume from another one"
        )


def _found(path: Path, kinds: tuple[str, ...]) -> Iterator[Path]:
    return (found for kind in kinds for found in path.glob(kind))


def _cut_short(file: Path) -> bool:
    """Whether the end of a file is missing; quick, as only the places are read that say where it should be."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt"):
                return False
        except (OSError, SafetensorError):
            return True
    ours = file.suffix in (".pt", ".pth", ".bin") and file.name.startswith(_ZIPPED)
    return ours and file.is_file() and not zipfile.is_zipfile(file)


def _counts(path: Path) -> str | None:
    import torch  # not above: the command line reads this file before it needs torch

    try:
        state = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
        steps = state["global_step"]
    except FileNotFoundError:
        return f"it has no {STATE_NAME}; the run ended while it was written, resume from another checkpoint"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return f"{STATE_NAME} is cut short or damaged; resume from another checkpoint"
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        return (
            f"{STATE_NAME} says global_step={steps!r}, which is no number of updates; resume from another checkpoint"
        )
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    if match and int(match[1]) != steps:
        return f"{STATE_NAME} says global_step={steps}, the folder's name {match[1]}; resume from another checkpoint"
    try:
        schedule = torch.load(path / _SCHEDULER, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: torch, pickle, zip
        return f"{_SCHEDULER} cannot be read ({type(error).__name__}); resume from another checkpoint"
    updates = schedule.get("updates") if isinstance(schedule, dict) else None
    if updates is None:  # another scheduler's, or that of a callback
        return None
    counted = _noted(state, steps)
    if isinstance(updates, int) and 0 <= updates <= steps and counted in (None, updates):
        return None
    return (
        f"{STATE_NAME} has counted {steps} updates{'' if counted is None else f', {counted} of them applied'}, and "
        f"{_SCHEDULER} {updates}: they are of different checkpoints; resume from another one"
    )


def _noted(state: dict[str, Any], steps: int) -> Any:
    """The updates of the schedule that `note_position` wrote down; None where nobody did, as in version 0.1."""
    known = state.get("stateful_callbacks")
    entry = known.get(_POSITION) if isinstance(known, dict) else None
    counts = entry.get("attributes") if isinstance(entry, dict) else None
    return counts.get("updates") if isinstance(counts, dict) and counts.get("step") == steps else None
