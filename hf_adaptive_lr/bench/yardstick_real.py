"""One real fine-tune of the benchmark through `Trainer`, and its measurements.

Curves are on the validation rows, which no method sees; schedules that need evaluations, and controllers that need
held-out data, have the controller's rows. What the curves cost is not in the seconds.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer

from ..trainer.arguments import AdaptiveLRTrainingArguments
from ..tuning.range_test import lr_range_test
from .rows import Row
from .run_record import EVAL_BATCH, Record, curve, evaluate, short
from .trouble_tasks import EVALUATIONS
from .verdict_data import Parts, collate
from .yardstick_data import build_model, load
from .yardstick_methods import Method, build_optimizer
from .yardstick_tasks import COUNTED, POINTS, RealTask

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object  # at run time it stands before whichever trainer the method asks for

_FACTORS = 40
_MEASURED = ("reduce_lr_on_plateau", "greedy")  # schedulers that move at evaluations
FINDER_UPDATES = 100
"""Updates of the LR range test, its default; beside those of the run, and in its seconds."""


def train(task: RealTask, method: Method, seed: int, lr: float) -> Row:
    """Train, then read the test rows once, unless the seed is there to tune; the finder has its own LR, or raises."""
    data, model = load(task), build_model(task, seed)
    record, start = Record(model), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kept learning rates, and deprecated calls in the packages
        if method.finder:
            lr = _found(task, method, model, data, seed)
        trainer = _trainer(task, method, model, data, folder, seed, lr)
        trainer.record, trainer.valid = record, data.valid
        trainer.points = (
            {round(k * task.updates / POINTS) for k in range(POINTS)} if _curved(task, method, lr) else {0}
        )
        trainer.train()
        seconds = time.perf_counter() - start - trainer.watched
        trainer.watch(task.updates)
    losses = torch.stack(record.losses).double().tolist()
    row = _course(trainer, lr, losses) | {"seconds": short(seconds), "pairing": f"{record.checksum:08x}"}
    if method.finder:
        row["found_lr"] = short(lr)
    if seed < COUNTED:
        row |= {f"test_{name}": short(value) for name, value in evaluate(model, data.test).items()}
    return row


def _curved(task: RealTask, method: Method, lr: float) -> bool:
    """Whether anything reads how the run got there, which takes long to look at; the same as in vectorised rows."""
    return method.name == "linear" or method.finder or lr == method.default_lr(task)


def _course(trainer: Any, lr: float, losses: list[float]) -> Row:
    valid: list[tuple[int, float]] = trainer.valid_curve
    first, last = valid[0][1], valid[-1][1]
    return {
        "first_loss": first,
        "valid_loss": last,
        "valid_curve": valid,
        "loss_curve": curve(losses, _FACTORS),
        "factor_curve": curve([rate / lr for rate in trainer.lrs], _FACTORS),
        "final_lr": short(trainer.lrs[-1]),
        "failed": not last <= first,  # NaN is neither
        "updates": len(losses),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def _found(task: RealTask, method: Method, model: nn.Module, data: Parts, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randint(len(data.train), (FINDER_UPDATES + 1, task.batch_size), generator=generator)
    batches = [{name: column[rows] for name, column in data.train.columns.items()} for rows in order]
    optimizer = build_optimizer(method, [p for p in model.parameters() if p.requires_grad], 1e-6)
    return lr_range_test(model, optimizer, batches, steps=FINDER_UPDATES, max_grad_norm=1.0).l_max


def _trainer(
    task: RealTask, method: Method, model: nn.Module, data: Parts, folder: str, seed: int, lr: float
) -> _Recorded:
    args = AdaptiveLRTrainingArguments(
        output_dir=folder,
        max_steps=task.updates,
        per_device_train_batch_size=task.batch_size,
        per_device_eval_batch_size=EVAL_BATCH,
        learning_rate=lr,
        max_grad_norm=1.0,
        seed=seed,
        data_seed=seed,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **chosen_arguments(method, max(1, task.updates // EVALUATIONS)),
    )
    own: dict[str, Any] = {"eval_dataset": data.controller}
    if method.controller:
        own = {"controller": method.make_controller(), "controller_dataset": data.controller}
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(method, weights, lr)
    trainer: _Recorded = type("YardstickTrainer", (_Recorded, trainer_class(method)), {})(
        model=model,
        args=args,
        train_dataset=data.train,
        data_collator=collate,
        optimizers=(optimizer, None),
        **own,
    )
    optimizer.register_step_post_hook(trainer.note_lr)
    trainer.remove_callback(PrinterCallback)
    return trainer


def chosen_arguments(method: Method, evaluate_every: int) -> dict[str, Any]:
    """The method's training arguments; its scheduler moves at evaluations, if it needs any."""
    if method.controller:
        return dict(method.arguments)
    often = {"eval_strategy": "steps", "eval_steps": evaluate_every} if method.scheduler in _MEASURED else {}
    return {
        "lr_scheduler_type": method.scheduler or "constant",
        "lr_scheduler_kwargs": dict(method.scheduler_kwargs) or None,
        "prediction_loss_only": True,
        **often,
        **method.arguments,
    }


def trainer_class(method: Method) -> Any:
    """The trainer that a method asks for."""
    from ..trainer.meta_trainer import MetaLRTrainer
    from ..trainer.mixin import AdaptiveLRTrainer

    if not method.controller:
        return Trainer
    return MetaLRTrainer if method.trainer == "meta" else AdaptiveLRTrainer


class _Recorded(_Trainer):
    """Notes losses, learning rates and, every few updates, the loss on the validation rows."""

    record: Record
    valid: Any
    points: set[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.valid_curve: list[tuple[int, float]] = []
        self.lrs: list[float] = []
        self.watched = 0.0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if self.state.global_step in self.points:
            self.watch(self.state.global_step)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.record.add(inputs["labels"], loss)
        return loss

    def watch(self, step: int) -> None:
        """Evaluate; training mode, also of Schedule-Free's optimizer, comes back with the next training step."""
        start = time.perf_counter()
        base: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if callable(getattr(base, "eval", None)):
            base.eval()
        model: Any = self.model
        self.valid_curve.append((step, short(evaluate(model, self.valid)["loss"])))
        self.watched += time.perf_counter() - start

    def note_lr(self, optimizer: Any, *_: Any) -> None:
        """After an update: what it was made with, as nothing but the next decision changes it."""
        self.lrs.append(float(optimizer.param_groups[0]["lr"]))
