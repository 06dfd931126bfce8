"""Copies the state of a training to host memory and back: nested values, optimizers, random generators.

`Optimizer.load_state_dict` is not used: it casts state to the parameters' dtype and replaces the group dicts.
"""

from __future__ import annotations

import copy
import math
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def capture(value: Any, old: Any) -> Any:
    """`value` with its tensors in host memory, in the tensors of `old` where they fit; on CUDA it does not wait."""

    def pinned(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.device.type == "cuda")

    return _copy(value, old, pinned, non_blocking=True)


def put(saved: Any, live: Any, device: torch.device) -> Any:
    """`saved` as a live value: in the tensors of `live` where they fit (a captured step needs them), else new ones."""
    return _copy(saved, live, lambda tensor: torch.empty_like(tensor, device=device), non_blocking=False)


def _copy(value: Any, old: Any, allocate: Callable[[Tensor], Tensor], *, non_blocking: bool) -> Any:
    if isinstance(value, Tensor):
        fits = isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype
        target: Tensor = old if fits else allocate(value)
        return target.copy_(value.detach(), non_blocking=non_blocking)
    again = partial(_copy, allocate=allocate, non_blocking=non_blocking)
    if type(value) in (dict, OrderedDict):
        before = old if isinstance(old, dict) else {}
        return {k: again(v, before.get(k)) for k, v in value.items()}
    if type(value) in (list, tuple):
        items: Sequence[Any] = old if isinstance(old, list | tuple) and len(old) == len(value) else [None] * len(value)
        return type(value)(again(v, o) for v, o in zip(value, items, strict=True))
    return value if isinstance(value, int | float | str | None) else copy.deepcopy(value)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity; one host sync per device, two when it looks bad."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in values:
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, []).append(tensor)
    for group in by_device.values():
        # The usual norm is five times faster than the largest magnitude, which unlike it cannot overflow.
        if not any(math.isfinite(float(torch.nn.utils.get_total_norm(group, norm))) for norm in (2.0, math.inf)):
            return False
    return True


def wait(devices: Sequence[torch.device]) -> None:
    """Let copies under way, in either direction, end."""
    for device in devices:
        torch.cuda.synchronize(device)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of all groups, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """State by the parameter's number, hyper-parameters of the groups, and their sizes; not yet copied."""
    index = {id(p): i for i, p in enumerate(parameters_of(optimizer))}
    state: dict[Any, Any] = dict(optimizer.state)  # some optimizers keep more than parameters there
    return {
        "state": {
            index.get(id(key), key): value
            for key, value in state.items()
            if id(key) in index or not isinstance(key, Tensor)
        },
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "sizes": _sizes(optimizer),
    }


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def check_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Raises ValueError where the groups are not those of the saved state."""
    sizes = _sizes(optimizer)
    if sizes != list(saved["sizes"]):
        raise ValueError(
            f"the optimizer's groups had {saved['sizes']} parameters at the snapshot and have {sizes} now"
        )


def restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], *, groups: bool) -> None:
    """Put saved state back, in place where it fits, and with `groups` the hyper-parameters, too."""
    parameters = parameters_of(optimizer)
    group_of = [group for group in optimizer.param_groups for _ in group["params"]]
    cpu = torch.device("cpu")
    live = {key: optimizer.state[key] for key in optimizer.state}
    optimizer.state.clear()
    for key, values in saved["state"].items():
        if not isinstance(key, int):
            optimizer.state[key] = put(values, live.get(key), cpu)
            continue
        parameter, group = parameters[key], group_of[key]
        before = live.get(parameter, {})
        on_device = bool(group.get("capturable") or group.get("fused"))
        optimizer.state[parameter] = {
            name: put(value, before.get(name), cpu if name == "step" and not on_device else parameter.device)
            for name, value in values.items()
        }
    if groups:
        for group, before in zip(optimizer.param_groups, saved["groups"], strict=True):
            for name in [n for n in group if n != "params" and n not in before]:
                del group[name]
            group.update({name: put(value, group.get(name), cpu) for name, value in before.items()})


def generators(devices: Sequence[torch.device]) -> dict[str, Any]:
    """States of the random generators of torch, Python and numpy, as plain values and tensors."""
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


def restore_generators(saved: Mapping[str, Any], devices: Sequence[torch.device]) -> None:
    """Put the states that `generators` gave back."""
    torch.set_rng_state(saved["torch"])
    for device, state in zip(devices, saved["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in saved:
        kind, keys, *rest = saved["numpy"]
        numpy.random.set_state((kind, keys.tolist(), *rest))
