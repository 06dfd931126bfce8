"""The guard study's methods: the guard, nothing, and two schedules that look at losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ....guard import detector, guard, history, levels, lr_scaling, thresholds, trouble
from ....trainer import guard_callback
from ....trainer.guard_callback import GuardCallback
from ... import methods
from ...method import Config, Method

GUARD, UNGUARDED = "guard", "none"
_ALL = (
    Method(name=GUARD, text="linear schedule and `GuardCallback()`", guard={}),
    Method(name=UNGUARDED, text="linear schedule, nothing else"),
    methods.METHODS["greedy"],
    dataclasses.replace(
        methods.METHODS["reduce_on_plateau"],
        schedule_kwargs={},
        name="plateau",
        text="torch's `ReduceLROnPlateau` as `Trainer` makes it",
    ),
)

METHODS: Mapping[str, Method] = {
    # What `Trainer` takes by itself; the benchmark's runs have the AdamW that is the same on every machine.
    method.name: dataclasses.replace(method, arguments={"optim": "adamw_torch_fused"})
    for method in _ALL
}
"""Every method by its name."""

_MODULES = (guard, trouble, lr_scaling, history, guard_callback, detector, levels, thresholds)


def spec(method: Method) -> dict[str, Any]:
    """All that a run depends on, the guard's defaults included: rows of other settings do not count."""
    # How often schedules look is as it was before it stood in specs, and so are the digests of the rows.
    usual = {name: value for name, value in method.spec().items() if name != "evaluations"}
    return {**usual, **({} if method.guard is None else {"guard": guard_settings(method.guard)})}


def guard_settings(arguments: Config) -> dict[str, Any]:
    """Every number that the guard decides by: arguments, thresholds, and the constants of its modules."""
    constants = {
        name: value
        for module in _MODULES
        for name, value in vars(module).items()
        if name.isupper() and name != "STATE_FORMAT" and type(value) in (int, float)
    }
    settings: dict[str, Any] = GuardCallback(**arguments).state()["args"]
    return {**settings, "constants": constants}
