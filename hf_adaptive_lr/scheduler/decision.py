"""How answers become learning rates (`Settings`) and what became of one (`Decision`, a line of the trace)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._checks import check_range
from ..controller import Controller
from ..observation import Value
from .envelope import Envelope


@dataclass(frozen=True)
class Settings:
    """How answers become learning rates.

    Args:
        total_steps: number of updates of the run, or None when unknown.
        every: updates from one decision to the next, at least 1; the first is at update 0. With neither `every` nor
            `decisions` it is the controller's own: every update for rules, what it was trained with for learned ones.
        decisions: alternatively, decisions per run, spread evenly (needs `total_steps`).
        warmup_steps: during the first `warmup_steps` updates the answer is scaled by (t + 1) / warmup_steps.
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
    warmup_steps: int = 0
    min_factor: float | None = None
    max_factor: float | None = None
    min_lr: float = 1e-8
    max_lr: float = 10.0
    seed: int = 0
    envelope: Envelope | None = None

    def check(self, controller: Controller) -> None:
        """Refuse values out of range, before any state is touched.

        Raises:
            TypeError: a value that is not a number, or an `envelope` that is none.
            ValueError: names the value, the allowed range and the way out.
        """
        for name, low in (("total_steps", 1), ("every", 1), ("decisions", 1), ("warmup_steps", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if value is not None:
                check_range(self, name, value, low, math.inf, hint=f"pass a whole number of at least {low}")
        if self.every is not None and self.decisions is not None:
            raise ValueError(f"every={self.every} and decisions={self.decisions} exclude each other; pass one of them")
        if self.total_steps is None and (self.decisions is not None or controller.needs_horizon):
            who = "decisions=" if self.decisions is not None else f"the controller '{controller.controller_type}'"
            raise ValueError(f"{who} needs the length of the run; pass total_steps=, the number of optimizer updates")
        for low_name, high_name in (("min_factor", "max_factor"), ("min_lr", "max_lr")):
            low, high = getattr(self, low_name), getattr(self, high_name)
            for name, value in ((low_name, low), (high_name, high)):
                if value is not None:
                    check_range(self, name, value, 0.0, math.inf, hint="pass a number of at least 0")
            if low is not None and high is not None and low > high:
                raise ValueError(f"{low_name}={low} is above {high_name}={high}; swap them")
        if controller.answers == "lr" and not (self.min_factor is None and self.max_factor is None):
            raise ValueError(
                f"min_factor and max_factor bound factors of the base LR, and '{controller.controller_type}' answers "
                f"with a "
                "learning rate; pass min_lr and max_lr"
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
        """Bounds of a learning-rate answer: with an envelope also those of what the controller was trained for."""
        if self.envelope is None or controller.answers != "lr" or controller.lr_range is None:
            return self.min_lr, self.max_lr
        return max(self.min_lr, controller.lr_range[0]), min(self.max_lr, controller.lr_range[1])


@dataclass(frozen=True)
class Decision:
    """What was applied at one update, and why; one line of the trace.

    Args:
        step: 0-based index of the update.
        lr: learning rate of every parameter group, as applied.
        reason: `decision`, `bounded` (the answer was outside the bounds), `between` (no decision was due), `held`
            (non-finite observation or answer), `cooldown`, `handed_over` (the controller was dismissed,
            see [`Envelope`]).
        ramp: warm-up or cooldown multiplier in [0, 1], times what `set_scale` said; 1 outside all three.
        proposed: the controller's answer (group 0), or None when it was not asked.
        bounded: the answer after bounds, as a learning rate of group 0.
        observation: the measured fields, empty when nothing was measured.
        detail: which field it was, for `held`; for `bounded` all that apply of `envelope` (away from the reference
            schedule), `factor bound` or `lr bound` (the settings', or the controller's `lr_range`) and `ratio` (too
            fast); at the first update after the hand-over, why.
    """

    step: int
    lr: tuple[float, ...]
    reason: str
    ramp: float = 1.0
    proposed: float | None = None
    bounded: float | None = None
    observation: Mapping[str, Value] | None = None
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; groups that share one learning rate are written once."""
        row: dict[str, Any] = {"step": self.step, "lr": self.lr[0], "reason": self.reason}
        if len(set(self.lr)) > 1:
            row["lrs"] = list(self.lr)
        if self.ramp != 1.0:
            row["ramp"] = self.ramp
        for name in ("proposed", "bounded"):
            if getattr(self, name) is not None:
                row[name] = getattr(self, name)
        if self.detail:
            row["detail"] = self.detail
        if self.observation:
            row["observation"] = {k: _plain(v) for k, v in self.observation.items()}
        return row


def _plain(value: Value) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value if math.isfinite(value) else str(value)
