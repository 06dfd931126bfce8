"""Runs that can be differentiated: the vectorised run with updates that stay in the autograd graph."""

from __future__ import annotations

import torch
from torch import Tensor

from ..controller import State
from ..sensors.gradients import inner
from .inner import InnerOptimizer
from .tasks.base import Task
from .vector_run import VectorRun


class UnrolledRun(VectorRun):
    """Runs whose updates stay in the autograd graph while `tracking`, up to `cut`."""

    def __init__(self, task: Task, optimizer: InnerOptimizer, base_lr: Tensor, total_steps: int) -> None:
        self.tracking = False
        super().__init__(task, optimizer, base_lr, total_steps)

    @torch.enable_grad()
    def _compute(self) -> None:
        if not (self.tracking and self.weights.requires_grad):
            super()._compute()
            return
        # Only here the gradient itself depends on a decision: second derivatives are needed.
        self.batch = self.task.batch("train")
        self.loss = self.task.loss(self.weights, self.batch)
        (self._raw_grads,) = torch.autograd.grad(self.loss.sum(), self.weights, create_graph=True)
        self._grads, self.grad_norm, self._clip = self.optimizer.clip(self._raw_grads)
        self.alive = torch.isfinite(self.loss.detach()) & torch.isfinite(self.grad_norm.detach())

    def move(self, lr: Tensor, *, gain: bool) -> None:
        """One update at learning rates (runs,), recorded while tracking; the next gradient is `look`'s."""
        if not self.tracking:
            self._update(lr.detach(), gain=gain)
            return
        self.state = {name: value.clone() for name, value in self.state.items()}  # the graph needs the old ones
        # The parent's arithmetic without its no_grad.
        VectorRun._update.__wrapped__(self, lr, gain=gain)  # type: ignore[attr-defined]

    def look(self) -> None:
        """Loss and gradient of the next batch at the weights as they are."""
        self._compute()

    def sensitivity(self, gradient: Tensor, before: Tensor) -> Tensor:
        """Derivative of a loss after one update in the update's learning rate, -<gradient, d>, of shape (runs,).

        `gradient` is the loss's at the weights after the update, (runs, size); `before` are the weights before it.
        """
        decay = self.optimizer.weight_decay if self.optimizer.kind == "adamw" else 0.0  # SGD's is in the direction
        return -inner([gradient], [self._direction + decay * before], 1)

    def cut(self) -> None:
        """Detach all tensors from the graph: a new window begins."""
        self.tracking = False
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.detach())
        self.state = detached(self.state)


def detached(state: State) -> State:
    """A state whose tensors are detached from the graph."""
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in state.items()}
