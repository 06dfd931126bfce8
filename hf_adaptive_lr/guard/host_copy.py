"""Copies nested values into host memory and back, into the same buffers where they fit."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


def capture(value: Any, old: Any) -> Any:
    """`value` with its tensors in host memory, in the tensors of `old` where they fit; on CUDA it does not wait."""

    def pinned(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.device.type == "cuda")

    return _copy(value, old, pinned, non_blocking=True)


def put(saved: Any, live: Any, device: torch.device) -> Any:
    """`saved` as a live value: in the tensors of `live` where they fit (a captured step holds them), else new ones."""
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
