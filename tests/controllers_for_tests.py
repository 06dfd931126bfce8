"""Controllers that need every field, for tests of the integrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_adaptive_lr import Controller, Observation, Outcome
from hf_adaptive_lr.controllers import CONTROLLERS
from hf_adaptive_lr.observation import PER_GROUP


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


@dataclass(frozen=True, kw_only=True)
class Classified(Controller):
    """Mixes what can be seen of a classifier and of its parameter groups into one factor per group."""

    controller_type = "classified"
    needs = frozenset(
        {
            "classes",
            "prediction_variance",
            "prediction_change",
            "penultimate_mean",
            "penultimate_variance",
            "head_mean",
            "head_variance",
            "slope",
            "group_alignment",
            "group_slope",
        }
    )

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        mixed = sum(torch.tanh(10 * obs.require(name)).unsqueeze(-1) for name in sorted(self.needs - PER_GROUP))
        mixed = mixed + sum(torch.tanh(obs.require(name)) for name in sorted(PER_GROUP))
        return 0.9 * obs.lrs / obs.base_lrs + 0.1 * (1 + 0.1 * mixed), state


@dataclass(frozen=True, kw_only=True)
class Extra(Controller):
    """Learns from batches beside training's own, every second update."""

    controller_type = "extra"
    needs = frozenset({"loss_other", "meta_inner"})

    def init(self, batch_shape=(), *, n_groups=1, seed=0, device=None) -> dict:
        return {"factor": torch.ones(batch_shape, dtype=torch.float64), "seen": torch.zeros(0, 3, dtype=torch.float64)}

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        return state["factor"], state

    def wants_outcome(self, update: int, total_steps: int | None) -> bool:
        return update % 2 == 1

    def learn(self, outcome: Outcome, state: dict) -> dict:
        row = torch.stack((torch.tensor(float(outcome.step)).double(), outcome.loss_other, outcome.meta_inner))
        mixed = torch.tanh(outcome.loss_other) + torch.tanh(outcome.meta_inner)
        return {
            "factor": 0.5 * state["factor"] + 0.4 * (1 + 0.2 * mixed),
            "seen": torch.cat((state["seen"], row[None])),
        }
