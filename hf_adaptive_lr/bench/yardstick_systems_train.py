"""The small trainings of the benchmark's systems track.

Methods are trained as in the benchmark, but on random tokens with random classes: there is soon no improvement to be
had, so those that wait for one have to act within few updates.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from ..scheduler.controlled_lr import ControlledLR
from ..trainer.arguments import AdaptiveLRTrainingArguments
from .verdict_data import Rows, collate
from .workload import Size
from .yardstick_methods import TRAINER_LR, Method, build_optimizer
from .yardstick_real import chosen_arguments, trainer_class

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


class _Watch(TrainerCallback):
    """Notes the learning rate of every update; ends training after `stop` updates, as a preempted job ends."""

    def __init__(self, stop: int | None) -> None:
        self.lrs: list[float] = []
        self._stop = stop

    def note(self, optimizer: Any, *_: Any) -> None:
        group = optimizer.param_groups[0]
        self.lrs.append(float(group["lr"]) * float(group.get("d", 1.0)))  # Prodigy and D-Adaptation adapt d

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._stop:
            control.should_training_stop = True


@dataclass(frozen=True)
class Prepared:
    """A trainer whose `train()` was not called yet, and what it will have been."""

    trainer: Any  # of the class that the method asks for
    lrs: list[float]  # learning rates of the updates, filled by training
    folder: Path

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
        return sum(a != b for a, b in zip(self.lrs, self.lrs[1:], strict=False))

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
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": updates,
        "per_device_train_batch_size": batch or size.batch,
        "learning_rate": base_lr(method),
        "max_grad_norm": 1.0,
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
    held = _tokens(size, HELD_ROWS, 1)
    own: dict[str, Any] = {}
    if method.controller:
        own = {"controller": method.make_controller(), "controller_dataset": held}
    optimizer = build_optimizer(method, list(model.parameters()), base_lr(method))
    watch = _Watch(stop)
    trainer = trainer_class(method)(
        model=model,
        args=arguments(**settings),
        train_dataset=_tokens(size, TRAIN_ROWS, 0),
        eval_dataset=held,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[watch],
        **own,
    )
    trainer.model_accepts_loss_kwargs = False  # it says so, but its loss is a plain mean
    optimizer.register_step_post_hook(watch.note)
    trainer.remove_callback(PrinterCallback)
    return Prepared(trainer, watch.lrs, folder)


def _tokens(size: Size, rows: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, size.vocabulary, (rows, size.length), generator=generator)
    return Rows({"input_ids": ids, "labels": torch.randint(0, 2, (rows,), generator=generator)})


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but the runner's own progress bar is shown."""
    log: Any = transformers_logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kept learning rates, and deprecated calls in the packages
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
