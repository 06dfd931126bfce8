"""A learning rate from how far an update moves the weights: no rate to choose (no paper; this library's own).

It steers the size of an update, relative to that of the weights, along a straight line to zero:

    |w_{t+1} - w_t| / |w_t| = size * (1 - t / T)              lr_t = the rate that does this, as last measured

The size is one that such runs are known to bear: `pretrained` for weights that look pretrained, `fresh` for those that
look freshly drawn, smaller for longer runs. From scratch two guesses are better than one: there the rate is a
geometric mean of this one and of the learning rate that is usual with the optimizer.

So it begins with what is known before the run, and is careful; while gradients go on pointing along the updates, which
they do where updates are too short, it raises the rate (`_alignment_feedback`). It looks at the optimizer, the weights
and the gradients, neither at losses nor at predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_range
from ..cadence import evenly
from ..controller import Controller, Device, Params, Shape, State
from ..observation import Observation
from . import _alignment_feedback, _relative_update

_REFERENCE = 200  # updates of a run, for which `pretrained` and `fresh` are given
_UNKNOWN = 2000  # updates that a run of unknown length is taken for
_APART = 2  # updates between two decisions at least
_SOME = 0.1  # share of pretrained weights from which there is something to lose
_RISE = 32.0  # of the rate, at most, for the same update as at first


@dataclass(frozen=True, kw_only=True)
class UpdateSize(Controller):
    """Steers the relative size of updates, with any optimizer that does not set its own rate.

    Args:
        start: "auto" looks at the weights and takes `pretrained` or `fresh`; these names say which. A small net that
            you trained yourself looks fresh: say "pretrained" then.
        pretrained: first relative update of pretrained weights, in [1e-6, 1], for a run of 200 updates.
        fresh: the same for models from scratch and new adapters.
        length_power: power of T / 200 by which the first size is smaller where the run is longer, and larger where it
            is shorter, in [0, 1]; a run of unknown length counts as one of 2000 updates, and does not decay.
        usual: weight of the usual learning rate in the geometric mean, in [0, 1], where one is known.
        gain: how fast the rate is raised: what a mean alignment of 1 adds to its logarithm, for each of the four
            readings that make a mean, in [0, 100]; 0 for the first guess alone.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> sorted(UpdateSize().needs)
        ['alignment', 'pretrained', 'update_ratio', 'usual_lr']
    """

    controller_type = "update_size"
    answers = "lr"
    needs = frozenset({"alignment", "pretrained", "update_ratio", "usual_lr"})
    ignores_base_lr = True
    linear_between = True
    warmup = 0.05
    decisions = 40

    start: Literal["auto", "pretrained", "fresh"] = "auto"
    pretrained: float = 0.0012
    fresh: float = 0.016
    length_power: float = 0.25
    usual: float = 0.6
    gain: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("auto", "pretrained", "fresh"):
            raise ValueError(f"UpdateSize: start={self.start!r} must be 'auto', 'pretrained' or 'fresh'")
        for name in ("pretrained", "fresh"):
            check_range(self, name, getattr(self, name), 1e-6, 1.0, hint="a relative update, some thousandths")
        check_range(self, "length_power", self.length_power, 0.0, 1.0, hint="0.25")
        check_range(self, "usual", self.usual, 0.0, 1.0, hint="a share")
        check_range(self, "gain", self.gain, 0.0, 100.0, hint="3, or 0 for none")

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """The size of a unit update; `learned`, 1 once the weights counted as pretrained; and that of the feedback."""
        zeros = torch.zeros(batch_shape, dtype=torch.float64, device=device)
        units = _relative_update.init_units(batch_shape, device)
        return {**units, **_alignment_feedback.init(batch_shape, device), "learned": zeros}

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """At updates 0, 1, 3, 9 and so on up to an even rhythm, then in that: forty a run, at least two updates apart.

        Each reads the optimizer's state and the gradient once.
        """
        if total_steps is None:
            return _relative_update.due(update, None, self.decisions)
        decisions = max(1, min(self.decisions, total_steps // _APART))
        if update < total_steps // decisions:
            return update == 0 or 3 ** round(math.log(update, 3)) == update
        return evenly(update, total_steps, decisions)

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Learning rate of `batch_shape`."""
        state = {**self.init(obs.lr.shape, device=obs.lr.device), **state}  # of a run begun without the feedback
        state = {**state, **_relative_update.measure(obs, state)}
        known = (state["measured"] > 1) & (obs.require("update_ratio") > 0)  # the first update is as good as none
        state = {**state, **_alignment_feedback.update(obs, state, self.gain, known)}
        # Pretrained weights that are frozen again are no reason to move the others farther.
        learned = self._is_learned(obs) | (state["learned"] > 0)
        left = torch.ones_like(obs.lr) if obs.total_steps is None else obs.remaining
        wanted = self._size(obs, learned).to(obs.lr.dtype) * left
        # Where gradients vanish a unit update does, too, and the rate would explode before they come back.
        bounded = {**state, "unit": torch.maximum(state["unit"], state["first_unit"] - math.log(_RISE))}
        rate = _relative_update.rate_for(wanted, bounded, obs)
        usual = obs.require("usual_lr")  # of the first group, as the answer is
        mean = rate ** (1 - self.usual) * (usual * left) ** self.usual
        two_guesses = ~learned & (usual > 0) & (state["measured"] > 0)
        raised = state["raised"].exp().to(obs.lr.dtype)
        return torch.where(two_guesses, mean, rate) * raised, {**state, "learned": learned.double()}

    def _is_learned(self, obs: Observation) -> Tensor:
        share = obs.require("pretrained")
        return share >= _SOME if self.start == "auto" else torch.full_like(share, self.start == "pretrained").bool()

    def _size(self, obs: Observation, learned: Tensor) -> Tensor:
        """The first relative update, at most 1: an update as long as the weights."""
        start = torch.where(learned, self.pretrained, torch.full_like(obs.lr, self.fresh, dtype=torch.float64))
        total = torch.as_tensor(_UNKNOWN if obs.total_steps is None else obs.total_steps, dtype=torch.float64)
        return (start * (total.to(obs.lr.device) / _REFERENCE) ** -self.length_power).clamp_max(1.0)
