"""Gives [`DSA`] its closure in a Trainer: the micro-batches of an update, computed again at the trial weights.

The gradient of the look-ahead is that of the update: the mean over the same micro-batches, with the same dropout
masks, averaged over ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import average_tensors
from ..sensors.replay import ReplayPoint
from . import DSA
from .groups import raw


class LookAhead:
    """Collects the micro-batches of an update for the closure of a DSA optimizer; puts the model's buffers back."""

    def __init__(self, optimizer: DSA, model: nn.Module) -> None:
        self._optimizer, self._model = optimizer, model
        self._passes: list[tuple[Callable[[], Tensor], ReplayPoint]] = []

    @classmethod
    def of(cls, optimizer: Optimizer, model: nn.Module) -> LookAhead | None:
        """The collector for a DSA optimizer, None for any other."""
        inner = raw(optimizer)
        return cls(inner, model) if isinstance(inner, DSA) else None

    def add(self, replay: Callable[[], Tensor], device: torch.device) -> None:
        """Take in a micro-batch that is about to be computed on this device; `replay` recomputes its mean loss."""
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        if all(p.grad is None for p in params):
            self._passes.clear()  # a new update, or the one before was skipped
        self._passes.append((replay, ReplayPoint(device)))
        self._optimizer.feed(self._closure)

    def _closure(self) -> Tensor:
        passes, self._passes = self._passes, []
        params = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        for p in params:
            p.grad = None
        losses = []
        for replay, point in passes:
            with point.again(self._model):
                loss = replay() / len(passes)
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        # The unwrapped module ran, so that DDP's reducer knows nothing of it.
        average_tensors([p.grad for p in params if p.grad is not None])
        return torch.stack(losses).sum()
