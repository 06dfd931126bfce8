"""Mean and scatter of the training losses since the last decision, which one batch's loss cannot tell."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MEAN_FIELDS = frozenset({"mean_loss", "mean_loss_error"})
SUMS = ("loss_count", "loss_sum", "loss_squares")


class RunningLoss:
    """Number, sum and sum of squares of the losses of updates; on their device until a decision reads them."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """An update was applied; `loss` is 0-d float64. No host sync."""
        new = torch.stack([torch.ones_like(loss), loss, loss * loss])
        self._sums = new if self._sums is None else self._sums + new

    def fields(self, loss: Tensor) -> dict[str, Tensor]:
        """Sums over the updates since the last decision; of none, the loss of the update that is due."""
        self._sums, sums = None, self._sums
        if sums is None:
            sums = torch.stack([torch.ones_like(loss), loss, loss * loss])
        return dict(zip(SUMS, sums, strict=True))

    def state_dict(self) -> list[float] | None:
        """The sums as numbers."""
        return None if self._sums is None else self._sums.tolist()

    def load_state_dict(self, state: list[float] | None, device: Any) -> None:
        """Take back what `state_dict` gave."""
        self._sums = None if state is None else torch.tensor(state, dtype=torch.float64, device=device)


def read_mean(sums: dict[str, Any]) -> dict[str, float]:
    """The fields from the sums, which are taken out."""
    count, total, squares = (sums.pop(name) for name in SUMS)
    mean = total / count
    # The variance of equal losses comes out as a rounding of their square.
    spread = max(squares / count - mean * mean, 0.0)
    error = math.sqrt(spread / (count - 1)) if count > 1 else 0.0
    return {"mean_loss": mean, "mean_loss_error": error}
