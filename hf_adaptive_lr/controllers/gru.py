"""A small recurrent network that moves the learning rate in force (no paper; from before `universal_1`).

Decides twenty times a run, as it is trained. Observes twelve log-ratios, cosines and shares (`_features.py`), and
answers with the next learning rate:

    h_k = GRU(x_k, h_{k-1})         lr_k = lr_{k-1} * exp(max_move * tanh(w . h_k + b))

The move is relative to the learning rate in force, so bounds leave no hidden memory, and the base learning rate is
only where it starts. Its weights come from meta-training (`hf_adaptive_lr.meta`); without them it is a random
function. The meta-trainers are tested with it; for real runs see `universal_1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Device, Shape, State
from ..observation import Observation
from ._features import FEATURES, encode, init_history
from ._recurrent import RecurrentController


@dataclass(frozen=True, kw_only=True)
class GRUController(RecurrentController):
    """A small recurrent net that moves the learning rate in force, from five scale-free signals.

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
    n_features = len(FEATURES)

    max_move: float = 2.0
    lr_range: tuple[float, float] = (1e-7, 1.0)

    def __post_init__(self) -> None:
        check_range(self, "max_move", self.max_move, 1e-3, 5.0, hint="2.0 changes the LR by at most a factor of e^2")
        super().__post_init__()

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """The encoder's history and `hidden`, of batch_shape + (hidden_size,)."""
        hidden = torch.zeros(*batch_shape, self.hidden_size, device=device)
        return {**init_history(batch_shape, device), "hidden": hidden}

    def encode(self, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Features of batch_shape + (12,), and the state with the new history."""
        features, history = encode(obs, state)
        return features, {**state, **history}

    def act(self, raw: Tensor, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Learning rate after the move `max_move * tanh(raw)`, and the state that remembers the move."""
        move = self.max_move * torch.tanh(raw)
        return obs.lr * move.to(obs.lr.dtype).exp(), {**state, "move": move}
