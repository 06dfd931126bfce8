"""Noisy quadratics: the family with a known answer (Schaul et al. 2013; Wu et al. 2018, arXiv:1803.02021).

Run r has curvatures h_i, and every mini-batch moves the minimum: l(w) = sum_i h_i (w_i - c_i)^2 / 2 with c_i ~ N(0,
s^2 / h_i). The expected loss above its floor, sum_i h_i E[w_i^2] / 2, follows a recursion in the learning rate, so the
expected loss of any open-loop schedule is exact and the best schedule can be computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Split, Task, TaskSpec


class Quadratic(Task):
    """Noisy quadratics; curvatures, noise and start are drawn per run. `config` may hold `dims` (default 64)."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.dims = int(spec.config.get("dims", 64))
        shape = (self.runs, 1)
        power = 0.5 + torch.rand(shape, generator=self.generator)
        index = torch.arange(1.0, self.dims + 1).expand(self.runs, -1)
        self.curvature = self._log_uniform(shape, 0.5, 2.0) * index**-power
        # Gradient noise of variance s^2 h_i, as near a minimum of a likelihood, where noise and curvature are alike.
        self.noise = self._log_uniform(shape, 0.1, 3.0) / self.curvature.sqrt()
        self.start = torch.ones(self.runs, self.dims)

    def _log_uniform(self, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        draw = torch.rand(shape, generator=self.generator)
        return torch.exp(math.log(low) + draw * math.log(high / low))

    def init(self) -> Tensor:
        """The start, of shape (runs, dims)."""
        return self.start.clone()

    def batch(self, split: Split) -> Tensor:
        """Minima of one mini-batch, of shape (runs, dims); all splits have the same distribution."""
        return self.noise * torch.randn(self.runs, self.dims, generator=self.generator)

    def loss(self, weights: Tensor, batch: Tensor) -> Tensor:
        """Loss on one mini-batch."""
        return 0.5 * (self.curvature * (weights - batch).square()).sum(-1)

    def evaluate(self, weights: Tensor, split: Split) -> Tensor:
        """Expected loss above its floor, which no learning rate can change."""
        return 0.5 * (self.curvature * weights.square()).sum(-1)

    def expected_final_loss(self, rates: Tensor) -> Tensor:
        """Exact expected loss above the floor, (runs,), after plain SGD with an open-loop schedule.

        Learning rates of shape (runs, steps); differentiable.
        """
        second = self.start.square()
        for rate in rates.unbind(-1):
            shrink = 1 - rate[:, None] * self.curvature
            second = shrink.square() * second + (rate[:, None] * self.curvature * self.noise).square()
        return 0.5 * (self.curvature * second).sum(-1)

    def best_schedule(self, steps: int, *, iterations: int = 300) -> tuple[Tensor, Tensor]:
        """The open-loop schedule with the lowest expected final loss: rates (runs, steps) and that loss, (runs,).

        Found by Adam on the log learning rates; 300 iterations agree with 1,000 to about one percent.
        """
        ramp = torch.linspace(1, 1 / steps, steps)
        peaks = torch.logspace(-3, 1, 25)
        top = self.curvature.amax(-1, keepdim=True)
        tried = torch.stack([self.expected_final_loss(p / top * ramp) for p in peaks])
        peak = peaks[tried.nan_to_num(torch.inf).argmin(0)]
        start = (peak[:, None] / top * ramp).log()
        rates = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([rates], lr=0.03)
        best, best_loss = start.exp(), self.expected_final_loss(start.exp())
        for _ in range(iterations):
            optimizer.zero_grad()
            loss = self.expected_final_loss(rates.exp())
            loss.log().sum().backward()  # type: ignore[no-untyped-call]
            improved = loss.detach() < best_loss
            best_loss = torch.where(improved, loss.detach(), best_loss)
            best = torch.where(improved[:, None], rates.detach().exp(), best)
            optimizer.step()
        return best, best_loss
