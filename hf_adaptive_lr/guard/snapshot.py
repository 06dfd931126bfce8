"""Snapshots of a training in host memory: weights that train, optimizer, schedulers, scaler, random generators."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import sharder
from ..optimizers.groups import raw
from .host_copy import (
    all_finite,
    capture,
    check_optimizer,
    generators,
    optimizer_state,
    parameters_of,
    restore_generators,
    restore_optimizer,
    tensors,
    wait,
)
from .snapshot_file import read_states, write_states


class Snapshot:
    """Keeps the last states of a training in host memory, newest first, and restores one bit for bit.

    A state holds the parameters that train (`requires_grad`; with PEFT that is the adapter), all buffers, the state
    and hyper-parameters of the optimizers, the `state_dict` of schedulers and gradient scaler, and the generators of
    torch (CPU and the CUDA devices in use), Python and numpy. It is kept in the dtypes it has, and going back is
    bit-exact: training continues as it would have from the moment of `take`, on the same batches.

    The newest state may itself be damaged in a way that shows only later, so two are kept. Once every slot has been
    written with the optimizer's state complete, `take` allocates no buffer. On CUDA the copies go to pinned memory
    without waiting; only the check for finite values syncs, once.

    Modules, optimizers and schedulers are one or several; wrappers (DDP, compiled, Accelerate's) are fine, parameters
    sharded over ranks are not (ValueError). Host memory is `slots` times the tensors of one state.
    """

    def __init__(
        self,
        modules: nn.Module | Sequence[nn.Module],
        optimizers: Optimizer | Sequence[Optimizer] = (),
        *,
        schedulers: Any = (),
        scaler: Any = None,
        slots: int = 2,
    ) -> None:
        self.modules = _several(modules)
        self.optimizers = [raw(o) for o in _several(optimizers)]
        self.schedulers = _several(schedulers)
        self.scaler, self.slots = scaler, slots
        if slots < 1:
            raise ValueError(f"slots={slots}: keep at least one state")
        by = next(filter(None, map(sharder, self.optimizers)), None)
        if by is not None:
            raise ValueError(
                f"{by} leaves each rank only a part of the weights, and a snapshot in host memory would lose the "
                "rest; go back through the trainer's own checkpoints there"
            )
        self._states: list[dict[str, Any]] = []
        self._spare: list[dict[str, Any]] = []
        # Which of these train is looked at before every update, and a walk through the modules takes too long for it.
        self._parameters = [p for module in self.modules for p in module.parameters()]
        self._trained: Any = None  # as `_training` was for the states

    def __len__(self) -> int:
        """Number of states that can be restored."""
        return len(self._states)

    # --- taking -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether weights, buffers and optimizer state hold neither NaN nor infinity.

        One host sync per device, two when it looks bad.
        """
        live = [*self._weights().values(), *self._buffers().values(), *tensors([o.state for o in self.optimizers])]
        return all_finite(live)

    @torch.no_grad()
    def take(self, meta: Any = None, *, check: bool = True) -> bool:
        """Copy the training as it is now; between two updates, with no step under way.

        False when something was not finite: nothing was copied and the earlier states are as they were. `meta` are
        plain values to keep with it; `check=False` is for callers that have just called `finite`.
        """
        if check and not self.finite():
            return False
        old: Any = None
        if self._spare:
            old = self._spare.pop()
        elif len(self._states) == self.slots:
            old = self._states.pop()
        self._states.insert(0, capture(self._live(meta), old))
        self._trained = self._training()
        return True

    def meta(self, index: int) -> Any:
        """The `meta` that a state was taken with."""
        return self._states[index]["meta"]

    def fits(self) -> bool:
        """Whether the weights that train, and the optimizers' groups, are those of the newest state."""
        now = self._training()
        if self._trained is None and self._states:  # read from a file
            saved = self._states[0]
            sizes = [size for optimizer in saved["optimizers"] for size in optimizer["sizes"]]
            self._trained = now if saved["weights"].keys() == self._weights().keys() and sizes == now[1] else ()
        return bool(self._trained == now)

    def _training(self) -> tuple[Any, ...]:
        sizes = [len(group["params"]) for optimizer in self.optimizers for group in optimizer.param_groups]
        return [p.requires_grad for p in self._parameters], sizes

    def drop(self, index: int) -> None:
        """Forget a state; its buffers are used again."""
        self._spare.append(self._states.pop(index))

    def _live(self, meta: Any) -> dict[str, Any]:
        return {
            "weights": self._weights(),
            "buffers": self._buffers(),
            "optimizers": [optimizer_state(o) for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self.schedulers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "generators": generators(self._cuda_devices()),
            "meta": meta,
        }

    def _weights(self) -> dict[str, Tensor]:
        found, known = {}, set()
        for i, module in enumerate(self.modules):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad and id(parameter) not in known:
                    found[f"{i}.{name}"] = parameter.detach()
                known.add(id(parameter))
        for i, optimizer in enumerate(self.optimizers):  # a temperature, a loss weight: trained, but in no module
            for j, parameter in enumerate(parameters_of(optimizer)):
                if parameter.requires_grad and id(parameter) not in known:
                    found[f"optimizer {i}.{j}"] = parameter.detach()
        return found

    def _buffers(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": b for i, module in enumerate(self.modules) for name, b in module.named_buffers()}

    def _cuda_devices(self) -> list[torch.device]:
        devices = {p.device for m in self.modules for p in m.parameters() if p.device.type == "cuda"}
        return sorted(devices, key=str)

    # --- going back ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def restore(self, index: int = 0, *, schedule: bool = True) -> Any:
        """Go back to a state, 0 for the newest, which stays available; returns the `meta` that `take` was given.

        `schedule=False` leaves the schedulers, and the optimizers' hyper-parameters that they write, as they are.
        ValueError, with nothing changed: there is no such state, or the model or optimizer has another shape now.
        """
        if not index < len(self._states):
            raise ValueError(f"there is no state {index} to go back to, only {len(self._states)}")
        state = self._states[index]
        wait(self._cuda_devices())
        weights, buffers = self._weights(), self._buffers()
        _check_same("weights", state["weights"], weights)
        _check_same("buffers", state["buffers"], buffers)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            check_optimizer(optimizer, saved)
        for name, value in [*state["weights"].items(), *state["buffers"].items()]:
            (weights if name in weights else buffers)[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            restore_optimizer(optimizer, saved, groups=schedule)
        if schedule:
            for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
                scheduler.load_state_dict(copy.deepcopy(saved))
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(copy.deepcopy(state["scaler"]))
        restore_generators(state["generators"], self._cuda_devices())
        wait(self._cuda_devices())
        return copy.deepcopy(state["meta"])

    @torch.no_grad()
    def drift(self, index: int = 0) -> float:
        """Distance of the trained weights from a state, relative to their norm there; one host sync."""
        saved = self._states[index]["weights"]
        apart, there = 0.0, 0.0
        for name, weight in self._weights().items():
            then = saved[name].to(weight.device, torch.float32)
            apart += float((weight.float() - then).square().sum())
            there += float(then.square().sum())
        return math.sqrt(apart / there) if there else math.inf

    @torch.no_grad()
    def repair_buffers(self, index: int = 0) -> bool:
        """Put the buffers back if one is not finite, and whether it was needed; one host sync per device.

        A NaN batch spoils batch statistics even when no step follows.
        """
        live = self._buffers()
        if not self._states or all_finite(list(live.values())):
            return False
        wait(self._cuda_devices())
        for name, value in self._states[index]["buffers"].items():
            live[name].copy_(value)
        return True

    # --- disk ---------------------------------------------------------------------------------------------------

    def to_disk(self, folder: str | os.PathLike[str], *, rank: int = 0) -> Path:
        """Write all states to `folder/snapshot.pt`; a crash at any moment leaves the old file or the new one, whole.

        `torch.load(..., weights_only=True)` reads it. Under torch.distributed only generators differ between
        processes, so ranks other than 0 write only these, to a file beside it. TypeError for a scheduler's state that
        is not only plain values and tensors.
        """
        wait(self._cuda_devices())
        return write_states(Path(folder), self._states, rank)

    def from_disk(self, folder: str | os.PathLike[str], *, rank: int = 0) -> None:
        """Take the states that `to_disk` wrote in place of those in memory; `restore` goes back to one.

        A rank whose generators were not written takes those of rank 0. ValueError: a newer version wrote the file.
        """
        self._states, self._spare = read_states(Path(folder), rank)[: self.slots], []
        self._trained = None


def _check_same(kind: str, saved: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    then, now = ({k: tuple(v.shape) for k, v in tensors.items()} for tensors in (saved, live))
    if then != now:
        differ = sorted(then.items() ^ now.items())[:3]
        raise ValueError(f"the {kind} that train are not those of the snapshot (such as {differ}); take a new one")


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
