"""The small trainings of the systems study: a method as in the benchmark, on random tokens with random classes.

There is soon no improvement to be had, so methods that wait for one have to act within few updates.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ...scheduler.controlled_lr import ControlledLR
from ..data import Parts
from ..method import TRAINER_LR, Method
from ..record import Meter, Record
from ..tasks import Task
from ..train import TrainingRun
from ..trainers import build_trainer
from .tiny_bert import Size

PLAIN = Method(name="plain", text="a `Trainer` with its own optimizer, linear to zero")
"""What memory, checkpoints and seconds are compared with; its own overhead is of two equal trainers, the noise."""
UPDATES, HALF = 24, 12
LR = 3e-2
"""Instead of the usual rates, with which next to nothing happens in so few updates."""
SMALL, LARGER = Size("17k", 32, 1, 8, 8, vocabulary=100), Size("37k", 48, 1, 8, 8, vocabulary=100)
TRAIN_ROWS, HELD_ROWS = 128, 32


def base_lr(method: Method, usual: float = LR) -> float:
    """The method's learning rate here: its own, or `usual` where that is one of the usual ones for Adam."""
    return method.lr if isinstance(method.lr, float) and method.lr != TRAINER_LR else usual


class Stop(TrainerCallback):
    """Ends training after some updates, as a preempted job ends."""

    def __init__(self, after: int) -> None:
        self._after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End where it was asked for."""
        control.should_training_stop |= state.global_step == self._after


def prepare(
    method: Method,
    folder: Path,
    *,
    size: Size = SMALL,
    updates: int = UPDATES,  # announced
    batch: int | None = None,  # rows per device and micro-batch, unless those of `size`
    weights_seed: int = 0,  # of the first weights; all else has one seed
    dropout: bool = True,
    usual_lr: float = LR,
    **changes: Any,  # fields of `TrainingArguments`
) -> Any:
    """A trainer as the benchmark has it, whose `train()` was not called yet."""
    torch.manual_seed(weights_seed)
    model = size.model()
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    task = Task(
        name=f"systems-{size.name}",
        suite="systems",
        data="random tokens",
        model="bert",
        kind="scratch",
        batch_size=batch or size.batch,
        updates=updates,
        train_rows=TRAIN_ROWS,
        lr=LR,
    )
    changed = dataclasses.replace(method, arguments={"save_steps": HALF, **method.arguments, **changes})
    held = size.rows(HELD_ROWS, 1)
    data = Parts(size.rows(TRAIN_ROWS, 0), held, held, held, chance_loss=0.0, chance_metric=0.0)
    lr = base_lr(method, usual_lr)
    trainer = build_trainer(TrainingRun(task, changed, 0, lr), model, data, str(folder), lr)
    trainer.record, trainer.meter = Record(model), Meter(model)
    trainer.model_accepts_loss_kwargs = False  # it says so, but its loss is a plain mean
    return trainer


def trained(
    method: Method, folder: Path, *, stop: int | None = None, checkpoint: Path | None = None, **how: Any
) -> Any:
    """The trainer after its training, which `stop` ends early; `how` is for [`prepare`]."""
    trainer = prepare(method, folder, **how)
    if stop is not None:
        trainer.add_callback(Stop(stop))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


def weights_of(trainer: Any) -> Tensor:
    """All weights in one vector."""
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model)
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def lrs_of(trainer: Any) -> list[float]:
    """Learning rate of every update."""
    return [trainer.lrs[update] for update in sorted(trainer.lrs)]


def changes_of(lrs: list[float]) -> int:
    """How often the learning rate was another one than an update before."""
    return sum(a != b for a, b in pairwise(lrs))


def decisions_of(trainer: Any) -> int:
    """How often the controller was asked, or the scheduler stepped."""
    scheduler = trainer.lr_scheduler
    if isinstance(scheduler, ControlledLR):
        return sum(decision.reason in ("decision", "bounded") for decision in scheduler.trace)
    return int(scheduler.last_epoch)
