"""A task is a batch of independent training problems of one shape; a spec is the JSON that rebuilds it exactly."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...sensors.gradients import inner

Split = Literal["train", "inner_valid", "outer_valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "inner_valid", "outer_valid", "test")
"""Data of a task: `train` moves the weights, `inner_valid` may be observed by a controller, `outer_valid`
rewards it, `test` is for the benchmark alone."""


@dataclass(frozen=True)
class TaskSpec:
    """One batch of `runs` independent problems of a family, as a value.

    `seed` is of weights, data and mini-batches; `config` holds the family's own settings, plain JSON values.
    """

    family: str
    runs: int
    seed: int
    config: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The spec as one line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TaskSpec:
        """The spec that `to_json` wrote; TypeError for a key that a spec does not have."""
        return cls(**json.loads(text))


class Task(ABC):
    """A batch of `runs` problems; the same spec builds the same task, bit for bit.

    Weights are one tensor of shape (runs, size), so that an update is one operation.
    """

    def __init__(self, spec: TaskSpec) -> None:
        if spec.runs < 1:
            raise ValueError(f"runs={spec.runs} must be at least 1")
        self.spec, self.runs = spec, spec.runs
        self.generator = torch.Generator().manual_seed(spec.seed)

    @abstractmethod
    def init(self) -> Tensor:
        """Weights before the first update, of shape (runs, size)."""

    @abstractmethod
    def batch(self, split: Split) -> Any:
        """The next mini-batch of a split, drawn from the task's own generator; only `loss` looks inside."""

    @abstractmethod
    def loss(self, weights: Tensor, batch: Any) -> Tensor:
        """Mean loss of every run on its mini-batch, of shape (runs,); differentiable in `weights`."""

    @abstractmethod
    def evaluate(self, weights: Tensor, split: Split) -> Tensor:
        """Loss of every run on all of a split, of shape (runs,), without gradients."""

    def class_count(self) -> int:
        """Number of classes; ValueError for a task without."""
        raise self._lacks("classes")

    def probabilities(self, weights: Tensor, batch: Any) -> Tensor:
        """Class probabilities of every run, (runs, batch, classes), without gradients; ValueError without classes."""
        raise self._lacks("class probabilities")

    def sizes(self, weights: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms of a direction and the weights, (runs, size) to (runs,) in float64, for the `update_ratio`."""
        return inner([direction], [direction], 1), inner([weights], [weights], 1)

    def last_matrices(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The last two trained weight matrices of every run, the head's second; where there is one, it and its bias.

        Weights of shape (runs, size) give two tensors of shape (runs, ...), without gradients; ValueError without
        matrices.
        """
        raise self._lacks("weight matrices")

    def _lacks(self, name: str) -> ValueError:
        return ValueError(
            f"{type(self).__name__} tasks (family '{self.spec.family}') have no {name} to observe; train this "
            "controller on a suite of classification tasks, such as mlp"
        )
