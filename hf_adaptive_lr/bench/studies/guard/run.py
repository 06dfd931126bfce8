"""One disturbed training of the guard study, and what is measured of it."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ....finetune.errors import quiet_logger
from ....trainer.guard_callback import GuardCallback
from ...data import classes, load
from ...models import build_model
from ...record import Record, curve, diverged, evaluate, parameters, short, versions
from ...rows import Row, RunKey, digest
from ...train import LOSS_POINTS, TrainingRun
from ...trainers import build_trainer
from .injections import CLEAN, Injection, Inputs, Moment, generator, strikes
from .methods import spec

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # at run time it stands before the benchmark's


@dataclass(frozen=True)
class DisturbedRun(TrainingRun):
    """A run: it trains with an injection at work, then reads the test rows once.

    The seed is of first weights, order of batches, dropout, and time and draws of the injection.
    """

    injection: Injection = CLEAN

    @property
    def key(self) -> RunKey:
        """Its key in the rows; the method is `injection/method`."""
        return RunKey(self.task.name, f"{self.injection.name}/{self.method.name}", self.seed, self.lr)

    @property
    def method_digest(self) -> str:
        """Changes with all that the injection and the method are, defaults of the guard included."""
        return digest({"injection": self.injection.spec(), "method": spec(self.method)})

    def train(self) -> Any:
        """The trainer, after its training."""
        data, model = load(self.task), build_model(self.task, self.seed)
        # Schedules that move at evaluations see the validation rows, which nothing is chosen by.
        data = dataclasses.replace(data, controller=data.valid)
        with tempfile.TemporaryDirectory() as folder, quiet_logger(GuardCallback.__module__):
            lr = self.lr * self.injection.base_lr_factor
            trainer = build_trainer(self, model, data, folder, lr, (Disturbed,))
            trainer.record = Record(model)
            trainer.disturb(self.injection, self.seed, classes(self.task))
            start = time.perf_counter()
            trainer.train()
            trainer.seconds = time.perf_counter() - start
        return trainer

    def execute(self) -> Row:
        """Train and measure."""
        trainer, data = self.train(), load(self.task)
        scores = evaluate(trainer.model, data.test, self.task.objective)
        losses: list[float] = torch.stack(trainer.record.losses).double().tolist()
        rows = {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)}
        return {
            "injection": self.injection.name,
            **{f"test_{name}": short(value) for name, value in scores.items()},
            "diverged": diverged(losses[:1], scores["loss"]),
            "updates": len(losses),
            "strike": trainer.strikes.start if trainer.strikes else None,
            "first_batch_loss": short(losses[0]),
            "loss_curve": curve(losses, LOSS_POINTS),
            "final_lr": short(trainer.lrs[max(trainer.lrs)]),
            "seconds": short(trainer.seconds),
            **(_guarded(trainer.guard_callback.guard) if self.method.guard is not None else {}),
            "setting": {**self.task.spec(), "rows": rows, **parameters(trainer.model)},
            "method_spec": spec(self.method),
            "versions": versions(),
        }


class Disturbed(Trainer):
    """Lets an injection loose on a `Trainer` at the right updates; [`disturb`] it before it trains."""

    def disturb(self, injection: Injection, seed: int, classes: int) -> None:
        """Set the injection up; its hook on the loss comes before those of whoever watches the loss."""
        model: Any = self.model
        self.injection, self.strikes = injection, strikes(injection, self.args.max_steps, seed)
        self._moment = Moment(0, classes, generator(injection, seed))
        self._at_work = self._spiked = False
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._lrs: list[float] = []
        model.register_forward_hook(self._on_loss)
        if injection.step_lr_factor != 1.0:
            # On the optimizer itself hooks act after every scheduler has written, and only for real updates.
            optimizer = self.create_optimizer()
            optimizer.register_step_pre_hook(self._raise_lr)
            optimizer.register_step_post_hook(self._put_lr_back)

    def training_step(self, model: nn.Module, inputs: Inputs, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward, disturbed."""
        update = self.state.global_step
        self._at_work = update in self.strikes
        if self._at_work:
            self._moment = dataclasses.replace(self._moment, update=update - self.strikes.start)
            self.injection.disturb_weights(self._weights, self._moment)
            inputs = self.injection.disturb_batch(inputs, self._moment)
            self._multiply_lr(self.injection.lr_growth ** (1 / len(self.strikes)))
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._at_work:
            self.injection.disturb_gradients(self._weights, self._moment)
        return loss

    def _on_loss(self, model: nn.Module, args: Any, output: Any) -> None:
        if self._at_work and model.training:
            output.loss = self.injection.disturb_loss(output.loss, self._moment)

    def _multiply_lr(self, factor: float) -> None:
        """As a schedule does that asks for more: in what is written now and in what later rates are made of."""
        optimizer, scheduler = self.optimizer, cast(Any, self.lr_scheduler)
        if factor == 1.0 or optimizer is None:
            return
        for group in optimizer.param_groups:
            group["lr"] *= factor
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]

    def _raise_lr(self, optimizer: Any, *_: Any) -> None:
        due = not self._spiked and self.state.global_step >= self.strikes.start
        # A step without gradients is one that a guard has taken out: the spike is for the next that is applied.
        if due and any(p.grad is not None for p in self._weights):
            self._spiked = True
            self._lrs = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] *= self.injection.step_lr_factor

    def _put_lr_back(self, optimizer: Any, *_: Any) -> None:
        for group, lr in zip(optimizer.param_groups, self._lrs, strict=False):
            group["lr"] = lr
        self._lrs = []


def _guarded(guard: Any) -> Row:
    """What the guard did, short enough for a row."""
    keep = ("step", "action", "reason", "loss", "grad_norm", "typical", "limit", "restored_update", "lr_after")
    events = [{n: short(v) if isinstance(v, float) else v for n, v in e.items() if n in keep} for e in guard.events]
    return {
        "actions": dict(Counter(event["action"] for event in events)),
        "reasons": dict(Counter(event["reason"] for event in events if event.get("reason") is not None)),
        "factor": guard.factor,
        "events": events,
    }
