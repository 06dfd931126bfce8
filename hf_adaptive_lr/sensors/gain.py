"""The gain ratio: by how much an update lowered its own batch's loss, over what the gradient promised for it.

Two losses are subtracted that differ by a few thousandths. Below float32 their rounding is as large as that, so the
ratio is then measured only for updates that promise more than it; and a loss whose value does not follow the weights
(a policy gradient's, whose ratio to the policy that sampled is 1 wherever it is computed) has none at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

NEUTRAL = 1.0
"""Stands for a gain ratio that is not measured."""
_SINGLE = torch.finfo(torch.float32).eps
_TOLD_APART = 4.0  # roundings of the loss that a promise must exceed, for an error of about a quarter
_FROZEN = 16.0  # roundings that were promised, where not one was seen


def precision(tensors: Iterable[Tensor]) -> float:
    """The eps of the coarsest of these floating-point tensors, at least float32's."""
    return max([_SINGLE, *(torch.finfo(tensor.dtype).eps for tensor in tensors)])


def gain_terms(before: Sequence[Tensor], after: Sequence[Tensor], promised: Tensor, eps: float) -> list[Tensor]:
    """What [`gain_ratio`] needs of one rank: the gain, the promise, and the rounding of the losses; 0-d, no host sync.

    `before` and `after` are the losses of the same micro-batches, 0-d; `eps` is the precision of these and of the
    weights, as losses are no finer than what they are computed from.
    """
    start, end = (torch.stack([loss.double().reshape(()) for loss in losses]).mean() for losses in (before, after))
    return [start - end, promised, eps * start.abs()]


def gain_ratio(gained: float, promised: float, rounding: float, eps: float) -> tuple[float, str | None]:
    """The ratio, or [`NEUTRAL`] and why it is not measured.

    All of the update, averaged over ranks; `eps` is the precision that `rounding` was computed with.

    Example:
        >>> gain_ratio(0.001, 0.002, 1e-7, eps=1e-7)
        (0.5, None)
        >>> gain_ratio(0.0, 0.002, 1e-7, eps=1e-7)[0]
        1.0
    """
    if abs(promised) < 1e-30:
        return NEUTRAL, None
    if gained == 0.0 and abs(promised) > _FROZEN * rounding:
        return NEUTRAL, "the loss, computed again, does not follow the weights, as that of a policy gradient does not"
    if eps > _SINGLE and abs(promised) < _TOLD_APART * rounding:
        return NEUTRAL, (
            "losses or weights below float32 are too coarse to tell the losses before and after an update apart; keep "
            "the weights in float32 and train with bf16=True (autocast)"
        )
    return gained / promised, None
