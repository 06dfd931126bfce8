"""What a controller would have answered, had it watched a recorded run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_adaptive_lr import AutoController, Controller
from hf_adaptive_lr.auto import known_names
from hf_adaptive_lr.observation import OPTIONAL_FIELDS, OUTCOME_FIELDS
from hf_adaptive_lr.scheduler.config import SchedulerConfig
from hf_adaptive_lr.scheduler.decision import Decision
from hf_adaptive_lr.scheduler.runtime import ControllerRun

RUNS = Path(__file__).parent / "runs"


@dataclass(frozen=True)
class Recorded:
    """A run that is over: what was seen at every update, and the learning rate that was applied."""

    title: str
    text: str
    lr: list[float]
    fields: Mapping[str, list[float]]


def load_runs(folder: Path = RUNS) -> dict[str, Recorded]:
    """Recorded runs by title."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        raw = json.loads(path.read_text(encoding="utf-8"))
        fields = {name: raw[name] for name in OPTIONAL_FIELDS if name in raw}
        found[raw["title"]] = Recorded(raw["title"], raw["text"], raw["lr"], fields)
    return found


def playable(run: Recorded) -> list[str]:
    """Names of the controllers that need nothing that was not recorded."""
    names = known_names()
    return [name for name in names if not _missing(AutoController.from_pretrained(name), run)]


def _missing(controller: Controller, run: Recorded) -> set[str]:
    return set(controller.needs & (OPTIONAL_FIELDS.keys() | OUTCOME_FIELDS.keys())) - set(run.fields)


def answers(run: Recorded, name: str, base_lr: float) -> list[Decision]:
    """One decision per update of the run, as the controller would have made it.

    What it sees is what happened, not what its own learning rates would have brought about: it watches, and does not
    drive. The first learning rate that it hears of is its own.

    Args:
        run: the recorded run.
        name: a controller, as [`AutoController`] takes it.
        base_lr: the user's learning rate, in [1e-8, 10].

    Raises:
        ValueError: a learning rate out of range, or a controller that needs what was not recorded.
    """
    if not (math.isfinite(base_lr) and 1e-8 <= base_lr <= 10):
        raise ValueError(f"learning rate {base_lr} is outside [1e-8, 10]")
    controller = AutoController.from_pretrained(name)
    missing = _missing(controller, run)
    if missing:
        raise ValueError(f"'{name}' needs {sorted(missing)[0]}, which was not recorded")
    controlled = ControllerRun(controller, [base_lr], SchedulerConfig(total_steps=len(run.lr)))
    wanted = sorted(controller.needs & run.fields.keys())

    def observe(update: int, lr: float) -> dict[str, float]:
        seen = {field: run.fields[field][update] for field in wanted}
        if "update_ratio" in seen and update > 0 and run.lr[update - 1] > 0:
            # The size of the last update belongs to the rate that was applied; the controller hears of its own.
            seen["update_ratio"] *= lr / run.lr[update - 1]
        return seen

    return controlled.simulate(len(run.lr), observe)


def told(decisions: list[Decision]) -> list[list[str]]:
    """The decisions as a table: update, learning rate, why, what was seen."""
    rows = []
    for decision in decisions:
        if decision.reason == "between":
            continue
        seen = ", ".join(f"{name} {value:.3g}" for name, value in (decision.observation or {}).items())
        rows.append([str(decision.step), f"{decision.lr[0]:.3g}", decision.reason, seen])
    return rows
