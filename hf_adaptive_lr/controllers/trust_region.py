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

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, Device, Params, Shape, State
from ..observation import Observation
from . import _relative_update

_REFERENCE = 200  # updates of a run, for which `pretrained` and `fresh` are given
_UNKNOWN = 2000  # updates that a run of unknown length is taken for
_KEPT, _START = 0.7, 0.7  # of the mean gain ratio before; what it begins with
_OLD = 0.7  # of the mean loss that the newest one is compared with
_GAINS = -0.5, 1.5  # to which single readings are cut, as one batch may say anything
_APART = 4  # updates between two decisions at least, so that their losses have a scatter
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
        """The size of a unit update, the log of the radius and its largest value, the last mean loss and its error."""
        zeros = {
            name: torch.zeros(batch_shape, dtype=torch.float64, device=device)
            for name in ("radius", "limit", "loss", "loss_error")
        }
        return {**_relative_update.init_units(batch_shape, device), **zeros, "gain": zeros["loss"] + _START}

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """At updates 0, 1, 2, 4 and so on up to an even rhythm: twenty times a run, but every four updates at most."""
        decisions = self.decisions if total_steps is None else max(1, min(self.decisions, total_steps // _APART))
        return _relative_update.due(update, total_steps, decisions)

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Learning rate of `batch_shape`."""
        state = {**state, **_relative_update.measure(obs, state)}
        first = state["radius"] == 0  # a radius of 1, which no run has
        begun = self._first_radius(obs)
        learned = self._is_pretrained(obs)
        most = torch.where(learned, self.most, self.most_fresh)
        radius = torch.where(first, begun, state["radius"])
        limit = torch.where(first, begun + most.log(), state["limit"])
        gain = _KEPT * state["gain"] + (1 - _KEPT) * obs.require("gain_ratio").double().clamp(*_GAINS)
        mean, error = obs.require("mean_loss").double(), obs.require("mean_loss_error").double()
        known = (error > 0) & (state["loss_error"] > 0)  # of two updates at least, both
        scatter = (error.square() + state["loss_error"].square()).sqrt().clamp_min(1e-12)
        fall = torch.where(known, (state["loss"] - mean) / scatter, 0.0)
        shrinks = known & ((learned & (gain < self.low)) | ((fall < -self.alarm) & (gain < self.high)))
        early = torch.zeros_like(first) if obs.total_steps is None else obs.progress < self.until
        grows = known & learned & ~shrinks & (gain > self.high) & (fall > self.evidence) & early
        step = torch.tensor(self.growth, dtype=torch.float64).log()
        moved = torch.where(shrinks, radius - step, torch.where(grows, radius + step, radius))
        limit = torch.where(shrinks, torch.minimum(limit, moved), limit)
        radius = torch.minimum(moved, limit)
        left = torch.ones_like(obs.lr) if obs.total_steps is None else obs.remaining
        kept = torch.where(known, _OLD, 0.0)
        old = {
            "loss": kept * state["loss"] + (1 - kept) * mean,
            "loss_error": ((kept * state["loss_error"]).square() + ((1 - kept) * error).square()).sqrt(),
        }
        new = {"radius": radius, "limit": limit, "gain": gain, **old}
        wanted = radius.exp().to(obs.lr.dtype) * left
        return _relative_update.rate_for(wanted, state, obs), {**state, **new}

    def _is_pretrained(self, obs: Observation) -> Tensor:
        return obs.require("pretrained") >= _HALF

    def _first_radius(self, obs: Observation) -> Tensor:
        """Log of the first radius."""
        start = torch.where(self._is_pretrained(obs), self.pretrained, self.fresh).double()
        total = torch.as_tensor(_UNKNOWN if obs.total_steps is None else obs.total_steps, dtype=torch.float64)
        return start.log() - self.length_power * (total / _REFERENCE).log()
