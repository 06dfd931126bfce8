"""One troubled training through an unmodified `Trainer` but for the trouble, and what is measured of it.

A case by hand, and what the guard did:

    from hf_adaptive_lr.bench.trouble_run import case
    trained = case("image", "lr_spike", "guard", seed=100, part="valid").train()
    trained.scores, trained.events, trained.losses
"""

from __future__ import annotations

import dataclasses
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
from .run_record import EVAL_BATCH, curve, diverged, short
from .runner import Row, RunKey, digest
from .training_run import LOSS_POINTS, versions
from .trouble_injections import INJECTIONS, Injection, Striker
from .trouble_methods import METHODS, Config, Method
from .trouble_tasks import EVALUATIONS, QUICK_TASKS, TASKS, Parts, TroubleTask, build_model, load_parts
from .verdict_data import Rows, collate


@dataclass
class Trained:
    """What came out of a training.

    Args:
        model: with its last weights.
        scores: `loss` and `accuracy` at the end.
        losses: of every update, as the model answered them.
        grad_norms: of every update, before clipping.
        lrs: of every update, as written in the optimizer before it; not the spike, which is shorter than that.
        strikes: updates at which the trouble was at work, counted from 0.
        events: of the guard; none without one.
        factor: by which the guard has multiplied the learning rate at the end.
        seconds: of training.
    """

    model: nn.Module
    scores: dict[str, float]
    losses: list[float]
    grad_norms: list[float]
    lrs: list[float]
    strikes: range
    events: list[dict[str, Any]]
    factor: float
    seconds: float


@dataclass(frozen=True)
class TroubleRun:
    """A run: it trains with an injection at work, then reads the test rows once.

    Args:
        task: what is trained.
        injection: what goes wrong.
        method: what keeps it on its way.
        seed: of first weights, order of batches, dropout, and time and draws of the trouble.
        part: rows that are read at the end; `valid` for whoever chooses a setting.
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
            scores=scores(model, data.valid if self.part == "valid" else data.test),
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
        done = self.train()
        return {
            "injection": self.injection.name,
            "part": self.part,
            "accuracy": short(done.scores["accuracy"]),
            "loss": short(done.scores["loss"]),
            "diverged": diverged(done.losses[:1], done.scores["loss"]),
            "updates": len(done.losses),
            "strike": done.strikes.start if len(done.strikes) else None,
            "first_loss": short(done.losses[0]),
            "loss_curve": curve(done.losses, LOSS_POINTS),
            "final_lr": short(done.lrs[-1]),
            "seconds": short(done.seconds),
            **(_guarded(done) if self.method.guard is not None else {}),
            "setting": self._setting(load_parts(self.task), done.model),
            "method_spec": self.method.spec(),
            "versions": versions(),
        }

    def _setting(self, data: Parts, model: nn.Module) -> Row:
        parameters = list(model.parameters())
        return {
            **self.task.spec(),
            "rows": {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)},
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        }

    def _arguments(self, folder: str) -> TrainingArguments:
        often: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": max(1, self.task.updates // EVALUATIONS)}
        return TrainingArguments(
            output_dir=folder,
            max_steps=self.task.updates,
            per_device_train_batch_size=self.task.batch_size,
            per_device_eval_batch_size=EVAL_BATCH,
            learning_rate=self.task.lr * self.injection.base_lr_factor,
            lr_scheduler_type=self.method.scheduler,
            max_grad_norm=1.0,
            seed=self.seed,
            data_seed=self.seed,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            prediction_loss_only=True,
            dataloader_pin_memory=False,
            **(often if self.method.evaluates else {}),
        )


def case(
    task: str,
    injection: str,
    method: str,
    seed: int,
    *,
    part: Literal["test", "valid"] = "test",
    guard: Config | None = None,
    quick: bool = False,
) -> TroubleRun:
    """A run by the names of its parts."""
    chosen = METHODS[method] if guard is None else dataclasses.replace(METHODS[method], guard=guard)
    return TroubleRun((QUICK_TASKS if quick else TASKS)[task], INJECTIONS[injection], chosen, seed, part)


class TroubledTrainer(Trainer):
    """A `Trainer` whose updates a [`Striker`] gets to see first, and that notes what they were.

    Args:
        striker: made for its model.
    """

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
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.striker.after_backward()
        self.losses.append(loss.detach())
        optimizer: Any = self.optimizer
        self.lrs.append(float(optimizer.param_groups[0]["lr"]))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self.grad_norms.append(torch.as_tensor(norm).detach())
        return norm


@torch.no_grad()
def scores(model: nn.Module, rows: Rows) -> dict[str, float]:
    """Mean cross-entropy in nats and share of right answers; an answer with NaN in it is wrong."""
    model.eval()
    loss, right = 0.0, 0
    for first in range(0, len(rows), EVAL_BATCH):
        batch = dict(rows.part(first, EVAL_BATCH).columns)
        labels = batch.pop("labels")
        logits = model(**batch).logits.double()
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += int(((logits.argmax(-1) == labels) & ~logits.isnan().any(-1)).sum())
    return {"loss": loss / len(rows), "accuracy": right / len(rows)}


def _guarded(done: Trained) -> Row:
    """What the guard did, short enough for a row."""
    keep = ("step", "action", "reason", "loss", "grad_norm", "typical", "limit", "restored_update", "lr_after")
    events = [{name: _plain(event[name]) for name in keep if name in event} for event in done.events]
    return {
        "actions": dict(Counter(event["action"] for event in events)),
        "reasons": dict(Counter(event["reason"] for event in events if event.get("reason") is not None)),
        "factor": done.factor,
        "events": events,
    }


def _plain(value: Any) -> Any:
    return short(value) if isinstance(value, float) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """What the guard says of each rollback is in the row."""
    logger = logging.getLogger(GuardCallback.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
