"""One training of the benchmark or of a study, through the real `Trainer`, and what is measured of it.

Everything that is drawn follows from the seed, so runs of different methods with one seed start from the same weights
and see the same batches in the same order; `pairing` is a checksum of both, for whoever compares them. Controllers
that need held-out data, and schedules that move at evaluations, have the controller's rows; curves are on validation
rows, which no method sees. Test rows are read once, after the last update. Seconds are of the training loop alone: not
of imports, data, the making of a trainer or looks at the curves, nor of the first updates, which set memory up.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from transformers import PrinterCallback, Trainer

from ..controller import Controller
from ..trainer.arguments import AdaptiveLRTrainingArguments
from ..tuning.range_test import lr_range_test
from .data import Parts, Rows, collate, load
from .methods import EVALUATIONS, RANGE_TEST_UPDATES, Method
from .models import build_model
from .record import Meter, Record, commit, curve, diverged, evaluate, parameters, short, versions
from .rivals import OPTIMIZERS, GeN, build_rival, check_package
from .rows import Row, RunKey
from .stats import Array
from .tasks import Task

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object  # at run time it stands before whichever trainer the method asks for

POINTS, CURVE_ROWS = 8, 128
"""Looks at the validation loss in a run, evenly spaced, the last after the last update; and the rows of each."""
RATE_POINTS, LOSS_POINTS = 40, 25
UNTIMED = 2
"""First updates that are not timed, in runs of more than ten times as many; the others count for them."""
_TRAINERS_OWN = {"adamw": "adamw_torch", "adafactor": "adafactor", "rmsprop": "rmsprop"}


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
            start, found = _clock(), {}
            if self.method.steering == "range_test":
                found = {"found_lr": short(_range_test(trainer, self, data))}
            searched = _clock() - start
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


def _clock() -> Array:
    """Seconds on the wall and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


# --- the trainer ----------------------------------------------------------------------------------------------------


def build_trainer(
    run: TrainingRun, model: nn.Module, data: Parts, folder: str, lr: float, mixins: Sequence[type] = ()
) -> Any:
    """The trainer that a method asks for, which notes losses and learning rates; `mixins` stand before it."""
    method, task = run.method, run.task
    check_package(method)
    own: dict[str, Any] = {"eval_dataset": data.controller}
    if method.controller:
        own = {"controller": method.make_controller(task.kind), "controller_dataset": data.controller}
    settings: dict[str, Any] = {
        **trainer_settings(folder, run.updates, task.batch_size, lr, run.seed),
        "max_grad_norm": task.max_grad_norm,
        "weight_decay": task.weight_decay,
        **(method.arguments if method.controller else _schedule_arguments(method, run.updates)),
    }
    optimizer = build_optimizer(task, method, model, lr)
    if optimizer is None:
        settings.setdefault("optim", _TRAINERS_OWN[task.optimizer])
    else:
        own["optimizers"] = (optimizer, None)
    kind: Any = type("RecordedTrainer", (*mixins, _Recorded, _trainer_class(method)), {"task": task})
    trainer = kind(
        model=model,
        args=AdaptiveLRTrainingArguments(**settings),
        train_dataset=data.train,
        data_collator=collate,
        **own,
    )
    trainer.remove_callback(PrinterCallback)
    if method.steering == "gen":
        trainer.gen = GeN()
        trainer.add_callback(trainer.gen)
    if method.guard is not None and method.controller == "":
        from ..trainer.guard_callback import GuardCallback

        trainer.guard_callback = GuardCallback(**method.guard)
        trainer.add_callback(trainer.guard_callback)
    return trainer


def trainer_settings(folder: str, updates: int, batch_size: int, lr: float, seed: int) -> dict[str, Any]:
    """Arguments of a `Trainer` on the CPU that saves and prints nothing."""
    return {
        "output_dir": folder,
        "max_steps": updates,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 250,
        "learning_rate": lr,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def _schedule_arguments(method: Method, updates: int) -> dict[str, Any]:
    often = {"eval_strategy": "steps", "eval_steps": max(1, updates // EVALUATIONS)} if method.evaluates else {}
    return {
        "lr_scheduler_type": method.schedule,
        "lr_scheduler_kwargs": dict(method.schedule_kwargs) or None,
        "warmup_steps": method.warmup,
        "prediction_loss_only": True,
        **often,
        **method.arguments,
    }


def _trainer_class(method: Method) -> Any:
    from ..trainer.meta_trainer import MetaLRTrainer
    from ..trainer.mixin import AdaptiveLRTrainer

    if not method.controller:
        return Trainer
    return MetaLRTrainer if method.trainer == "meta" else AdaptiveLRTrainer


def build_optimizer(task: Task, method: Method, model: nn.Module, lr: float) -> Optimizer | None:
    """The optimizer where `Trainer` does not make it from its arguments."""
    weights = [p for p in model.parameters() if p.requires_grad]
    if method.optimizer in OPTIMIZERS:
        return build_rival(method, weights, lr, task.weight_decay)
    groups: Any = [{"params": [p]} for p in weights] if method.groups == "tensor" else [{"params": weights}]
    common: dict[str, Any] = {"lr": lr, "weight_decay": task.weight_decay}
    made: Optimizer | None = None
    if "optim" in method.arguments:
        return None
    if task.optimizer == "sgd":
        made = SGD(groups, momentum=task.momentum, **common)
    elif task.optimizer == "adam":
        made = Adam(groups, **common)
    elif method.groups == "tensor" or method.dsa is not None or task.weight_decay:
        # All weights decay, as in torch; `Trainer` would leave biases and norms alone, in a group of their own.
        made = torch.optim.AdamW(groups, **common)
    if made is None or method.dsa is None:
        return made
    from ..optimizers import DSA

    wrapped: Optimizer = DSA(made, **method.dsa)
    return wrapped


class _Recorded(_Trainer):
    """Notes losses, learning rates and, now and then, the loss on validation rows."""

    task: Task
    record: Record
    meter: Meter
    valid: Rows

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.points: set[int] = set()
        self.valid_curve: list[tuple[int, float]] = []
        self.lrs: dict[int, float] = {}  # by update
        self.untimed = UNTIMED if self.args.max_steps > 10 * UNTIMED else 0
        self.timed_from, self.begun, self.watched = 0, _clock(), 0 * _clock()
        self.gen: GeN | None = None

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """The optimizer, with a hook that notes learning rates."""
        made = not hasattr(self, "_hooked")
        optimizer: Optimizer = super().create_optimizer(model)
        if made:
            self._hooked = optimizer.register_step_post_hook(self._note_lr)
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward, and a look at the validation rows where one is due."""
        if self.state.global_step in (0, self.untimed) and len(self.lrs) == self.state.global_step:
            self.timed_from, self.begun = self.state.global_step, _clock()
        if self.state.global_step in self.points and len(self.lrs) == self.state.global_step:
            self.watch()
        if self.gen is not None:
            self.gen.batch = inputs
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.record.add(inputs, loss)
        return loss

    def to_weights_that_count(self) -> None:
        """Schedule-Free's optimizers train at other weights than those that are to be evaluated."""
        base: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if callable(getattr(base, "eval", None)):
            base.eval()

    def loop_seconds(self) -> Array:
        """Seconds of the training loop until now, as if its first updates were like the others."""
        done = self.state.global_step
        return (_clock() - self.begun - self.watched) * done / max(1, done - self.timed_from)

    def watch(self) -> None:
        """Evaluate; training mode, also of an optimizer, comes back with the next training step."""
        start = _clock()
        self.to_weights_that_count()
        model: Any = self.model
        passes = dict(self.meter.rows)
        loss = evaluate(model, self.valid, self.task.objective, self.task.batch_size)["loss"]
        self.meter.rows.update(passes)
        self.valid_curve.append((self.state.global_step, short(loss)))
        self.watched += _clock() - start

    def _note_lr(self, optimizer: Any, *_: Any) -> None:
        """After an update: what it was made with, as nothing but the next decision changes it."""
        group = optimizer.param_groups[0]
        self.lrs[self.state.global_step] = float(group["lr"]) * float(group.get("d", 1.0))
