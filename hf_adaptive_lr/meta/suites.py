"""Suites: named distributions of problems, split into those that train a controller and those that judge it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from .inner import InnerOptimizer
from .problem import Problem
from .tasks import FAMILIES
from .tasks.base import TaskSpec
from .tasks.data import has_digits
from .tasks.supervised import Supervised

TaskSplit = Literal["train", "valid", "test"]
"""Which problems: to train on, to choose between controllers by, or to report on (for the benchmark alone)."""

Draw = Callable[[torch.Generator, int, int, TaskSplit], Problem]
"""(generator, seed of the task, runs, split) to a problem."""

T = TypeVar("T")

_TASK_SPLITS: tuple[TaskSplit, ...] = ("train", "valid", "test")
_DIGEST_DRAWS = 8


@dataclass(frozen=True)
class Suite:
    """A named mixture of families, each a function that draws a problem."""

    name: str  # as on the command line
    draws: tuple[Draw, ...]

    def problems(self, split: TaskSplit, index: int, runs: int, seed: int = 0) -> list[Problem]:
        """One problem of every family, `runs` runs each, as values that rebuild the same problems anywhere.

        Problems of two splits never share a seed, nor pretrained bodies. `index` counts draws (an iteration of
        training, an item of a benchmark); `seed` is of the whole sequence.
        """
        out = []
        for number, draw in enumerate(self.draws):
            key = f"{self.name}/{split}/{seed}/{index}/{number}".encode()
            task_seed = int.from_bytes(hashlib.sha256(key).digest()[:6], "big")
            out.append(draw(torch.Generator().manual_seed(task_seed), task_seed, runs, split))
        return out

    def without_classes(self) -> list[str]:
        """Families whose tasks are not classification, so that predictions cannot be observed; sorted."""
        families = {problem.task.family for problem in self.problems("train", 0, runs=1)}
        return sorted(family for family in families if not issubclass(FAMILIES[family], Supervised))

    def digest(self) -> str:
        """SHA-256 over the first problems of each split: two suites of equal digest draw the same problems.

        The digits are drawn only where scikit-learn is installed, so suites with real data differ without it.
        """
        lines = [
            problem.to_json()
            for split in _TASK_SPLITS
            for index in range(_DIGEST_DRAWS)
            for problem in self.problems(split, index, runs=1)
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _choice(generator: torch.Generator, options: Sequence[T]) -> T:
    return options[int(torch.randint(len(options), (), generator=generator))]


def _horizon(generator: torch.Generator) -> int:
    return round(math.exp(math.log(30) + float(torch.rand((), generator=generator)) * math.log(2000 / 30)))


_COMMON: dict[str, Sequence[Any]] = {"batch_size": (8, 16, 32, 64), "rescale": (1.0, 4.0), "loss_scale": (1.0, 10.0)}
"""Batch size and augmentations, which every family has."""

_BODY_SEEDS = range(4)  # sets of pretrained bodies of each shape and split; pretraining costs seconds: they are shared

_SETTINGS: dict[str, dict[str, Sequence[Any]]] = {
    "mlp": {
        **_COMMON,
        "data": ("teacher", "correlated", "digits"),
        "dims": (8, 16, 32),
        "classes": (2, 4, 8),
        "width": (16, 32, 64),
        "depth": (1, 2, 3, 4, 5),
        "activation": ("relu", "tanh", "gelu"),
        "norm": (False, True),
        "n_train": (256, 512, 1024),
    },
    "conv": {
        **_COMMON,
        "data": ("gratings", "digits"),
        "classes": (2, 4, 8),
        "channels": (4, 8),
        "depth": (1, 2, 3),
        "activation": ("relu", "gelu"),
        "norm": (False, True),
        "n_train": (256, 512, 1024),
    },
    "transformer": {
        **_COMMON,
        "data": ("majority", "position", "motif", "gratings", "digits"),
        "classes": (2, 4, 6),
        "length": (6, 8, 12),
        "width": (16, 32),
        "depth": (1, 2, 3),
        "norm": ("post", "pre"),
        "n_train": (256, 512, 1024),
    },
    # The shape of a body takes few values: every other one is another pretraining.
    "finetune": {
        **_COMMON,
        "body": ("transformer", "transformer", "mlp"),
        "norm": ("post", "pre"),
        "depth": (2, 3),
        "body_seed": _BODY_SEEDS,
        "rank": (0, 0, 2),
        "rule": ("majority", "position", "motif"),
        "classes": (2, 3, 5),
        "n_train": (64, 128, 256),
        "shift": (0.0, 0.25),
    },
}
"""Values that each setting of a family is drawn from, in the order of the draws."""


def _config(family: str, generator: torch.Generator, split: TaskSplit, steps: int) -> dict[str, Any]:
    if family == "trouble":
        trouble = {"batch_size": (4, 8, 16), "label_noise": (0.0, 0.2, 0.4), "imbalance": (1.0, 10.0)}
        trouble |= {"spikes": (0.0, 0.02), "change_after": (0, 0, steps)}
        return _config("mlp", generator, split, steps) | _each(generator, trouble)
    config = _each(generator, _SETTINGS[family])
    if config.get("data") == "digits" and not has_digits():  # the random numbers drawn are the same with and without
        config["data"] = _SETTINGS[family]["data"][0]
    if family == "finetune":
        config["body_seed"] += _first_body(split)
    return config


def _each(generator: torch.Generator, settings: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {name: _choice(generator, options) for name, options in settings.items()}


def _first_body(split: TaskSplit) -> int:
    return 1000 * _TASK_SPLITS.index(split)


def _adamw(task: TaskSpec, steps: int) -> Problem:
    optimizer = InnerOptimizer("adamw", weight_decay=0.01, max_grad_norm=1.0)
    return Problem(task, optimizer, total_steps=steps, low_lr=1e-7, high_lr=1.0)


def _sgd(task: TaskSpec, steps: int) -> Problem:
    return Problem(task, InnerOptimizer("sgd", momentum=0.9), total_steps=steps, low_lr=1e-6, high_lr=10.0)


def _quadratic(generator: torch.Generator, seed: int, runs: int, split: TaskSplit) -> Problem:
    task = TaskSpec("quadratic", runs, seed)
    return Problem(task, InnerOptimizer("sgd"), total_steps=200, low_lr=1e-4, high_lr=1.0)


def _any(family: str, generator: torch.Generator, seed: int, runs: int, split: TaskSplit) -> Problem:
    """A problem of a family as wide as it gets: any shape, horizon and optimizer."""
    optimizer, steps = _choice(generator, (_adamw, _sgd)), _horizon(generator)
    return optimizer(TaskSpec(family, runs, seed, _config(family, generator, split, steps)), steps)


def _only_mlp(generator: torch.Generator, seed: int, runs: int, split: TaskSplit) -> Problem:
    return _adamw(TaskSpec("mlp", runs, seed, _config("mlp", generator, split, 200)), 200)


def _coffee(
    family: str, config: dict[str, Any], generator: torch.Generator, seed: int, runs: int, split: TaskSplit
) -> Problem:
    """A small problem of fixed length; draws differ in data and body, and in the optimizer of perceptrons."""
    optimizer = _adamw
    drawn: dict[str, Any] = {"batch_size": 8, "eval_size": 128, "loss_scale": 10.0}
    if family == "finetune":
        drawn |= {
            "body_seed": _first_body(split) + _choice(generator, _BODY_SEEDS),
            "bodies": 4,
            "pretrain_steps": 200,
        }
    if "mlp" in (family, config.get("body")):
        optimizer = _choice(generator, (_adamw, _sgd))
        drawn["batch_size"] = 16
        drawn["rescale"] = _choice(generator, (1.0, 4.0))
    else:
        drawn["rule" if family == "finetune" else "data"] = _choice(generator, ("majority", "position", "motif"))
    return optimizer(TaskSpec(family, runs, seed, drawn | config), 100)


def _diverse(
    family: str, config: dict[str, Any], generator: torch.Generator, seed: int, runs: int, split: TaskSplit
) -> Problem:
    """A problem of any shape, 40 to 240 updates long, whose best relative update is unknown beforehand."""
    optimizer = _choice(generator, (_adamw, _adamw, _sgd))
    steps = round(40 * 6 ** float(torch.rand((), generator=generator)))
    drawn = _config(family, generator, split, steps)
    if family == "finetune":
        drawn |= {"bodies": 4, "pretrain_steps": 200}
    drawn |= {"batch_size": _choice(generator, (8, 16, 32)), "eval_size": 128}
    problem = optimizer(TaskSpec(family, runs, seed, drawn | config), steps)
    hidden = _choice(generator, (True, *[False] * 7))
    return replace(problem, ballast=(0.5, 5.0), hidden=hidden)


def _photos(data: str, n_train: int, generator: torch.Generator, seed: int, runs: int, split: TaskSplit) -> Problem:
    """The trainee of Xu et al. 2019, its run shortened tenfold; draws differ in rows, weights and mini-batches."""
    task = TaskSpec("lenet", runs, seed, {"data": data, "n_train": n_train, "batch_size": 100})
    return Problem(task, InnerOptimizer("adamw"), total_steps=100, low_lr=1e-3, high_lr=1e-3)


def _perceptrons(generator: torch.Generator, seed: int, runs: int, split: TaskSplit) -> Problem:
    """Their perceptron, so small that hundreds fit on a core, from a learning rate that is too small."""
    config = {"side": 7, "channels": 0, "width": 32, "eval_size": 64}
    return Problem(TaskSpec("lenet", runs, seed, config), InnerOptimizer("adamw"), 100, low_lr=3e-3, high_lr=3e-3)


_COFFEE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mlp", {"depth": 2}),
    ("mlp", {"depth": 4}),
    ("transformer", {"norm": "post", "depth": 2}),
    ("finetune", {"norm": "post", "depth": 2}),
    ("finetune", {"norm": "post", "depth": 3}),
    ("finetune", {"body": "mlp"}),
)

_DIVERSE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mlp", {}),
    ("conv", {}),
    ("transformer", {"width": 16}),
    ("finetune", {"body": "transformer", "norm": "post", "rank": 0}),
    ("finetune", {"body": "transformer", "norm": "pre", "rank": 0}),
    ("finetune", {"body": "transformer", "rank": 2}),
    ("finetune", {"body": "mlp"}),
    ("trouble", {}),
)

_FULL = ("mlp", "conv", "transformer", "finetune", "trouble")

SUITES: dict[str, Suite] = {
    "quadratic": Suite("quadratic", (_quadratic,)),
    "mlp": Suite("mlp", (_only_mlp,)),
    "coffee": Suite("coffee", tuple(partial(_coffee, family, config) for family, config in _COFFEE)),
    "strangers": Suite("strangers", tuple(partial(_diverse, family, config) for family, config in _DIVERSE)),
    "newcomers": Suite("newcomers", tuple(partial(_diverse, *entry) for entry in _DIVERSE if entry[0] != "finetune")),
    "full": Suite("full", (_quadratic, *(partial(_any, family) for family in _FULL))),
    "fashion": Suite("fashion", (partial(_photos, "fashion-mnist", 4000),)),
    "mnist": Suite("mnist", (partial(_photos, "mnist-5000", 2000),)),
    "perceptrons": Suite("perceptrons", (_perceptrons,)),
}
"""Every suite by name.

- `quadratic` has the known answer; `mlp` only perceptrons under AdamW for 200 updates.
- `coffee`: six kinds of small nets for 100 updates, to train a controller in the time of a coffee.
- `strangers`: eight families for 40 to 240 updates, with weights that look up to five times as large as they are and
  now and then a hidden length; `universal` is trained on it. `newcomers`: the same without fine-tuning.
- `full`: all generated families, horizons of 30 to 2,000 updates and both optimizers.
- `fashion`: one real convolutional net under Adam for 100 updates from a learning rate of 0.001; `mnist` the same on
  other images. `perceptrons`: nets of one hidden layer on images of 7x7 pixels, from 0.003, many runs at once.
"""
