"""A small recurrent network that works without a base learning rate (no paper; this library's own).

It steers how far an update moves the weights, relative to their size, not the learning rate, and is a bounded
correction of a straight line:

    h_k = GRU(x_k, h_{k-1})                       r_k = clip(r_{k-1} + max_move * tanh(w . h_k + b), +-max_shift)
    |w_{t+1} - w_t| / |w_t| = rho * exp(r_k) * (1 - t / T)            lr_t = the rate that does this, as last measured

x_k are seventeen log-ratios, cosines and shares (`_features.py`). The first update is made at a learning rate of 1e-7
and measured, the next ones are small, and the user's learning rate is not used at all. Decides twenty times a run,
evenly, and before that at updates 1, 2, 4 and so on. Its weights come from meta-training (`hf-adaptive-lr train
universal`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Device, Shape, State
from ..observation import Observation
from . import _relative_update
from ._features import NEEDS, STEERING_FEATURES, encode_steering, init_steering
from ._recurrent import RecurrentController


@dataclass(frozen=True, kw_only=True)
class Universal(RecurrentController):
    """A small recurrent net that steers how far an update moves the weights; trained with SGD and AdamW.

    The bundled one is `universal_1`; the name `universal` is [`UpdateSize`]'s now, which took its place.

    Args:
        hidden_size: width of the GRU, 1 ... 1024.
        rho: relative update in the middle of the range, at the start of the run, in [1e-6, 1].
        start: log of the first relative update over `rho`, within +-`max_shift`; below 0, to begin with caution.
        max_move: largest change of the log relative update in one decision, in (0, 5].
        max_shift: largest log of the relative update over the straight line's, in (0, 10].
        lr_range: smallest and largest learning rate it may answer, ascending within [1e-12, 1e3].
        without_gain: do without the gain ratio, which costs a forward pass at each decision; weights that were trained
            with it miss it.
        probing: False decides in the even rhythm alone, for comparisons; the rate of 1e-7 then lasts a whole interval.

    Raises:
        ValueError: a value out of range, or weights of another shape.

    Example:
        >>> controller = Universal(hidden_size=8, params=Universal.random_params(hidden_size=8, seed=0))
        >>> sum(p.numel() for p in controller.params.values())
        657
    """

    controller_type = "universal"
    ignores_base_lr = True
    n_features = len(STEERING_FEATURES)

    rho: float = 0.008
    start: float = -0.7
    max_move: float = 1.0
    max_shift: float = 3.0
    lr_range: tuple[float, float] = (1e-8, 10.0)
    without_gain: bool = False
    probing: bool = True

    def __post_init__(self) -> None:
        if self.without_gain:
            object.__setattr__(self, "needs", NEEDS - {"gain_ratio"})
        check_range(self, "rho", self.rho, 1e-6, 1.0, hint="0.008 is what was trained")
        check_range(self, "max_move", self.max_move, 1e-3, 5.0, hint="1.0 changes an update by at most a factor of e")
        check_range(self, "max_shift", self.max_shift, 1e-3, 10.0, hint="3 allows a factor of 20 up and down")
        check_range(self, "start", self.start, -self.max_shift, self.max_shift, hint="-0.7 starts low")
        super().__post_init__()

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """The encoder's history, the size of a unit update, `shift`, and `hidden` of batch_shape + (hidden_size,)."""
        history = init_steering(batch_shape, device) | _relative_update.init_units(batch_shape, device)
        shift = torch.full(batch_shape, self.start, dtype=torch.float32, device=device)
        return {**history, "shift": shift, "hidden": torch.zeros(*batch_shape, self.hidden_size, device=device)}

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """At updates 0, 1, 2, 4 and so on up to an even rhythm, then in that."""
        if not self.probing:
            return None if total_steps is not None else update % 5 == 0
        return _relative_update.due(update, total_steps, self.decisions)

    def encode(self, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Features of batch_shape + (17,), and the state with the new history."""
        state = {**state, **_relative_update.measure(obs, state)}
        features, history = encode_steering(obs, state, rho=self.rho, max_shift=self.max_shift)
        return features, {**state, **history}

    def act(self, raw: Tensor, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Learning rate after the move `max_move * tanh(raw)`, and the state that remembers it."""
        move = self.max_move * torch.tanh(raw)
        move = torch.where(state["measured"] == 0, torch.zeros_like(move), move)  # nothing was seen yet
        shift = (state["shift"] + move).clamp(-self.max_shift, self.max_shift)
        left = torch.ones_like(obs.lr) if obs.total_steps is None else obs.remaining
        wanted = self.rho * shift.to(obs.lr.dtype).exp() * left
        return _relative_update.rate_for(wanted, state, obs), {**state, "move": move, "shift": shift}

    def scattered(self, state: State, generator: torch.Generator, spread: float) -> State:
        """For training: the `init` state with the first update within `spread` of its log, and not always the same.

        `spread` is half the width of the even distribution around `start`; a quarter of the runs keep `start`.
        """
        draws = torch.rand(2, *state["shift"].shape, generator=generator)
        moved = state["shift"] + spread * (2 * draws[0] - 1)
        kept = torch.where(draws[1] < 0.25, state["shift"], moved)
        return {**state, "shift": kept.clamp(-self.max_shift, self.max_shift)}
