"""Cosine decay (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 with one period). Open loop.

At update t of T: factor = final + (1 - final) * (1 + cos(pi * t / T)) / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .._checks import check_range
from ..controller import Citation, Controller, Params, State
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class Cosine(Controller):
    """Half a cosine from the base LR.

    Args:
        final_factor: factor that the curve reaches after the last update, in [0, 1].

    Raises:
        ValueError: `final_factor` out of range.

    Example:
        >>> Cosine().config()
        {'final_factor': 0.0}
    """

    controller_type = "cosine"
    citation = Citation(
        "1608.03983",
        "SGDR: Stochastic Gradient Descent with Warm Restarts",
        "Loshchilov, Ilya and Hutter, Frank",
        2017,
    )
    needs_horizon = True

    final_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "final_factor", self.final_factor, 0.0, 1.0, hint="0 decays to zero, 1 is constant")

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of `batch_shape` for update `obs.step` of `obs.total_steps`."""
        wave = 0.5 * (1 + (math.pi * obs.progress.clamp(0, 1)).cos())
        return self.final_factor + (1 - self.final_factor) * wave, state
