"""Makes a controller's `eval_results.json` from the benchmark's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..hub.results import RESULTS_VERSION
from .results import result
from .rows import Row
from .yardstick_methods import METHODS, Method
from .yardstick_plan import DEFAULT, Book, Profile, own_lr_runs, reference_runs
from .yardstick_run import YardstickRun
from .yardstick_tasks import TASKS, RealTask

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
MEASURES = {"test_loss": True, "test_accuracy": False}


def results_of(method: Method, profile: Profile, book: Book, command: str) -> dict[str, Any]:
    """The `eval_results.json` of any controller that the benchmark has run: the real tasks of a profile."""
    found, not_tested = [], []
    for task in (task for name in profile.tasks if isinstance(task := TASKS[name], RealTask)):
        mine = _present(own_lr_runs(task, method, profile, book), book)
        if len(mine) < profile.seeds:
            not_tested.append(f"{task.name}: {task.data}, {task.model}, adamw (not run to the end)")
            continue
        others = {TUNED: _present(reference_runs(task, profile, book), book)}
        others |= {rival: _present(own_lr_runs(task, METHODS[rival], profile, book), book) for rival in RIVALS}
        everybody = (row for rows in (mine, *others.values()) for row in rows.values())  # rows of sweeps are shorter
        about = {
            "task": task.name,
            **({"note": "no learning rate given"} if method.make_controller().ignores_base_lr else {}),
            "data": task.data,
            "model": task.model,
            "optimizer": "adamw",
            "parameters": next(row["parameters"] for row in everybody if "parameters" in row),
            "updates": task.updates,
        }
        found.append(result(about, mine, others, MEASURES, required=len(mine)))
    return {"format_version": RESULTS_VERSION, "command": command, "results": found, "not_tested": not_tested}


def _present(runs: Sequence[YardstickRun], book: Book) -> dict[int, Row]:
    """The rows there are, by seed, in the words of the paper study."""
    rows = {run.seed: book.get(run) for run in runs}
    return {seed: {**row, "diverged": row.get("failed", True)} for seed, row in rows.items() if row is not None}
