"""The KL divergence of one update: how far it moved the predictions for its own last micro-batch.

The model is called a second time, after the update, with the arguments and the dropout mask of its last pass; that is
one forward pass at the updates before decisions, and no loss is needed. Where the model returns logits the divergence
is exact, from the predictions before to those after, and a mean over at most 256 positions. Where it returns the
log-probabilities of given tokens alone (TRL's fused heads), it is Schulman's estimate from these, (r - 1) - log r with
r the ratio of new to old (http://joschu.net/blog/kl-approx.html): unbiased for tokens that the policy has drawn, and
merely a measure of change for those of a data set. A single logit is that of a preference, by its sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .predictions import find_logits
from .replay import ReplayPoint

LARGEST = 20.0
"""Nats of one position that are told apart; what is no number after an update counts as so many."""
_POSITIONS = 256  # of which the logits are kept from before an update


@dataclass(frozen=True)
class Predicted:
    """Log-probabilities at some positions: (positions, classes), or (positions,) of given tokens; weights of 0 and 1.

    Without weights all positions count.
    """

    log_probs: Tensor
    weights: Tensor | None


def predicted(output: Any, kwargs: Mapping[str, Any]) -> Predicted | None:
    """The predictions of a model's output, detached; None where it has neither `log_probs` nor `logits`.

    A bare tensor counts as logits.
    """
    given = _field(output, "log_probs")
    if given is not None:
        mask = _field(output, "label_mask")
        return Predicted(given.detach().float().flatten(), None if mask is None else mask.flatten())
    logits = output if isinstance(output, Tensor) else find_logits(output)
    if logits is None or not logits.ndim or not logits.numel():
        return None
    rows = logits.detach().flatten(0, -2) if logits.ndim > 1 else logits.detach()[None]
    weights = _mask(kwargs.get("attention_mask"), logits)
    if len(rows) > _POSITIONS:
        places = torch.linspace(0, len(rows) - 1, _POSITIONS, device=rows.device).long()
        rows, weights = rows[places], None if weights is None else weights[places]
    rows = rows.float()
    pairs = torch.cat((rows, torch.zeros_like(rows)), -1) if rows.shape[-1] == 1 else rows
    return Predicted(pairs.log_softmax(-1), weights)


def _mask(mask: Any, logits: Tensor) -> Tensor | None:
    """Which positions count; those of the last tokens where a model was asked for these alone (`logits_to_keep`)."""
    if not isinstance(mask, Tensor) or logits.ndim != 3 or mask.ndim != 2:
        return None
    if mask.shape[0] != logits.shape[0] or mask.shape[1] < logits.shape[1]:
        return None
    return mask[:, -logits.shape[1] :].flatten()


def _field(output: Any, name: str) -> Tensor | None:
    value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return value if isinstance(value, Tensor) else None


def divergence_terms(before: Predicted, after: Predicted) -> list[Tensor]:
    """Sum of the divergences of all positions that count, and their number; 0-d float64, no host sync."""
    old, new = before.log_probs.double(), after.log_probs.double()
    ratio = (new - old).clamp(-LARGEST, LARGEST)
    each = ratio.expm1() - ratio  # rounding counts by its square; summed over p, the ratio's excess is 0
    if old.ndim > 1:
        each = torch.where(old.isneginf(), 0.0, old.exp() * each).sum(-1)  # a class that was ruled out adds nothing
    each = each.nan_to_num(LARGEST, LARGEST, LARGEST).clamp(0.0, LARGEST)
    weights = torch.ones_like(each) if before.weights is None else before.weights.to(each)
    return [(each * weights).sum(), weights.sum()]


class DivergenceSensor:
    """Measures the divergence of the updates before decisions, and keeps the last one for the decision."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self.value = math.nan
        """Of the last update that was measured, or NaN."""
        self.readable = False
        """Whether a pass returned predictions, in this process."""
        self._handed_in: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the pass of this update."""
        self._again: tuple[Callable[[], Any], ReplayPoint] | None = None
        self._before: Predicted | None = None
        self._kwargs: Mapping[str, Any] = {}
        self._measures = False

    def observe(self, value: Tensor) -> None:
        """Take a divergence that somebody else measured; the next decision uses it up."""
        self._handed_in, self.readable = value.double().clamp(0.0, LARGEST), True

    def begin(self, again: Callable[[], Any], device: torch.device) -> None:
        """A pass begins whose output `again` computes once more; the last one of an update counts."""
        self._again, self._before = (again, ReplayPoint(device)), None

    def end(self, output: Any, kwargs: Mapping[str, Any], *, keep: bool) -> None:
        """The pass returned this output; `keep` is whether the update is one to be measured."""
        found = predicted(output, kwargs) if keep or not self.readable else None
        self.readable |= found is not None
        if keep:
            self._before, self._kwargs = found, kwargs

    def before_step(self) -> None:
        """The update that is about to be made is one to be measured."""
        self._measures = True

    def after_step(self, exchange: Callable[[list[Tensor]], list[float]]) -> None:
        """Measure the update, if it was one to be measured; `exchange` averages numbers over ranks."""
        if not self._measures:
            return
        terms = [torch.zeros((), dtype=torch.float64)] * 2  # a rank may have had no pass with predictions
        if self._again is not None and self._before is not None and self._model is not None:
            again, point = self._again
            with torch.no_grad(), point.again(self._model):
                after = predicted(again(), self._kwargs)
            assert after is not None  # the same call as before
            terms = divergence_terms(self._before, after)
        total, count = exchange(terms)
        self.value = total / count if count else math.nan

    def fields(self) -> dict[str, Tensor]:
        """What was handed in on this rank, and whether something was; a decision uses it up."""
        value, self._handed_in = self._handed_in, None
        zero = torch.zeros((), dtype=torch.float64)
        return {"kl": zero if value is None else value, "kl_count": zero + float(value is not None)}

    def read(self, total: float, count: float) -> float:
        """The divergence of a decision, from the means of `fields` over all ranks: the measured one if none is new."""
        return total / count if count else self.value
