"""A small recurrent network that needs no learning rate from anybody (no paper; this library's own).

It steers how far an update moves the weights, relative to their size, not the learning rate, and is a bounded
correction of a straight line:

    h_k = GRU(x_k, h_{k-1})                       r_k = clip(r_{k-1} + max_move * tanh(w . h_k + b), +-max_shift)
    |w_{t+1} - w_t| / |w_t| = rho * exp(r_k) * (1 - t / T)            lr_t = the rate that does this, as last measured

x_k are seventeen log-ratios, cosines and shares (`features.py`). The first update is made at a learning rate of 1e-7
and measured, the next ones are small, and the user's learning rate is not used at all. Decides twenty times a run,
evenly, and before that at updates 1, 2, 4 and so on. Its weights come from meta-training (`hf-adaptive-lr train
universal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, State
from ..observation import Observation
from . import _gru, _relative_update
from ._features import NEEDS, STEERING_FEATURES, encode_steering, init_steering


@dataclass(frozen=True, kw_only=True)
class Universal(Controller):
    """A small recurrent net that steers how far an update moves the weights; for SGD, Adam and AdamW.

    Args:
        hidden_size: width of the GRU, 1 ... 1024.
        rho: relative update in the middle of the range, at the start of the run, in [1e-6, 1].
        start: log of the first relative update over `rho`, within +-`max_shift`; below 0, to see before it is late.
        max_move: largest change of the log relative update in one decision, in (0, 5].
        max_shift: largest log of the relative update over the straight line's, in (0, 10].
        lr_range: smallest and largest learning rate it may answer, ascending within [1e-12, 1e3].
        without_gain: do without the gain ratio, which costs a forward pass at each decision; weights that were trained
            with it miss it.
        probing: False decides in the even rhythm alone, for comparisons; the update at 1e-7 is then a whole interval.

    Raises:
        ValueError: a value out of range, or weights of another shape.

    Example:
        >>> controller = Universal(hidden_size=8, params=Universal.random_params(hidden_size=8, seed=0))
        >>> sum(p.numel() for p in controller.params.values())
        657
    """

    controller_type = "universal"
    answers = "lr"
    needs = NEEDS
    learned = True
    ignores_base_lr = True
    decisions = 20
    n_features = len(STEERING_FEATURES)

    hidden_size: int = 32
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
        check_range(self, "hidden_size", self.hidden_size, 1, 1024, hint="32 is what was trained")
        check_range(self, "rho", self.rho, 1e-6, 1.0, hint="0.008 is what was trained")
        check_range(self, "max_move", self.max_move, 1e-3, 5.0, hint="1.0 changes an update by at most a factor of e")
        check_range(self, "max_shift", self.max_shift, 1e-3, 10.0, hint="3 allows a factor of 20 up and down")
        check_range(self, "start", self.start, -self.max_shift, self.max_shift, hint="-0.7 starts low")
        self._check_lr_range()
        super().__post_init__()

    def _check_lr_range(self) -> None:
        if not isinstance(self.lr_range, tuple) or len(self.lr_range) != 2:
            raise TypeError(f"Universal: lr_range must be two numbers, lowest and highest, got {self.lr_range!r}")
        low, high = self.lr_range
        check_range(self, "the low end of lr_range", low, 1e-12, 1e3, hint="give learning rates met in training")
        check_range(self, "the high end of lr_range", high, low, 1e3, hint="give the lower end first")

    def param_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Gates in torch's order (reset, update, new), then the head."""
        return _gru.shapes(self.n_features, self.hidden_size)

    @classmethod
    def random_params(cls, *, hidden_size: int = 32, seed: int = 0) -> dict[str, Tensor]:
        """Untrained weights: GRU uniform in +-1 / sqrt(width), head near zero, so that it moves little at first."""
        return _gru.random_params(cls.n_features, hidden_size, seed)

    def init(
        self,
        batch_shape: tuple[int, ...] = (),
        *,
        n_groups: int = 1,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> State:
        """The encoder's history, what a rate of 1 moves, `shift`, and `hidden` of batch_shape + (hidden_size,)."""
        del n_groups, seed
        history = init_steering(batch_shape, device) | _relative_update.init_units(batch_shape, device)
        shift = torch.full(batch_shape, self.start, dtype=torch.float32, device=device)
        return {**history, "shift": shift, "hidden": torch.zeros(*batch_shape, self.hidden_size, device=device)}

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """At updates 0, 1, 2, 4 and so on up to an even rhythm, then in that."""
        if not self.probing:
            return None if total_steps is not None else update % 5 == 0
        return _relative_update.due(update, total_steps, self.decisions)

    def decide(
        self, obs: Observation, state: State, params: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Learning rate of `batch_shape`."""
        features, state = self.encode(obs, state)
        raw, hidden = self.policy(features, state["hidden"], self.params if params is None else params)
        return self.act(raw, obs, {**state, "hidden": hidden})

    # The three steps of a decision, one by one, for trainers that put noise between the second and the third.

    def encode(self, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Features of batch_shape + (17,), and the state with the new history."""
        state = {**state, **_relative_update.measure(obs, state)}
        features, history = encode_steering(obs, state, rho=self.rho, max_shift=self.max_shift)
        return features, {**state, **history}

    def policy(self, features: Tensor, hidden: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Move before squashing, of batch_shape, and the next hidden vector; `params` may have a run dimension."""
        return _gru.forward(features, hidden, params)

    def act(self, raw: Tensor, obs: Observation, state: State) -> tuple[Tensor, State]:
        """Learning rate after the move `max_move * tanh(raw)`, and the state that remembers it."""
        move = self.max_move * torch.tanh(raw)
        move = torch.where(state["measured"] == 0, torch.zeros_like(move), move)  # nothing was seen yet
        shift = (state["shift"] + move).clamp(-self.max_shift, self.max_shift)
        left = torch.ones_like(obs.lr) if obs.total_steps is None else obs.remaining
        wanted = self.rho * shift.to(obs.lr.dtype).exp() * left
        return _relative_update.rate_for(wanted, state, obs), {**state, "move": move, "shift": shift}

    def scattered(self, state: State, generator: torch.Generator, spread: float) -> State:
        """For training: the state with the first update anywhere within `spread` of its log, and not always the same.

        Args:
            state: from `init`.
            generator: where the draws come from.
            spread: half the width of the even distribution around `start`; a quarter of the runs keep `start`.
        """
        draws = torch.rand(2, *state["shift"].shape, generator=generator)
        moved = state["shift"] + spread * (2 * draws[0] - 1)
        kept = torch.where(draws[1] < 0.25, state["shift"], moved)
        return {**state, "shift": kept.clamp(-self.max_shift, self.max_shift)}
