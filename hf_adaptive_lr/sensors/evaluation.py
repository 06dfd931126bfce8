"""The evaluation loss that a controller needs: who reports it, and what is said when nobody does."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

_WAYS = (
    "call observe(eval_loss=...) after each evaluation, or use AdaptiveLRTrainer(controller_dataset=...), or "
    "AdaptiveLRCallback with eval_strategy='steps'"
)


class EvaluationLoss:
    """The newest evaluation loss since the last decision.

    `needed` is whether the controller reads it, `fresh` whether it needs a new one at every decision.
    """

    def __init__(self, *, needed: bool, fresh: bool) -> None:
        self._needed, self._fresh = needed, needed and fresh
        self.value = math.nan
        """NaN where there is none."""
        self._ever_observed = self._passed_by = False

    def observe(self, loss: Tensor) -> None:
        """Take a new evaluation loss, 0-d."""
        self.value, self._ever_observed = float(loss), True
        if math.isnan(self.value):
            warnings.warn("an evaluation loss of NaN was ignored", UserWarning, stacklevel=4)

    def evaluated(self) -> None:
        """The model has just returned a loss in evaluation mode; whoever asked for it may still report it."""
        self._passed_by = True

    def check(self, *, due: bool, halfway: bool) -> None:
        """Before an update. ValueError where a needed evaluation is missing, or was made and not reported.

        Evaluations may be rare, so without any there is only a warning, half-way through the run.
        """
        if due and self._fresh and math.isnan(self.value):
            raise ValueError(
                f"the controller needs an evaluation at every decision and none was observed; {_WAYS}. A decision "
                "is near where scheduler.due()"
            )
        if not self._needed or self._ever_observed:
            return
        if self._passed_by:
            raise ValueError(
                f"the controller needs eval_loss, and the model was evaluated without a report of it; {_WAYS}"
            )
        if halfway:
            warnings.warn(
                f"half of the run is over, and the controller needs eval_loss and has seen none; {_WAYS}",
                UserWarning,
                stacklevel=4,
            )

    def fields(self) -> dict[str, Tensor]:
        """`eval_loss` and `eval_count` of this rank, as perhaps only some ranks evaluated; a decision uses them up."""
        fresh = not math.isnan(self.value)
        values = {
            "eval_count": torch.tensor(float(fresh), dtype=torch.float64),
            "eval_loss": torch.tensor(self.value if fresh else 0.0, dtype=torch.float64),
        }
        self.value = math.nan
        return values
