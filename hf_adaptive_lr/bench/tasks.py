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

Objective = Literal["classes", "tokens", "value", "language", "pairs", "density"]
Kind = Literal["pretrained", "adapter", "scratch"]
OptimizerName = Literal["adamw", "sgd", "adam", "adafactor", "rmsprop"]


FROZEN = Path(__file__).with_name("frozen_tasks.json")
"""Digest of every task of both suites, by name."""
_NOT_OF_A_RUN = ("name", "suite", "lr")


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
    frozen: str = ""  # a part of the model that is not trained: "embeddings"
    lr: float  # where the best learning rate of a linear schedule is expected; not in the spec

    def spec(self) -> dict[str, Any]:
        """All that a run depends on and that is not a default, as JSON values."""
        values = {f.name: (f.default, getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {name: value for name, (usual, value) in values.items() if value != usual and name not in _NOT_OF_A_RUN}

    @property
    def adapter_rank(self) -> int:
        """Rank of the model's adapter, 0 without one."""
        return int(self.model.partition("-lora")[2] or 0)

    @property
    def model_name(self) -> str:
        """The model's name in `models.MODELS`."""
        return self.model.partition("-lora")[0]


_MINI: dict[str, Any] = {
    "model": "minilm3",
    "kind": "pretrained",
    "batch_size": 8,
    "tokens": 16,
    "updates": 60,
    "lr": 2e-4,
}
_WHOLE = {**_MINI, "model": "minilm6"}
_LORA: dict[str, Any] = {**_MINI, "kind": "adapter", "updates": 200, "lr": 2e-3}
_SCRATCH: dict[str, Any] = {"kind": "scratch", "lr": 1e-3}
_ROWS: dict[str, Any] = {"train_rows": 2000}
_BYTES: dict[str, Any] = {**_SCRATCH, "model": "bytes-bert", "train_rows": 4000, "batch_size": 16, "tokens": 12}
_LANGUAGE: dict[str, Any] = {"objective": "language", "batch_size": 16, "tokens": 32, "train_rows": 8000}
_SMALL: dict[str, Any] = {"train_rows": 200, "valid_rows": 50, "controller_rows": 25, "test_rows": 129}

_DEVELOPMENT: dict[str, dict[str, Any]] = {
    # Two groups of messages, whole all-MiniLM: the loss lies still for a third of the run.
    "news-two": {
        **_WHOLE,
        "data": "20newsgroups",
        "topics": ((7,), (8,)),
        "train_rows": 6000,
        "valid_rows": 3000,
        "controller_rows": 1500,
        "test_rows": 6000,
        "updates": 60,
    },
    "news-twenty": {
        **_MINI,
        "data": "20newsgroups",
        "train_rows": 4000,
        "batch_size": 16,
        "tokens": 32,
        "updates": 100,
    },
    "reuters-eight-shots": {
        **_WHOLE,
        "data": "reuters-r8",
        "train_rows": 3000,
        "shots": 7,
        "updates": 30,
        "tokens": 24,
    },
    "reuters-lora4": {**_LORA, "model": "minilm3-lora4", "data": "reuters-r52", "train_rows": 4000, "tokens": 24},
    "spam-lora64": {
        **_LORA,
        "model": "minilm3-lora64",
        "data": "spam",
        "train_rows": 3000,
        "imbalance": 20.0,
        "tokens": 24,
        "updates": 100,
    },
    "sotu-year": {**_MINI, **_ROWS, "data": "sotu-year", "objective": "value", "tokens": 24},
    "sotu-next": {**_MINI, **_ROWS, "data": "sotu-next", "objective": "pairs", "updates": 30, "batch_size": 32},
    "sotu-language": {**_LANGUAGE, **_SCRATCH, "model": "bytes-gpt2", "data": "sotu-text", "updates": 600},
    "news-language": {
        **_LANGUAGE,
        "data": "20newsgroups",
        "model": "bytes-gpt2-sotu",
        "kind": "pretrained",
        "updates": 200,
        "lr": 3e-4,
    },
    "names-bytes": {**_BYTES, "data": "names", "updates": 2000},
    "fashion-resnet-noisy": {
        **_SCRATCH,
        "data": "fashion-mnist",
        "model": "resnet",
        "optimizer": "sgd",
        "momentum": 0.9,
        "batch_size": 64,
        "train_rows": 6000,
        "label_noise": 0.4,
        "updates": 200,
        "lr": 0.1,
    },
    "fashion-vit": {
        **_SCRATCH,
        "data": "fashion-mnist",
        "model": "vit",
        "batch_size": 128,
        "train_rows": 6400,
        "updates": 200,
        "lr": 2e-3,
    },
    "mnist-cnn": {
        **_SCRATCH,
        "data": "mnist-5000",
        "model": "cnn",
        "optimizer": "rmsprop",
        "batch_size": 16,
        "train_rows": 2000,
        "updates": 600,
    },
    "emoji-efficientnet": {
        "kind": "pretrained",
        "data": "emoji",
        "model": "efficientnet",
        "side": 64,
        "batch_size": 8,
        "train_rows": 600,
        "valid_rows": 150,
        "controller_rows": 60,
        "test_rows": 390,
        "updates": 60,
        "lr": 1e-3,
    },
    "digits-mlp": {
        **_SCRATCH,
        "data": "digits",
        "model": "mlp",
        "optimizer": "sgd",
        "momentum": 0.9,
        "batch_size": 16,
        "train_rows": 1000,
        "valid_rows": 200,
        "controller_rows": 200,
        "test_rows": 397,
        "updates": 2000,
        "lr": 0.1,
    },
    "diabetes-mlp": {
        **_SCRATCH,
        **_SMALL,
        "data": "diabetes",
        "objective": "value",
        "model": "mlp",
        "batch_size": 16,
        "updates": 600,
    },
    "segment-density": {
        **_SCRATCH,
        "data": "segment",
        "objective": "density",
        "model": "mixture",
        "batch_size": 32,
        "train_rows": 900,
        "valid_rows": 300,
        "controller_rows": 200,
        "test_rows": 650,
        "updates": 2000,
        "lr": 3e-3,
    },
}

_TEST: dict[str, dict[str, Any]] = {
    "wordnet-twenty-six": {**_WHOLE, "data": "wordnet", "train_rows": 4000},
    "brown-two": {
        **_WHOLE,
        "data": "brown",
        "topics": ((0, 1, 2), (9, 10, 11, 12, 13)),
        "train_rows": 4000,
        "valid_rows": 800,
        "controller_rows": 400,
        "test_rows": 2000,
    },
    "wordnet-pairs": {**_LORA, "model": "minilm3-lora64", "data": "wordnet-pairs", "train_rows": 4000, "tokens": 32},
    "wordnet-words": {
        **_MINI,
        "data": "wordnet-words",
        "objective": "pairs",
        "batch_size": 32,
        "train_rows": 4000,
        "updates": 30,
    },
    "brown-tags": {**_MINI, **_ROWS, "data": "brown-tags", "objective": "tokens", "tokens": 24},
    "fortunes-few-shots": {**_WHOLE, "data": "fortunes", "train_rows": 4000, "shots": 7, "updates": 30, "tokens": 24},
    "fortunes-lora4-noisy": {
        **_LORA,
        "model": "minilm3-lora4",
        "data": "fortunes",
        "train_rows": 4000,
        "label_noise": 0.3,
        "tokens": 24,
    },
    "fortunes-language": {
        **_LANGUAGE,
        "data": "fortunes-text",
        "model": "bytes-gpt2-wordnet",
        "kind": "pretrained",
        "updates": 200,
        "lr": 3e-4,
    },
    "brown-bert": {
        **_SCRATCH,
        "data": "brown",
        "model": "bert",
        "topics": ((0, 1, 2), (9, 10, 11, 12, 13)),
        "train_rows": 12000,
        "valid_rows": 800,
        "controller_rows": 400,
        "test_rows": 2000,
        "batch_size": 32,
        "tokens": 24,
        "updates": 600,
    },
    "wordnet-language": {**_LANGUAGE, **_SCRATCH, "data": "wordnet-text", "model": "bytes-gpt2", "updates": 200},
    "syllables-bytes": {**_BYTES, "data": "syllables", "updates": 2000},
    "valence-words": {**_MINI, **_ROWS, "data": "valence", "objective": "value", "tokens": 8},
    "clipart-resnet": {
        **_SCRATCH,
        "data": "clipart",
        "model": "resnet",
        "optimizer": "sgd",
        "momentum": 0.9,
        "side": 32,
        "batch_size": 32,
        "train_rows": 2000,
        "updates": 600,
        "lr": 0.1,
    },
    "clipart-vit": {
        **_SCRATCH,
        "data": "clipart",
        "model": "vit",
        "optimizer": "adafactor",
        "side": 32,
        "batch_size": 16,
        "train_rows": 2000,
        "updates": 600,
    },
    "clipart-efficientnet": {
        "kind": "pretrained",
        "data": "clipart",
        "model": "efficientnet",
        "side": 64,
        "batch_size": 8,
        "train_rows": 1500,
        "updates": 60,
        "lr": 1e-3,
    },
    "shuttle-mlp": {
        **_SCRATCH,
        "data": "shuttle",
        "model": "mlp",
        "optimizer": "sgd",
        "momentum": 0.9,
        "imbalance": 20.0,
        "batch_size": 32,
        "train_rows": 10000,
        "valid_rows": 2000,
        "test_rows": 4000,
        "updates": 10000,
        "lr": 0.1,
    },
    "shuttle-density": {
        **_SCRATCH,
        "data": "shuttle-sensor",
        "objective": "density",
        "model": "mixture",
        "batch_size": 64,
        "train_rows": 4000,
        "updates": 2000,
        "lr": 3e-3,
    },
}

TASKS = {
    name: Task(name=name, suite=suite, **fields)
    for suite, tasks in (("development", _DEVELOPMENT), ("test", _TEST))
    for name, fields in tasks.items()
}
"""Every task of both suites by its name."""


def changed() -> list[str]:
    """Names of tasks that are not what they were when they were frozen; empty as it should be."""
    frozen: dict[str, str] = json.loads(FROZEN.read_text(encoding="utf-8"))
    now = {name: task.digest for name, task in TASKS.items()}
    return sorted(name for name in frozen.keys() | now.keys() if frozen.get(name) != now.get(name))
