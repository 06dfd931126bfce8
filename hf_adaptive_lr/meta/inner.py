"""Inner optimizers for many runs at once: torch's SGD and AdamW on weights of shape (runs, size).

Every run has a learning rate of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ..sensors.gradients import adam_direction, sgd_direction


@dataclass(frozen=True)
class InnerOptimizer:
    """SGD or AdamW of many runs, equal to torch's optimizers run by run."""

    kind: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.0  # of SGD
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    eps: float = 1e-8  # of AdamW
    weight_decay: float = 0.0  # decoupled for AdamW, coupled for SGD
    max_grad_norm: float = 0.0  # clipping per run, 0 for none

    def init(self, weights: Tensor) -> dict[str, Tensor]:
        """State before the first update."""
        state = {"count": torch.zeros((), dtype=torch.float64)}
        if self.kind == "adamw":
            state |= {"exp_avg": torch.zeros_like(weights), "exp_avg_sq": torch.zeros_like(weights)}
        elif self.momentum:
            state["buffer"] = torch.zeros_like(weights)
        return state

    def clip(self, grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients after clipping, their norms before it, and the factor, the last two of shape (runs,)."""
        norms = grads.norm(dim=-1)
        if not self.max_grad_norm:
            return grads, norms, torch.ones_like(norms)
        factor = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        return grads * factor[:, None], norms, factor

    def direction(self, weights: Tensor, grads: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Update the state in place; the direction d of `w -= lr * d`, decoupled decay left out."""
        state["count"] += 1
        if self.kind == "adamw":
            beta1, beta2 = self.betas
            if not torch.is_grad_enabled():
                return self._fused_direction(grads, state)
            state["exp_avg"].lerp_(grads, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
            return adam_direction(
                state["exp_avg"], state["exp_avg_sq"], float(state["count"]), betas=self.betas, eps=self.eps
            )
        if self.weight_decay:
            grads = grads + self.weight_decay * weights
        if not self.momentum:
            return grads
        buffer = state["buffer"]
        buffer.copy_(grads) if state["count"] == 1 else buffer.mul_(self.momentum).add_(grads)
        return sgd_direction(grads, buffer, momentum=self.momentum)

    def _fused_direction(self, grads: Tensor, state: dict[str, Tensor]) -> Tensor:
        # torch's own kernel makes one update of rate 1 from zero. One pass over memory where the formula takes eight:
        # a quarter of its time. It keeps no graph.
        moved, count = torch.zeros_like(grads), (state["count"] - 1).float()  # the kernel adds one
        m, v, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], self.betas
        kernel = partial(adamw, fused=True, amsgrad=False, maximize=False, weight_decay=0.0, lr=1.0)
        kernel([moved], [grads], [m], [v], [], [count], beta1=beta1, beta2=beta2, eps=self.eps)
        return moved.neg_()

    def apply(self, weights: Tensor, direction: Tensor, lr: Tensor) -> Tensor:
        """Weights after the update, new memory; `lr` of shape (runs,)."""
        rate = lr.to(weights.dtype)[:, None]
        if self.kind == "adamw" and self.weight_decay:
            weights = weights * (1 - rate * self.weight_decay)
        return torch.addcmul(weights, direction, rate, value=-1)
