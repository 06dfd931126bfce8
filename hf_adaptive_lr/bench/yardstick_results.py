"""Makes a controller's `eval_results.json` from the benchmark's rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..hub.results import RESULTS_VERSION
from .rows import Row
from .stats import Estimate, judge, mean_interval
from .verdict_judge import Runs, paired, values
from .verdict_papers import LOWER_IS_BETTER, Measure
from .verdict_plan import failed
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
MEASURES: tuple[Measure, ...] = ("test_loss", "test_accuracy")


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
        found.append(result(about, mine, others, required=len(mine)))
    return {"format_version": RESULTS_VERSION, "command": command, "results": found, "not_tested": not_tested}


def _present(runs: Sequence[YardstickRun], book: Book) -> dict[int, Row]:
    """The rows there are, by seed, in the words of the paper study."""
    rows = {run.seed: book.get(run) for run in runs}
    return {seed: {**row, "diverged": row.get("failed", True)} for seed, row in rows.items() if row is not None}


def result(about: Mapping[str, Any], mine: Runs, others: Mapping[str, Runs], *, required: int) -> dict[str, Any]:
    """A task's entry in `eval_results.json`; `required` is the number of pairs below which nothing is compared."""
    compared = {name: _against(mine, runs) for name, runs in others.items() if len(mine.keys() & runs) >= required}
    return {
        **about,
        "seeds": len(mine),
        "failed": sum(map(failed, mine.values())),
        "learning_rate": next(iter(mine.values()))["lr"],
        "metrics": {
            measure: _rounded("mean", interval)
            for measure in MEASURES
            if (found := list(values(mine, measure).values())) and _known(interval := mean_interval(found))
        },
        "against": {name: differences for name, differences in compared.items() if differences},
    }


def _against(mine: Runs, other: Runs) -> dict[str, Any]:
    """Differences over the pairs in which neither failed; a run that failed where the other did not makes it worse."""
    lost = any(failed(mine[seed]) and not failed(row) for seed, row in other.items() if seed in mine)
    out: dict[str, Any] = {}
    for measure in MEASURES:
        difference = paired(mine, other, measure)
        if difference is not None and _known(difference):
            word = "worse" if lost else judge(difference, lower_is_better=LOWER_IS_BETTER[measure])
            out[measure] = {**_rounded("difference", difference), "word": word}
    return out


def _known(interval: Estimate) -> bool:
    return math.isfinite(interval.value) and math.isfinite(interval.half)


def _rounded(name: str, interval: Estimate) -> dict[str, float]:
    return {name: float(f"{interval.value:.6g}"), "half_width": float(f"{interval.half:.6g}")}


def as_text(eval_results: Mapping[str, Any]) -> str:
    """The contents of an `eval_results.json`."""
    return json.dumps(eval_results, indent=1, allow_nan=False) + "\n"
