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
    """One batch of runs to train, rebuilt exactly from its JSON."""

    task: TaskSpec
    optimizer: InnerOptimizer = field(default_factory=InnerOptimizer)
    total_steps: int = 200  # horizon, in updates, at least 1
    low_lr: float = 1e-4  # every run draws its initial learning rate from this
    high_lr: float = 1.0  # to this one, log-uniformly, from the task's seed
    # Smallest and largest factor of the weights' norm as observed, drawn likewise. Above 1 it is as if there were more
    # weights that nothing moves, such as the embeddings of words that do not occur.
    ballast: tuple[float, float] = (1.0, 1.0)
    hidden: bool = False  # whether the horizon is hidden from controllers

    def start(self) -> VectorRun:
        """The runs, before their first update."""
        generator = torch.Generator().manual_seed(self.task.seed + 1_000_003)
        base_lr = self._drawn(self.low_lr, self.high_lr, generator)
        run = VectorRun(make_task(self.task), self.optimizer, base_lr, self.total_steps)
        run.hidden = self.hidden
        if self.ballast != (1.0, 1.0):
            run.ballast = self._drawn(*self.ballast, generator)
        return run

    def _drawn(self, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
        draw = torch.rand(self.task.runs, generator=generator, dtype=torch.float64)
        return torch.exp(math.log(low) + draw * math.log(high / low))

    def to_json(self) -> str:
        """The problem as one line of JSON, keys sorted; `ballast` and `hidden` only where they are not the default."""
        values = asdict(self)
        # Problems that were frozen before there were these keep their digests.
        if self.ballast == (1.0, 1.0):
            del values["ballast"]
        if not self.hidden:
            del values["hidden"]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Problem:
        """The problem that `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        optimizer: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in raw["optimizer"].items()
        }
        if "ballast" in raw:
            raw["ballast"] = tuple(raw["ballast"])
        return cls(**{**raw, "task": TaskSpec(**raw["task"]), "optimizer": InnerOptimizer(**optimizer)})
