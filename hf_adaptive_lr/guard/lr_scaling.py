"""The learning rates that a guard cuts: those of the optimizer's groups, and of whatever scheduler writes them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer

from ..scheduler.controlled_lr import ControlledLR

_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # the last two are OneCycleLR's
_SCHEDULER_RATES = ("base_lrs", "max_lrs", "_last_lr")


@runtime_checkable
class ScalesLR(Protocol):
    """What the guard asks of a scheduler that writes learning rates at every update, as [`ControlledLR`] does."""

    def set_scale(self, scale: float) -> None:
        """From the next update on, write `scale` times what would have been written; absolute, 1.0 at the start."""


class Rates:
    """Scales what an optimizer trains with, also through the scheduler that will write it next.

    Args:
        optimizer: the raw optimizer.
        scheduler: its scheduler, in Accelerate's wrapper or not, or None.
    """

    def __init__(self, optimizer: Optimizer, scheduler: Any) -> None:
        while scheduler is not None and hasattr(scheduler, "scheduler"):  # Accelerate's wrapper
            scheduler = scheduler.scheduler
        self.optimizer, self.scheduler = optimizer, scheduler

    @property
    def written_by_scheduler(self) -> bool:
        """Whether the scheduler writes its own rates at every update, so that a cut shows only then."""
        return isinstance(self.scheduler, ScalesLR | ControlledLR)

    def now(self) -> float:
        """The learning rate of the first group that has a positive one; 0 if none has."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return next((rate for rate in rates if rate > 0), 0.0)

    def scale(self, ratio: float, factor: float) -> None:
        """Change all rates.

        Args:
            ratio: to what they are now.
            factor: to what they would be without any guard; what [`ScalesLR`] is told instead.
        """
        self.tell(factor)
        if self.written_by_scheduler:
            return
        for group in self.optimizer.param_groups:
            for name in _GROUP_RATES:
                if name in group:
                    group[name] = _scaled(group[name], ratio)
        _scale_scheduler(self.scheduler, ratio)

    def tell(self, factor: float) -> None:
        """Tell a scheduler that scales by itself what to scale by."""
        if isinstance(self.scheduler, ScalesLR):
            self.scheduler.set_scale(factor)

    def forget_losses(self) -> None:
        """Let a controller forget the losses of an update that is not going to happen."""
        if isinstance(self.scheduler, ControlledLR):
            self.scheduler.step()  # changes no rate; without an update since the last call it forgets pending losses


def _scaled(rate: Any, ratio: float) -> Any:
    return rate.mul_(ratio) if isinstance(rate, Tensor) else rate * ratio


def _scale_scheduler(scheduler: Any, ratio: float) -> None:
    for name in _SCHEDULER_RATES:
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list):
            setattr(scheduler, name, [rate * ratio for rate in rates])
    for inner in getattr(scheduler, "_schedulers", []):  # SequentialLR, ChainedScheduler
        _scale_scheduler(inner, ratio)
