"""The settings of a controlled learning rate: when the controller is asked, and which bounds its answers have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

from .._checks import check_range
from ..controller import Controller
from .envelope import Envelope


class SchedulerOptions(TypedDict, total=False):
    """Keyword arguments that make a [`SchedulerConfig`], which documents them."""

    total_steps: int | None
    every: int | None
    decisions: int | None
    warmup_steps: int | None
    min_factor: float | None
    max_factor: float | None
    min_lr: float
    max_lr: float
    seed: int
    envelope: Envelope | None


@dataclass(frozen=True)
class SchedulerConfig:
    """When the controller is asked, and how its answers become learning rates.

    Args:
        total_steps: number of updates of the run, or None when unknown.
        every: updates from one decision to the next, at least 1; the first is at update 0. With neither `every` nor
            `decisions` it is the controller's own: every update for rules, as in its training for learned ones.
        decisions: alternatively, decisions per run, spread evenly (needs `total_steps`).
        warmup_steps: during the first `warmup_steps` updates the answer is scaled by (t + 1) / warmup_steps; None
            leaves it to the controller (`Controller.warmup`).
        min_factor: smallest factor of the base LR for controllers that answer with a factor, or None.
        max_factor: largest factor, or None.
        min_lr: smallest learning rate of the reference group (the first with a positive base LR).
        max_lr: largest learning rate of the reference group.
        seed: seed of the controller's own draws; use the same on all ranks.
        envelope: how far the controller is trusted, None for as far as the other settings go.
    """

    total_steps: int | None = None
    every: int | None = None
    decisions: int | None = None
    warmup_steps: int | None = None
    min_factor: float | None = None
    max_factor: float | None = None
    min_lr: float = 1e-8
    max_lr: float = 10.0
    seed: int = 0
    envelope: Envelope | None = None

    def check(self, controller: Controller) -> None:
        """Fails fast, before any state is touched: TypeError for another type, ValueError for a value out of range."""
        for name, low in (("total_steps", 1), ("every", 1), ("decisions", 1), ("warmup_steps", 0)):
            value = getattr(self, name)
            if value is not None:
                hint = f"pass a whole number of at least {low}"
                check_range(self, name, value, low, math.inf, hint=hint, whole=True)
        if self.every is not None and self.decisions is not None:
            raise ValueError(f"every={self.every} and decisions={self.decisions} exclude each other; pass one of them")
        if self.total_steps is None and (self.decisions is not None or controller.needs_horizon):
            who = "decisions=" if self.decisions is not None else f"the controller '{controller.controller_type}'"
            raise ValueError(f"{who} needs the length of the run; pass total_steps=, the number of optimizer updates")
        for low_name, high_name in (("min_factor", "max_factor"), ("min_lr", "max_lr")):
            low, high = getattr(self, low_name), getattr(self, high_name)
            for name, value in ((low_name, low), (high_name, high)):
                if value is not None or name.endswith("lr"):  # a factor may be unbounded
                    check_range(self, name, value, 0.0, math.inf, hint="pass a number of at least 0")
            if low is not None and high is not None and low > high:
                raise ValueError(f"{low_name}={low} is above {high_name}={high}; swap them")
        if controller.answers == "lr" and not (self.min_factor is None and self.max_factor is None):
            raise ValueError(
                f"min_factor and max_factor bound factors of the base LR, and '{controller.controller_type}' answers "
                "with a learning rate; pass min_lr and max_lr"
            )
        self._check_envelope(controller)

    def _check_envelope(self, controller: Controller) -> None:
        if not isinstance(self.envelope, Envelope | None):
            raise TypeError(f"envelope must be an Envelope or None, got {self.envelope!r}; Envelope() is the default")
        low, high = self.lr_bounds(controller)
        if not low <= high:
            raise ValueError(
                f"'{controller.controller_type}' knows learning rates in lr_range={controller.lr_range}, and [min_lr="
                f"{self.min_lr}, max_lr={self.max_lr}] has none of them; change one of them, or pass no envelope"
            )

    def lr_bounds(self, controller: Controller) -> tuple[float, float]:
        """Bounds of a learning-rate answer: with an envelope also those of the controller's training."""
        if self.envelope is None or controller.answers != "lr" or controller.lr_range is None:
            return self.min_lr, self.max_lr
        return max(self.min_lr, controller.lr_range[0]), min(self.max_lr, controller.lr_range[1])
