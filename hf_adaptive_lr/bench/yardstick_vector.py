"""One vectorised training of the benchmark: all lanes (seeds) of a task under one method, each lane a row.

The order is that of a live run: loss and gradient are known, the learning rate is chosen, the update is applied.
Controllers may see `inner_valid`, curves are on `outer_valid`, and `test` is read once, after the last update.
"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD

from ..cadence import Cadence
from ..controller import Controller
from ..meta.episode import MAX_LR, MIN_LR, as_lr
from ..meta.inner import InnerOptimizer
from ..meta.tasks import make_task
from ..meta.vector_run import VectorRun
from .rows import Row
from .run_record import curve, short
from .trouble_tasks import EVALUATIONS
from .yardstick_methods import OPTIMIZERS, Method, Trouble
from .yardstick_tasks import COUNTED, POINTS, VectorTask

NOISE = 0.5
"""Standard deviation of what hits the weights, in units of their root mean square."""
_FACTORS = 40
_KEPT = 4
_done: OrderedDict[tuple[str, str, float], list[Row]] = OrderedDict()


def train_lane(task: VectorTask, method: Method, seed: int, lr: float) -> Row:
    """The row of one lane; all lanes are trained, and kept for the call for the next one.

    Only rows of the default learning rate and of the reference have curves, and seeds that tune have no test loss.
    """
    key = (task.digest, method.digest, lr)
    if key not in _done:
        _done[key] = _train(task, method, lr)
        while len(_done) > _KEPT:
            _done.popitem(last=False)
    row = dict(_done[key][seed])
    if seed >= COUNTED:
        del row["test_loss"]
    if lr != method.default_lr(task) and method.name != "linear":
        # There are tens of thousands of these rows, and only their losses are read.
        del row["valid_curve"], row["factor_curve"]
    return row


def _train(task: VectorTask, method: Method, lr: float) -> list[Row]:
    start, problem = time.perf_counter(), task.problem
    own = Lion(**asdict(problem.optimizer)) if task.optimizer == "lion" else problem.optimizer
    optimizer: Any = _PackageOptimizer(own, method, lr) if method.optimizer else own
    base = torch.full((problem.task.runs,), lr, dtype=torch.float64)
    run = VectorRun(make_task(problem.task), optimizer, base, max(1, round(task.updates * method.told)))
    chooser = _chooser(method, run)
    points = {round(k * task.updates / POINTS) for k in range(POINTS + 1)}
    curves, lrs, watched = [], [], 0.0
    for step in range(task.updates + 1):
        if step in points:
            before = time.perf_counter()
            curves.append((step, _evaluate(run, optimizer, "outer_valid")))
            watched += time.perf_counter() - before
        if method.trouble and step == task.updates // 2:
            _disturb(run, optimizer, method.trouble, problem.task.seed)
        if step < task.updates:
            rates = chooser.lr(step).clamp(MIN_LR, MAX_LR)
            lrs.append(rates)
            run.advance(rates, 1, gain=chooser.gain)
    test = _evaluate(run, optimizer, "test")
    seconds = (time.perf_counter() - start - watched) / len(base)
    factors = torch.stack(lrs) / base

    def row(lane: int) -> Row:
        losses = [(step, short(float(values[lane]))) for step, values in curves]
        return {
            "first_loss": losses[0][1],
            "valid_loss": losses[-1][1],
            "test_loss": short(float(test[lane])),
            "valid_curve": losses,
            "factor_curve": curve(factors[:, lane].tolist(), _FACTORS),
            "final_lr": short(float(lrs[-1][lane])),
            "failed": not bool(run.alive[lane]) or losses[-1][1] > losses[0][1],
            "seconds": short(seconds),
            "updates": task.updates,
        }

    return [row(lane) for lane in range(len(base))]


def _disturb(run: VectorRun, optimizer: Any, trouble: Trouble, seed: int) -> None:
    """Half-way, the loss of one batch is a hundred times what it is, or the weights are hit by noise."""
    if trouble == "loss_spike":
        run.disturb(loss_factor=100.0)
        return
    generator = torch.Generator().manual_seed(seed + 2_000_003)
    noise = torch.randn(run.weights.shape, generator=generator) * run.weights.square().mean(1, keepdim=True).sqrt()
    weights = run.weights + NOISE * noise
    if isinstance(optimizer, _PackageOptimizer):
        optimizer.replace(weights)
    run.disturb(weights)


@torch.no_grad()
def _evaluate(run: VectorRun, optimizer: Any, split: Any) -> Tensor:
    if not isinstance(optimizer, _PackageOptimizer):
        return run.evaluate(split)
    weights = run.weights
    run.weights = optimizer.averaged(weights)
    loss = run.evaluate(split)
    run.weights = weights
    return loss


# --- who chooses --------------------------------------------------------------------------------------------------


class _Controlled:
    """A controller, as often as it decides in a live run."""

    def __init__(self, run: VectorRun, controller: Controller, decisions: int | None) -> None:
        self._run, self._controller = run, controller
        rule = controller.due if decisions is None else None
        self._cadence = Cadence(run.total_steps, decisions=decisions or controller.decisions, rule=rule)
        self._state = controller.init((run.task.runs,), seed=0)
        self._lr = run.base_lr
        self.gain = "gain_ratio" in controller.needs

    def lr(self, step: int) -> Tensor:
        if self._cadence.due(step):
            observed = self._run.observe(self._lr, self._controller.needs)
            with torch.no_grad():
                answer, self._state = self._controller.decide(observed, self._state)
            new = as_lr(self._controller, answer, self._run.base_lr)
            # As the scheduler does: an answer that is no number holds the learning rate.
            self._lr = torch.where(torch.isfinite(new), new, self._lr).clamp(MIN_LR, MAX_LR)
        return self._lr


class _Scheduled:
    """A torch scheduler per lane, moved at evaluations on `inner_valid`."""

    gain = False

    def __init__(self, run: VectorRun, method: Method) -> None:
        from transformers import get_scheduler

        self._run, self._every = run, max(1, run.total_steps // EVALUATIONS)
        self._optimizers = [SGD([nn.Parameter(torch.zeros(1))], lr=float(lr)) for lr in run.base_lr]
        kwargs = dict(method.scheduler_kwargs)
        self._schedulers: list[Any] = [
            get_scheduler(method.scheduler, optimizer, scheduler_specific_kwargs=kwargs)
            for optimizer in self._optimizers
        ]

    def lr(self, step: int) -> Tensor:
        if step and step % self._every == 0:
            for scheduler, loss in zip(self._schedulers, self._run.evaluate("inner_valid").tolist(), strict=True):
                scheduler.step(loss)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        return torch.tensor(rates, dtype=torch.float64)


def _chooser(method: Method, run: VectorRun) -> Any:
    if method.optimizer:
        return SimpleNamespace(gain=False, lr=lambda step: run.base_lr)  # it looks after itself
    if method.scheduler:
        return _Scheduled(run, method)
    return _Controlled(run, method.make_controller(), method.arguments.get("controller_decisions"))


# --- an optimizer that no controller was trained with ---------------------------------------------------------------


class Lion(InnerOptimizer):
    """Lion (Chen et al. 2023, algorithm 2) with betas of 0.9 and 0.99: every weight moves by the same amount."""

    def init(self, weights: Tensor) -> dict[str, Tensor]:
        """State before the first update."""
        return {"count": torch.zeros((), dtype=torch.float64), "exp_avg": torch.zeros_like(weights)}

    def direction(self, weights: Tensor, grads: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Sign of the mean of old gradients and the new one."""
        del weights
        state["count"] += 1
        direction = state["exp_avg"].lerp(grads, 0.1).sign()
        state["exp_avg"].lerp_(grads, 0.01)
        return direction


# --- optimizers of packages ---------------------------------------------------------------------------------------


class _PackageOptimizer:
    """A torch optimizer in every lane, with the interface of `InnerOptimizer` and the clipping of the task's own."""

    def __init__(self, like: Any, method: Method, lr: float) -> None:
        self._like, self._make, self._lr = like, OPTIMIZERS[method.optimizer], lr
        self.clip = like.clip

    def init(self, weights: Tensor) -> dict[str, Tensor]:
        self._lanes = [nn.Parameter(lane.clone()) for lane in weights]
        self._optimizers: list[Any] = [self._make([lane], self._lr) for lane in self._lanes]
        self._mode("train")
        return {}

    def direction(self, weights: Tensor, grads: Tensor, state: dict[str, Tensor]) -> Tensor:
        del weights, state
        return grads

    def apply(self, weights: Tensor, direction: Tensor, lr: Tensor) -> Tensor:
        """Weights after the update; a lane whose gradient is not finite stays."""
        del weights, lr
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # prodigyopt calls a deprecated overload
            for lane, optimizer, gradient in zip(self._lanes, self._optimizers, direction, strict=True):
                if torch.isfinite(gradient).all():
                    lane.grad = gradient.clone()
                    optimizer.step()
        return torch.stack([lane.detach() for lane in self._lanes])

    def replace(self, weights: Tensor) -> None:
        with torch.no_grad():
            for parameter, lane in zip(self._lanes, weights, strict=True):
                parameter.copy_(lane)

    def averaged(self, weights: Tensor) -> Tensor:
        """Weights to be evaluated: those of Schedule-Free are not those that it trains at."""
        if not hasattr(self._optimizers[0], "eval"):
            return weights
        self._mode("eval")
        out = torch.stack([lane.detach().clone() for lane in self._lanes])
        self._mode("train")
        return out

    def _mode(self, name: str) -> None:
        for optimizer in self._optimizers:
            if hasattr(optimizer, name):
                cast(Any, getattr(optimizer, name))()
