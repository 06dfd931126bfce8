"""What is trained in the benchmark: data, model, objective, optimizer and length, frozen as values.

Every task has four disjoint parts: `train`; `valid`, on which learning rates are tuned; `controller`, the only
held-out data that a controller may see; and `test`, read once, after the last update. Splits are the same for every
seed; the seed decides the first weights, the order of batches, dropout and the controller's own draws.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .rows import Specified
from .suites import DEVELOPMENT, TEST

Objective = Literal["classes", "tokens", "value", "language", "pairs", "density"]
Kind = Literal["pretrained", "adapter", "scratch"]
OptimizerName = Literal["adamw", "sgd", "adam", "adafactor", "rmsprop"]


FROZEN = Path(__file__).with_name("frozen_tasks.json")
"""Digest of every task of both suites, by name."""
_NOT_OF_A_RUN = ("name", "suite", "lr")
ROWS_VERSION = 1
"""Changes whenever the rows of some task do: neither rows on disk nor runs of another version are read."""


@dataclass(frozen=True, kw_only=True)
class Task(Specified):
    """A model, its data and the length of its training; Trainer's and transformers' defaults otherwise."""

    name: str
    suite: str  # "development", "test", or a study's
    data: str  # of `sources.SOURCES`
    model: str  # of `models.MODELS`; "-lora4" behind it: an adapter of rank 4
    objective: Objective = "classes"
    kind: Kind
    batch_size: int  # rows per update
    updates: int
    # Rows of the four parts, as they are read: topics, imbalance and shots choose among them.
    train_rows: int
    valid_rows: int = 300
    controller_rows: int = 200
    test_rows: int = 600
    split_seed: int = 0
    optimizer: OptimizerName = "adamw"
    momentum: float = 0.0  # of SGD
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: no clipping
    tokens: int = 32  # to which texts are cut or padded; characters for models that read bytes
    side: int = 0  # of the pictures in pixels; 0: as they are
    topics: tuple[tuple[int, ...], ...] = ()  # for each class its labels; rows of others are left out; none keeps all
    shots: int = 0  # training rows of a class at most; 0: no limit
    label_noise: float = 0.0  # share of the training labels that are drawn anew from all classes
    imbalance: float = 1.0  # rows of the most frequent class for one of the rarest, in all parts
    init_std: float = 0.0  # of the first weights, for a pretrained model of its head; 0: as the config says
    overlap: bool = False  # rows that are the same once they are cut may be in two parts, as in the older studies
    frozen: str = ""  # a part of the model that is not trained: "embeddings"
    lr: float  # where the best learning rate of a linear schedule is expected; not in the spec

    def spec(self) -> dict[str, Any]:
        """All that a run depends on and that is not a default, as JSON values."""
        values = {f.name: (f.default, getattr(self, f.name)) for f in dataclasses.fields(self)}
        spec = {name: value for name, (usual, value) in values.items() if value != usual and name not in _NOT_OF_A_RUN}
        return {**spec, **({"rows": ROWS_VERSION} if ROWS_VERSION > 1 else {})}

    @property
    def adapter_rank(self) -> int:
        """Rank of the model's adapter, 0 without one."""
        return int(self.model.partition("-lora")[2] or 0)

    @property
    def model_name(self) -> str:
        """The model's name in `models.MODELS`."""
        return self.model.partition("-lora")[0]


TASKS = {
    name: Task(name=name, suite=suite, **fields)
    for suite, tasks in (("development", DEVELOPMENT), ("test", TEST))
    for name, fields in tasks.items()
}
"""Every task of both suites by its name."""


def changed() -> list[str]:
    """Names of tasks that are not what they were when they were frozen; empty as it should be."""
    frozen: dict[str, str] = json.loads(FROZEN.read_text(encoding="utf-8"))
    now = {name: task.digest for name, task in TASKS.items()}
    return sorted(name for name in frozen.keys() | now.keys() if frozen.get(name) != now.get(name))
