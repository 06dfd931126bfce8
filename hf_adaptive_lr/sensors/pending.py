"""Tells whether the losses heard so far still belong to the update that is being computed."""

from __future__ import annotations

import warnings
import weakref
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from ..distributed import PARTITIONS
from .forward_hook import after_backward
from .loss_window import LossWindow

_MANY = 60  # more than a gradient scaler skips in a row


class _Mark(NamedTuple):
    gradient: Tensor | None
    version: int


class PendingUpdate:
    """Follows the gradients of the update that is being computed, to tell a skipped update from an accumulated one.

    `scheduler.step()` is called after every update, also after one that a gradient scaler skipped, and by some after
    every micro-batch. What happens to the gradients next shows which it was: after a skipped update they are removed
    or zeroed, between micro-batches they stay.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._mark: _Mark | None = None
        self._missed = 0
        self._ever_applied = False
        self.clear()
        self._last: weakref.ref[Tensor] | None = None  # gradient at the last `step_called` without losses

    def applied(self) -> None:
        """The optimizer has updated."""
        self._mark, self._missed, self._ever_applied = None, 0, True

    def step_called(self, *, heard: bool) -> None:
        """`scheduler.step()` was called; `heard` is whether losses are waiting for an update."""
        gradient = self._gradient()
        if heard:  # then `abandoned` tells what came of it
            self._mark = _Mark(gradient, 0 if gradient is None else gradient._version)
        elif not self._ever_applied:
            removed = gradient is None or self._last is None or self._last() is not gradient
            self._last = None if gradient is None else weakref.ref(gradient)
            if removed:
                self.missed()

    def clear(self) -> None:
        """A new update begins."""
        self._reduced = False  # whether a backward pass of this update has left gradients

    def listen(self, loss: Tensor) -> None:
        """A loss was heard: with a graph, or else after its backward pass."""
        if not loss.requires_grad:
            self._backward_ended()
        elif self._keeps_to_itself():
            after_backward([loss], self._backward_ended)

    def _backward_ended(self, root: Tensor | None = None) -> None:
        self._reduced |= self._gradient() is not None

    def _keeps_to_itself(self) -> bool:
        """Whether `fully_shard` keeps gradients to itself until the micro-batch that reduces them, or ZeRO always."""
        return hasattr(self._optimizer, PARTITIONS) or hasattr(
            next(p for group in self._optimizer.param_groups for p in group["params"]), "placements"
        )

    def abandoned(self, losses: LossWindow, *, before_forward: bool) -> bool:
        """Whether the update of these losses is not going to happen.

        Before a forward pass also zeroed gradients show it; after one they may have been added to. Where all gradients
        are None then and none is to come, the update was skipped.
        """
        skipped = self._skipped(before_forward=before_forward)
        if before_forward and self._gradient() is None and not losses.waiting:
            skipped = True
        unseen = bool(losses) and not self._reduced and self._keeps_to_itself()
        return skipped and not unseen

    def _skipped(self, *, before_forward: bool) -> bool:
        """Whether the update whose losses had been heard at `step_called` is not going to happen."""
        mark, self._mark = self._mark, None
        if mark is None:
            return False
        gradient = self._gradient()
        if gradient is None or gradient is not mark.gradient:
            return True
        return before_forward and gradient._version != mark.version

    def missed(self) -> None:
        """Count an update that was not applied; after many in succession, warn once."""
        self._missed += 1
        if self._missed == _MANY:
            warnings.warn(
                f"the controlled optimizer ({type(self._optimizer).__name__}) has applied no update; does another "
                "optimizer train this model, as with optimizers=(None, scheduler), or with SAM's first_step and "
                "second_step (then control its base_optimizer)?",
                UserWarning,
                stacklevel=4,
            )

    def _gradient(self) -> Tensor | None:
        gradients = (p.grad for group in self._optimizer.param_groups for p in group["params"])
        return next((gradient for gradient in gradients if gradient is not None), None)
