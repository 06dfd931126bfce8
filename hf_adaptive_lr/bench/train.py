"""One training of the benchmark or of a study, through the real `Trainer`, and what is measured of it.

Everything that is drawn follows from the seed, so runs of different methods with one seed start from the same weights
and see the same batches in the same order; `pairing` is a checksum of both, for whoever compares them. Controllers
that need held-out data, and schedules that move at evaluations, have the controller's rows; curves are on validation
rows, which no method sees. Test rows are read once, after the last update. Seconds are of the training loop alone: not
of imports, data, the making of a trainer or looks at the curves, nor of the first updates, which set memory up.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..controller import Controller
from ..tuning.range_test import lr_range_test
from .data import Parts, load
from .method import RANGE_TEST_UPDATES, Method
from .models import build_model
from .record import Meter, Record, commit, curve, diverged, evaluate, parameters, short, versions
from .rows import Row, RunKey
from .tasks import Task
from .trainers import build_trainer, clock

POINTS, CURVE_ROWS = 8, 128
"""Looks at the validation loss in a run, evenly spaced, the last after the last update; and the rows of each."""
RATE_POINTS, LOSS_POINTS = 40, 25


@dataclass(frozen=True)
class TrainingRun:
    """A run: it trains, then reads the test rows once, or only the validation rows if it does not count.

    The method is one of its variants; the seed is of first weights, order of batches, dropout and the controller's
    draws.
    """

    task: Task
    method: Method
    seed: int
    lr: float
    counts: bool = True  # nobody reads how a run that does not got to its end, so that is not looked at

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

    @property
    def updates(self) -> int:
        """Length of the run."""
        return max(1, round(self.task.updates * self.method.budget))

    def execute(self) -> Row:
        """Train and measure; see [`TrainingRun`]."""
        data, model = load(self.task), build_model(self.task, self.seed)
        first_loss = _first_loss(self.task, self.seed, model, data)
        record, meter = Record(model), Meter(model)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kept learning rates, and deprecated calls in the packages
            trainer = build_trainer(self, model, data, folder, self.lr)
            trainer.record, trainer.meter, trainer.valid = record, meter, data.valid.part(0, CURVE_ROWS)
            if self.counts:
                trainer.points = {round(k * self.updates / POINTS) for k in range(1, POINTS)}
            start, found = clock(), {}
            if self.method.steering == "range_test":
                found = {"found_lr": short(_range_test(trainer, self, data))}
            searched = clock() - start
            trainer.train()
            seconds, cpu = searched + trainer.loop_seconds()
            if self.counts:
                trainer.watch()
        meter.close()
        trainer.to_weights_that_count()
        return {
            "first_loss": first_loss,
            **_course(trainer, self),
            "seconds": short(seconds),
            "cpu_seconds": short(cpu),
            "passes": {name: short(rows / record.rows) for name, rows in meter.rows.items()},
            **found,
            **_scores(model, data, self),
            "setting": {**self.task.spec(), **parameters(model)},
            "method_spec": self.method.spec(),
            **({"config": _config(trainer.controller)} if self.method.controller else {}),
            "versions": versions(),
            "commit": commit(),
        }


def _config(controller: Controller) -> Row:
    """A controller's settings, defaults included: these may change."""
    return {"controller": controller.controller_type, **controller.config()}


def _scores(model: nn.Module, data: Parts, run: TrainingRun) -> Row:
    """Losses and metrics on the validation rows and, of runs that count, on the test rows."""
    parts = {"valid": data.valid, **({"test": data.test} if run.counts else {})}
    scores: Row = {"chance_loss": short(data.chance_loss), "chance_metric": short(data.chance_metric)}
    for name, rows in parts.items():
        found = evaluate(model, rows, run.task.objective, run.task.batch_size)
        scores |= {f"{name}_{what}": short(v) if isinstance(v, float) else v for what, v in found.items()}
    return scores


_first_losses: dict[tuple[str, int], float] = {}


def _first_loss(task: Task, seed: int, model: nn.Module, data: Parts) -> float:
    """Loss on the validation rows before the first update: the same for all methods, so it is looked at once."""
    known = (task.digest, seed)
    if known not in _first_losses:
        with torch.random.fork_rng(devices=[]):
            _first_losses[known] = short(evaluate(model, data.valid, task.objective, task.batch_size)["loss"])
    return _first_losses[known]


def _course(trainer: Any, run: TrainingRun) -> Row:
    losses: list[float] = torch.stack(trainer.record.losses).double().tolist()
    lrs = [trainer.lrs[k] for k in sorted(trainer.lrs)] or [0.0]
    last = losses[-max(1, len(losses) // 10) :]
    curves: Row = {
        "loss_curve": curve(losses, LOSS_POINTS),
        "lr_curve": curve(lrs, RATE_POINTS),
        "valid_curve": trainer.valid_curve,
    }
    return {
        "train_loss": short(sum(last) / len(last)),
        "peak_lr": short(max(lrs)),
        "final_lr": short(lrs[-1]),
        "updates": run.updates,
        "diverged": diverged(losses, sum(last) / len(last)),
        "pairing": f"{trainer.record.checksum:08x}",
        **_guarded(trainer),
        **(curves if run.counts else {}),
    }


def _guarded(trainer: Any) -> Row:
    """How often a guard acted, and why; nothing without one."""
    watch = getattr(trainer, "guard_callback", None)
    if watch is None or watch.guard is None:
        return {}
    return {"guard": dict(Counter(event["reason"] for event in watch.guard.events if event["reason"] is not None))}


def _range_test(trainer: Any, run: TrainingRun, data: Parts) -> float:
    """Gives a trainer the learning rate that the LR range test proposes for its optimizer."""
    generator = torch.Generator().manual_seed(run.seed)
    order = torch.randint(len(data.train), (RANGE_TEST_UPDATES + 1, run.task.batch_size), generator=generator)
    batches = [{name: column[rows] for name, column in data.train.columns.items()} for rows in order]
    model, optimizer = trainer.model, trainer.create_optimizer()
    found = lr_range_test(model, optimizer, batches, steps=RANGE_TEST_UPDATES, max_grad_norm=run.task.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = found.l_max
    trainer.lrs.clear()  # its updates are none of the run
    return found.l_max
