"""One disturbed training of the guard study, through an otherwise unmodified `Trainer`, and its measurements."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PrinterCallback, Trainer, TrainingArguments

from ..trainer.guard_callback import GuardCallback
from .data import collate
from .record import curve, diverged, evaluate, parameters, short, versions
from .rows import Row, RunKey, digest
from .train import LOSS_POINTS, trainer_settings
from .trouble_injections import Injection, Striker
from .trouble_methods import Method
from .trouble_tasks import EVALUATIONS, TroubleTask, build_model, load_parts


@dataclass
class Trained:
    """A training: the model with its last weights, and the course it took."""

    model: nn.Module
    scores: dict[str, float]
    losses: list[float]
    grad_norms: list[float]  # before clipping
    lrs: list[float]  # as written in the optimizer before the update; not the spike, which is shorter than that
    strikes: range  # updates at which the trouble was at work, counted from 0
    events: list[dict[str, Any]]  # of the guard
    factor: float  # by which the guard has multiplied the learning rate at the end
    seconds: float


@dataclass(frozen=True)
class TroubleRun:
    """A run: it trains with an injection at work, then reads the test rows once.

    The seed is of first weights, order of batches, dropout, and time and draws of the trouble. Whoever chooses a
    setting reads the `valid` part.
    """

    task: TroubleTask
    injection: Injection
    method: Method
    seed: int
    part: Literal["test", "valid"] = "test"

    @property
    def key(self) -> RunKey:
        """Its key in the rows; the method is `injection/method`."""
        return RunKey(self.task.name, f"{self.injection.name}/{self.method.name}", self.seed, self.task.lr)

    @property
    def task_digest(self) -> str:
        """Changes with all that the task is."""
        return digest({**self.task.spec(), "part": self.part})

    @property
    def method_digest(self) -> str:
        """Changes with all that the injection and the method are, defaults of the guard included."""
        return digest({"injection": self.injection.spec(), "method": self.method.spec()})

    def train(self) -> Trained:
        """Train and measure; see [`TroubleRun`]."""
        data, model = load_parts(self.task), build_model(self.task, self.seed)
        striker = Striker(self.injection, model, self.task.updates, self.seed)
        callback = None if self.method.guard is None else GuardCallback(**self.method.guard)
        with tempfile.TemporaryDirectory() as folder, _quiet():
            trainer = TroubledTrainer(
                model=model,
                args=self._arguments(folder),
                train_dataset=data.train,
                eval_dataset=data.valid,
                data_collator=collate,
                callbacks=[callback] if callback else None,
                striker=striker,
            )
            trainer.remove_callback(PrinterCallback)
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
        guard = callback.guard if callback else None
        return Trained(
            model=model,
            scores=evaluate(model, data.valid if self.part == "valid" else data.test, "classes"),
            losses=torch.stack(trainer.losses).double().tolist(),
            grad_norms=torch.stack(trainer.grad_norms).double().tolist(),
            lrs=trainer.lrs,
            strikes=striker.updates,
            events=list(guard.events) if guard else [],
            factor=guard.factor if guard else 1.0,
            seconds=seconds,
        )

    def execute(self) -> Row:
        """Train, and what was measured as a row."""
        done, data = self.train(), load_parts(self.task)
        rows = {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)}
        return {
            "injection": self.injection.name,
            "part": self.part,
            "accuracy": short(done.scores["metric"]),
            "loss": short(done.scores["loss"]),
            "diverged": diverged(done.losses[:1], done.scores["loss"]),
            "updates": len(done.losses),
            "strike": done.strikes.start if len(done.strikes) else None,
            "first_loss": short(done.losses[0]),
            "loss_curve": curve(done.losses, LOSS_POINTS),
            "final_lr": short(done.lrs[-1]),
            "seconds": short(done.seconds),
            **(_guarded(done) if self.method.guard is not None else {}),
            "setting": {**self.task.spec(), "rows": rows, **parameters(done.model)},
            "method_spec": self.method.spec(),
            "versions": versions(),
        }

    def _arguments(self, folder: str) -> TrainingArguments:
        often: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": max(1, self.task.updates // EVALUATIONS)}
        lr = self.task.lr * self.injection.base_lr_factor
        return TrainingArguments(
            **trainer_settings(folder, self.task.updates, self.task.batch_size, lr, self.seed),
            lr_scheduler_type=self.method.scheduler,
            max_grad_norm=1.0,
            prediction_loss_only=True,
            **(often if self.method.evaluates else {}),
        )


class TroubledTrainer(Trainer):
    """A `Trainer` whose updates a [`Striker`] gets to see first, and that notes what they were."""

    def __init__(self, *args: Any, striker: Striker, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.striker = striker
        self.losses: list[Tensor] = []
        self.grad_norms: list[Tensor] = []
        self.lrs: list[float] = []

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """The optimizer, with the striker's hooks."""
        made = self.optimizer is None
        optimizer: Optimizer = super().create_optimizer(model)
        if made:
            self.striker.watch(optimizer)
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward, disturbed."""
        inputs = self.striker.before_forward(self.state.global_step, inputs)
        self._multiply_rate(self.striker.rate_factor)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.striker.after_backward()
        self.losses.append(loss.detach())
        optimizer: Any = self.optimizer
        self.lrs.append(float(optimizer.param_groups[0]["lr"]))
        return loss

    def _multiply_rate(self, factor: float) -> None:
        """As a schedule does that asks for more: in what is written now and in what later rates are made of."""
        optimizer: Any = self.optimizer
        scheduler: Any = self.lr_scheduler
        if factor == 1.0 or optimizer is None:
            return
        for group in optimizer.param_groups:
            group["lr"] *= factor
        if hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self.grad_norms.append(torch.as_tensor(norm).detach())
        return norm


def _guarded(done: Trained) -> Row:
    """What the guard did, short enough for a row."""
    keep = ("step", "action", "reason", "loss", "grad_norm", "typical", "limit", "restored_update", "lr_after")
    events: list[dict[str, Any]] = [{name: event[name] for name in keep if name in event} for event in done.events]
    events = [{n: short(v) if isinstance(v, float) else v for n, v in event.items()} for event in events]
    return {
        "actions": dict(Counter(event["action"] for event in events)),
        "reasons": dict(Counter(event["reason"] for event in events if event.get("reason") is not None)),
        "factor": done.factor,
        "events": events,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the guard reports of each rollback off the screen: it is in the row."""
    logger = logging.getLogger(GuardCallback.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
