"""Truncated meta-gradients: train a controller by differentiating a held-out loss through its own decisions.

A window holds K decisions; the loss on a held-out mini-batch after them is differentiated back to its start, where
weights and recurrent state are cut off. With K = 1 and one update, w' = w - lr d with a direction d that does not
depend on the controller, so the gradient is exact without a second derivative (Shu et al. 2020, arXiv:2007.14546):

    dL/dtheta = -<grad L(w'), d> dlr/dtheta

Longer windows go back through the updates themselves. Every gradient that reaches the controller's weights
passes a learning rate, so a bound on dL/dlog lr there, run by run, keeps a run that blows up from spoiling the others.

The loss is a mini-batch's, so it contains the floor that no learning rate can lower; that and the truncation make the
controller greedy (Wu et al. 2018, arXiv:1803.02021). Evolution sees the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..controller import Controller
from .episode import FALL, MAX_LR, MIN_LR, RISE, as_lr, stretches_of
from .problem import Problem
from .tasks import make_task
from .tasks.base import Split
from .unroll import UnrolledRun, detached
from .weights import WeightTrainer


@dataclass(frozen=True)
class BilevelConfig:
    """Settings of the trainer."""

    decisions: int = 20  # moves per episode
    window: int = 1  # decisions of one truncation, K
    # Updates after the last decision of a window before the held-out loss is taken, at most as many as the decision
    # holds; 1 with `window=1` is the cheap form.
    unroll: int = 1
    cheap: bool = True  # use the cheap form where it is exact; False always goes through autograd
    split: Split = "outer_valid"  # data of the held-out loss
    lr: float = 1e-3  # learning rate of Adam
    betas: tuple[float, float] = (0.9, 0.99)  # decay rates of Adam
    limit: float = 1.0  # bound on every |d log L / d log lr| of one run and decision, above 0

    def __post_init__(self) -> None:
        if min(self.decisions, self.window, self.unroll) < 1 or not (self.lr > 0 and self.limit > 0):
            raise ValueError(f"decisions, window and unroll must be at least 1, lr and limit above 0: {self}")


class Windows:
    """One episode in every run of a problem, played window by window; `seed` is of the controller's own draws."""

    def __init__(self, problem: Problem, controller: Controller, config: BilevelConfig, seed: int = 0) -> None:
        fresh = problem.start()
        self.run = UnrolledRun(make_task(problem.task), problem.optimizer, fresh.base_lr, problem.total_steps)
        self.controller, self.config = controller, config
        self.state = controller.init((problem.task.runs,), seed=seed)
        self.lr = self.run.base_lr
        spread = stretches_of(controller, problem.total_steps, config.decisions)
        self.left = [spread[i : i + config.window] for i in range(0, len(spread), config.window)]

    def gradients(self, params: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Play the next window; the mean log held-out loss after it and its gradients by `params`, leaves, by name."""
        window = self.left.pop(0)
        if not any(window):
            return torch.zeros(()), {name: torch.zeros_like(value) for name, value in params.items()}
        cheap = self.config.cheap and len(window) == 1 and min(self.config.unroll, window[0]) == 1
        objective, gradients = self._one_update(params) if cheap else self._unrolled(params, window)
        rest = window[-1] - min(self.config.unroll, window[-1])
        self.run.cut()
        self.state, self.lr = detached(self.state), self.lr.detach()
        self.run.look()
        if rest:
            self.run.advance(self.lr, rest)
        return objective, gradients

    def _decide(self, params: Mapping[str, Tensor]) -> Tensor:
        """The next learning rates, in the graph, with the bound on their gradients."""
        answer, self.state = self.controller.decide(
            self.run.observe(self.lr, self.controller.needs), self.state, params
        )
        self.lr = lr = as_lr(self.controller, answer, self.run.base_lr).clamp(MIN_LR, MAX_LR)
        if lr.requires_grad:
            bound = partial(self._bounded, lr=lr.detach())
            lr.register_hook(bound)  # type: ignore[no-untyped-call]
        return lr

    def _bounded(self, gradient: Tensor, lr: Tensor) -> Tensor:
        scale = lr * self.run.task.runs  # the objective is a mean over runs
        return (gradient * scale).nan_to_num(0.0, 0.0, 0.0).clamp(-self.config.limit, self.config.limit) / scale

    def _objective(self) -> Tensor:
        loss = self.run.task.loss(self.run.weights, self.run.task.batch(self.config.split))
        return torch.where(torch.isfinite(loss), loss.clamp_min(1e-30), 1.0).log().mean()

    def _one_update(self, params: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        lr = self._decide(params)
        before, alive = self.run.weights, self.run.alive
        self.run.move(lr, gain=True)
        self.run.weights = self.run.weights.detach().requires_grad_()
        objective = self._objective()
        (at_end,) = torch.autograd.grad(objective, self.run.weights)
        slope = torch.where(alive, self.run.sensitivity(at_end, before), 0.0)
        return objective.detach(), _gradients(lr, params, slope.to(lr.dtype))

    def _unrolled(self, params: Mapping[str, Tensor], window: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        self.run.tracking = True
        for number, length in enumerate(window):
            last = number == len(window) - 1
            lr, updates = self._decide(params), min(self.config.unroll, length) if last else length
            for i in range(updates):
                self.run.move(lr, gain=i == updates - 1)
                if not (last and i == updates - 1):
                    self.run.look()
        objective = self._objective()
        return objective.detach(), _gradients(objective, params)


def _gradients(output: Tensor, params: Mapping[str, Tensor], slope: Tensor | None = None) -> dict[str, Tensor]:
    if not output.requires_grad:
        return {name: torch.zeros_like(value) for name, value in params.items()}
    found = torch.autograd.grad(output, list(params.values()), slope, materialize_grads=True)
    return dict(zip(params, found, strict=True))


class BilevelTrainer(WeightTrainer):
    """Meta-gradients for any controller with weights whose `decide` is differentiable in them.

    Nothing is drawn but the problems, and `seed` is of the controller's own draws: the same problems give the same
    weights, bit for bit.
    """

    method = "bilevel"

    def __init__(self, controller: Controller, config: BilevelConfig | None = None, seed: int = 0) -> None:
        self.config = config or BilevelConfig()
        super().__init__(controller, self.config.lr, self.config.betas, seed)

    def iterate(self, problems: Sequence[Problem], iteration: int, progress: float = 0.0) -> dict[str, float]:
        """One episode of every problem, side by side, with one step of Adam after each window; see `driver.Trainer`.

        Every process has as many windows, whatever the horizons. The figures also have `meta_loss`, the mean log
        held-out loss over all windows; `iteration` and `progress` are not used.
        """
        plays = [Windows(problem, self.start, self.config, self.seed) for problem in problems]
        starts = [play.run.log_loss(self.config.split) for play in plays]
        objectives = []
        while plays[0].left:
            found = [play.gradients(self.weights) for play in plays]
            mean = {k: torch.stack([gradients[k] for _, gradients in found]).mean(0) for k in self.weights}
            self.descend(mean)
            objectives += [objective for objective, _ in found]
        ends = [play.run.log_loss(self.config.split) for play in plays]
        change = torch.cat(starts) - torch.cat(ends)
        return {
            "return": float(change.clamp(-RISE, FALL).mean()),
            "diverged": float((change <= -RISE).double().mean()),
            "meta_loss": float(torch.stack([o.double() for o in objectives]).mean()),
            "inner_steps": float(sum(p.task.runs * p.total_steps for p in problems)),
        }
