"""The model and data on which costs are measured: a BERT from its config, random tokens, the Trainer's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from ..controller import Controller
from ..trainer.arguments import AdaptiveLRTrainingArguments
from ..trainer.guard_callback import GuardCallback
from ..trainer.mixin import AdaptiveLRTrainer
from .verdict_data import Rows

SNAPSHOT_EVERY = 50
"""Updates between the guard's snapshots."""


@dataclass(frozen=True)
class Size:
    """A BERT from its config; the vocabulary is small so that most weights are in the layers."""

    name: str
    hidden: int
    layers: int
    batch: int
    length: int
    vocabulary: int = 2000

    def model(self) -> BertForSequenceClassification:
        """A new model with random weights."""
        config = BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden // 32),
            intermediate_size=4 * self.hidden,
            max_position_embeddings=self.length,
        )
        return BertForSequenceClassification(config)


# 10M has the layers of MiniLM-L6-H384.
SIZES = {"1M": Size("1M", 128, 4, 16, 128), "10M": Size("10M", 384, 6, 16, 128)}
TINY = Size("tiny", 16, 1, 4, 8, vocabulary=50)


def _tokens(size: Size, rows: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, size.vocabulary, (rows, size.length), generator=generator)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    return Rows({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})


def trainer_for(
    controller: Controller | None,
    size: Size,
    every: int,
    updates: int,
    folder: Path,
    seed: int,
    *,
    guard: bool = False,
) -> Trainer:
    """A trainer with the Trainer's defaults (AdamW, clipping at 1.0) but for what the measurement needs."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": updates,
        "per_device_train_batch_size": size.batch,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": seed,
    }
    torch.manual_seed(seed)
    watched = {"callbacks": [GuardCallback(snapshot_every=SNAPSHOT_EVERY)]} if guard else {}
    inputs: dict[str, Any] = {**watched, "model": size.model(), "train_dataset": _tokens(size, 64 * size.batch, seed)}
    if controller is None:
        trainer = Trainer(args=TrainingArguments(**settings), **inputs)
    else:
        args = AdaptiveLRTrainingArguments(**settings, controller_every=every)
        trainer = AdaptiveLRTrainer(args=args, controller=controller, **inputs)
    trainer.remove_callback(PrinterCallback)
    return trainer
