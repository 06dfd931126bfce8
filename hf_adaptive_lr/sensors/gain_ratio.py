"""The decrease of the loss that the gradient promised for one update: the denominator of the gain ratio."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from .grad_norm import loss_scale
from .gradients import chunks, dense


class GainProbe:
    """Keeps weights and gradients from before one update, to measure the decrease that the gradient promised for it.

    The copies cost twice the memory of the trained weights and exist only from the pre-step to the post-step hook of
    the update before a decision. The gradients are copied too because some steps change them in place.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._scale = loss_scale(optimizer)
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._kept = [(p, p.detach().clone(), dense(p.grad).clone()) for p in params]

    @torch.no_grad()
    def promised(self, clip_factor: Tensor | float) -> Tensor:
        """-g . (w[t] - w[t-1]), with g before clipping by a factor in (0, 1]; 0-d float64, no host sync."""
        sums: list[Tensor] = []
        for p, before, grad in self._kept:
            for now, then, g in chunks([p, before, grad]):
                sums.append(torch.dot(g, now - then))
        return -torch.stack(sums).double().sum() / (clip_factor * self._scale)
