"""A loss window that notices, in the first updates of a run, when what it hears is not the loss that is trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .forward_hook import differentiable
from .loss_window import LossWindow
from .trained_loss import TrainedLoss

_FIRST = 3  # updates of a process that are compared


class CheckedLosses(LossWindow):
    """The losses of a reader that can do with another loss of the same run, but should say that it is another.

    Feed it by `ForwardHook(model, window)`, and call `warn_of_another` once per update, after the backward passes and
    before `clear`; in the first three updates that is a host read.
    """

    def __init__(self) -> None:
        self._trained, self._left = TrainedLoss(), _FIRST
        super().__init__()

    def clear(self) -> None:
        """Empty the window: a new update begins."""
        super().clear()
        self._trained.clear()

    def pass_ended(self, loss: Tensor | None, kwargs: Mapping[str, Any], output: Any) -> None:
        """Called by the forward hook after a pass, with the loss that it found in the output, if any."""
        super().pass_ended(loss, kwargs, output)
        if loss is not None and self._left:
            self._trained.listen(loss, differentiable(output))

    def warn_of_another(self, reader: str) -> None:
        """Warn, once, if the losses of this update are not those that were differentiated; `reader` is who hears."""
        if not self._left or not self.losses:
            return
        self._left -= 1
        if float(self._trained.deviation(self.losses[-1].device)) > self._trained.tolerance():
            self._left = 0
            warnings.warn(
                f"{reader} reads the loss in the model's output, which is not the one that is trained "
                f"({self._trained.explain()}); it judges by that and by the gradient norm. AdaptiveLRTrainer hears "
                "the trained one (said once)",
                UserWarning,
                stacklevel=4,
            )
