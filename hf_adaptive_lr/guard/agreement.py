"""Makes all ranks of a guarded run act alike: means over ranks, and one answer to a yes-or-no question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..distributed import average_over_ranks, rank, world_size


class Agreement:
    """The ranks of a process group; values are exchanged on the model's device."""

    def __init__(self, model: nn.Module, group: ProcessGroup | None) -> None:
        self._group = group
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files."""
        return rank(self._group) == 0

    def means(self, values: Sequence[Tensor | float], agreed: Sequence[float]) -> list[float]:
        """Means over ranks, non-finite on all if on any; fails where `agreed` differs. One host read."""
        tensors = [torch.as_tensor(_whole(value)).detach().reshape(()) for value in values]
        device = self._device
        if world_size(self._group) == 1:
            device = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
        dtype = torch.float32 if device.type == "mps" else torch.float64
        packed = torch.stack([t.to(device, dtype, non_blocking=True) for t in tensors])
        return average_over_ranks(packed, torch.tensor(agreed, dtype=dtype), self._group)

    def all(self, good: bool, update: int) -> bool:
        """Whether `good` is true on every rank; fails where `update` differs."""
        if world_size(self._group) == 1:
            return good
        flag = torch.tensor([float(not good)], device=self._device)
        return average_over_ranks(flag, torch.tensor([float(update)]), self._group) == [0.0]


def _whole(value: Any) -> Any:
    """The value of a sharded model's norm, which `fully_shard` leaves as a DTensor."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
