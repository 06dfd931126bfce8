"""What the yardstick's rows say about a controller: its `eval_results.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import PROGRAM
from ..hub.results import RESULTS_VERSION
from .runner import Row
from .verdict_judge import paired
from .verdict_stats import Interval, judge, mean_interval
from .yardstick_methods import METHODS, Method
from .yardstick_plan import DEFAULT, PROFILES, Book, Profile, own_lr_runs, reference_runs
from .yardstick_run import YardstickRun
from .yardstick_tasks import TASKS, RealTask

METHOD_OF: Mapping[str, str] = {"universal": "universal_bundled"}
"""The method of the yardstick that is a bundled controller as it is, by the controller's name."""
TUNED = "linear, tuned"
RIVALS = (
    DEFAULT.name,
    "linear",
    "schedule_free",
    "prodigy",
    "dadapt_adam",
    "greedy_repaired",
    "finder_cosine",
    "relative",
)
"""What it is compared with at their published defaults, beside the tuned linear schedule."""
MEASURES: Mapping[str, bool] = {"test_loss": True, "test_accuracy": False}
"""What is compared, and whether lower is better."""
_PROFILE = PROFILES["full"]


def results(name: str, rows: Path) -> dict[str, Any]:
    """The `eval_results.json` of a bundled controller: the real tasks of the full profile.

    Args:
        name: of the controller.
        rows: folder with the rows that `hf-adaptive-lr bench` wrote.
    """
    command = f"{PROGRAM} bench --{_PROFILE.name} --jobs 2 --output-dir model_cards"
    return results_of(METHODS[METHOD_OF[name]], _PROFILE, Book(rows), command)


def results_of(method: Method, profile: Profile, book: Book, command: str) -> dict[str, Any]:
    """The `eval_results.json` of any controller that the yardstick has run: the real tasks of a profile.

    Args:
        method: the controller's entry.
        profile: which tasks and how many seeds.
        book: the rows.
        command: what wrote them, for whoever wants to repeat it.
    """
    found, not_tested = [], []
    for task in (task for name in profile.tasks if isinstance(task := TASKS[name], RealTask)):
        mine = _present(own_lr_runs(task, method, profile, book), book)
        if len(mine) < profile.seeds:
            not_tested.append(f"{task.name}: {task.data}, {task.model}, adamw (not run to the end)")
            continue
        others = {TUNED: _present(reference_runs(task, profile, book), book)}
        others |= {rival: _present(own_lr_runs(task, METHODS[rival], profile, book), book) for rival in RIVALS}
        note = {"note": "no learning rate given"} if method.make_controller().ignores_base_lr else {}
        found.append(_result(task, mine, others, note))
    return {"format_version": RESULTS_VERSION, "command": command, "results": found, "not_tested": not_tested}


def _present(runs: Sequence[YardstickRun], book: Book) -> dict[int, Row]:
    """The rows there are, by seed, in the words of the verdicts."""
    rows = {run.seed: book.get(run) for run in runs}
    return {seed: {**row, "diverged": row.get("failed", True)} for seed, row in rows.items() if row is not None}


def _result(
    task: RealTask, mine: Mapping[int, Row], others: Mapping[str, Mapping[int, Row]], note: Mapping[str, str]
) -> dict[str, Any]:
    first = next(iter(mine.values()))
    everybody = (row for rows in (mine, *others.values()) for row in rows.values())  # rows of sweeps are shorter
    sound = [row for row in mine.values() if not row["diverged"]]
    compared = {name: _against(mine, rows) for name, rows in others.items() if len(rows) == len(mine)}
    return {
        "task": task.name,
        **note,
        "data": task.data,
        "model": task.model,
        "optimizer": "adamw",
        "parameters": next(row["parameters"] for row in everybody if "parameters" in row),
        "updates": task.updates,
        "seeds": len(mine),
        "failed": len(mine) - len(sound),
        "learning_rate": first["lr"],
        "metrics": {what: _rounded("mean", mean_interval([row[what] for row in sound])) for what in MEASURES if sound},
        "against": {name: differences for name, differences in compared.items() if differences},
    }


def _against(mine: Mapping[int, Row], other: Mapping[int, Row]) -> dict[str, Any]:
    lost = any(mine[seed]["diverged"] and not row["diverged"] for seed, row in other.items())
    out: dict[str, Any] = {}
    for measure, lower in MEASURES.items():
        difference = paired(mine, other, measure)
        if difference is not None and math.isfinite(difference.mean) and math.isfinite(difference.half):
            word = "worse" if lost else judge(difference, lower_is_better=lower)
            out[measure] = {**_rounded("difference", difference), "word": word}
    return out


def _rounded(name: str, interval: Interval) -> dict[str, float]:
    return {name: float(f"{interval.mean:.6g}"), "half_width": float(f"{interval.half:.6g}")}
