"""Trainer's checkpoints: which of them continue a run exactly, and the order of writing that always leaves one.

Trainer loads what it finds and says nothing of the rest: without `optimizer.pt` the optimizer and the schedule begin
anew in mid-run. So a checkpoint is looked at before it is used.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts import STATE_NAME, flush_to_disk, numbered_checkpoints

_SCHEDULER = "scheduler.pt"
_WEIGHTS = (
    *("*.safetensors", "pytorch_model*", "adapter_model*", "*/*.safetensors", "*/pytorch_model*"),
    "global_step*/*model_states.pt",
)
_OURS = re.compile(  # files of torch.save that Trainer or this library writes; a user may add others
    r"(optimizer|scheduler|scaler|rng_state(_\d+)?|snapshot(_rng_\d+)?|training_args|adapter_model|"
    r"pytorch_model(-\d+-of-\d+)?)\.(pt|pth|bin)"
)
_STATES = {  # all ways in which Trainer names them: one process or several, FSDP, DeepSpeed
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*/*optim_states.pt"),
    _SCHEDULER: (_SCHEDULER,),
    "rng_state.pth": ("rng_state.pth", "rng_state_*.pth"),
}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a run needs of its checkpoints.

    Args:
        processes: how many processes wrote their random generators; None where that is unknown.
        scaler: it has a gradient scaler (float16).
        weights: its weights have a name that Trainer gives; not where a subclass saves them itself.
    """

    processes: int | None = None
    scaler: bool = False
    weights: bool = True


_ANY = Expected()


def newest_whole(folder: Path, expected: Expected = _ANY) -> Path | None:
    """The newest checkpoint in an output folder that continues its run exactly, or None."""
    return next((path for _, path in numbered_checkpoints(folder) if fault(path, expected) is None), None)


def check_checkpoint(path: Path, expected: Expected = _ANY) -> None:
    """Fails fast (ValueError) for a checkpoint from which a run would not continue as if it had not stopped."""
    found = fault(path, expected)
    if found is not None:
        raise ValueError(f"cannot resume from '{path}': {found}")


def fault(path: Path, expected: Expected = _ANY) -> str | None:
    """What keeps a checkpoint from continuing its run exactly, in one line; None where nothing does.

    All files are there and none is cut short; `trainer_state.json`, which Trainer writes last, the name of the folder
    and the schedule have counted the same updates.
    """
    if not path.is_dir():
        return "there is no such folder"
    missing = [name for name, kinds in _STATES.items() if not any(_found(path, kinds))]
    weights = any(_found(path, _WEIGHTS))
    if len(missing) == len(_STATES) and weights:
        return (
            f"it has weights alone, as save_only_model=True writes it, and no {', '.join(missing)}; start a new run "
            "from its weights"
        )
    if expected.scaler and not (path / "scaler.pt").is_file():
        missing.append("scaler.pt")
    if expected.weights and not weights:
        missing.append("model.safetensors")
    if missing:
        return f"it has no {', '.join(missing)}; resume from another checkpoint"
    if (lacking := _generators(path, expected.processes)) is not None:
        return lacking
    cut = next((file.name for file in sorted(path.iterdir()) if _cut_short(file)), None)
    if cut is not None:
        return f"{cut} is cut short or damaged; resume from another checkpoint"
    return _counts(path)


def generator_names(processes: int) -> set[str]:
    """Names of the files in which so many processes keep the states of their random generators."""
    return {"rng_state.pth"} if processes == 1 else {f"rng_state_{rank}.pth" for rank in range(processes)}


def generators(path: Path) -> set[str]:
    """The files with states of random generators that a checkpoint has."""
    return {file.name for file in _found(path, _STATES["rng_state.pth"])}


def sync(folder: Path) -> None:
    """Bring all files of a folder, and their names, onto the disk."""
    for place, _, names in os.walk(folder):
        for path in (*(Path(place, name) for name in names), Path(place)):
            if not path.is_symlink():
                flush_to_disk(path)
    flush_to_disk(folder.parent)


def check_position(state: Mapping[str, Any], steps: int) -> None:
    """Fails fast (ValueError) where a saved run state is not of the update that Trainer has reached."""
    found = _position_fault(state, steps)
    if found is not None:
        raise ValueError(found)


def _position_fault(state: Mapping[str, Any], steps: int) -> str | None:
    """`updates` are those that changed weights; `global_step`, which version 0.1 did not save, counts all."""
    updates, counted = state["updates"], state.get("global_step")
    if isinstance(updates, int) and 0 <= updates <= steps:
        if counted in (None, steps):
            return None
        updates = counted
    return (
        f"{STATE_NAME} has counted {steps} updates and {_SCHEDULER} {updates}: they are of different checkpoints; "
        "resume from another one"
    )


def _generators(path: Path, processes: int | None) -> str | None:
    if processes is None:
        return None
    there, needed = generators(path), generator_names(processes)
    if there == needed:
        return None
    lacking = ", ".join(sorted(needed - there)) or "no more files"
    return (
        f"its random generators are in {', '.join(sorted(there))}, and this run of {processes} "
        f"process{'es' * (processes > 1)} needs {lacking}; resume with as many processes as saved it"
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
    if not _OURS.fullmatch(file.name) or not file.is_file():
        return False
    with file.open("rb") as content:
        legacy = content.read(1) == b"\x80"  # torch.save without a zip, as before version 1.6: a pickle
    return not legacy and not zipfile.is_zipfile(file)


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
    if not isinstance(schedule, dict):
        return f"{_SCHEDULER} holds no state; resume from another checkpoint"
    if "updates" not in schedule or schedule.get("lr_lambdas"):  # another scheduler's, or that of a callback
        return None
    return _position_fault(schedule, steps)
