"""Optimizers whose state nobody can read, for tests."""

from __future__ import annotations

import torch
from torch import optim


class Lion(optim.Optimizer):
    """Chen et al. 2023 (arXiv:2302.06675), algorithm 2, without decay: the sign of an average moves the weights."""

    def __init__(self, params, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:  # as most optimizers ask: a key of ours in it, put there too early, would break them
                    state["exp_avg"] = torch.zeros_like(p)
                p.sub_(group["lr"] * state["exp_avg"].lerp(p.grad, 1 - group["betas"][0]).sign())
                state["exp_avg"].lerp_(p.grad, 1 - group["betas"][1])


class Timid(optim.AdamW):
    """Moves the weights by a hundredth of what AdamW does, with the same state."""

    @torch.no_grad()
    def step(self, closure=None) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in params]
        super().step(closure)
        for p, old in zip(params, before, strict=True):
            p.lerp_(old, 0.99)
