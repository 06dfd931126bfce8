"""Random draws of a controller: pure functions of a generator's state, a tensor in the run state."""

from __future__ import annotations

import torch
from torch import Tensor

GENERATOR = "generator"
"""Key in a controller's state."""


def seeded(seed: int) -> Tensor:
    """The state of a fresh generator, a uint8 tensor."""
    return torch.Generator().manual_seed(seed).get_state()


def uniform(state: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Numbers from [0, 1) in float64, and the next state; the given state does not change.

    Args:
        state: from [`seeded`] or an earlier draw.
        shape: of the draw, () for one number.

    Example:
        >>> first, state = uniform(seeded(0), ())
        >>> bool(first == uniform(seeded(0), ())[0]), bool(first == uniform(state, ())[0])
        (True, False)
    """
    generator = torch.Generator()
    generator.set_state(state)
    return torch.rand(shape, generator=generator, dtype=torch.float64), generator.get_state()


def normal(state: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Standard normal numbers in float64, and the next state; the given state does not change.

    Args:
        state: from [`seeded`] or an earlier draw.
        shape: of the draw, () for one number.
    """
    generator = torch.Generator()
    generator.set_state(state)
    return torch.randn(shape, generator=generator, dtype=torch.float64), generator.get_state()
