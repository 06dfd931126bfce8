"""The small trainings of the systems study: a method as in the benchmark, on random tokens with random classes.

There is soon no improvement to be had, so methods that wait for one have to act within few updates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ...scheduler.controlled_lr import ControlledLR
from ...trainer.arguments import AdaptiveLRTrainingArguments
from ..verdict_data import collate
from ..yardstick_methods import TRAINER_LR, Method, build_optimizer
from ..yardstick_real import chosen_arguments, trainer_class
from .tiny_bert import Size

PLAIN = Method(name="plain", text="an unmodified `Trainer`, linear to zero", scheduler="linear")
"""What memory, checkpoints and seconds are compared with; its own overhead is of two equal trainers, the noise."""
UPDATES, HALF = 24, 12
LR = 1e-2
"""Instead of `Trainer`'s default, with which next to nothing happens in so few updates."""
SMALL, LARGER = Size("17k", 32, 1, 8, 8, vocabulary=100), Size("37k", 48, 1, 8, 8, vocabulary=100)
TRAIN_ROWS, HELD_ROWS = 128, 32


def base_lr(method: Method) -> float:
    """The method's learning rate here: its own, [`LR`] where that is `Trainer`'s default."""
    return LR if method.lr == TRAINER_LR else method.lr


@dataclass
class Prepared(TrainerCallback):
    """A trainer whose `train()` was not called yet, and what it will have been."""

    stop: int | None = None  # updates after which training ends, as a preempted job ends
    lrs: list[float] = field(default_factory=list)  # learning rates of the updates, filled by training
    trainer: Any = None  # of the class that the method asks for

    def note(self, optimizer: Any, *_: Any) -> None:
        """A hook after the optimizer's step."""
        group = optimizer.param_groups[0]
        self.lrs.append(float(group["lr"]) * float(group.get("d", 1.0)))  # Prodigy and D-Adaptation adapt d

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End where it was asked for."""
        if state.global_step == self.stop:
            control.should_training_stop = True

    def train(self, checkpoint: Path | None = None) -> Prepared:
        """Train, from a checkpoint if one is given."""
        self.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return self

    @property
    def weights(self) -> Tensor:
        """All weights in one vector."""
        model: nn.Module = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()

    @property
    def changes(self) -> int:
        """How often the learning rate was another one than an update before."""
        return sum(a != b for a, b in pairwise(self.lrs))

    @property
    def decisions(self) -> int:
        """How often the controller was asked, or the scheduler stepped."""
        scheduler = self.trainer.lr_scheduler
        if isinstance(scheduler, ControlledLR):
            return sum(decision.reason in ("decision", "bounded") for decision in scheduler.trace)
        return int(scheduler.last_epoch)


def prepare(
    method: Method,
    folder: Path,
    *,
    size: Size = SMALL,
    updates: int = UPDATES,  # announced
    batch: int | None = None,  # rows per device and micro-batch, unless those of `size`
    weights_seed: int = 0,  # of the first weights; all else has one seed
    dropout: bool = True,
    evaluate_every: int = 1,  # updates, for schedulers that move at evaluations
    stop: int | None = None,  # updates to end after
    **changes: Any,  # fields of `TrainingArguments`
) -> Prepared:
    """A trainer as the benchmark has it; an LR range test before the run is left out."""
    torch.manual_seed(weights_seed)
    model = size.model()
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": updates,
        "per_device_train_batch_size": batch or size.batch,
        "learning_rate": base_lr(method),
        "use_cpu": True,
        "save_strategy": "no",
        "save_steps": HALF,
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "prediction_loss_only": True,
        "ddp_find_unused_parameters": False,
        **chosen_arguments(method, evaluate_every),
        **changes,
    }
    arguments = AdaptiveLRTrainingArguments if method.controller else TrainingArguments
    held, made = size.rows(HELD_ROWS, 1), Prepared(stop)
    own = {"controller": method.make_controller(), "controller_dataset": held} if method.controller else {}
    optimizer = build_optimizer(method, list(model.parameters()), base_lr(method))
    made.trainer = trainer_class(method)(
        model=model,
        args=arguments(**settings),
        train_dataset=size.rows(TRAIN_ROWS, 0),
        eval_dataset=held,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[made],
        **own,
    )
    made.trainer.model_accepts_loss_kwargs = False  # it says so, but its loss is a plain mean
    made.trainer.remove_callback(PrinterCallback)
    optimizer.register_step_post_hook(made.note)
    return made
