"""The safety envelope: keeps a controller's answers near a schedule that works; falls back from one that goes astray.

A controller that was trained on toys, or not at all, may answer anything. Inside an envelope its answers stay near a
schedule that works, its moves are slow enough to be survived, and after too many corrections in succession the
run falls back: it goes on without the controller, and the learning rate falls linearly to zero over what is left.
Plain Python; [`ControllerRun`] applies it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal, get_args

from .._checks import check_range

Fallback = Literal["base", "auto"]

_SMALL_LOSS = 1e-4  # above it losses count by their logarithm, below it, where falls do not matter, as they are
_PER_UPDATE, _PER_DECISION = 10, 3  # losses in a window: as many as make a steady median, or as few as there are


@dataclass(frozen=True)
class Envelope:
    """Limits on a controller's answers, on its moves, and on its mistakes in succession.

    - A learning rate is kept within `low` ... `high` times the reference schedule: from the base LR linear to zero
      over the run, or constant where `total_steps` is unknown. One that is answered as such, and not as a factor, is
      also kept within the controller's `lr_range`, which goes first.
    - From one decision to the next it moves by at most `max_ratio`, also into these bounds. The first move is measured
      against the base LR; for factor answers the first after `extend` against the reference schedule.
    - An answer that had to be corrected is a mistake of the controller, as is one that is not finite, or would be made
      from a signal that is not, where the LR is kept. But an answered learning rate far from the reference schedule
      is no mistake, as the controller may have to correct the base LR; nor is any answer after the planned end. After
      `patience` mistakes in succession the run falls back.
    - Controllers that ignore the base LR (`Controller.ignores_base_lr`) have neither the reference schedule nor
      `max_ratio`, only the `lr_range`, and their line begins at the rate of `fallback="auto"`, or where none is known
      at the last one applied.
    - Then, or when `ControlledLR.fall_back` is called, the controller is asked no more, and the LR falls on a straight
      line from a peak to zero over what is left of the run; it stays at the peak where `total_steps` is unknown. Late
      in the run the line begins at `high` times the reference schedule of the peak, if that is less: a leap back to
      the peak costs more than the few updates that are left can repair.

    Args:
        low: smallest factor of the reference schedule, in [0, 1].
        high: largest factor, in [1, 1e6]; a large one lets a controller that answers with learning rates look for the
            right one, and make any mistake on the way.
        max_ratio: largest change in one decision, up or down, in [1.01, 1e6].
        patience: mistakes in succession after which the run falls back, 1 ... 1,000,000.
        fallback: peak of the line: the "base" learning rates, or "auto" for the learning rate under which the loss
            fell fastest so far (the base as long as none is known), with the groups in their base ratios.

    Raises:
        TypeError: a value that is not a number.
        ValueError: a value out of range.

    Example:
        >>> from hf_adaptive_lr.controllers import Replay
        >>> from hf_adaptive_lr.scheduler.config import SchedulerConfig
        >>> from hf_adaptive_lr.scheduler.runtime import ControllerRun
        >>> wild = Replay(progress=(0.0,), factors=(1e6,))
        >>> run = ControllerRun(wild, [0.1], SchedulerConfig(total_steps=8, envelope=Envelope(max_ratio=1.5)))
        >>> [round(run.advance({}).lr[0], 4) for _ in range(4)]
        [0.15, 0.225, 0.3, 0.25]
    """

    low: float = 0.25
    high: float = 4.0
    max_ratio: float = 2.0
    patience: int = 8
    fallback: Fallback = "base"

    def __post_init__(self) -> None:
        check_range(self, "low", self.low, 0.0, 1.0, hint="1 allows nothing below the reference schedule")
        check_range(self, "high", self.high, 1.0, 1e6, hint="1 allows nothing above the reference schedule")
        check_range(self, "max_ratio", self.max_ratio, 1.01, 1e6, hint="2 lets the LR double or halve in a decision")
        check_range(self, "patience", self.patience, 1, 1_000_000, hint="it is a number of decisions", whole=True)
        if self.fallback not in get_args(Fallback):
            raise ValueError(f"Envelope: fallback={self.fallback!r} is unknown; choose one of {get_args(Fallback)}")

    def keep(self, values: Sequence[float], references: Sequence[float]) -> list[float]:
        """Values, each within the bounds around that of the reference schedule."""
        pairs = zip(values, references, strict=False)  # perhaps group 0 only
        return [min(max(value, self.low * center), self.high * center) for value, center in pairs]

    def slow(self, lrs: Sequence[float], before: Sequence[float]) -> list[float]:
        """Learning rates, each within `max_ratio` of the one before."""
        pairs = zip(lrs, before, strict=True)
        return [min(max(lr, was / self.max_ratio), was * self.max_ratio) for lr, was in pairs]


def reference(update: int, total_steps: int | None) -> float:
    """Factor of the reference schedule: linear to zero, or 1 where the length of the run is unknown."""
    return 1.0 if total_steps is None else max(0.0, 1.0 - update / total_steps)


class BestRate:
    """The learning rate that worked best: under which the median loss of a window fell most below all before it.

    Windows of neighbouring losses are compared by medians of their logarithms, so that a single batch counts little
    and the end of a run as much as its beginning. A fall that only repairs an earlier rise does not count.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        """Geometric mean over the best window; None until the loss has fallen."""
        self._fall = 0.0
        self._lowest: float | None = None
        self._window: list[tuple[float, float]] = []  # log of the LR, level of the loss

    def note(self, lr: float, loss: float, size: int = _PER_UPDATE) -> None:
        """Take in the loss that an applied learning rate led to; `size` of them make a window.

        A loss that is not finite discards the window it falls into, as does an LR of 0.
        """
        level = math.asinh(loss / _SMALL_LOSS)
        if not (math.isfinite(level) and math.isfinite(lr) and lr > 0):
            self._window = []
            return
        self._window.append((math.log(lr), level))
        if len(self._window) < size:
            return
        middle = median(level for _, level in self._window)
        if self._lowest is not None and self._lowest - middle > self._fall:
            self._fall, self.rate = self._lowest - middle, math.exp(fmean(log_lr for log_lr, _ in self._window))
        self._lowest = middle if self._lowest is None else min(self._lowest, middle)
        self._window = []

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        window = [list(entry) for entry in self._window]
        return {"rate": self.rate, "fall": self._fall, "lowest": self._lowest, "window": window}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`; an empty one begins anew."""
        self.rate, self._lowest = state.get("rate"), state.get("lowest")
        self._fall = float(state.get("fall", 0.0))
        self._window = [(float(log_lr), float(level)) for log_lr, level in state.get("window", [])]


class EnvelopeMonitor:
    """Watches one run inside an envelope: counts mistakes, finds the best learning rate, and keeps the fallback.

    With None as the envelope nothing ever happens; `free` controllers ignore the base LR and cannot fall back to it.
    """

    def __init__(self, envelope: Envelope | None, *, free: bool = False) -> None:
        self.envelope, self.free = envelope, free
        self.best = BestRate()
        self._begin({})

    def _begin(self, state: Mapping[str, Any]) -> None:
        self.mistakes = int(state.get("mistakes", 0))
        self.fresh = bool(state.get("fresh", False))
        """Whether the next move is measured against the reference schedule."""
        self.rate: float | None = state.get("rate")
        """Learning rate of the last update as applied, of the reference group; None before the first."""
        self.told = bool(state.get("told", False))
        """Whether somebody notes the loss of every update."""
        self.reason: str | None = state.get("reason")
        """Why the run fell back; None while the controller is in charge."""
        self.since = int(state.get("since", 0))
        """The first update without the controller."""
        self.peak, self.high = float(state.get("peak", 1.0)), float(state.get("high", 1.0))
        """Where the line begins: a factor of the base LRs, and of the reference schedule if that is lower."""

    def judge(self, mistaken: bool) -> bool:
        """Count a decision; returns whether patience is exhausted."""
        if self.envelope is None:
            return False
        self.mistakes = self.mistakes + 1 if mistaken else 0
        return self.mistakes >= self.envelope.patience

    def note(self, loss: float, *, every_update: bool) -> None:
        """Pair a loss with the learning rate that led to it, for `fallback="auto"`.

        Once a caller notes every update, losses seen at decisions are no longer needed.
        """
        self.told |= every_update
        if self.envelope is not None and self.reason is None and self.rate is not None and self.told == every_update:
            self.best.note(self.rate, loss, _PER_UPDATE if every_update else _PER_DECISION)

    def fall_back(self, reason: str, update: int, base_lr: float) -> None:
        """Go on without the controller from `update` on; `base_lr` is that of the reference group."""
        self.reason, self.since = reason, update
        if self.envelope is None:
            return
        self.high = self.envelope.high
        peak = self.best.rate if self.free or self.envelope.fallback == "auto" else None
        if peak is None and self.free:
            peak = self.rate
        if peak is not None:
            self.peak = peak / base_lr

    def factor(self, update: int, total_steps: int | None) -> float:
        """Factor of the base learning rates at an update after the run fell back."""
        if total_steps is None:
            return self.peak
        left = (total_steps - update) / max(1, total_steps - self.since)
        start = self.peak * min(1.0, self.high * reference(self.since, total_steps))
        return start * min(1.0, max(0.0, left))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        names = ("mistakes", "fresh", "rate", "told", "reason", "since", "peak", "high")
        return {**{name: getattr(self, name) for name in names}, "best": self.best.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`; an empty one, of a run without an envelope, begins anew."""
        self._begin(state)
        self.best.load_state_dict(state.get("best", {}))
