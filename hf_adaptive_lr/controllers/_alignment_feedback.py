"""Raises a learning rate while updates prove too short: while the next batch's gradient still points along them.

Where an update ends at the minimum along its own direction, the next gradient is orthogonal to it; where the rate is
too small the two keep their direction, and a longer update would have lowered the next batch's loss. It is the signal
of hypergradient descent (Almeida et al. 1998; Baydin et al. 2018, arXiv:1703.04782), here without its scale and read
only now and then:

    log raise <- log raise + gain * readings * shrunk mean        shrunk: what is left of it beyond error and dead zone

The mean over some readings must exceed its standard error by a dead zone, which is wider downwards: noise alone makes
the mean negative at rates that are good in the long run (Wu et al. 2018, arXiv:1803.02021). Nothing is read in a
warm-up, where updates are short on purpose. Never below the rate that there would be without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..observation import Observation

READINGS = 4
"""Alignments whose mean decides one move."""
MAX_MOVE, MAX_RAISE = 2.0, 32.0
"""Factors: of one move, up or down, and of all together."""
_RISE_ABOVE, _FALL_BELOW = 0.02, -0.05  # mean alignments
_NEARLY = 0.99


def init(batch_shape: tuple[int, ...], device: torch.device | str | None = None) -> dict[str, Tensor]:
    """State before the first update: the raise's logarithm, and sums over the readings since the last move."""
    names = ("raised", "readings", "sum", "squares")
    return {name: torch.zeros(batch_shape, dtype=torch.float64, device=device) for name in names}


def update(obs: Observation, state: Mapping[str, Tensor], gain: float, known: Tensor) -> dict[str, Tensor]:
    """The state with one more reading in it, and with the move that is then due.

    Args:
        obs: has `alignment`; `last_lr` beside `lr` tells whether the update was shorter than was answered.
        state: from `init` or the last call.
        gain: what a mean alignment of 1 adds to the logarithm of the rate for each of its readings.
        known: bool of batch_shape, False where the update before says nothing.
    """
    known = known & _whole(obs)
    seen = torch.where(known, obs.require("alignment").double(), 0.0)
    count, total = state["readings"] + known.double(), state["sum"] + seen
    squares = state["squares"] + seen**2
    mean = total / count.clamp_min(1)
    error = ((squares / count.clamp_min(1) - mean**2).clamp_min(0) / (count - 1).clamp_min(1)).sqrt()
    shrunk = (mean - error - _RISE_ABOVE).clamp_min(0) + (mean + error - _FALL_BELOW).clamp_max(0)
    move = (gain * count * shrunk).clamp(-math.log(MAX_MOVE), math.log(MAX_MOVE))
    due = count >= READINGS
    raised = torch.where(due, state["raised"] + move, state["raised"]).clamp(0.0, math.log(MAX_RAISE))
    sums = {"readings": count, "sum": total, "squares": squares}
    return {"raised": raised, **{name: torch.where(due, 0.0, value) for name, value in sums.items()}}


def _whole(obs: Observation) -> Tensor:
    """Whether the previous update was made at the rate that was answered: no warm-up, no cooldown, no guard's cut."""
    if obs.last_lr is None:
        return torch.ones_like(obs.lr, dtype=torch.bool)
    return obs.last_lr >= _NEARLY * obs.lr
