"""Held-out results: the format of `eval_results.json`, checked, and its sections of a card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .markdown import escaped, finite, measured, number, shell, signed, table, text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

RESULTS_VERSION = 1
"""Format of `eval_results.json`; a newer one fails."""
WORDS = ("better", "worse", "no difference")
MOST_RESULTS = 1000
"""Entries of a list that a card shows."""

_NAMES, _COUNTS = ("task", "data", "model", "optimizer"), ("parameters", "updates", "seeds")


def check_results(eval_results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The results in a parsed `eval_results.json`; ValueError names a missing key or a value of the wrong type."""
    _need(isinstance(eval_results, Mapping), "it must be an object")
    version = eval_results.get("format_version")
    _need(isinstance(version, int) and not isinstance(version, bool), "'format_version' must be a whole number")
    _need(version == RESULTS_VERSION, f"format {escaped(version)} is not {RESULTS_VERSION}; upgrade hf_adaptive_lr")
    _need(isinstance(eval_results.get("command"), str), "'command' must be text")
    not_tested, results = eval_results.get("not_tested"), eval_results.get("results")
    _need(isinstance(not_tested, list) and all(isinstance(v, str) for v in not_tested), "'not_tested' must be texts")
    _need(isinstance(results, list) and len(results) <= MOST_RESULTS, "'results' must be a list, not endless")
    found: list[Mapping[str, Any]] = list(results or [])
    for place, result in enumerate(found):
        _check_result(result, f"results[{place}]")
    return found


def _check_result(result: Any, where: str) -> None:
    _need(isinstance(result, Mapping), f"{where} must be an object")
    for name in _NAMES:
        _need(isinstance(result.get(name), str), f"{where}: '{name}' must be text")
    for name in _COUNTS:
        value = result.get(name)
        _need(isinstance(value, int) and finite(value), f"{where}: '{name}' must be a whole number")
    _need(finite(result.get("learning_rate")), f"{where}: 'learning_rate' must be a number")
    _need(isinstance(result.get("note", ""), str), f"{where}: 'note' must be text")
    _need(
        isinstance(result.get("failed", 0), int) and finite(result.get("failed", 0)),
        f"{where}: 'failed' must be a count",
    )
    metrics, against = result.get("metrics"), result.get("against")
    _need(
        isinstance(metrics, Mapping) and isinstance(against, Mapping), f"{where}: 'metrics' and 'against' are missing"
    )
    for name, value in metrics.items():
        _check_numbers(value, ("mean", "half_width"), f"{where}: metrics.{escaped(name)}")
    for rival, differences in against.items():
        place = f"{where}: against.{escaped(rival)}"
        _need(isinstance(differences, Mapping), f"{place} must be an object")
        for name, value in differences.items():
            _check_numbers(value, ("difference", "half_width"), f"{place}.{escaped(name)}")
            _need(value.get("word") in WORDS, f"{place}.{escaped(name)}: 'word' must be one of {', '.join(WORDS)}")


def _check_numbers(value: Any, keys: Iterable[str], where: str) -> None:
    _need(isinstance(value, Mapping), f"{where} must be an object")
    for key in keys:
        _need(finite(value.get(key)), f"{where}: '{key}' must be a finite number")


def _need(met: bool, what: str) -> None:
    if not met:
        raise ValueError(f"eval_results.json: {what}")


def entries(results: Sequence[Mapping[str, Any]]) -> Iterator[EvalResult]:
    """The results as the Hub lists them in a card's front matter."""
    from huggingface_hub import EvalResult

    for result in results:
        data = escaped(result["data"])
        for metric, value in result["metrics"].items():
            yield EvalResult(
                task_type="learning-rate-scheduling",
                task_name=escaped(f"{result['model']}, {result['optimizer']}"),
                dataset_type=re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "unknown",
                dataset_name=data,
                # To the Hub entries of one data set and config are one result.
                dataset_config=escaped(result["task"]) or "unknown",
                dataset_split="test",
                metric_type=escaped(metric).removeprefix("test_") or "unknown",
                metric_name=escaped(metric).replace("_", " "),
                metric_value=value["mean"],
            )


def section(
    eval_results: Mapping[str, Any] | None,
    results: Sequence[Mapping[str, Any]],
    training: Mapping[str, Any] | None,
) -> str:
    """How the results were made, a table of them, and the command that makes them again."""
    if eval_results is None or not results:
        return "None.\n"
    metrics = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    head = ["task", "data", "model", "parameters", "optimizer", "learning rate", "updates", "seeds"]
    lines = []
    for result in results:
        values = [result["metrics"].get(name) for name in metrics]
        note = f" ({text(result['note'])})" if result.get("note") else ""
        lines.append(
            [
                text(result["task"]) + note,
                *(text(result[name]) for name in ("data", "model")),
                number(result["parameters"]),
                text(result["optimizer"]),
                number(result["learning_rate"]),
                *(number(result[name]) for name in ("updates", "seeds")),
                *("-" if v is None else f"{measured(v['mean'])} ± {measured(v['half_width'])}" for v in values),
            ]
        )
    scores = table([*head, *(text(name.replace("_", " ")) for name in metrics)], lines)
    command = shell(eval_results["command"]) if eval_results["command"].strip() else ""
    lesson = training.get("lesson") if isinstance(training, Mapping) else None
    learned_on = lesson.get("task") if isinstance(lesson, Mapping) else None
    known = any(result["task"] == learned_on for result in results)
    beware = f"The controller learned on the training rows of {text(learned_on)} itself.\n\n" if known else ""
    return f"{_HOW}\n{beware}{scores}\n{command}"


_HOW = """\
On rows that nothing was trained or tuned on, read once, after the last update. Differences below are the controller's
minus the other's, paired by seed, each at its own tuned learning rate; ± is half a ninety-five percent interval over
seeds. It wins or loses where the interval lies on one side of zero. Runs that failed are left out of means and
differences; a controller that failed where the other did not loses.
"""


def compared(results: Sequence[Mapping[str, Any]], word: str, none: str) -> str:
    """List of the comparisons that ended in `word`, one of [`WORDS`]; `none` where there are none."""
    if not results:
        return "Unknown: there are no held-out results.\n"
    lines = [
        f"- {text(result['task'])}, {text(metric.replace('_', ' '))}, against {text(rival)}: "
        f"{signed(value['difference'])} ± {measured(value['half_width'])}"
        for result in results
        for rival, differences in result["against"].items()
        for metric, value in differences.items()
        if value["word"] == word
    ]
    if word == "worse":
        lines += [
            f"- {text(result['task'])}: {number(result['failed'])} of {number(result['seeds'])} runs failed"
            for result in results
            if result.get("failed")
        ]
    return "\n".join([*(lines or [none]), ""])


def not_tested(eval_results: Mapping[str, Any] | None, results: Sequence[Mapping[str, Any]]) -> str:
    """List of the tasks and sizes without results."""
    lines = [f"- {text(what)}" for what in (eval_results or {}).get("not_tested", [])[:MOST_RESULTS]]
    if results:
        most, longest = (max(result[name] for result in results) for name in ("parameters", "updates"))
        lines.append(
            f"- anything above {number(most)} parameters or {number(longest)} updates, and every model, data set, "
            f"optimizer, batch size and length of run that the table of results does not name"
        )
    else:
        lines.append("- all of them")
    return "\n".join([*lines, ""])
