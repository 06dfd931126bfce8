"""Constant learning rate: the base LR at every update. Open loop; sees nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..controller import Controller, State
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class Constant(Controller):
    """Answers the factor 1; the same as `lr_scheduler_type="constant"`.

    Example:
        >>> Constant().controller_type
        'constant'
    """

    controller_type = "constant"

    def decide(
        self, obs: Observation, state: State, params: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Factor 1 of `batch_shape`."""
        del params
        return torch.ones_like(obs.lr), state
