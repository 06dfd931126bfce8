"""Makes a controller's `eval_results.json`, which its card quotes: means, and differences paired by seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..hub.results import RESULTS_VERSION
from .rows import Row, RowsError
from .scores import TUNED
from .stats import Estimate, judge, mean_interval, paired_difference
from .tasks import Task

if TYPE_CHECKING:
    from .comparison import Comparison

Runs = Mapping[int, Row]
"""Rows by seed."""
RIVALS = (TUNED, "rule", "default", "prodigy", "schedule_free_radam", "hyperball")
"""What a controller is compared with, where it was run."""
METRICS = {
    "classes": "test_accuracy",
    "tokens": "test_token_accuracy",
    "value": "test_r2",
    "language": "test_next_token_accuracy",
    "pairs": "test_batch_accuracy",
}
"""What a row's `test_metric` is, by objective; a density's is its loss again. Imbalanced classes have macro-F1."""


def results_of(controller: str, suites: Mapping[str, Comparison], command: str) -> dict[str, Any]:
    """The `eval_results.json` of a controller that the benchmark has run: all tasks, those of the suite `test` first.

    Tasks on which it has not all its runs count as not tested.
    """
    found, not_tested = [], []
    for suite, comparison in suites.items():
        for of in comparison.rows.values():
            task = of.task
            if controller not in of.counted:
                reason = f"{task.name}: {task.data}, {task.model}, {task.optimizer} (not run to the end)"
                not_tested += [reason] if controller in of.wanted else []
                continue
            notes = ["no learning rate given"] if comparison.methods[controller].needs_no_lr else []
            parameters = next(row["setting"]["parameters"] for row in of.all() if "setting" in row)
            about = described(task, ", ".join(notes if suite == "test" else [suite, *notes]), parameters)
            metric = "test_macro_f1" if task.imbalance != 1.0 else METRICS.get(task.objective)
            runs = {name: _by_seed(of.counted[name], metric) for name in (controller, *RIVALS) if name in of.counted}
            mine = runs.pop(controller)
            measures = {"test_loss": True, **({metric: False} if metric else {})}
            try:
                found.append(result(about, mine, runs, measures, required=len(mine)))
            except RowsError:  # a body that was pretrained on another machine has other bits
                not_tested.append(f"{task.name}: {task.data}, {task.model}, {task.optimizer} (rows of two machines)")
    return {"format_version": RESULTS_VERSION, "command": command, "results": found, "not_tested": not_tested}


def described(task: Task, note: str, parameters: int) -> dict[str, Any]:
    """What an entry says of its task."""
    about = {"task": task.name, "note": note, "data": task.data, "model": task.model, "optimizer": task.optimizer}
    return {**about, "parameters": parameters, "updates": task.updates}


def _by_seed(rows: Any, metric: str | None) -> Runs:
    if metric is None or metric == "test_macro_f1":  # which has its name in the rows
        return {row["seed"]: row for row in rows}
    return {row["seed"]: {**row, metric: row.get("test_metric")} for row in rows}


def result(
    about: Mapping[str, Any], mine: Runs, others: Mapping[str, Runs], measures: Mapping[str, bool], *, required: int
) -> dict[str, Any]:
    """A task's entry in `eval_results.json`.

    `measures` says of each whether lower is better; `required` is the number of pairs below which nothing is compared.
    """
    compared = {
        name: _against(mine, runs, measures) for name, runs in others.items() if len(mine.keys() & runs) >= required
    }
    return {
        **{name: value for name, value in about.items() if value != ""},
        "seeds": len(mine),
        "failed": sum(map(failed, mine.values())),
        "learning_rate": next(iter(mine.values()))["lr"],
        "metrics": {
            measure: _rounded("mean", interval)
            for measure in measures
            if (found := list(values(mine, measure).values())) and _known(interval := mean_interval(found))
        },
        "against": {name: differences for name, differences in compared.items() if differences},
    }


def _against(mine: Runs, other: Runs, measures: Mapping[str, bool]) -> dict[str, Any]:
    """Differences over the pairs in which neither failed; a run that failed where the other did not makes it worse."""
    lost = any(failed(mine[seed]) and not failed(row) for seed, row in other.items() if seed in mine)
    out: dict[str, Any] = {}
    for measure, lower_is_better in measures.items():
        difference = paired(mine, other, measure)
        if difference is not None and _known(difference):
            word = "worse" if lost else judge(difference, lower_is_better=lower_is_better)
            out[measure] = {**_rounded("difference", difference), "word": word}
    return out


def failed(row: Row) -> bool:
    """Whether a run ended in an error or came apart."""
    return "error" in row or bool(row.get("diverged")) or row.get("test_loss") is None


def values(runs: Runs, measure: str) -> dict[int, float]:
    """A measure by seed, of the runs that did not fail."""
    return {seed: row[measure] for seed, row in runs.items() if not failed(row)}


def paired(mine: Runs, other: Runs, measure: str) -> Estimate | None:
    """Mine minus the other's, over the seeds on which neither failed; None when there are none."""
    both = values(mine, measure).keys() & values(other, measure).keys()
    for seed in both:
        if mine[seed]["pairing"] != other[seed]["pairing"]:
            names = f"{mine[seed]['method']} and {other[seed]['method']}"
            raise RowsError(f"{mine[seed]['task']}, seed {seed}: {names} are not a pair; delete the older's rows")
    return paired_difference(values(mine, measure), values(other, measure)) if both else None


def _known(interval: Estimate) -> bool:
    return math.isfinite(interval.value) and math.isfinite(interval.half)


def _rounded(name: str, interval: Estimate) -> dict[str, float]:
    return {name: float(f"{interval.value:.6g}"), "half_width": float(f"{interval.half:.6g}")}


def as_text(eval_results: Mapping[str, Any]) -> str:
    """The contents of an `eval_results.json`."""
    return json.dumps(eval_results, indent=1, allow_nan=False) + "\n"
