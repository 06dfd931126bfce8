"""One line of the trace: the learning rate of an update, and the reason for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..observation import Value
from ..report.inline import facts


@dataclass(frozen=True)
class Decision:
    """The learning rates that were applied at one update, and the reason.

    Args:
        step: 0-based index of the update.
        lr: learning rate of every parameter group, as applied.
        reason: `decision`, `bounded` (the answer was outside the bounds), `between` (no decision was due), `held`
            (the rate was kept: non-finite observation or answer), `cooldown`, `handed_over` (the run fell back, see
            [`Envelope`]). `held` and `handed_over` are version 0.1's words, kept for its files.
        ramp: multiplier in [0, 1] of warm-up or cooldown, of `set_scale` and of a straight line between decisions
            (`Controller.linear_between`); 1 outside all four.
        proposed: the controller's answer (group 0), or None when it was not asked.
        bounded: the answer after bounds, as a learning rate of group 0.
        observation: the measured fields, empty when nothing was measured.
        detail: which field it was, for `held`; for `bounded` all that apply of `envelope` (away from the reference
            schedule), `factor bound` or `lr bound` (the settings', or the controller's `lr_range`) and `ratio` (too
            fast); at the first update without the controller, why the run fell back.
        sampled: share of the weights that the observed `update_ratio` was measured with, in (0, 1].
    """

    step: int
    lr: tuple[float, ...]
    reason: str
    ramp: float = 1.0
    proposed: float | None = None
    bounded: float | None = None
    observation: Mapping[str, Value] | None = None
    detail: str = ""
    sampled: float = 1.0

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
        if self.sampled < 1.0:
            row["sampled"] = self.sampled
        if self.observation:
            row["observation"] = {k: _plain(v) for k, v in self.observation.items()}
        return row

    def _repr_html_(self) -> str:
        return facts(f"Update {self.step:,}", ((k, v) for k, v in self.as_dict().items() if k != "step"))


def _plain(value: Value) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value if math.isfinite(value) else str(value)
