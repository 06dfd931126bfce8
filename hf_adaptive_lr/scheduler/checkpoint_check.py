"""Checks a saved run state when it is loaded: only the same controller class, config and weights may continue it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..controller import Controller

STATE_FORMAT = 1


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
    if "controller_type" not in state or "answer" not in state:
        raise ValueError(
            "this state was not saved by ControlledLR (another scheduler wrote it); resume with that scheduler, or "
            "start a new run from the saved weights"
        )
    if state["format"] > STATE_FORMAT:
        raise ValueError(
            f"this state has format {state['format']}, newer than this library reads ({STATE_FORMAT}); upgrade"
        )
    saved = {**state, "config": _completed(state, controller)}
    for key, value in mine.items():
        if saved[key] != value:
            raise ValueError(
                f"this state was saved with {key}={state[key]}, this scheduler has {value}; resume with the same"
            )
    if len(state["base_lrs"]) != n_groups:
        raise ValueError(f"this state has {len(state['base_lrs'])} parameter groups, the optimizer has {n_groups}")


def _completed(state: Mapping[str, Any], controller: Controller) -> str:
    """The saved config; fields that did not exist when it was saved get their default."""
    if state["controller_type"] != controller.controller_type:
        return str(state["config"])
    fields = [f for f in dataclasses.fields(controller) if f.default is not dataclasses.MISSING]
    defaults = {f.name: f.default for f in fields if f.name in controller.config()}
    return json.dumps({**defaults, **json.loads(state["config"])}, sort_keys=True)
