"""Controllers that exist to be measured: they read sensors, or run a small net, and leave the learning rate alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from ..controller import Controller, Device, Params, Shape, State
from ..observation import Observation

CHEAP = ("loss", "grad_norm", "alignment", "update_ratio")
"""The fields that need neither another forward pass nor held-out data."""

_FEATURES = 6


@dataclass(frozen=True, kw_only=True)
class Reader(Controller):
    """Has fields of [`Observation`] measured and answers with the learning rate in force."""

    controller_type = "bench_reader"

    fields: tuple[str, ...] = CHEAP

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset(self.fields))
        super().__post_init__()

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """The factor in force, of `batch_shape`."""
        for name in self.fields:
            obs.require(name)
        return obs.lr / obs.base_lr, state


class _Net(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2 * _FEATURES, hidden_size)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, features: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.cell(features, hidden)
        return self.head(hidden).squeeze(-1), hidden


@functools.cache
def _stateless(hidden_size: int) -> _Net:
    # Without weights of its own, so that making it draws no random number of the run.
    with torch.device("meta"):
        return _Net(hidden_size)


@dataclass(frozen=True, kw_only=True)
class Recurrent(Controller):
    """A recurrent net on all cheap sensors and their changes since the last decision."""

    controller_type = "bench_recurrent"
    needs = frozenset(CHEAP)
    needs_horizon = True

    hidden_size: int = 32

    @classmethod
    def seeded(cls, seed: int, hidden_size: int = 32) -> Self:
        """One with random weights."""
        generator = torch.Generator().manual_seed(seed)
        shapes = {name: t.shape for name, t in _stateless(hidden_size).state_dict().items()}
        params = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return cls(hidden_size=hidden_size, params=params)

    def param_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the net's tensors."""
        return {name: tuple(t.shape) for name, t in _stateless(self.hidden_size).state_dict().items()}

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """Hidden vector and last features, both zero."""
        return {
            "hidden": torch.zeros(*batch_shape, self.hidden_size, device=device),
            "previous": torch.zeros(*batch_shape, _FEATURES, device=device),
        }

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """The factor in force, changed by at most a hundredth; of `batch_shape`."""
        logs = [obs.require(name).clamp_min(1e-12).log() for name in ("loss", "grad_norm", "update_ratio")]
        rest = [obs.require("alignment"), obs.progress, obs.lr / obs.base_lr]
        now = torch.stack([*logs, *rest], dim=-1).float()
        features = torch.cat((now, now - state["previous"]), dim=-1)
        weights = dict(params if params is not None else self.params)
        answer, hidden = torch.func.functional_call(_stateless(self.hidden_size), weights, (features, state["hidden"]))
        factor = obs.lr / obs.base_lr * (1 + 0.01 * torch.tanh(answer.double()))
        return factor, {"hidden": hidden, "previous": now}
