"""Picture of a controller's schedule for its card: recorded in its training, or simulated without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..cadence import Cadence, simulate
from ..observation import Observation
from .markdown import finite

if TYPE_CHECKING:
    from ..controller import Controller

_UPDATES, _BASE_LR, _LOW, _HIGH = 200, 1e-3, 1e-7, 10.0  # of the simulated run; the bounds are the scheduler's
_CLASSES = 10.0
_MOST_POINTS = 10_000


class _NotFiniteError(Exception):
    """The simulated controller answered with a number that is not finite."""


def draw_schedules(controller: Controller, path: Path, training: Mapping[str, Any] | None = None) -> bool:
    """Draw the controller's factor over a run into a PNG file; the same input gives the same bytes.

    A `factor_curve` recorded in its `training.json` is drawn instead of a simulated run. Returns whether it was drawn:
    not without matplotlib, and not for controllers that need signals of a real run.
    """
    found = schedule(controller, training)
    if found is None:
        return False
    try:
        from matplotlib.figure import Figure  # without pyplot: no global backend, no window
    except ModuleNotFoundError:
        return False
    curve, title = found
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True), color="tab:orange", linewidth=1.5)
    axes.set(xlabel="share of the run", ylabel="factor of the base LR", xlim=(0, 1), ylim=(0, None))
    axes.set_title(f"{controller.controller_type}: {title}", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
    return True


def schedule(
    controller: Controller, training: Mapping[str, Any] | None = None
) -> tuple[list[tuple[float, float]], str] | None:
    """Points (share of the run, factor of the base LR) and their origin; None if it needs a real run."""
    recorded = _recorded(training)
    if recorded:
        return recorded, "recorded in its training"
    if not controller.needs <= {"loss", "eval_loss", "classes"}:
        return None
    factors = _simulated(controller)
    if factors is None:
        return None
    where = "simulated, on a loss that falls smoothly" if controller.needs else "simulated"
    return [(update / _UPDATES, factor) for update, factor in enumerate(factors)], where


def _recorded(training: Mapping[str, Any] | None) -> list[tuple[float, float]]:
    points = training.get("factor_curve") if isinstance(training, Mapping) else None
    if not isinstance(points, list) or not 2 <= len(points) <= _MOST_POINTS:
        return []
    usable = all(isinstance(p, list) and len(p) == 2 and all(finite(v) and 0 <= v <= 1e9 for v in p) for p in points)
    return [(float(share), float(factor)) for share, factor in points] if usable else []


def _simulated(controller: Controller) -> list[float] | None:
    base = torch.tensor(_BASE_LR, dtype=torch.float64)
    cadence, state = Cadence(_UPDATES, decisions=controller.decisions, rule=controller.due), controller.init(seed=0)

    def advance(update: int, lr: float) -> float:
        nonlocal state
        if not cadence.due(update):
            return lr
        level = math.log(_CLASSES) * (0.1 + 0.9 * math.exp(-4 * update / _UPDATES))
        made = {"loss": level, "eval_loss": level, "classes": _CLASSES}
        fields = {name: torch.tensor(made[name], dtype=torch.float64) for name in controller.needs}
        now = torch.tensor(lr, dtype=torch.float64)
        seen = Observation(step=update, total_steps=_UPDATES, lr=now, base_lr=base, **fields)
        with torch.no_grad():
            answer, state = controller.decide(seen, state)
        value = float(answer.reshape(-1)[0])
        if not math.isfinite(value):
            raise _NotFiniteError
        return min(max(_BASE_LR * value if controller.answers == "factor" else value, _LOW), _HIGH)

    try:
        return [lr / _BASE_LR for lr in simulate(range(_UPDATES), _BASE_LR, advance)]
    except _NotFiniteError:
        return None
