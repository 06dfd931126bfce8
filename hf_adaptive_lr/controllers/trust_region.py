"""A trust region for fine-tuning: no learning rate to choose (no paper; this library's own).

It steers how far an update moves the weights, relative to their size, along a straight line to zero:

    |w_{t+1} - w_t| / |w_t| = rho_t * (1 - t / T)              lr_t = the rate that does this, as last measured

The radius rho begins where such runs are known to be safe: `pretrained` for weights that look pretrained, `fresh` for
those that look freshly drawn, smaller for longer runs. From scratch two guesses are better than one: there the rate is
a geometric mean of this one and of the learning rate that is usual with the optimizer. From then on the radius moves
as a trust region's does (Conn, Gould & Toint 2000, chapter 6), by the gain ratio: the decrease of the batch's loss
over the decrease that its gradient promised, here a running mean. Near 1 the loss is still a straight line at this
distance; where it has also fallen by more than its scatter, the radius of pretrained weights grows. A flat loss is no
reason to. Where their ratio is low the radius shrinks, and for all weights where the mean loss has risen by more than
its scatter with a ratio that is not near 1. It never grows beyond what it shrank to.
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
from ..observation import OPTIONAL_FIELDS, Observation
from . import _relative_update

_REFERENCE = 200  # updates of a run, for which `pretrained` and `fresh` are given
_UNKNOWN = 2000  # updates that a run of unknown length is taken for
_KEPT, _START = 0.7, 0.7  # of the mean gain ratio before; what it begins with
_OLD = 0.7  # of the mean loss that the newest one is compared with
_GAINS = -0.5, 1.5  # to which single readings are cut, as one batch may say anything
_APART = 4  # updates between two decisions at least, so that their losses have a scatter
_UNMEASURED = float(OPTIONAL_FIELDS["gain_ratio"].neutral or 0.0)  # 1: no measured one is that exactly
_SOME = 0.1  # share of pretrained weights from which there is something to lose
_RISE = 32.0  # of the rate, at most, for the same update as at first


@dataclass(frozen=True, kw_only=True)
class TrustRegion(Controller):
    """Steers the relative update by a trust region's rule; for SGD, Adam and AdamW.

    Args:
        start: "auto" looks at the weights and takes `pretrained` or `fresh`; these names say which. A small net that
            you trained yourself looks fresh: say "pretrained" then.
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
        usual: weight of the usual learning rate in the geometric mean, in [0, 1], where one is known.

    With a decision at every update (`every=1`) a loss has no scatter, and the radius stays where it began.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> sorted(TrustRegion().needs)
        ['gain_ratio', 'mean_loss', 'mean_loss_error', 'pretrained', 'update_ratio', 'usual_lr']
    """

    controller_type = "trust_region"
    answers = "lr"
    needs = frozenset({"gain_ratio", "mean_loss", "mean_loss_error", "pretrained", "update_ratio", "usual_lr"})
    ignores_base_lr = True
    linear_between = True
    warmup = 0.05
    decisions = 10

    start: Literal["auto", "pretrained", "fresh"] = "auto"
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
    usual: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("auto", "pretrained", "fresh"):
            raise ValueError(f"TrustRegion: start={self.start!r} must be 'auto', 'pretrained' or 'fresh'")
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
        for name in ("until", "usual"):
            check_range(self, name, getattr(self, name), 0.0, 1.0, hint="a share")

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """The size of a unit update, logs of the radius and of its limit, and means of losses and gain ratios.

        `learned` is -1 before the first decision, then whether the weights count as pretrained.
        """
        zeros = {
            name: torch.zeros(batch_shape, dtype=torch.float64, device=device)
            for name in ("radius", "limit", "loss", "loss_error")
        }
        units = _relative_update.init_units(batch_shape, device)
        return {**units, **zeros, "gain": zeros["loss"] + _START, "learned": zeros["loss"] - 1.0}

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """At updates 0, 1, 3, 9 and so on up to an even rhythm, then in that; each costs part of a forward pass.

        The even rhythm has ten decisions a run, but four updates between two, so that their losses have a scatter.
        """
        if total_steps is None:
            return _relative_update.due(update, None, self.decisions)
        decisions = max(1, min(self.decisions, total_steps // _APART))
        if update < total_steps // decisions:
            return update == 0 or 3 ** round(math.log(update, 3)) == update
        return evenly(update, total_steps, decisions)

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Learning rate of `batch_shape`."""
        state = {**state, **_relative_update.measure(obs, state)}
        fall, known, losses = _fallen(obs, state)
        gain = _mean_gain(obs, state)
        learned = self._is_learned(obs)
        first = self._first_radius(obs, learned)
        # At the first decision, and where pretrained weights are unfrozen, it begins anew.
        begins = (state["learned"] < 0) | (learned & (state["learned"] == 0))
        radius = torch.where(begins, first, state["radius"])
        most = first + torch.where(learned, _as(self.most, obs), _as(self.most_fresh, obs)).log()
        limit = torch.where(begins, most, torch.minimum(state["limit"], most))  # less where the run was made longer
        shrinks = known & ((learned & (gain < self.low)) | ((fall < -self.alarm) & (gain < self.high)))
        early = torch.zeros_like(begins) if obs.total_steps is None else obs.progress < self.until
        grows = known & learned & (gain > self.high) & (fall > self.evidence) & early
        step = math.log(self.growth)
        moved = torch.where(shrinks, radius - step, torch.where(grows, radius + step, radius))
        limit = torch.where(shrinks, torch.minimum(limit, moved), limit)
        new = {"radius": torch.minimum(moved, limit), "limit": limit, "gain": gain, "learned": learned.double()}
        left = torch.ones_like(obs.lr) if obs.total_steps is None else obs.remaining
        wanted = new["radius"].exp().to(obs.lr.dtype) * left
        # Where gradients vanish a unit update does, too, and the rate would explode before they come back.
        bounded = {**state, "unit": torch.maximum(state["unit"], state["first_unit"] - math.log(_RISE))}
        rate = _relative_update.rate_for(wanted, bounded, obs)
        usual = obs.require("usual_lr")  # of the first group, as the answer is
        hedged = rate ** (1 - self.usual) * (usual * left) ** self.usual
        hedges = ~learned & (usual > 0) & (state["measured"] > 0)
        return torch.where(hedges, hedged, rate), {**state, **losses, **new}

    def _is_learned(self, obs: Observation) -> Tensor:
        share = obs.require("pretrained")
        return share >= _SOME if self.start == "auto" else torch.full_like(share, self.start == "pretrained").bool()

    def _first_radius(self, obs: Observation, learned: Tensor) -> Tensor:
        """Log of the first radius, at most 0: an update as long as the weights."""
        start = torch.where(learned, _as(self.pretrained, obs), _as(self.fresh, obs))
        total = torch.as_tensor(_UNKNOWN if obs.total_steps is None else obs.total_steps, dtype=torch.float64)
        return (start.log() - self.length_power * (total / _REFERENCE).log()).clamp_max(0.0)


def _as(value: float, obs: Observation) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=obs.lr.device)


def _fallen(obs: Observation, state: State) -> tuple[Tensor, Tensor, State]:
    """Fall of the mean loss in standard errors, whether it can be told, and what the next is compared with."""
    mean, error = obs.require("mean_loss").double(), obs.require("mean_loss_error").double()
    known = (error > 0) & (state["loss_error"] > 0)  # of two updates at least, both
    scatter = (error.square() + state["loss_error"].square()).sqrt().clamp_min(1e-12)
    kept = _OLD * known.double()
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
