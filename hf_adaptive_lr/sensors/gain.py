"""The gain ratio: by how much an update lowered its own batch's loss, over what the gradient promised for it.

Two losses are subtracted that differ by a few thousandths. A loss below float32 is rounded by as much as that, so both
are then computed once more, with what is given to torch's loss functions in float32; where that does not help, the
ratio is measured only for updates that promise more than the rounding. A loss whose value does not follow the weights
(a policy gradient's, whose ratio to the policy that sampled is 1 wherever it is computed) has none at all.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from ..distributed import Shards, local
from .grad_norm import GradNorm, dense, loss_scale
from .gradients import chunks
from .replay import RecordedPasses

NEUTRAL = 1.0
"""Stands for a gain ratio that is not measured."""
_LOSSES = frozenset(
    {
        functional.binary_cross_entropy,
        functional.binary_cross_entropy_with_logits,
        functional.cross_entropy,
        functional.huber_loss,
        functional.kl_div,
        functional.l1_loss,
        functional.log_softmax,
        functional.mse_loss,
        functional.nll_loss,
        functional.smooth_l1_loss,
    }
)
_SINGLE = torch.finfo(torch.float32).eps
_TOLD_APART = 4.0  # roundings of the loss that a promise must exceed, for an error of about a quarter
_OF_WEIGHTS = 1 / 32  # rounding of a float32 loss by coarser weights, in roundings of these
_FROZEN = 16.0  # roundings that were promised, where not one was seen


class _FineLosses(TorchFunctionMode):
    """Inside, torch's loss functions compute in float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _LOSSES:
            args, given = tuple(map(_single, args)), {name: _single(value) for name, value in given.items()}
        return func(*args, **given)


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


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


class GainProbe:
    """Keeps weights and gradients from before one update, to measure the decrease that the gradient promised for it.

    The copies cost twice the memory of the trained weights and exist only from the pre-step to the post-step hook of
    the update before a decision. The gradients are copied too because some steps change them in place.
    """

    def __init__(self, optimizer: Optimizer, shards: Shards | None, before: Mapping[int, Tensor]) -> None:
        self._scale, self._shards = loss_scale(optimizer), shards
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        params = [p for p in trained if p.grad is not None]
        self.weights = params if shards is None else shards.computed_with(trained)
        """The trained weights, as the model computes with them now; the same on all ranks."""
        copies = [local(before[id(p)]) if id(p) in before else local(p.detach()).clone() for p in params]
        gradients = [dense(local(p.grad)).clone() for p in params]
        self._kept = list(zip(params, copies, gradients, strict=True))

    @torch.no_grad()
    def promised(self, clip_factor: Tensor | float) -> Tensor:
        """-g . (w[t] - w[t-1]), with g before clipping by a factor in (0, 1]; 0-d float64, no host sync.

        Of sharded weights to be averaged over the ranks.
        """
        sums: list[Tensor] = []
        for p, before, grad in self._kept:
            parts = 1 if self._shards is None else self._shards.parts(p)
            for now, then, g in chunks([local(p.detach()), before, grad]):
                sum_ = torch.dot(g, now - then)
                sums.append(sum_ if self._shards is None else sum_.double() * parts)
        if not sums:  # a rank may have no part of any weight
            return torch.zeros((), dtype=torch.float64, device=self.weights[0].device)
        return -torch.stack(sums).double().sum() / (clip_factor * self._scale)


def _again(passes: RecordedPasses, *, fine: bool) -> list[Tensor]:
    """Losses of the micro-batches at the weights as they are now."""
    with _FineLosses() if fine else contextlib.nullcontext():
        return [passes.loss_again(number) for number in range(-max(1, len(passes)), 0)]


class GainSensor:
    """Measures the gain ratio of the updates before decisions, and keeps the last one for the decision."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._said = optimizer, False
        self.ratio = NEUTRAL
        self.clear()

    def clear(self) -> None:
        """Forget the weights from before the update."""
        self._probe: GainProbe | None = None
        self._fine: list[Tensor] | None = None

    def before_step(
        self, losses: Sequence[Tensor], passes: RecordedPasses, shards: Shards | None, before: Mapping[int, Tensor]
    ) -> None:
        """Keep weights and gradients: the update that is about to be made is one to be measured.

        Losses below float32 are computed again. `before` are copies of weights that there are already, by id.
        """
        self._probe = GainProbe(self._optimizer, shards, before)
        if precision(losses) > _SINGLE and not passes.surrogate:
            self._fine = _again(passes, fine=True)

    def after_step(
        self,
        losses: Sequence[Tensor],
        passes: RecordedPasses,
        norm: GradNorm,
        exchange: Callable[[list[Tensor]], list[float]],
    ) -> None:
        """Measure the update, if it was one to be measured; `exchange` averages numbers over ranks."""
        if self._probe is None:
            return
        # The gradient promised it for the whole update, so all its micro-batches are looked at again.
        before = losses[-max(1, len(passes)) :] if self._fine is None else self._fine
        after = before if passes.surrogate else _again(passes, fine=self._fine is not None)
        eps = max(precision([*before, *after]), precision(self._probe.weights) * _OF_WEIGHTS)
        terms = gain_terms(before, after, self._probe.promised(norm.clip_factor()), eps)
        gained, promised, rounding = exchange(terms)
        self.ratio, unmeasured = gain_ratio(gained, promised, rounding, eps)
        if unmeasured is not None and not self._said:
            self._said = True
            warnings.warn(
                f"gain_ratio is not measured, and {NEUTRAL:g} stands for it: {unmeasured} (said once)",
                UserWarning,
                stacklevel=5,
            )
