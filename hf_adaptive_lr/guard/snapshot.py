"""Copies of a training in host memory, to go back to: what trains, optimizer, schedulers, scaler and generators."""

from __future__ import annotations

import copy
import math
import os
import random
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import sharder
from ..optimizers.groups import raw

FILE_NAME = "snapshot.pt"
FORMAT = 1
_PLAIN = (int, float, str, bool, type(None), Counter, torch.Size, torch.dtype)
T = TypeVar("T")


class Snapshot:
    """The last states of a training, newest first, in host memory.

    A state holds the parameters that train (`requires_grad`; with PEFT that is the adapter), all buffers, the state
    and hyper-parameters of the optimizers, the `state_dict` of schedulers and gradient scaler, and the generators of
    torch (CPU and the CUDA devices in use), Python and numpy. It is kept in the dtypes it has, and going back is
    bit-exact: training continues as it would have from the moment of `take`, on the same batches.

    The newest state may itself be damaged in a way that shows only later, so two are kept. Once every slot has been
    written with the optimizer's state complete, `take` allocates no buffer. On CUDA the copies go to pinned memory
    without waiting; only the check for finite values syncs, once.

    Args:
        modules: the module to train, or several; wrappers (DDP, compiled) are fine, sharded ones are not.
        optimizers: its optimizer, raw or prepared by Accelerate, or several.
        schedulers: anything with `state_dict` and `load_state_dict`, one or several.
        scaler: a `torch.amp.GradScaler`, or None.
        slots: how many states are kept; host memory is that many times `nbytes`.

    Raises:
        ValueError: parameters are sharded over ranks, or `slots` is below 1.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> snapshot = Snapshot(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> weight = model.weight.detach().clone()
        >>> snapshot.take({"update": 7})
        True
        >>> _ = model.weight.data.add_(1.0)
        >>> snapshot.restore()
        {'update': 7}
        >>> bool((model.weight == weight).all())
        True
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

    def __len__(self) -> int:
        """How many states there are to go back to."""
        return len(self._states)

    def meta(self, index: int = 0) -> Any:
        """What was given to `take`; index 0 is the newest state."""
        return copy.deepcopy(self._states[index]["meta"])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of one state (the newest); 0 when there is none."""
        return sum(t.nbytes for t in _tensors(self._states[0])) if self._states else 0

    # --- taking -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether weights, buffers and optimizer state hold neither NaN nor infinity.

        One host sync per device, two when it looks bad.
        """
        live = [*self._weights().values(), *self._buffers().values(), *_tensors([o.state for o in self.optimizers])]
        return _all_finite(live)

    @torch.no_grad()
    def take(self, meta: Any = None, *, check: bool = True) -> bool:
        """Copy the training as it is now; between two updates, with no step under way.

        Args:
            meta: plain values to keep with it.
            check: False when the caller has just called `finite`.

        Returns:
            False when something was not finite: nothing was copied and the earlier states are as they were.
        """
        if check and not self.finite():
            return False
        old: Any = None
        if self._spare:
            old = self._spare.pop()
        elif len(self._states) == self.slots:
            old = self._states.pop()
        self._states.insert(0, _capture(self._live(meta), old))
        return True

    def drop(self, index: int) -> None:
        """Forget a state; its buffers are used again."""
        self._spare.append(self._states.pop(index))

    def _live(self, meta: Any) -> dict[str, Any]:
        return {
            "weights": self._weights(),
            "buffers": self._buffers(),
            "optimizers": [_optimizer_state(o) for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self.schedulers],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "generators": _generators(self._cuda_devices()),
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
            for j, parameter in enumerate(_parameters(optimizer)):
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
        """Go back to a state; it stays available.

        Args:
            index: 0 for the newest.
            schedule: False leaves the schedulers, and the optimizers' hyper-parameters that they write, as they are.

        Returns:
            What was given to `take`.

        Raises:
            ValueError: there is no such state, or the model or optimizer has another shape now (nothing was changed).
        """
        if not index < len(self._states):
            raise ValueError(f"there is no state {index} to go back to, only {len(self._states)}")
        state = self._states[index]
        _wait(self._cuda_devices())
        weights, buffers = self._weights(), self._buffers()
        _check_same("weights", state["weights"], weights)
        _check_same("buffers", state["buffers"], buffers)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            _check_optimizer(optimizer, saved)
        for name, value in [*state["weights"].items(), *state["buffers"].items()]:
            (weights if name in weights else buffers)[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            _restore_optimizer(optimizer, saved, groups=schedule)
        if schedule:
            for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
                scheduler.load_state_dict(copy.deepcopy(saved))
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(copy.deepcopy(state["scaler"]))
        _restore_generators(state["generators"], self._cuda_devices())
        _wait(self._cuda_devices())
        return self.meta(index)

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
        """Put the buffers back if one is not finite: a NaN batch spoils batch statistics even when no step follows.

        Returns:
            Whether it was needed; one host sync per device.
        """
        live = self._buffers()
        if not self._states or _all_finite(list(live.values())):
            return False
        _wait(self._cuda_devices())
        for name, value in self._states[index]["buffers"].items():
            live[name].copy_(value)
        return True

    # --- disk ---------------------------------------------------------------------------------------------------

    def to_disk(self, folder: str | os.PathLike[str], *, rank: int = 0) -> Path:
        """Write all states to `folder/snapshot.pt`; a crash at any moment leaves the old file or the new one, whole.

        `torch.load(..., weights_only=True)` reads the file.

        Args:
            folder: made if missing.
            rank: under torch.distributed, every process's own. All hold the same but for their generators, so those
                other than 0 write only these, to a file beside it.

        Returns:
            The file that was written.

        Raises:
            TypeError: a scheduler's state holds something else than plain values and tensors.
        """
        for state in self._states:
            _check_plain(state, "")
        _wait(self._cuda_devices())
        if rank == 0:
            return _write(Path(folder) / FILE_NAME, {"format": FORMAT, "states": self._states})
        generators = [state["generators"] for state in self._states]
        return _write(Path(folder) / generators_name(rank), {"format": FORMAT, "generators": generators})

    def from_disk(self, folder: str | os.PathLike[str], *, rank: int = 0) -> None:
        """Take the states of a file that `to_disk` wrote in place of those in memory; `restore` goes back to one.

        Args:
            folder: where `to_disk` wrote.
            rank: this process's; where its generators were not written, it takes those of rank 0.

        Raises:
            ValueError: a newer version of this library wrote it.
        """
        states = _read(Path(folder) / FILE_NAME)["states"][: self.slots]
        own = Path(folder) / generators_name(rank)
        if rank and own.is_file():
            for state, generators in zip(states, _read(own)["generators"], strict=False):
                state["generators"] = generators
        self._states, self._spare = states, []


def generators_name(rank: int) -> str:
    """Name of the file with the generators of a process other than the main one."""
    return f"snapshot_rng_{rank}.pt"


def _read(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if saved["format"] > FORMAT:
        raise ValueError(f"{path} has format {saved['format']}, newer than this library reads ({FORMAT}); upgrade")
    return saved


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")  # one name, so that what a killed process left is overwritten
    with draft.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    _sync_folder(path.parent)
    return path


# --- copies in host memory --------------------------------------------------------------------------------------


def _capture(value: Any, old: Any) -> Any:
    """`value` with its tensors in host memory, in the tensors of `old` where they fit."""
    if isinstance(value, Tensor):
        fits = isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype
        if not fits:
            cuda = value.device.type == "cuda"
            old = torch.empty_like(value, device="cpu", requires_grad=False, pin_memory=cuda)
        old.copy_(value.detach(), non_blocking=True)
        return old
    if type(value) in (dict, OrderedDict):
        before = old if isinstance(old, dict) else {}
        return {k: _capture(v, before.get(k)) for k, v in value.items()}
    if type(value) in (list, tuple):
        items: Sequence[Any] = old if isinstance(old, list | tuple) and len(old) == len(value) else [None] * len(value)
        return type(value)(_capture(v, o) for v, o in zip(value, items, strict=True))
    return value if isinstance(value, int | float | str | None) else copy.deepcopy(value)


def _put(saved: Any, live: Any, device: torch.device) -> Any:
    """`saved` as a live value: in the tensors of `live` where they fit (a captured step holds them), else new ones."""
    if isinstance(saved, Tensor):
        if isinstance(live, Tensor) and live.shape == saved.shape and live.dtype == saved.dtype:
            return live.copy_(saved)
        return saved.detach().clone().to(device)
    if isinstance(saved, dict):
        before = live if isinstance(live, dict) else {}
        return {k: _put(v, before.get(k), device) for k, v in saved.items()}
    if isinstance(saved, list | tuple):
        items = live if isinstance(live, list | tuple) and len(live) == len(saved) else [None] * len(saved)
        return type(saved)(_put(v, o, device) for v, o in zip(saved, items, strict=True))
    return copy.deepcopy(saved)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _all_finite(tensors: list[Tensor]) -> bool:
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor)
    for group in by_device.values():
        # The usual norm is five times faster than the largest magnitude, which unlike it cannot overflow.
        if not any(math.isfinite(float(torch.nn.utils.get_total_norm(group, norm))) for norm in (2.0, math.inf)):
            return False
    return True


def _wait(devices: Sequence[torch.device]) -> None:
    for device in devices:  # copies under way in either direction
        torch.cuda.synchronize(device)


# --- optimizers -------------------------------------------------------------------------------------------------
# Not through `Optimizer.load_state_dict`: it casts state to the parameters' dtype and replaces the group dicts.


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    index = {id(p): i for i, p in enumerate(_parameters(optimizer))}
    state: dict[Any, Any] = dict(optimizer.state)  # some optimizers keep more than parameters there
    return {
        "state": {
            index.get(id(key), key): value
            for key, value in state.items()
            if id(key) in index or not isinstance(key, Tensor)
        },
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "sizes": [len(group["params"]) for group in optimizer.param_groups],
    }


def _check_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != list(saved["sizes"]):
        raise ValueError(
            f"the optimizer's groups had {saved['sizes']} parameters at the snapshot and have {sizes} now"
        )


def _restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], *, groups: bool) -> None:
    parameters = _parameters(optimizer)
    group_of = [group for group in optimizer.param_groups for _ in group["params"]]
    cpu = torch.device("cpu")
    live = {key: optimizer.state[key] for key in optimizer.state}
    optimizer.state.clear()
    for key, values in saved["state"].items():
        if not isinstance(key, int):
            optimizer.state[key] = _put(values, live.get(key), cpu)
            continue
        parameter, group = parameters[key], group_of[key]
        before = live.get(parameter, {})
        on_device = bool(group.get("capturable") or group.get("fused"))
        optimizer.state[parameter] = {
            name: _put(value, before.get(name), cpu if name == "step" and not on_device else parameter.device)
            for name, value in values.items()
        }
    if groups:
        for group, before in zip(optimizer.param_groups, saved["groups"], strict=True):
            for name in [n for n in group if n != "params" and n not in before]:
                del group[name]
            group.update({name: _put(value, group.get(name), cpu) for name, value in before.items()})


def _check_same(what: str, saved: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    then, now = ({k: tuple(v.shape) for k, v in tensors.items()} for tensors in (saved, live))
    if then != now:
        differ = sorted(then.items() ^ now.items())[:3]
        raise ValueError(f"the {what} that train are not those of the snapshot (such as {differ}); take a new one")


# --- generators -------------------------------------------------------------------------------------------------


def _generators(devices: Sequence[torch.device]) -> dict[str, Any]:
    version, words, gauss = random.getstate()
    found = {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in devices],
        "python": [version, torch.tensor(words), gauss],
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        found["numpy"] = [kind, torch.tensor(keys.tolist()), *rest]
    return found


def _restore_generators(saved: Mapping[str, Any], devices: Sequence[torch.device]) -> None:
    torch.set_rng_state(saved["torch"])
    for device, state in zip(devices, saved["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in saved:
        kind, keys, *rest = saved["numpy"]
        numpy.random.set_state((kind, keys.tolist(), *rest))


# --- small things -----------------------------------------------------------------------------------------------


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


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


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there; the rename is already journalled
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
