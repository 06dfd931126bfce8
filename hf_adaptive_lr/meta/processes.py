"""Many processes that train one controller: each has problems of its own, and gradients are averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..ranks import world_size


def rank() -> int:
    """Number of this process; 0 without torch.distributed."""
    return dist.get_rank() if world_size(None) > 1 else 0


def average_gradients(gradients: Sequence[Tensor]) -> None:
    """Replace every tensor by its mean over all processes, in place; one collective, nothing with one process.

    Args:
        gradients: the same shapes and dtypes on every process.
    """
    world = world_size(None)
    if world == 1 or not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def generator(*key: int | str) -> torch.Generator:
    """A random generator of this process for one purpose, from nothing but its key and the rank.

    Nothing has to be checkpointed: whoever resumes at an iteration draws what the first run would have drawn there.

    Args:
        key: seed, purpose, iteration, ...

    Example:
        >>> first, second = (torch.rand(2, generator=generator(0, "noise", 7)) for _ in range(2))
        >>> torch.equal(first, second)
        True
    """
    text = "/".join(map(str, (*key, rank())))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
