"""Constant learning rate: the base LR, or one factor of it, at every update. Open loop; sees nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, Params, State
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class Constant(Controller):
    """Answers one factor; by default 1, the same as `lr_scheduler_type="constant"`.

    Args:
        factor: factor of the base LR, in [0, 1e6]. The mean of a random schedule makes its control:
            `Constant(factor=PLRS().mean_factor)`. The scheduler's `min_lr` still bounds it from below.

    Raises:
        ValueError: `factor` is out of range.

    Example:
        >>> Constant().config()
        {'factor': 1.0}
    """

    controller_type = "constant"

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "factor", self.factor, 0.0, 1e6, hint="1 is the base LR; pass a finite factor of it")

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """`factor`, of `batch_shape`."""
        return torch.full_like(obs.lr, self.factor), state
