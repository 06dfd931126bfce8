"""The file of snapshots in a checkpoint: written whole or not at all, read by `torch.load(..., weights_only=True)`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts import flush_to_disk

FILE_NAME = "snapshot.pt"
FORMAT = 1
_PLAIN = (int, float, str, bool, type(None), Counter, torch.Size, torch.dtype)


def generators_name(rank: int) -> str:
    """Name of the file with the generators of a process other than the main one."""
    return f"snapshot_rng_{rank}.pt"


def write_states(folder: Path, states: list[dict[str, Any]], rank: int) -> Path:
    """Write the states of a snapshot, or on ranks other than 0 only their generators; returns the file."""
    for state in states:
        _check_plain(state, "")
    if rank == 0:
        return _write(folder / FILE_NAME, {"format": FORMAT, "states": states})
    generators = [state["generators"] for state in states]
    return _write(folder / generators_name(rank), {"format": FORMAT, "generators": generators})


def read_states(folder: Path, rank: int) -> list[dict[str, Any]]:
    """Read the states that `write_states` wrote, with this rank's generators, or rank 0's where it wrote none."""
    states: list[dict[str, Any]] = _read(folder / FILE_NAME)["states"]
    own = folder / generators_name(rank)
    if rank and own.is_file():
        for state, generators in zip(states, _read(own)["generators"], strict=False):
            state["generators"] = generators
    return states


def _read(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if saved["format"] > FORMAT:
        raise ValueError(f"{path} has format {saved['format']}, newer than this library reads ({FORMAT}); upgrade")
    return saved


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")  # one name, so that the rest of a killed process is overwritten
    with draft.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    flush_to_disk(path.parent)
    return path


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, dict) and type(value) is not Counter:
        for key, item in value.items():
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif not isinstance(value, Tensor) and type(value) not in _PLAIN:
        raise TypeError(
            f"{where.lstrip('.')} is a {type(value).__name__}, which a safe file cannot hold; keep it in memory, "
            "or give the scheduler a state_dict of plain values"
        )
