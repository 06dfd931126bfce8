"""One training of the benchmarks, through the real trainer, and what is measured of it.

Everything that is drawn follows from the seed, so runs of different methods with one seed start from the same weights
and see the same batches in the same order; `pairing` is a checksum of both, for whoever compares them.
"""

from __future__ import annotations

import platform
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback

from ..artifacts import library_version
from ..controller import Controller
from ..trainer.arguments import AdaptiveLRTrainingArguments
from ..trainer.meta_trainer import MetaLRTrainer
from ..trainer.mixin import AdaptiveLRTrainer
from .rows import Row, RunKey
from .run_record import Meter, Record, curve, diverged, evaluate, parameters, short, trainer_settings
from .verdict_data import Parts, collate, load
from .verdict_methods import Method
from .verdict_models import build_model, build_optimizer
from .verdict_tasks import Task

if TYPE_CHECKING:
    _Trainer = AdaptiveLRTrainer
else:
    _Trainer = object  # at run time it stands before whichever trainer the method asks for

FACTOR_POINTS, LOSS_POINTS = 50, 25


@dataclass(frozen=True)
class TrainingRun:
    """A run: it trains, then reads the test rows once, or the validation rows if it is there to tune.

    The method is one of its variants; the seed is of first weights, order of batches, dropout and the controller's
    draws. A tuning run never touches the test rows.
    """

    task: Task
    method: Method
    seed: int
    lr: float
    tuning: bool = False

    @property
    def key(self) -> RunKey:
        """Its key in the rows."""
        return RunKey(self.task.name, self.method.name, self.seed, self.lr)

    @property
    def task_digest(self) -> str:
        """Changes with all that the task is."""
        return self.task.digest

    @property
    def method_digest(self) -> str:
        """Changes with all that the method is."""
        return self.method.digest

    def execute(self) -> Row:
        """Train and measure; see [`TrainingRun`]."""
        data = load(self.task)
        model = build_model(self.task, self.seed)
        controller = self.method.make_controller()
        meter, record = Meter(model), Record(model)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(model, controller, data, folder)
            trainer.record = record
            wall, cpu = time.perf_counter(), time.process_time()
            with warnings.catch_warnings():
                # Said of every diverged run; the row has the count.
                warnings.filterwarnings("ignore", message="learning rate kept", category=UserWarning)
                trainer.train()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        meter.close()
        part = "valid" if self.tuning else "test"
        scores = evaluate(model, data.valid if self.tuning else data.test)
        losses: list[float] = torch.stack(record.losses).double().tolist()
        last = losses[-max(1, len(losses) // 10) :]
        lrs = [decision.lr[0] for decision in trainer.lr_scheduler.trace]
        return {
            "tuning": self.tuning,
            **{f"{part}_{name}": short(value) for name, value in scores.items()},
            "train_loss": short(sum(last) / len(last)),
            "first_loss": short(losses[0]),
            "final_lr": short(lrs[-1]),
            "loss_curve": curve(losses, LOSS_POINTS),
            "factor_curve": curve([lr / self.lr for lr in lrs], FACTOR_POINTS),
            "diverged": diverged(losses, scores["loss"]),
            **_guarded(trainer),
            "held": trainer.lr_scheduler.run.kept,
            "seconds": short(wall),
            "cpu_seconds": short(cpu),
            "passes": {name: short(rows / record.rows) for name, rows in meter.rows.items()},
            "pairing": f"{record.checksum:08x}",
            "config": {"controller": controller.controller_type, **controller.config()},
            "setting": {
                **self.task.spec(),
                "updates": len(losses),
                **parameters(model),
            },
            "versions": versions(),
        }

    def _trainer(self, model: nn.Module, controller: Controller, data: Parts, folder: str) -> Any:
        updates = round(self.task.updates * self.method.budget)
        settings = trainer_settings(folder, updates, self.task.batch_size, self.lr, self.seed)
        args = AdaptiveLRTrainingArguments(**settings, max_grad_norm=self.task.max_grad_norm, **self.method.arguments)
        kind = MetaLRTrainer if self.method.trainer == "meta" else AdaptiveLRTrainer
        trainer = type("RecordedTrainer", (_Recorded, kind), {})(
            model=model,
            args=args,
            controller=controller,
            train_dataset=data.train,
            controller_dataset=data.controller,
            data_collator=collate,
            optimizers=(build_optimizer(self.task, self.method, model, self.lr), None),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


class _Recorded(_Trainer):
    record: Record

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.record.add(inputs["labels"], loss)
        return loss


def _guarded(trainer: Any) -> Row:
    """How often a guard acted, and why; nothing without one."""
    watch = trainer.guard_callback
    if watch is None or watch.guard is None:
        return {}
    return {"guard": dict(Counter(event["reason"] for event in watch.guard.events if event["reason"] is not None))}


@cache
def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"hf_adaptive_lr": library_version(), "python": platform.python_version(), **packages}
