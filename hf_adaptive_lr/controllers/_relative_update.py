"""Steers the size of the updates: measures how far a learning rate moves the weights, and picks the rate for a size.

The relative update |w_{t+1} - w_t| / |w_t| means the same for every model, optimizer and parametrisation, where the
learning rate that causes it spans seven decades. It is proportional to the learning rate, so one measured update tells
which rate would have made another size:

    unit_t = |update t-1| / |w_t| / lr_{t-1}          lr_t = wanted / unit_t

Relative sizes are what LARS (You et al. 2017, arXiv:1708.03888), LAMB (arXiv:1904.00962) and Adafactor
(arXiv:1804.04235) scale their updates to, layer by layer; here it is one number of the whole model that an unchanged
optimizer is steered to.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..cadence import evenly
from ..observation import Observation

FIRST_LR = 1e-7
"""Learning rate of the first update, which only serves the measurement; too small to do harm with any optimizer."""

_KEPT = 0.25  # of the logarithm of the unit before
_EARLY, _PER_DOUBLING = 8, 8  # of runs whose length is unknown


def due(update: int, total_steps: int | None, decisions: int) -> bool:
    """Whether there is a decision: at updates 0, 1, 2, 4, 8 and so on up to an even rhythm, then in that.

    The first update measures, the next ones correct the measurement, so that a first mistake is found early. Where
    `total_steps` is None there are eight decisions while the run doubles its length, at least four updates apart.

    Example:
        >>> [t for t in range(100) if due(t, 100, 5)]
        [0, 1, 2, 4, 8, 16, 20, 40, 60, 80]
    """
    doubling = update & (update - 1) == 0
    if total_steps is None:
        if update < _EARLY:
            return doubling
        return update % max(4, (1 << update.bit_length() - 1) // _PER_DOUBLING) == 0
    return doubling if update < total_steps // decisions else evenly(update, total_steps, decisions)


def init_units(batch_shape: tuple[int, ...], device: torch.device | str | None = None) -> dict[str, Tensor]:
    """State of [`measure`] before the first update: two logarithms, and how many updates were measured."""
    names = ("unit", "first_unit")
    zeros = {name: torch.zeros(batch_shape, dtype=torch.float64, device=device) for name in names}
    return {**zeros, "measured": torch.zeros(batch_shape, dtype=torch.int64, device=device)}


def measure(obs: Observation, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state, from `init_units` or the last call, with the newest unit in it.

    `obs` has `update_ratio`, and `last_lr` where that is not the rate in force. Rises count at once and falls by three
    quarters, as a rate that is too small for a while costs less than one too large. Adam's first update is several
    times as large as those after it, so more memory than that would cost time.
    """
    ratio = obs.require("update_ratio").double()
    rate = (obs.lr if obs.last_lr is None else obs.last_lr).double()
    known = (ratio > 0) & (rate > 0) & torch.isfinite(ratio)
    new = torch.where(known, ratio / torch.where(known, rate, 1.0), 1.0).log()
    unit, first, count = state["unit"], state["first_unit"], state["measured"]
    smooth = torch.where(count == 0, new, torch.maximum(new, _KEPT * unit + (1 - _KEPT) * new))
    return {
        "unit": torch.where(known, smooth, unit),
        "first_unit": torch.where(known & (count == 0), new, first),
        "measured": count + known.long(),
    }


def rate_for(wanted: Tensor, state: Mapping[str, Tensor], obs: Observation) -> Tensor:
    """Learning rate, of batch_shape, under which the next relative update is expected to be `wanted`, above 0.

    While nothing was measured: [`FIRST_LR`] at the first update, and ten times the rate in force after it, as an
    update that does not show is too small.
    """
    start = torch.full_like(obs.lr, FIRST_LR)
    first = torch.as_tensor(obs.step, device=obs.lr.device) == 0
    blind = torch.where(first, start, (obs.lr * 10.0).clamp(max=1e-2))
    unit = state["unit"].to(obs.lr.dtype)
    return torch.where(state["measured"] == 0, blind, wanted.to(obs.lr.dtype) / unit.exp())
