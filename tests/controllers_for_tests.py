"""Controllers that need every field, for tests of the wiring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_adaptive_lr import Controller, Observation
from hf_adaptive_lr.controllers import CONTROLLERS


def by_default(name: str) -> Controller:
    """The controller of a name with its default config; a learned one with random weights."""
    cls = CONTROLLERS[name]
    return cls(params=cls.random_params()) if cls.learned else cls()


@dataclass(frozen=True, kw_only=True)
class Everything(Controller):
    """Mixes all fields of one run into the factor, so that any difference in any field changes the learning rate."""

    controller_type = "everything"
    needs = frozenset({"loss", "grad_norm", "alignment", "update_ratio", "gain_ratio"})

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        mixed = sum(torch.tanh(obs.require(name)) for name in sorted(self.needs))
        return 0.9 * obs.lr / obs.base_lr + 0.1 * (1 + 0.2 * mixed), state


@dataclass(frozen=True, kw_only=True)
class LossOnly(Controller):
    """Factor from the loss alone."""

    controller_type = "loss_only"
    needs = frozenset({"loss"})

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        return 0.5 + obs.require("loss"), state


@dataclass(frozen=True, kw_only=True)
class NormOnly(Controller):
    """Factor from the gradient norm alone."""

    controller_type = "norm_only"
    needs = frozenset({"grad_norm"})

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        return 0.5 + torch.tanh(obs.require("grad_norm")), state


@dataclass(frozen=True, kw_only=True)
class Watcher(Controller):
    """Answers 1 whatever it sees; `fields` says what it wants to see."""

    controller_type = "watcher"
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset(self.fields))
        super().__post_init__()

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        return torch.ones_like(obs.lr), state


@dataclass(frozen=True, kw_only=True)
class Recurrent(Controller):
    """A counter and an average in the state, answering with a learning rate."""

    controller_type = "recurrent"
    answers = "lr"
    needs = frozenset({"loss"})

    def init(self, batch_shape=(), *, n_groups=1, seed=0, device=None) -> dict:
        return {"average": torch.zeros(batch_shape, dtype=torch.float64), "count": 0}

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        average = 0.8 * state["average"] + 0.2 * obs.require("loss")
        return obs.base_lr * (0.5 + average) / (1 + 0.1 * state["count"]), {
            "average": average,
            "count": state["count"] + 1,
        }
