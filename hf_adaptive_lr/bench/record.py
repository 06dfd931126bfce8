"""The measurements of one training: losses, passes through the model, scores, and the course of the learning rate."""

from __future__ import annotations

import math
import platform
import subprocess
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts import library_version
from .data import Rows

_PAIRED_BATCHES = 5
EVAL_BATCH = 128
"""Rows that are evaluated at once."""


class Record:
    """Losses of a run's updates, and a checksum of its first weights and batches."""

    def __init__(self, model: nn.Module) -> None:
        self.losses: list[Tensor] = []
        self.rows = 0
        self.checksum = 0
        for weight in model.parameters():
            self.checksum = _checksum(weight, self.checksum)

    def add(self, inputs: dict[str, Tensor], loss: Tensor) -> None:
        """An update's batch and its loss before the update."""
        self.rows += len(next(iter(inputs.values())))
        if len(self.losses) < _PAIRED_BATCHES:
            for name in sorted(inputs):
                self.checksum = _checksum(inputs[name], self.checksum)
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


# --- scores ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model: nn.Module, rows: Rows, objective: str, batch_size: int = EVAL_BATCH) -> dict[str, float]:
    """Mean loss in nats (squared error for "value"), metric and, of classes, macro-F1; in evaluation mode.

    They are of `count` rows, tokens or questions. Answers that are not finite are wrong. Of "pairs" every batch is a
    question of its own, so they have the training's batch size, and rows that fill no batch are left out.
    """
    model.eval()
    whole = len(rows) // batch_size * batch_size if objective == "pairs" else len(rows)
    size = batch_size if objective == "pairs" else EVAL_BATCH
    losses, counts, answers, truths = 0.0, 0, [], []
    for first in range(0, whole, size):
        batch = dict(rows.part(first, min(size, whole - first)).columns)
        output: Any = model(**batch)
        loss, answer, truth = _judged(output, batch, objective)
        losses += float(loss) * len(truth)
        counts += len(truth)
        answers.append(answer)
        truths.append(truth)
    return {
        "loss": losses / counts,
        "count": counts,
        **_metrics(torch.cat(answers), torch.cat(truths), losses / counts, objective),
    }


def _judged(output: Any, batch: dict[str, Tensor], objective: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, answers and truths of a batch: one of each for every row, token or question."""
    if objective in ("value", "density"):
        return output.loss.double(), output.logits.double().flatten(1)[:, 0], batch["labels"].double().flatten()
    logits = output.logits.double()
    labels = batch["labels"] if objective != "pairs" else torch.arange(len(logits))
    if objective == "language":
        logits, labels = logits[:, :-1], labels[:, 1:]
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    there = labels != -100
    logits, labels = logits[there], labels[there]
    loss = output.loss.double() if objective == "pairs" else nn.functional.cross_entropy(logits, labels)
    return loss, torch.where(logits.isnan().any(-1), -1, logits.argmax(-1)), labels


def _metrics(answers: Tensor, truths: Tensor, loss: float, objective: str) -> dict[str, float]:
    if objective == "density":
        return {"metric": -loss}
    if objective == "value":
        missed = (answers - truths).square().mean() / truths.var(correction=0)
        return {"metric": float(1 - missed) if bool(missed.isfinite()) else -math.inf}
    accuracy = {"metric": float((answers == truths).double().mean())}
    if objective != "classes":
        return accuracy
    found = [
        float(2 * ((answers == c) & (truths == c)).sum() / ((answers == c).sum() + (truths == c).sum()))
        for c in sorted(set(truths.tolist()))
    ]
    return {**accuracy, "macro_f1": sum(found) / len(found)}


def diverged(losses: Sequence[float], final: float) -> bool:
    """Whether a run came apart: a loss that is not finite, or a final one a tenth above that of the first batch."""
    return not all(map(math.isfinite, [*losses, final])) or final > losses[0] + 0.1 * abs(losses[0])


def curve(values: Sequence[float], points: int) -> list[tuple[float, float]]:
    """Means over equal stretches of a run, each at the mean share of the run that was done before its updates."""
    total, bins = len(values), min(points, len(values))
    edges = [k * total // bins for k in range(bins + 1)]
    return [
        (short((low + high - 1) / 2 / total), short(sum(values[low:high]) / (high - low)))
        for low, high in zip(edges, edges[1:], strict=False)
    ]


def short(value: float) -> float:
    """A number to five significant digits."""
    return float(f"{value:.5g}")


# --- where a run was ------------------------------------------------------------------------------------------------


def parameters(model: nn.Module) -> dict[str, int]:
    """Number of weights, and of those that are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"parameters": sum(n for n, _ in sizes), "trained_parameters": sum(n for n, trained in sizes if trained)}


@cache
def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"hf_adaptive_lr": library_version(), "python": platform.python_version(), **packages}


@cache
def commit() -> str:
    """Commit of the source tree that runs, a plus sign behind it where files differ; empty for an installed copy."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""

    def git(*words: str) -> str:
        # Only reading, and without taking the lock that `status` would like to have.
        line = ["git", "--no-optional-locks", *words]
        done = subprocess.run(line, cwd=here, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
