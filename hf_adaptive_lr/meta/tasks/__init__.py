"""Families of training problems, each a batch of independent runs that advance together."""

from __future__ import annotations

from .base import SPLITS, Split, Task, TaskSpec
from .conv import ConvTask
from .finetune import FinetuneTask
from .lenet import LeNetTask
from .mlp import MLPTask
from .quadratic import Quadratic
from .transformer import TransformerTask
from .trouble import TroubleTask

FAMILIES: dict[str, type[Task]] = {
    "quadratic": Quadratic,
    "mlp": MLPTask,
    "conv": ConvTask,
    "transformer": TransformerTask,
    "finetune": FinetuneTask,
    "trouble": TroubleTask,
    "lenet": LeNetTask,
}
"""Every family by the name it has in a spec."""


def make_task(spec: TaskSpec) -> Task:
    """Build the task of a spec; ValueError for a family that is not in [`FAMILIES`]."""
    if spec.family not in FAMILIES:
        raise ValueError(f"no task family '{spec.family}'; known: {', '.join(FAMILIES)}")
    return FAMILIES[spec.family](spec)


__all__ = ["FAMILIES", "SPLITS", "Split", "Task", "TaskSpec", "make_task"]
