"""Bounds the learning rates of an answer, by the settings and by an envelope if there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..controller import Controller
from .config import SchedulerConfig

_SAME = 1e-9  # relative: a schedule that halves exactly is not to be blamed for its rounding


class Bounded(NamedTuple):
    """An answer after all bounds: rates of all groups, the bounds it was outside of ("" for none), and the verdict.

    `mistaken` is whether an envelope counts it as a mistake of the controller.
    """

    lrs: list[float]
    detail: str
    mistaken: bool


class Bounds:
    """Turns answers (factors or learning rates) into learning rates within the bounds of a checked config."""

    def __init__(self, config: SchedulerConfig, controller: Controller) -> None:
        self._config, self._answers = config, controller.answers
        self._free = controller.ignores_base_lr
        self._low, self._high = config.lr_bounds(controller)

    def check(self, base_lrs: Sequence[float]) -> None:
        """ValueError unless base LRs are finite, >= 0, one above 0, and the reference group's within the bounds."""
        low, high = self._config.min_lr, self._config.max_lr
        if not any(lr > 0 for lr in base_lrs) or min(base_lrs) < 0 or not all(math.isfinite(lr) for lr in base_lrs):
            raise ValueError(f"base learning rates {base_lrs}: all must be finite and >= 0, and one above 0; set lr=")
        lr = base_lrs[reference_group(base_lrs)]
        if not low <= lr <= high:
            raise ValueError(f"learning rate {lr} is outside [min_lr={low}, max_lr={high}]; change one of them")
        if self._answers == "lr" and base_lrs[0] == 0:
            raise ValueError(
                "group 0 has learning rate 0 and the controller answers with its learning rate; give it one > 0"
            )

    def apply(self, values: list[float], base_lrs: list[float], before: Sequence[float], reference: float) -> Bounded:
        """Learning rates for an answer of one finite number, or one for each group.

        `before` are the LRs that the move is measured against, `reference` is the envelope's schedule's factor now.
        """
        envelope = self._config.envelope
        if envelope is None:
            return Bounded(*self._by_settings(values, base_lrs), mistaken=False)
        if self._free:  # the base LR is no measure for the answers of such a controller
            lrs, detail = self._by_settings(values, base_lrs)
            return Bounded(lrs, detail, mistaken=bool(detail))
        units = base_lrs if self._answers == "lr" else [1.0] * len(base_lrs)
        kept = envelope.keep(values, [unit * reference for unit in units])
        lrs, detail = self._by_settings(kept, base_lrs)
        slowed = envelope.slow(lrs, before)
        out, fast = _differ(kept, values), _differ(slowed, lrs)
        mistaken = out or fast
        if self._answers == "lr":  # a mistake only outside its own range, or where it moves too fast
            lrs, outside = self._by_settings(values, base_lrs)
            mistaken = bool(outside) or _differ(envelope.slow(lrs, before), lrs)
            detail = detail or outside
        details = ("envelope" if out else "", detail, "ratio" if fast else "")
        return Bounded(slowed, ", ".join(filter(None, details)), mistaken)

    def at(self, factor: float, base_lrs: Sequence[float]) -> tuple[list[float], str]:
        """Learning rates of all groups at one factor of their base, with that of the reference group in bounds."""
        base = base_lrs[reference_group(base_lrs)]
        target = _clamp(base * factor, self._config.min_lr, self._config.max_lr)
        changed = target != base * factor
        factor = target / base if changed else factor
        return [lr * factor for lr in base_lrs], "lr bound" if changed else ""

    def _by_settings(self, values: list[float], base_lrs: list[float]) -> tuple[list[float], str]:
        if self._answers == "lr":
            kept, detail = self._bound_lrs(values, base_lrs)
            ratios = [lr / base_lrs[0] for lr in base_lrs]
            return [kept[0] * ratio for ratio in ratios] if len(values) == 1 else kept, detail
        clamped = [_clamp(v, self._config.min_factor, self._config.max_factor) for v in values]
        at = "factor bound" if clamped != values else ""
        if len(clamped) > 1:
            lrs, detail = self._bound_lrs([f * b for f, b in zip(clamped, base_lrs, strict=True)], base_lrs)
        else:
            lrs, detail = self.at(clamped[0], base_lrs)
        return lrs, at or detail

    def _bound_lrs(self, lrs: list[float], base_lrs: list[float]) -> tuple[list[float], str]:
        """Each learning rate within bounds; groups that are not trained stay so."""
        pairs = list(zip(lrs, base_lrs, strict=False))  # perhaps group 0 only
        kept = [0.0 if base == 0 else _clamp(lr, self._low, self._high) for lr, base in pairs]
        changed = any(k != lr and base != 0 for k, (lr, base) in zip(kept, pairs, strict=True))
        return kept, "lr bound" if changed else ""


def reference_group(base_lrs: Sequence[float]) -> int:
    """Index of the group that bounds apply to: the first with a positive base LR, as the others are not trained."""
    return next(i for i, lr in enumerate(base_lrs) if lr > 0)


def _clamp(value: float, low: float | None, high: float | None) -> float:
    if low is not None and value < low:
        return low
    return high if high is not None and value > high else value


def _differ(kept: list[float], values: list[float]) -> bool:
    return any(not math.isclose(k, v, rel_tol=_SAME) for k, v in zip(kept, values, strict=True))
