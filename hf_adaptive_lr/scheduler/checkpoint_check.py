"""Checks a saved run state when it is loaded: only the same controller class, config and weights may continue it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..controller import Controller

STATE_FORMAT = 1
_WAY_OUT = "it is damaged, resume from another checkpoint"


def identity(controller: Controller) -> dict[str, Any]:
    """Name, config and a digest of the weights, as they stand in a saved state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(controller.params.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return {
        "controller_type": controller.controller_type,
        "config": json.dumps(controller.config(), sort_keys=True),
        "params_sha256": digest.hexdigest() if controller.params else "",
    }


def check_saved(state: Mapping[str, Any], controller: Controller, mine: Mapping[str, Any], n_groups: int) -> None:
    """Fails fast (ValueError) on a `state_dict` that a controller with the identity `mine` cannot continue."""
    if "controller_type" not in state or "answer" not in state or state.get("lr_lambdas"):
        raise ValueError(
            "this state was not saved by ControlledLR (another scheduler wrote it); resume with that scheduler, or "
            "start a new run from the saved weights"
        )
    if state["format"] > STATE_FORMAT:
        raise ValueError(
            f"this state has format {state['format']}, newer than this library reads ({STATE_FORMAT}); upgrade"
        )
    _check_numbers(state)
    _check_inside(state["controller_state"], controller, n_groups)
    saved = {**state, "config": _completed(state, controller)}
    for key, value in mine.items():
        if saved[key] != value:
            raise ValueError(
                f"this state was saved with {key}={state[key]}, this scheduler has {value}; resume with the same"
            )
    if len(state["base_lrs"]) != n_groups:
        raise ValueError(f"this state has {len(state['base_lrs'])} parameter groups, the optimizer has {n_groups}")


def _check_numbers(state: Mapping[str, Any]) -> None:
    """Fails fast on counts and numbers that no run can have had."""
    for name in ("updates", "held"):
        value = state[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(
                f"this state says {name}={value!r}, which must be a whole number of at least 0; {_WAY_OUT}"
            )
    for name in ("scale", "applied_lr", "base_lrs", "answer"):
        found = state.get(name, 0.0)
        values = found if isinstance(found, list | tuple) else [found]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise ValueError(f"this state says {name}={found!r}, which must be finite; {_WAY_OUT}")


def _check_inside(inside: Any, controller: Controller, n_groups: int) -> None:
    """Fails fast on what no `decide` can have left; NaN may stand for "nothing yet" where `init` has it, too."""
    if not isinstance(inside, Mapping):
        raise ValueError(
            f"this state's controller_state is a {type(inside).__name__}, which must be a dict; {_WAY_OUT}"
        )
    found = [name for name, value in inside.items() if _has_nan(value)]
    begun = controller.init(n_groups=n_groups) if found else {}
    for name in found:
        if not _has_nan(begun.get(name)):
            raise ValueError(f"this state's controller_state has NaN in '{name}'; {_WAY_OUT}")


def _has_nan(value: Any) -> bool:
    return isinstance(value, Tensor | float) and bool(torch.as_tensor(value).isnan().any())


def _completed(state: Mapping[str, Any], controller: Controller) -> str:
    """The saved config; fields that did not exist when it was saved get their default."""
    if state["controller_type"] != controller.controller_type:
        return str(state["config"])
    fields = [f for f in dataclasses.fields(controller) if f.default is not dataclasses.MISSING]
    defaults = {f.name: f.default for f in fields if f.name in controller.config()}
    return json.dumps({**defaults, **json.loads(state["config"])}, sort_keys=True)
