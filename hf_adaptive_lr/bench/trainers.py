"""The trainer that a method of the benchmark asks for, with its optimizer; it notes what happens in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from transformers import PrinterCallback, Trainer, TrainerCallback

from ..trainer.arguments import AdaptiveLRTrainingArguments
from .data import Parts, Rows, collate
from .method import EVALUATIONS, Method
from .record import Meter, Record, evaluate, short
from .rivals import OPTIMIZERS, GeN, build_rival, check_package
from .stats import Array
from .tasks import Task

if TYPE_CHECKING:
    from .train import TrainingRun

    _Trainer = Trainer
else:
    _Trainer = object  # at run time it stands before whichever trainer the method asks for

UNTIMED = 2
"""First updates that are not timed, in runs of more than ten times as many; the others count for them."""
_TRAINERS_OWN = {"adamw": "adamw_torch_fused", "adafactor": "adafactor", "rmsprop": "rmsprop"}


def clock() -> Array:
    """Seconds on the wall and of this process's CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


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
        **trainer_settings(folder, round(run.updates * method.told), task.batch_size, lr, run.seed),
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
    if method.cooldown:
        trainer.add_callback(_Cooldown(trainer, run.updates, method.cooldown))
    if method.steering == "gen":
        trainer.gen = GeN()
        trainer.add_callback(trainer.gen)
    if method.guard is not None and method.controller == "":
        from ..trainer.guard_callback import GuardCallback

        trainer.guard_callback = GuardCallback(**method.guard)
        trainer.add_callback(trainer.guard_callback)
    return trainer


class _Cooldown(TrainerCallback):
    """Ends a run whose trainer was told another length, as a user would: by a cooldown."""

    def __init__(self, trainer: Any, updates: int, share: float) -> None:
        self._trainer, self._steps = trainer, max(1, round(updates * share))
        self._from = updates - self._steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the cooldown where it is due."""
        if state.global_step == self._from:
            self._trainer.cooldown(self._steps)


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
        self.timed_from, self.begun, self.watched = 0, clock(), 0 * clock()
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
            self.timed_from, self.begun = self.state.global_step, clock()
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
        return (clock() - self.begun - self.watched) * done / max(1, done - self.timed_from)

    def watch(self) -> None:
        """Evaluate; training mode, also of an optimizer, comes back with the next training step."""
        start = clock()
        self.to_weights_that_count()
        model: Any = self.model
        passes = dict(self.meter.rows)
        loss = evaluate(model, self.valid, self.task.objective, self.task.batch_size)["loss"]
        self.meter.rows.update(passes)
        self.valid_curve.append((self.state.global_step, short(loss)))
        self.watched += clock() - start

    def _note_lr(self, optimizer: Any, *_: Any) -> None:
        """After an update: what it was made with, as nothing but the next decision changes it."""
        group = optimizer.param_groups[0]
        self.lrs[self.state.global_step] = float(group["lr"]) * float(group.get("d", 1.0))
