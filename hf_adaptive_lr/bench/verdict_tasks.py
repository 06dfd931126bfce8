"""The tasks of the paper study: data, model, optimizer and length, frozen as values.

Every task has four disjoint parts: `train`; `valid`, on which learning rates are tuned; `controller`, the only
held-out data that a controller may see; and `test`, read once, after the last update. Splits are the same for every
seed; the seed decides the first weights, the order of batches, dropout and the controller's own draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .rows import digest

DataName = Literal["fashion-mnist", "mnist-5000", "digits", "20newsgroups"]
ModelName = Literal["cnn", "resnet", "mlp", "papercnn", "minilm3"]
OptimizerName = Literal["sgd", "adam", "adamw"]

_SGD = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_ADAM = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_PRETRAINED = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its data and the length of its training; torch's defaults otherwise.

    Learning rates are tuned on the `valid` rows; `controller` rows are for controllers that see held-out data; results
    are those on the `test` rows.
    """

    name: str
    data: DataName
    model: ModelName
    optimizer: OptimizerName
    batch_size: int  # rows per update
    updates: int
    train_rows: int
    valid_rows: int = 500
    controller_rows: int = 500
    test_rows: int = 1000
    label_noise: float = 0.0  # share of the training labels that are drawn anew from all classes
    max_grad_norm: float = 0.0  # 0: no clipping
    lrs: tuple[float, ...] = _SGD  # tried first; ascending, a factor of about 3 apart
    extensions: int = 3  # learning rates tried beyond these, at most, while the best is the smallest or largest
    tuned_on: str | None = None  # the task whose tuned settings are taken over, for transfer

    def spec(self) -> dict[str, Any]:
        """All that a run depends on, as JSON values; not which learning rates are tried."""
        left_out = ("name", "lrs", "extensions", "tuned_on")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}

    @property
    def digest(self) -> str:
        """[`digest`] of the spec."""
        return digest(self.spec())

    def quick(self) -> Task:
        """The same in a second or so: it shows that everything runs, not what a method is worth."""
        rows = {"train_rows": 160, "valid_rows": 60, "controller_rows": 60, "test_rows": 60}
        middle = len(self.lrs) // 2
        lrs = {"lrs": self.lrs[middle - 1 : middle + 1], "extensions": 0}
        changes: dict[str, Any] = {**rows, **lrs, "updates": 12, "batch_size": 16}
        return dataclasses.replace(self, **changes)


_FASHION: dict[str, Any] = {"data": "fashion-mnist", "batch_size": 64, "train_rows": 4000}
_CNN = Task(name="fashion-cnn", model="cnn", optimizer="sgd", updates=300, **_FASHION)
_PAPER_CNN = Task(
    name="fashion-papercnn",
    model="papercnn",
    optimizer="adam",
    updates=100,
    lrs=_ADAM,
    **{**_FASHION, "batch_size": 100},
)
_DIGITS: dict[str, Any] = {"train_rows": 1000, "valid_rows": 200, "controller_rows": 200, "test_rows": 397}
_MNIST: dict[str, Any] = {"data": "mnist-5000", "train_rows": 3000, "tuned_on": "fashion-papercnn"}
_TEXTS: dict[str, Any] = {"data": "20newsgroups", "batch_size": 16, "train_rows": 2400, "max_grad_norm": 1.0}
_ALL = (
    Task(name="digits-mlp", data="digits", model="mlp", optimizer="sgd", batch_size=64, updates=400, **_DIGITS),
    _CNN,
    dataclasses.replace(_CNN, name="fashion-cnn-noisy", label_noise=0.4),
    Task(name="fashion-resnet", model="resnet", optimizer="adamw", updates=200, lrs=_ADAM, **_FASHION),
    _PAPER_CNN,
    dataclasses.replace(_PAPER_CNN, name="mnist-papercnn", **_MNIST),
    Task(name="newsgroups-minilm3", model="minilm3", optimizer="adamw", updates=100, lrs=_PRETRAINED, **_TEXTS),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""Every task by its name."""

QUICK_TASKS: Mapping[str, Task] = {name: task.quick() for name, task in TASKS.items()}
"""Their short versions, by the same names."""
