"""The paper study's tasks; weights, batches and losses as torch makes them, not as `Trainer` would."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...tasks import Task

_SGD: dict[str, Any] = {"kind": "scratch", "optimizer": "sgd", "max_grad_norm": 0.0, "lr": 0.1}
_ADAM: dict[str, Any] = {**_SGD, "optimizer": "adam", "lr": 1e-3}
_ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.01}
_ROWS: dict[str, Any] = {"valid_rows": 500, "controller_rows": 500, "test_rows": 1000}
_FASHION: dict[str, Any] = {"suite": "papers", "data": "fashion-mnist", "train_rows": 4000, **_ROWS}
_CNN = Task(name="fashion-cnn", model="cnn", batch_size=64, updates=300, **_FASHION, **_SGD)
_PAPER_CNN = Task(name="fashion-papercnn", model="papercnn", batch_size=100, updates=100, **_FASHION, **_ADAM)
_RESNET: dict[str, Any] = {"model": "resnet", "batch_size": 64, "updates": 200, **_FASHION, **_ADAM, **_ADAMW}
_ALL = (
    Task(
        name="digits-mlp",
        suite="papers",
        data="digits",
        model="mlp",
        batch_size=64,
        updates=400,
        train_rows=1000,
        valid_rows=200,
        controller_rows=200,
        test_rows=397,
        **_SGD,
    ),
    _CNN,
    dataclasses.replace(_CNN, name="fashion-cnn-noisy", label_noise=0.4),
    Task(name="fashion-resnet", **_RESNET),
    _PAPER_CNN,
    dataclasses.replace(_PAPER_CNN, name="mnist-papercnn", data="mnist-5000", train_rows=3000),
    Task(
        name="newsgroups-minilm3",
        suite="papers",
        data="20newsgroups",
        model="minilm3",
        frozen="embeddings",
        overlap=True,
        kind="pretrained",
        batch_size=16,
        updates=100,
        train_rows=2400,
        lr=1e-4,
        **_ROWS,
        **_ADAMW,
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""Every task by its name."""
TUNED_ON: Mapping[str, str] = {"mnist-papercnn": "fashion-papercnn"}
"""Where a task takes over the settings that were tuned on another: transfer."""


def quick(task: Task) -> Task:
    """The same in a second or so: it shows that everything runs, not what a method is worth."""
    return dataclasses.replace(
        task, updates=12, batch_size=16, train_rows=160, valid_rows=60, controller_rows=60, test_rows=60
    )
