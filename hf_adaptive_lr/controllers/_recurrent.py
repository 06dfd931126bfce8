"""Common base of the controllers with a recurrent net: one GRU cell and a linear head that answers with a move.

Trainers take a decision apart into `encode`, `policy` and `act`, to put noise on the move. Weights may have a leading
run dimension, so that evolution can give each run its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, Params, State
from ..observation import Observation
from ._features import NEEDS


@dataclass(frozen=True, kw_only=True)
class RecurrentController(Controller):
    """A controller whose net maps features and a hidden vector to a move of the learning rate.

    A subclass has `n_features`, `max_move`, `lr_range`, `encode`, `act`, and an `init` with the encoder's history and
    `hidden`, of batch_shape + (hidden_size,), where `hidden_size`, 1 ... 1024, is the width of the GRU.
    """

    answers = "lr"
    needs = NEEDS
    learned = True
    decisions = 20
    n_features: ClassVar[int]

    hidden_size: int = 32

    def __post_init__(self) -> None:
        check_range(self, "hidden_size", self.hidden_size, 1, 1024, hint="32 is what was trained")
        name = type(self).__name__
        if not isinstance(self.lr_range, tuple) or len(self.lr_range) != 2:
            raise TypeError(f"{name}: lr_range must be two numbers, lowest and highest, got {self.lr_range!r}")
        low, high = self.lr_range
        check_range(self, "the low end of lr_range", low, 1e-12, 1e3, hint="give learning rates met in training")
        check_range(self, "the high end of lr_range", high, low, 1e3, hint="give the lower end first")
        super().__post_init__()

    def param_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Gates in torch's order (reset, update, new), then the head."""
        return _shapes(self.n_features, self.hidden_size)

    @classmethod
    def random_params(cls, *, hidden_size: int = 32, seed: int = 0) -> dict[str, Tensor]:
        """Untrained weights: GRU uniform in +-1 / sqrt(width), head near zero, so that it moves little at first."""
        generator, bound = torch.Generator().manual_seed(seed), hidden_size**-0.5
        params = {}
        for name, shape in _shapes(cls.n_features, hidden_size).items():
            if name == "head_bias":
                params[name] = torch.zeros(shape)
                continue
            params[name] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
            if name == "head_weight":
                params[name] *= 0.1
        return params

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Learning rate of `batch_shape`."""
        features, state = self.encode(obs, state)
        raw, hidden = self.policy(features, state["hidden"], self.params if params is None else params)
        return self.act(raw, obs, {**state, "hidden": hidden})

    def encode(self, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Features of batch_shape + (n_features,), and the state with the new history."""
        raise NotImplementedError

    def policy(self, features: Tensor, hidden: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One step of the net: the move before squashing, of batch_shape, and the next hidden vector.

        Features are batch_shape + (n_features,), `hidden` is batch_shape + (hidden_size,); `params` as in
        `param_shapes`, perhaps with a leading run dimension.
        """
        gates_x = affine(features, params["weight_ih"], params["bias_ih"])
        gates_h = affine(hidden, params["weight_hh"], params["bias_hh"])
        reset_x, update_x, new_x = gates_x.chunk(3, -1)
        reset_h, update_h, new_h = gates_h.chunk(3, -1)
        reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + reset * new_h)
        hidden = new + update * (hidden - new)
        return affine(hidden, params["head_weight"], params["head_bias"]).squeeze(-1), hidden

    def act(self, raw: Tensor, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Learning rate after the move `max_move * tanh(raw)`, and the state that remembers the move."""
        raise NotImplementedError

    def scattered(self, state: State, generator: torch.Generator, spread: float) -> State:
        """For training: the `init` state with varied starts, of controllers that choose their first update themselves.

        `spread` is half the width of the even distribution of the starts, in logs.
        """
        return state


def _shapes(inputs: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        "weight_ih": (3 * width, inputs),
        "weight_hh": (3 * width, width),
        "bias_ih": (3 * width,),
        "bias_hh": (3 * width,),
        "head_weight": (1, width),
        "head_bias": (1,),
    }


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Affine map of x, (..., inputs); weights may have a leading run dimension, one set per run."""
    if weight.ndim == 2:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.einsum("...i,...oi->...o", x, weight) + bias
