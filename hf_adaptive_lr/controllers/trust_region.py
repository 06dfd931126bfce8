"""A trust region for fine-tuning: no learning rate to choose (no paper; this library's own).

It steers how far an update moves the weights, relative to their size, along a straight line to zero:

    |w_{t+1} - w_t| / |w_t| = rho_t * (1 - t / T)              lr_t = the rate that does this, as last measured

The radius rho begins where such runs are known to be safe: `pretrained` for weights that look pretrained, `fresh` for
those that look freshly drawn, smaller for longer runs. From then on it moves as a trust region's does (Conn, Gould &
Toint 2000, chapter 6), by the gain ratio: the decrease of the batch's loss over the decrease that its gradient
promised, here a running mean. Near 1 the loss is still a straight line at this distance; where it has also fallen by
more than its scatter, the radius of pretrained weights grows. A flat loss is no reason to. Where their ratio is low
the radius shrinks, and for all weights where the mean loss has risen by more than its scatter with a ratio that is
not near 1. It never grows beyond what it shrank to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, Device, Params, Shape, State
from ..observation import OPTIONAL_FIELDS, Observation
from . import _relative_update

_REFERENCE = 200  # updates of a run, for which `pretrained` and `fresh` are given
_UNKNOWN = 2000  # updates that a run of unknown length is taken for
_KEPT, _START = 0.7, 0.7  # of the mean gain ratio before; what it begins with
_OLD = 0.7  # of the mean loss that the newest one is compared with
_GAINS = -0.5, 1.5  # to which single readings are cut, as one batch may say anything
_APART = 4  # updates between two decisions at least, so that their losses have a scatter
_UNMEASURED = float(OPTIONAL_FIELDS["gain_ratio"].neutral or 0.0)  # 1: no measured one is that exactly
_HALF = 0.5  # share of pretrained weights from which a model counts as pretrained


@dataclass(frozen=True, kw_only=True)
class TrustRegion(Controller):
    """Steers the relative update by a trust region's rule; for SGD, Adam and AdamW.

    Args:
        pretrained: first radius of pretrained weights, a relative update in [1e-6, 1], for a run of 200 updates.
        fresh: the same for models from scratch and new adapters.
        length_power: power of T / 200 by which the first radius is smaller where the run is longer, and larger where
            it is shorter, in [0, 1]; a run of unknown length counts as one of 2000 updates, and neither grows nor
            decays.
        growth: factor by which the radius grows or shrinks, above 1.
        most: largest radius over the first one, at least 1, where weights are pretrained.
        most_fresh: the same for freshly drawn weights.
        evidence: fall of the mean loss, in standard errors, that lets it grow; at least 0.
        alarm: rise of the mean loss, in standard errors, at which it shrinks; at least 0.
        high: mean gain ratio above which it may grow.
        low: mean gain ratio below which it shrinks.
        until: share of the run after which it does not grow any more, in [0, 1].

    Raises:
        ValueError: a value out of range.

    Example:
        >>> sorted(TrustRegion().needs)
        ['gain_ratio', 'mean_loss', 'mean_loss_error', 'pretrained', 'update_ratio']
    """

    controller_type = "trust_region"
    answers = "lr"
    needs = frozenset({"gain_ratio", "mean_loss", "mean_loss_error", "pretrained", "update_ratio"})
    ignores_base_lr = True
    decisions = 20

    pretrained: float = 0.001
    fresh: float = 0.016
    length_power: float = 0.5
    growth: float = 1.5
    most: float = 4.0
    most_fresh: float = 1.0
    evidence: float = 1.5
    alarm: float = 3.0
    high: float = 0.9
    low: float = 0.1
    until: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pretrained", "fresh"):
            check_range(self, name, getattr(self, name), 1e-6, 1.0, hint="a relative update, some thousandths")
        check_range(self, "growth", self.growth, 1.0, 100.0, hint="1.5")
        check_range(self, "length_power", self.length_power, 0.0, 1.0, hint="0.5")
        for name in ("most", "most_fresh"):
            check_range(self, name, getattr(self, name), 1.0, 1000.0, hint="1 never grows")
        for name in ("evidence", "alarm"):
            check_range(self, name, getattr(self, name), 0.0, 100.0, hint="standard errors")
        check_range(self, "high", self.high, *_GAINS, hint="a gain ratio, 1 where the loss is a straight line")
        check_range(self, "low", self.low, _GAINS[0], self.high, hint="a gain ratio, at most `high`")
        check_range(self, "until", self.until, 0.0, 1.0, hint="0.6")

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """The size of a unit update, logs of the radius and of its limit, and means of losses and gain ratios.

        `begun` is 0 before the first decision, 1 after it.
        """
        zeros = {
            name: torch.zeros(batch_shape, dtype=torch.float64, device=device)
            for name in ("radius", "limit", "loss", "loss_error", "begun")
        }
        return {**_relative_update.init_units(batch_shape, device), **zeros, "gain": zeros["loss"] + _START}

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """At updates 0, 1, 2, 4 and so on up to an even rhythm: twenty times a run, but every four updates at most."""
        decisions = self.decisions if total_steps is None else max(1, min(self.decisions, total_steps // _APART))
        return _relative_update.due(update, total_steps, decisions)

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Learning rate of `batch_shape`."""
        state = {**state, **_relative_update.measure(obs, state)}
        fall, known, losses = _fallen(obs, state)
        gain = _mean_gain(obs, state)
        learned = obs.require("pretrained") >= _HALF
        begun = state["begun"] > 0
        first = self._first_radius(obs, learned)
        radius = torch.where(begun, state["radius"], first)
        limit = torch.where(begun, state["limit"], first + torch.where(learned, self.most, self.most_fresh).log())
        shrinks = known & ((learned & (gain < self.low)) | ((fall < -self.alarm) & (gain < self.high)))
        early = torch.zeros_like(begun) if obs.total_steps is None else obs.progress < self.until
        grows = known & learned & (gain > self.high) & (fall > self.evidence) & early
        step = math.log(self.growth)
        moved = torch.where(shrinks, radius - step, torch.where(grows, radius + step, radius))
        limit = torch.where(shrinks, torch.minimum(limit, moved), limit)
        new = {
            "radius": torch.minimum(moved, limit),
            "limit": limit,
            "gain": gain,
            "begun": torch.ones_like(state["begun"]),
        }
        left = torch.ones_like(obs.lr) if obs.total_steps is None else obs.remaining
        wanted = new["radius"].exp().to(obs.lr.dtype) * left
        return _relative_update.rate_for(wanted, state, obs), {**state, **losses, **new}

    def _first_radius(self, obs: Observation, learned: Tensor) -> Tensor:
        """Log of the first radius, at most 0: an update as long as the weights."""
        start = torch.where(learned, self.pretrained, self.fresh).double()
        total = torch.as_tensor(_UNKNOWN if obs.total_steps is None else obs.total_steps, dtype=torch.float64)
        return (start.log() - self.length_power * (total / _REFERENCE).log()).clamp_max(0.0)


def _fallen(obs: Observation, state: State) -> tuple[Tensor, Tensor, State]:
    """Fall of the mean loss in standard errors, whether it can be told, and what the next is compared with."""
    mean, error = obs.require("mean_loss").double(), obs.require("mean_loss_error").double()
    known = (error > 0) & (state["loss_error"] > 0)  # of two updates at least, both
    scatter = (error.square() + state["loss_error"].square()).sqrt().clamp_min(1e-12)
    kept = torch.where(known, _OLD, 0.0)
    losses = {
        "loss": kept * state["loss"] + (1 - kept) * mean,
        "loss_error": ((kept * state["loss_error"]).square() + ((1 - kept) * error).square()).sqrt(),
    }
    return torch.where(known, (state["loss"] - mean) / scatter, 0.0), known, losses


def _mean_gain(obs: Observation, state: State) -> Tensor:
    """The running mean of gain ratios; what stands for one that was not measured is no evidence."""
    now = obs.require("gain_ratio").double()
    mean = _KEPT * state["gain"] + (1 - _KEPT) * now.clamp(*_GAINS)
    unmeasured: Tensor = now == _UNMEASURED
    return torch.where(unmeasured, state["gain"], mean)
