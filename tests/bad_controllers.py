"""Controllers that answer anything, and a training run of one weight, for tests of the safety envelope."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hf_adaptive_lr import ControlledLR, Controller, Observation

ignored = pytest.mark.filterwarnings("ignore:learning rate kept", "ignore:the controller is asked no more")
"""For tests in which the learning rate is kept and the run falls back, which warns."""


@dataclass(frozen=True, kw_only=True)
class Cycle(Controller):
    """Answers what it is told to, one after the other, and counts how often it was asked."""

    controller_type = "cycle"
    say: tuple[Any, ...] = (1.0,)

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        answer = self.say[obs.step % len(self.say)]
        return torch.tensor(answer, dtype=torch.float64), {"asked": state.get("asked", 0) + 1}


@dataclass(frozen=True, kw_only=True)
class CycleLR(Cycle):
    """The same as learning rates."""

    controller_type = "cycle_lr"
    answers = "lr"
    lr_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class CycleLoss(Cycle):
    """Sees the loss, and answers as it would without."""

    controller_type = "cycle_loss"
    needs = frozenset({"loss"})


@dataclass(frozen=True, kw_only=True)
class Fuzzed(Cycle):
    """Sees loss and gradient norm."""

    controller_type = "fuzzed"
    needs = frozenset({"loss", "grad_norm"})


@dataclass(frozen=True, kw_only=True)
class FuzzedLR(Fuzzed):
    """The same as learning rates."""

    controller_type = "fuzzed_lr"
    answers = "lr"
    lr_range: tuple[float, float] | None = None


def one_weight(controller: Controller | str, lr: float = 1.0, **options: Any) -> tuple[Optimizer, ControlledLR]:
    weight = nn.Parameter(torch.zeros(()))
    optimizer = SGD([weight], lr=lr)
    return optimizer, ControlledLR(optimizer, controller, **options)


def apply(optimizer: Optimizer, steps: int = 1) -> list[float]:
    """The learning rates of some updates, as they stand in the optimizer."""
    rates = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


def through_a_file(state: dict[str, Any], as_json: bool) -> dict[str, Any]:
    if as_json:
        return json.loads(json.dumps(state))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
