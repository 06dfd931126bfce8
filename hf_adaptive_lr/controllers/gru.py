"""A small recurrent network that moves the learning rate in force (no paper; this library's own, before `universal`).

Decides twenty times a run, as it is trained. Sees twelve log-ratios, cosines and shares (`features.py`), and answers
with the next learning rate:

    h_k = GRU(x_k, h_{k-1})         lr_k = lr_{k-1} * exp(max_move * tanh(w . h_k + b))

The move is relative to the learning rate in force, so bounds leave no hidden memory, and the base learning rate is
only where it starts. Its weights come from meta-training (`hf_adaptive_lr.meta`); without them it is a random
function. It is what the meta-trainers are tested with; for real runs see `universal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, State
from ..observation import Observation
from . import _gru
from ._features import FEATURES, NEEDS, encode, init_history


@dataclass(frozen=True, kw_only=True)
class GRUController(Controller):
    """A small recurrent net that moves the learning rate in force, from five scale-free sensors.

    Args:
        hidden_size: width of the GRU, 1 ... 1024.
        max_move: largest change of the log learning rate in one decision, in (0, 5].
        lr_range: smallest and largest learning rate met in training, ascending within [1e-12, 1e3]; inside an
            [`Envelope`] no answer leaves it.

    Raises:
        ValueError: a value out of range, or weights of another shape.

    Example:
        >>> controller = GRUController(hidden_size=8, params=GRUController.random_params(hidden_size=8, seed=0))
        >>> sum(p.numel() for p in controller.params.values())
        537
    """

    controller_type = "gru"
    answers = "lr"
    needs = NEEDS
    learned = True
    decisions = 20
    n_features = len(FEATURES)

    hidden_size: int = 32
    max_move: float = 2.0
    lr_range: tuple[float, float] = (1e-7, 1.0)

    def __post_init__(self) -> None:
        check_range(self, "hidden_size", self.hidden_size, 1, 1024, hint="32 is what was trained")
        check_range(self, "max_move", self.max_move, 1e-3, 5.0, hint="2.0 changes the LR by at most a factor of e^2")
        self._check_lr_range()
        super().__post_init__()

    def _check_lr_range(self) -> None:
        if not isinstance(self.lr_range, tuple) or len(self.lr_range) != 2:
            raise TypeError(f"GRUController: lr_range must be two numbers, lowest and highest, got {self.lr_range!r}")
        low, high = self.lr_range
        check_range(self, "the low end of lr_range", low, 1e-12, 1e3, hint="give learning rates met in training")
        check_range(self, "the high end of lr_range", high, low, 1e3, hint="give the lower end first")

    def param_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Gates in torch's order (reset, update, new), then the head."""
        return _gru.shapes(len(FEATURES), self.hidden_size)

    @classmethod
    def random_params(cls, *, hidden_size: int = 32, seed: int = 0) -> dict[str, Tensor]:
        """Untrained weights: GRU uniform in +-1 / sqrt(width), head near zero, so that it moves little at first."""
        return _gru.random_params(len(FEATURES), hidden_size, seed)

    def init(
        self,
        batch_shape: tuple[int, ...] = (),
        *,
        n_groups: int = 1,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> State:
        """The encoder's history and `hidden`, of batch_shape + (hidden_size,)."""
        del n_groups, seed
        hidden = torch.zeros(*batch_shape, self.hidden_size, device=device)
        return {**init_history(batch_shape, device), "hidden": hidden}

    def decide(
        self, obs: Observation, state: State, params: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Learning rate of `batch_shape`."""
        features, state = self.encode(obs, state)
        raw, hidden = self.policy(features, state["hidden"], self.params if params is None else params)
        return self.act(raw, obs, {**state, "hidden": hidden})

    # The three steps of a decision, one by one, for trainers that put noise between the second and the third.

    def encode(self, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Features of batch_shape + (12,), and the state with the new history."""
        features, history = encode(obs, state)
        return features, {**state, **history}

    def policy(self, features: Tensor, hidden: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Move before squashing, of batch_shape, and the next hidden vector; `params` may have a run dimension."""
        return _gru.forward(features, hidden, params)

    def act(self, raw: Tensor, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Learning rate after the move `max_move * tanh(raw)`, and the state that remembers the move."""
        move = self.max_move * torch.tanh(raw)
        return obs.lr * move.to(obs.lr.dtype).exp(), {**state, "move": move}
