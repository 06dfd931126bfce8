"""The compatibility table's habits: what people switch on in Trainer, each beside a controller."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from hf_adaptive_lr.auto import AutoController
from hf_adaptive_lr.controllers.linear import Linear
from hf_adaptive_lr.trainer.arguments import AdaptiveLRTrainingArguments
from hf_adaptive_lr.trainer.callback import AdaptiveLRCallback
from hf_adaptive_lr.trainer.mixin import AdaptiveLRTrainer
from tests.compatibility import models as tiny
from tests.compatibility.checks import STEPS, Check, Kit, check_kit, require, trained


def _parts() -> dict[str, Any]:
    return {"model": tiny.bert(), "train_dataset": tiny.encoded()}


def _settings(**settings: Any) -> Kit:
    return Kit(Trainer, TrainingArguments, _parts, settings)


def _optuna(folder: Path) -> list[str]:
    """Trials start anew: two of the same settings give the same learning rates and the same objective."""
    histories: list[list[float]] = []

    class Recording(AdaptiveLRTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            out = super().train(*args, **kwargs)
            histories.append(self.lr_scheduler.lr_history())
            return out

    args = AdaptiveLRTrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        eval_strategy="steps",
        eval_steps=STEPS,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    trainer = Recording(
        model_init=lambda: tiny.bert(), args=args, train_dataset=tiny.encoded(), eval_dataset=tiny.encoded(16, seed=1)
    )
    names = ("universal", "hypergradient", "universal", "hypergradient")

    def space(trial: Any) -> dict[str, Any]:
        trial.suggest_float("unused", 0, 1)
        return {"controller": names[trial.number], "learning_rate": 1e-3}

    best = trainer.hyperparameter_search(space, backend="optuna", n_trials=len(names), direction="minimize")
    require(histories[0] == histories[2] and histories[1] == histories[3], "equal trials have equal learning rates")
    require(histories[0] != histories[1], "other controllers have others")
    objective: Any = None if isinstance(best, list) else best.objective
    require(math.isfinite(objective), "the search ends with an objective")
    return ["`hyperparameter_search` over controllers: each trial starts anew, equal trials are equal to the bit"]


def _compile(folder: Path) -> list[str]:
    # Inductor compiles for the machine whatever ATEN_CPU_CAPABILITY says; torch 2.13 then computes NaN, also without
    # any of our code.
    inductor = shutil.which("c++") and "ATEN_CPU_CAPABILITY" not in os.environ
    backend = "inductor" if inductor else "aot_eager"

    def parts() -> dict[str, Any]:
        return {"model": tiny.bert(dropout=0.0), "train_dataset": tiny.encoded()}

    settings = {"torch_compile": True, "torch_compile_backend": backend}
    # The callback's second look at a batch goes through the module that was not compiled: the last bits differ, and
    # where there is dropout its mask.
    held = check_kit(Kit(Trainer, TrainingArguments, parts, settings, exact=False), folder)
    return [*held, f"backend {backend}, no dropout (with it the callback's gain ratio is of another mask)"]


def _early_stopping(folder: Path) -> list[str]:
    """Stops where Trainer stops without us, and loads the same best weights."""

    def parts() -> dict[str, Any]:
        stop = EarlyStoppingCallback(early_stopping_patience=2)
        return {**_parts(), "eval_dataset": tiny.encoded(16, seed=1), "callbacks": [stop]}

    saving = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings = {**saving, "max_steps": 40, "load_best_model_at_end": True, "learning_rate": 0.3}
    kit = Kit(Trainer, TrainingArguments, parts, settings)
    native = kit.build(folder / "native", lr_scheduler_type="linear")
    expected = trained(native)
    require(native.state.global_step < 40, "the example stops early")
    ways: tuple[tuple[str, dict[str, Any]], ...] = (
        ("subclass", {"controller": Linear()}),
        ("callback", {"callback": AdaptiveLRCallback(Linear())}),
    )
    for name, way in ways:
        trainer = kit.build(folder / name, **way)  # only now: its dropout begins where Trainer seeds
        same = torch.equal(expected, trained(trainer))
        require(same, f"the {name} loads the best weights of Trainer's own linear schedule")
        require(trainer.state.global_step == native.state.global_step, f"the {name} stops at the same update")
    universal = kit.build(folder / "universal", AutoController.from_pretrained("universal"))
    require(bool(torch.isfinite(trained(universal)).all()), "finite weights")
    require(universal.state.best_model_checkpoint is not None, "a best checkpoint under `universal`")
    return ["`linear` stops at the same update as the trainer's own and loads the same weights; `universal` runs"]


def _stream(folder: Path) -> list[str]:
    def parts() -> dict[str, Any]:
        return {"model": tiny.bert(), "train_dataset": tiny.encoded().to_iterable_dataset()}

    return check_kit(Kit(Trainer, TrainingArguments, parts), folder)


def _gradient_checkpointing(folder: Path) -> list[str]:
    return check_kit(_settings(gradient_checkpointing=True), folder)


def _bf16(folder: Path) -> list[str]:
    return check_kit(_settings(bf16=True), folder)


def _accumulation(folder: Path) -> list[str]:
    """On a language model: transformers leaves the loss of most classifiers undivided, the subclass divides it."""

    def parts() -> dict[str, Any]:
        return {"model": tiny.llama(), "train_dataset": tiny.copies()}

    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    return check_kit(Kit(Trainer, TrainingArguments, parts, settings, callback_sees_loss=False), folder)


HABITS: tuple[Check, ...] = (
    Check("optuna hyperparameter_search", ("optuna",), _optuna),
    Check("torch.compile", ("torch",), _compile),
    Check("early stopping, best model at the end", ("transformers",), _early_stopping),
    Check("IterableDataset with max_steps", ("datasets",), _stream),
    Check("gradient checkpointing", ("transformers",), _gradient_checkpointing),
    Check("bf16", ("torch",), _bf16),
    Check("gradient accumulation", ("accelerate",), _accumulation),
)
"""Rows of the table, in order."""
