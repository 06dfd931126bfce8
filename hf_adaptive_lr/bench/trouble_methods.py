"""The guard study's methods, as values: the guard, nothing, and two schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..guard import detector, guard, history, levels, lr_scaling, thresholds, trouble
from ..trainer import guard_callback
from ..trainer.guard_callback import GuardCallback
from .trouble_tasks import EVALUATIONS

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What keeps a run on its way: a guard, a schedule, or nothing."""

    name: str
    text: str  # for the page
    scheduler: str = "linear"  # `lr_scheduler_type` of `TrainingArguments`, with its defaults
    evaluates: bool = False  # the scheduler moves at evaluations, of which there are then `EVALUATIONS` in a run
    guard: Config | None = None  # arguments of `GuardCallback` that differ from its defaults

    def spec(self) -> dict[str, Any]:
        """All that a run depends on, as JSON values; with the guard's settings, defaults included."""
        return {
            "scheduler": self.scheduler,
            "evaluations": EVALUATIONS if self.evaluates else 0,
            "guard": None if self.guard is None else guard_settings(self.guard),
        }


_ALL = (
    Method(name="guard", text="linear schedule and `GuardCallback()`", guard={}),
    Method(name="none", text="linear schedule, nothing else"),
    Method(name="greedy", text="transformers' `GreedyLR` as shipped", scheduler="greedy", evaluates=True),
    Method(
        name="plateau",
        text="torch's `ReduceLROnPlateau` as `Trainer` makes it",
        scheduler="reduce_lr_on_plateau",
        evaluates=True,
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
"""Every method by its name."""


_MODULES = (guard, trouble, lr_scaling, history, guard_callback, detector, levels, thresholds)
_FORMER_NAMES = {"_CUT_HOLD": "_PAROLE", "_STRICT_WINDOW": "_WARY"}
"""Constants by the names that the digests of rows have for them."""


def guard_settings(arguments: Config) -> dict[str, Any]:
    """Every number that the guard decides by: arguments, thresholds, and the constants of its modules."""
    constants = {
        _FORMER_NAMES.get(name, f"_{name.lstrip('_')}"): value
        for module in _MODULES
        for name, value in vars(module).items()
        if name.isupper() and name != "STATE_FORMAT" and type(value) in (int, float)
    }
    settings: dict[str, Any] = GuardCallback(**arguments).state()["args"]
    return {**settings, "constants": constants}
