"""Replay of a recorded schedule: a table of (share of the run, factor), interpolated. Open loop.

The control that tells feedback from a good schedule: a learned controller must beat the replay of its own mean
schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, Params, State
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class Replay(Controller):
    """Piecewise linear factor of the base LR over the run.

    Args:
        progress: shares of the run, ascending, within [0, 1]; the factor is constant before the first and after the
            last.
        factors: factor at each of them, in [0, 1e6].

    Raises:
        ValueError: tables of different length, empty, not ascending, or out of range.

    Example:
        >>> Replay(progress=(0.0, 1.0), factors=(1.0, 0.0)).controller_type
        'replay'
    """

    controller_type = "replay"
    needs_horizon = True

    progress: tuple[float, ...] = (0.0,)
    factors: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.progress) != len(self.factors) or not self.progress:
            raise ValueError(
                f"Replay: progress has {len(self.progress)} entries and factors {len(self.factors)}; give as many, at "
                f"least one"
            )
        if any(b <= a for a, b in zip(self.progress, self.progress[1:], strict=False)):
            raise ValueError(f"Replay: progress={self.progress} must ascend; sort the table and drop doubles")
        if not all(0 <= p <= 1 for p in self.progress):
            raise ValueError(
                f"Replay: progress={self.progress} must lie in [0, 1]; divide steps by the run's total_steps"
            )
        if not all(math.isfinite(f) and f >= 0 for f in self.factors):
            raise ValueError(
                f"Replay: factors={self.factors} must be finite and at least 0; divide LRs by the base LR"
            )
        check_range(self, "the largest factor", max(self.factors), 0.0, 1e6, hint="divide LRs by the base LR")

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Interpolated factor of `batch_shape`."""
        xs = obs.lr.new_tensor(self.progress)
        ys = obs.lr.new_tensor(self.factors)
        at = obs.progress.clamp(xs[0], xs[-1]).contiguous()
        right = torch.searchsorted(xs, at).clamp(1, max(1, len(self.progress) - 1)).clamp_max(len(self.progress) - 1)
        left = (right - 1).clamp_min(0)
        width = xs[right] - xs[left]
        share = torch.where(
            width > 0, (at - xs[left]) / width.clamp_min(torch.finfo(xs.dtype).tiny), torch.zeros_like(at)
        )
        return ys[left] + share * (ys[right] - ys[left]), state
