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
        self._fresh = needed and fresh
        self.value = math.nan
        """NaN where there is none."""
        self.reported = False
        """Whether somebody reports every evaluation, so that passes in evaluation mode say nothing."""
        self._ever_observed = self._passed_by = self._said = False
        self._unreported = 0  # evaluations, each of any number of passes between two decisions
        self._first: int | None = None  # update at which this process first asked

    def observe(self, loss: Tensor) -> None:
        """Take a new evaluation loss, 0-d."""
        self.value = float(loss)
        if math.isnan(self.value):
            warnings.warn("an evaluation loss of NaN was ignored", UserWarning, stacklevel=4)

    def evaluated(self) -> None:
        """The model has just returned a loss in evaluation mode; whoever asked for it may still report it."""
        self._passed_by = not self.reported

    def check(self) -> None:
        """Before a decision: ValueError where it needs a new evaluation and there is none."""
        if self._fresh and math.isnan(self.value):
            raise ValueError(
                f"the controller needs an evaluation at every decision and none was observed; {_WAYS}. The next "
                "update is a decision where scheduler.due()"
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

    def read(self, total: float, count: float, update: int, half: int) -> float:
        """Mean evaluation loss of a decision, from the means of `fields` over all ranks; NaN where no rank has one.

        ValueError where the model was evaluated for the second time and no rank has ever reported it; the first may
        have been somebody's look at predictions, so there is only a warning. Evaluations may be rare, so where there
        are none at all there is one, too, after `half` updates.
        """
        if count:
            self._ever_observed = True
            return total / count
        if self._passed_by and not self._ever_observed:
            self._passed_by, self._unreported = False, self._unreported + 1
            text = f"the controller needs eval_loss, and the model was evaluated without a report of it; {_WAYS}"
            if self._unreported > 1:
                raise ValueError(text)
            warnings.warn(f"{text}. The next time is an error", UserWarning, stacklevel=6)
        self._first = update if self._first is None else self._first
        if not self._ever_observed and not self._said and update - self._first >= half:
            self._said = True
            warnings.warn(
                f"half of the run is over, and the controller needs eval_loss and has seen none; {_WAYS}",
                UserWarning,
                stacklevel=6,
            )
        return math.nan
