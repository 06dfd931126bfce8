"""Random draws of a controller: pure functions of a generator's state, a tensor in the run state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GENERATOR = "generator"
"""Key in a controller's state."""


def seeded(seed: int) -> Tensor:
    """The state of a fresh generator, a uint8 tensor."""
    return torch.Generator().manual_seed(seed).get_state()


def uniform(state: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Numbers from [0, 1) in float64, and the next state; the given one does not change. () is one number."""
    return _drawn(torch.rand, state, shape)


def normal(state: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Standard normal numbers in float64, and the next state; the given one does not change."""
    return _drawn(torch.randn, state, shape)


def _drawn(draw: Callable[..., Tensor], state: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator()
    generator.set_state(state)
    return draw(shape, generator=generator, dtype=torch.float64), generator.get_state()
