"""The measurements of one training: losses, passes through the model, scores, and the course of the learning rate."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .verdict_data import Rows

_PAIRED_BATCHES = 5
EVAL_BATCH = 250
"""Rows that are evaluated at once."""


class Record:
    """Losses and rows of a run's updates, and a checksum of its first weights and batches."""

    def __init__(self, model: nn.Module) -> None:
        self.losses: list[Tensor] = []
        self.rows = 0
        self.checksum = 0
        for weight in model.parameters():
            self.checksum = _checksum(weight, self.checksum)

    def add(self, labels: Tensor, loss: Tensor) -> None:
        """An update's batch and its loss before the update."""
        self.rows += len(labels)
        if len(self.losses) < _PAIRED_BATCHES:
            self.checksum = _checksum(labels, self.checksum)
        self.losses.append(loss.detach())


def _checksum(values: Tensor, before: int) -> int:
    memory: Any = values.detach().contiguous().numpy()
    return zlib.crc32(memory, before)


class Meter:
    """Counts the rows that go through a model, forward and backward, whoever sends them and in whatever mode.

    Rows and not calls: a pass over held-out data may be many times as large as a batch of training.
    """

    def __init__(self, model: nn.Module) -> None:
        self.rows = rows = {"forward": 0, "backward": 0}

        def forward(module: nn.Module, args: Any, output: Any) -> None:
            count = len(output.logits)
            rows["forward"] += count

            def backward(gradient: Tensor) -> None:
                del gradient
                rows["backward"] += count

            if output.logits.requires_grad:
                output.logits.register_hook(backward)

        self._handle = model.register_forward_hook(forward)

    def close(self) -> None:
        """Stop counting."""
        self._handle.remove()


@torch.no_grad()
def evaluate(model: nn.Module, rows: Rows) -> dict[str, float]:
    """Mean cross-entropy in nats and share of right answers, in evaluation mode; an answer with NaN in it is wrong."""
    model.eval()
    loss, right = 0.0, 0
    for first in range(0, len(rows), EVAL_BATCH):
        batch = dict(rows.part(first, EVAL_BATCH).columns)
        labels = batch.pop("labels")
        logits = model(**batch).logits.double()
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += int(((logits.argmax(-1) == labels) & ~logits.isnan().any(-1)).sum())
    return {"loss": loss / len(rows), "accuracy": right / len(rows)}


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of weights, and of those that are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"parameters": sum(n for n, _ in sizes), "trained_parameters": sum(n for n, trained in sizes if trained)}


def trainer_settings(folder: str, updates: int, batch_size: int, lr: float, seed: int) -> dict[str, Any]:
    """Arguments of a `Trainer` on the CPU that saves and prints nothing."""
    return {
        "output_dir": folder,
        "max_steps": updates,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": EVAL_BATCH,
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


def diverged(losses: Sequence[float], final: float) -> bool:
    """Whether a run came apart: a loss that is not finite, or a final one a tenth above that of the first batch."""
    return not all(map(math.isfinite, [*losses, final])) or final > 1.1 * losses[0]


def curve(values: Sequence[float], points: int) -> list[tuple[float, float]]:
    """Means over equal stretches of a run, each at the mean share of the run that was done before its updates."""
    total, bins = len(values), min(points, len(values))
    edges = [k * total // bins for k in range(bins + 1)]
    return [
        (short((low + high - 1) / 2 / total), short(sum(values[low:high]) / (high - low)))
        for low, high in zip(edges, edges[1:], strict=False)
    ]


def short(value: float) -> float:
    """A number to six significant digits."""
    return float(f"{value:.6g}")
