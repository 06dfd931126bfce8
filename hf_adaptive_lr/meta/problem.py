"""A problem is a value: a task, the optimizer that trains it, a horizon and a range of initial learning rates."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .inner import InnerOptimizer
from .tasks import make_task
from .tasks.base import TaskSpec
from .vector_run import VectorRun


@dataclass(frozen=True)
class Problem:
    """What one batch of runs trains, rebuilt exactly from its JSON.

    Args:
        task: the problems and their seed.
        optimizer: inner optimizer.
        total_steps: horizon, in updates, at least 1.
        low_lr: smallest initial learning rate.
        high_lr: largest; each run draws its own, log-uniformly, from the task's seed.
    """

    task: TaskSpec
    optimizer: InnerOptimizer = field(default_factory=InnerOptimizer)
    total_steps: int = 200
    low_lr: float = 1e-4
    high_lr: float = 1.0

    def start(self) -> VectorRun:
        """The runs, before their first update."""
        generator = torch.Generator().manual_seed(self.task.seed + 1_000_003)
        draw = torch.rand(self.task.runs, generator=generator, dtype=torch.float64)
        base_lr = torch.exp(math.log(self.low_lr) + draw * math.log(self.high_lr / self.low_lr))
        return VectorRun(make_task(self.task), self.optimizer, base_lr, self.total_steps)

    def to_json(self) -> str:
        """The problem as one line of JSON, keys sorted."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Problem:
        """The problem that `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        optimizer: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in raw["optimizer"].items()
        }
        return cls(**{**raw, "task": TaskSpec(**raw["task"]), "optimizer": InnerOptimizer(**optimizer)})
