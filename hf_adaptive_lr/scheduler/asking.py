"""Asks a controller for a decision, and names the controller, the update and the line when its code fails."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..controller import Controller, ControllerError, State
from ..observation import OPTIONAL_FIELDS, Observation, Value


def ask(controller: Controller, obs: Observation, state: State, measured: Mapping[str, Value]) -> tuple[Tensor, State]:
    """The controller's answer and next state, given the optional fields `measured`; ControllerError where it fails."""
    name = controller.controller_type
    try:
        with torch.no_grad():
            answer, state = controller.decide(obs, state)
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ControllerError(
            f"'{name}' failed in decide(obs, state, params=None) at update {obs.step}: "
            f"{type(error).__name__}: {error}{_where(error)}; in obs are the fields that its needs name, "
            f"{sorted(measured) or 'none'}, all others are None"
        ) from error
    if not isinstance(answer, Tensor) or not isinstance(state, dict):
        raise ControllerError(
            f"'{name}' must answer with a tensor and the next state, a dict, got {type(answer).__name__} and "
            f"{type(state).__name__}; a constant is torch.full_like(obs.lr, 0.5)"
        )
    return answer, state


def numbers(controller: Controller, answer: Tensor, n_groups: int) -> list[float]:
    """The answer as one number, or one of each parameter group; ValueError if it has another shape."""
    values = [float(v) for v in answer.detach().reshape(-1).tolist()]
    if len(values) not in (1, n_groups):
        raise ValueError(
            f"'{controller.controller_type}' answered with shape {tuple(answer.shape)}; a run with "
            f"{n_groups} parameter groups takes () or ({n_groups},)"
        )
    return values


def unusable(fields: Mapping[str, Value]) -> str | None:
    """Name of the first field that is not finite, None where all are; NaN is fine where it means "nothing new"."""
    for name, value in fields.items():
        neutral = OPTIONAL_FIELDS[name].neutral
        finite = all(math.isfinite(v) for v in (value if isinstance(value, tuple) else (value,)))
        says_nothing = value != value and neutral is not None and math.isnan(neutral)
        if not finite and not says_nothing:
            return name
    return None


def _where(error: BaseException) -> str:
    """The line of the controller's code that failed; nothing if the call itself did."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "" if last.filename == __file__ else f" ({Path(last.filename).name}, line {last.lineno})"
