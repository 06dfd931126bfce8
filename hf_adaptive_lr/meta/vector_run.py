"""Many training runs in step: the vectorised counterpart of a live run under `ControlledLR`.

The order is the live one: loss and gradient of batch t are known, then the learning rate of update t is chosen, then
the update is applied. The same `Observation` is built with the same formulas (`sensors/`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..observation import Observation
from ..sensors.gradients import cosine, inner
from ..sensors.predictions import PREDICTION_FIELDS
from ..sensors.readable import DIRECTION_FIELDS
from ..sensors.weights import WEIGHT_FIELDS
from .inner import InnerOptimizer
from .tasks.base import Split, Task

_WORST = 1e6  # stands for a loss that is not finite
_UNIFORM_VARIANCE = 1 / 12  # of numbers drawn evenly from [0, 1), which stand for the predictions before the first
_USUAL = frozenset({"loss", "grad_norm", "alignment", "update_ratio", "gain_ratio"})


class VectorRun:
    """Independent runs of one task that advance together, each from its own learning rate in `base_lr`, (runs,)."""

    def __init__(self, task: Task, optimizer: InnerOptimizer, base_lr: Tensor, total_steps: int) -> None:
        self.task, self.optimizer, self.total_steps = task, optimizer, total_steps
        self.base_lr = base_lr.double()
        self.ballast = torch.ones_like(self.base_lr)
        """Factor of the weights' norm as observed, of shape (runs,)."""
        self.hidden = False
        """Whether the length is hidden from controllers."""
        self.weights = task.init()
        self.state = optimizer.init(self.weights)
        self.step = 0
        zeros = torch.zeros_like(self.base_lr)
        self.gain_ratio = torch.ones_like(self.base_lr)
        self._direction = torch.zeros_like(self.weights)
        self._last_lr = zeros
        self._probabilities: Tensor | None = None
        self._lost_any = False
        self._compute()

    def _compute(self) -> None:
        """Loss and clipped gradient of the next batch at the weights as they are."""
        self.batch = self.task.batch("train")
        self._measure(1.0)

    def disturb(self, weights: Tensor | None = None, loss_factor: float = 1.0) -> None:
        """Inject a fault before the next update: the same batch, at other weights or with another loss.

        `weights` are of shape (runs, size), None keeps them; `loss_factor` is of this batch's loss and gradient,
        before clipping.
        """
        if weights is not None:
            self.weights = weights
        self._measure(loss_factor)

    @torch.enable_grad()
    def _measure(self, factor: float) -> None:
        leaf = self.weights.detach().requires_grad_()
        loss = self.task.loss(leaf, self.batch)
        if factor != 1.0:
            loss = loss * factor
        (grads,) = torch.autograd.grad(loss.sum(), leaf)
        self.loss = loss.detach()
        self._raw_grads = grads
        self._grads, self.grad_norm, self._clip = self.optimizer.clip(grads)
        self.alive = torch.isfinite(self.loss) & torch.isfinite(self.grad_norm)

    def observe(self, lr: Tensor, needs: frozenset[str] | None = None) -> Observation:
        """The observation of a controller before the next update, at learning rates in force of shape (runs,).

        `needs` are the fields to measure, as in `Controller.needs`; by default loss, gradient norm, alignment, update
        ratio and gain ratio. `eval_loss` is measured now, on `inner_valid`. There is one parameter group. Observing a
        prediction field is "the decision before" for the next such one; a task without classes has none: ValueError.
        """
        wanted = _USUAL if needs is None else needs
        fields = {"loss": self.loss.double(), "grad_norm": self.grad_norm.double(), "gain_ratio": self.gain_ratio}
        if wanted & DIRECTION_FIELDS:
            fields |= self._previous_update()
        if "classes" in wanted:
            fields["classes"] = torch.full_like(self.base_lr, self.task.class_count())
        if wanted & set(PREDICTION_FIELDS):
            fields |= self._predictions()
        if wanted & set(WEIGHT_FIELDS):
            pairs = [(m.flatten(1).mean(1), _variance(m)) for m in self.task.last_matrices(self.weights)]
            fields |= zip(WEIGHT_FIELDS, (number.double() for pair in pairs for number in pair), strict=True)
        if "eval_loss" in wanted:
            fields["eval_loss"] = self.evaluate("inner_valid").double()
        measured = {name: value for name, value in fields.items() if name in wanted}
        rates = {"lr": lr, "base_lr": self.base_lr, "last_lr": self._last_lr.double()}
        total = None if self.hidden else self.total_steps
        return Observation(step=self.step, total_steps=total, **rates, **measured)

    def _previous_update(self) -> dict[str, Tensor]:
        d_sq = inner([self._direction], [self._direction], 1)
        dot, g_sq = inner([self._grads], [self._direction], 1), inner([self._grads], [self._grads], 1)
        moved_sq, weight_sq = self.task.sizes(self.weights, self._direction)
        norm = self.ballast * weight_sq.sqrt().clamp_min(1e-30)
        alignment = cosine(dot, d_sq, g_sq)
        return {
            "alignment": alignment,
            "group_alignment": alignment.unsqueeze(-1),
            "slope": dot,
            "group_slope": dot.unsqueeze(-1),
            "update_ratio": self._last_lr * moved_sq.sqrt() / norm,
        }

    def _predictions(self) -> dict[str, Tensor]:
        now, before = self.task.probabilities(self.weights, self.batch), self._probabilities
        self._probabilities = now
        variance = _variance(now)
        change = variance + _UNIFORM_VARIANCE if before is None else _variance(now - before)
        return {"prediction_variance": variance, "prediction_change": change}

    @torch.no_grad()
    def _update(self, lr: Tensor, *, gain: bool) -> None:
        direction = self.optimizer.direction(self.weights, self._grads, self.state)
        moved = self.optimizer.apply(self.weights, direction, lr)
        lost = ~self.alive
        self._lost_any = self._lost_any or bool(lost.any())
        # Until a run is lost, nothing needs these passes over memory, which cost as much as the update of plain SGD.
        if self._lost_any:
            moved[lost] = self.weights[lost]  # a run that is lost stays where it was
            direction = direction.nan_to_num(0.0, 0.0, 0.0)
        if gain:
            promised = -inner([self._raw_grads], [moved - self.weights], 1)
            gained = (self.loss - self.task.loss(moved, self.batch)).double()
            known = promised.abs() > 1e-30
            ratio = torch.where(known, gained / torch.where(known, promised, torch.ones_like(promised)), 1.0)
            self.gain_ratio = ratio.nan_to_num(-2.0, -2.0, -2.0)
        self.weights, self._direction, self._last_lr = moved, direction, lr
        self.step += 1

    def advance(self, lr: Tensor, updates: int, *, gain: bool = True) -> None:
        """Apply so many updates at learning rates of shape (runs,).

        `gain` measures the gain ratio of the last one, which costs a forward pass.
        """
        for i in range(updates):
            self._update(lr, gain=gain and i == updates - 1)
            self._compute()

    @torch.no_grad()
    def evaluate(self, split: Split) -> Tensor:
        """Loss of every run on a split, of shape (runs,); a lost run counts as very bad, not as NaN."""
        loss = self.task.evaluate(self.weights, split)
        bad = torch.full_like(loss, _WORST)
        return torch.where(torch.isfinite(loss) & self.alive, loss, bad).clamp(max=_WORST)

    def log_loss(self, split: Split) -> Tensor:
        """Logarithm of that loss, in float64."""
        return self.evaluate(split).double().clamp_min(1e-30).log()


def _variance(values: Tensor) -> Tensor:
    """Variance over everything but the run, in float64: (runs, ...) to (runs,)."""
    return values.flatten(1).var(1, correction=0).double()
