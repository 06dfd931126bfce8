"""The page of the guard study, rendered from rows."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..hub.card import NOTES, NOTES_END
from .markdown import rewrite, table
from .rows import Row
from .trouble_figures import GOAL, GUARD, Cell, Figures, first_alarm, mean_actions, spread, within
from .trouble_injections import INJECTIONS
from .trouble_methods import METHODS
from .trouble_restless import STREAMS

TROUBLES = tuple(name for name in INJECTIONS if name != "clean")
_QUICK = "**A quick run on shortened tasks.** It shows that the command works; its figures are worth nothing.\n"
_INTRO = """\
Training is disturbed on purpose, and the accuracy on test rows at the end is compared with that of the undisturbed
run of the same seed: the same first weights, batches and dropout. A run is *within tolerance* when it is no further
below its clean run than two points or, if that is more, twice the standard deviation of the clean runs over their
seeds. The goal was set before the runs: at least 95 % of the guarded runs are within tolerance. The trouble begins at
two fifths of the run, give or take a tenth. All runs go through transformers' `Trainer`, which clips gradients at 1.
"""
_COLUMNS = """\
Differences are in points of accuracy; below zero is worse than the clean run. Guarded and unguarded runs are compared
with clean unguarded ones, `greedy` and `plateau` with their own clean runs. What is not the guard has fewer seeds. A
test loss that is not finite is counted in brackets and left out of the mean; predictions that are NaN are wrong.
*Diverged* is a test loss that is not finite or a tenth above the first training loss. Actions are the guard's, per
run; *noticed* is the median number of updates from the beginning of the trouble to the first alarm, of the runs with
an alarm.
"""
_STREAMS = """\
Nothing is wrong in these runs, but their loss moves. Each is compared with the unguarded run of the same stream and
seed. A run is *left alone* when the guard has not ended it, has gone back once at most, and its accuracy is no more
than two points below.
"""
_SCHEDULES = """\
`greedy` and `plateau` are schedules and not guards. They move only at evaluations, of which each run has twenty, and
with their defaults only after more than ten in succession have been better, or worse, than the best before.
"""


def write_page(rows: Mapping[str, Sequence[Row]], path: Path, *, command: str, quick: bool = False) -> None:
    """Render the page, with the notes of the one that is there, and put it in place."""
    rewrite(path, lambda notes: render(rows, notes or "", command=command, quick=quick))


def render(rows: Mapping[str, Sequence[Row]], notes: str = "", *, command: str, quick: bool = False) -> str:
    """The page."""
    figures = {task: Figures(found) for task, found in rows.items()}
    parts = [
        "# Divergence guard: runs that are disturbed on purpose\n",
        *([_QUICK] if quick else []),
        _verdict(figures),
        _INTRO,
        "## False alarms on healthy runs\n",
        _false_alarms(figures),
        "## Healthy but restless streams\n",
        _STREAMS,
        "\n".join(f"- `{name}`: {stream.text}." for name, stream in STREAMS.items()) + "\n",
        _streams(figures),
        "## Troubles\n",
        "\n".join(f"- `{name}`: {INJECTIONS[name].text}." for name in TROUBLES) + "\n",
        "## Methods\n",
        "\n".join(f"- `{name}`: {method.text}." for name, method in METHODS.items()) + "\n",
        _SCHEDULES,
        "## Results\n",
        _COLUMNS,
        *(part for task, found in figures.items() for part in _task(task, found)),
        "## Guarded runs outside the tolerance\n",
        _losses(figures),
        "## Settings of the guard\n",
        _settings(figures.values()),
        "## Notes\n",
        "\n".join(part for part in (NOTES, notes, NOTES_END) if part) + "\n",
        "## Reproduce\n",
        f"```bash\n{command}\n```\n",
        "Rows: " + ", ".join(f"`rows/{rows_file(task)}`" for task in rows) + ". " + _versions(figures.values()),
    ]
    return "\n".join(parts)


def rows_file(task: str) -> str:
    """Name of the file with a task's rows."""
    return f"guard_{task}.jsonl"


def summary(rows: Mapping[str, Sequence[Row]]) -> str:
    """The verdict, as text."""
    return _verdict({task: Figures(found) for task, found in rows.items()}).replace("**", "").strip()


def _verdict(figures: Mapping[str, Figures]) -> str:
    counts = {task: found.overall(TROUBLES, GUARD) for task, found in figures.items()}
    good, total = (sum(counts[task][i] for task in counts) for i in (0, 1))
    if not total:
        return "**No guarded runs yet.**\n"
    met = "met" if good >= GOAL * total else "not met"
    each = "; ".join(f"{task} {_share(*count)}" for task, count in counts.items())
    return f"**Within tolerance with the guard: {_share(good, total)}. Goal of {100 * GOAL:.0f} %: {met}.** {each}.\n"


def _false_alarms(figures: Mapping[str, Figures]) -> str:
    lines = []
    for task, found in figures.items():
        alarms, updates, runs = found.false_alarms()
        if runs:
            lines.append(f"- {task}: {alarms} of {updates:,} updates, in {runs} clean guarded runs.")
    return "\n".join(lines or ["- no runs yet."]) + "\n"


def _streams(figures: Mapping[str, Figures]) -> str:
    head = ["task", "stream", "left alone", "stopped", "most rollbacks", "actions", "mean difference", "worst"]
    lines = []
    for task, found in figures.items():
        for name in STREAMS:
            stream = found.stream(name)
            if stream.differences:
                mean, worst = statistics.fmean(stream.differences), min(stream.differences)
                count = len(stream.differences)
                done = _actions([{"actions": dict(a)} for a in stream.actions])
                left = f"{stream.within} of {count}"
                lines.append(
                    [task, name, left, f"{stream.stops} of {count}", str(stream.rollbacks), done]
                    + [_points(mean), _points(worst)]
                )
    return table(head, lines) + "\n" if lines else "No runs yet.\n"


def _losses(figures: Mapping[str, Figures]) -> str:
    lines = []
    for task, found in figures.items():
        for injection in ("clean", *TROUBLES):
            cell = found.cell(injection, GUARD)
            for seed, row in cell.runs.items():
                if "error" in row:
                    lines.append(f"- {task}, {injection}, seed {seed}: ended in an error ({row['error']}).")
                elif seed in cell.differences and not within(cell.differences[seed], cell.tolerance):
                    did = _actions([row])
                    lines.append(f"- {task}, {injection}, seed {seed}: {_points(cell.differences[seed])} ({did}).")
    return "\n".join(lines or ["None."]) + "\n"


def _settings(figures: Iterable[Figures]) -> str:
    settings = {
        json.dumps(row["method_spec"]["guard"])
        for found in figures
        for row in found.all()
        if row.get("method_spec", {}).get("guard") is not None
    }
    mixed = "**Rows of several settings are mixed here: run the command again.**\n\n" if len(settings) > 1 else ""
    return mixed + "\n".join(f"```json\n{text}\n```" for text in sorted(settings)) + "\n"


def _versions(figures: Iterable[Figures]) -> str:
    texts = {
        ", ".join(f"{package} {version}" for package, version in row["versions"].items())
        for found in figures
        for row in found.all()
        if "versions" in row
    }
    return "".join(f"Measured with {text}.\n" for text in sorted(texts)) or "\n"


def _task(task: str, found: Figures) -> list[str]:
    setting = found.setting
    if setting is None:
        return [f"### {task}\n", "No runs yet.\n"]
    rows = setting["rows"]
    clean = list(found.clean.values())
    mean = f"{100 * statistics.fmean(clean):.1f} %" if clean else "-"
    return [
        f"### {task}\n",
        f"{setting['model']}, {setting['parameters']:,} parameters of which {setting['trained_parameters']:,} are "
        f"trained, {setting['updates']} updates of {setting['batch_size']} rows at a learning rate of "
        f"{setting['lr']:g}; {rows['train']:,} / {rows['valid']:,} / {rows['test']:,} rows to train, validate and "
        f"test. Clean, unguarded runs: accuracy {mean}, standard deviation {100 * spread(clean):.1f} points over "
        f"{len(clean)} seeds. **Tolerance: {100 * found.tolerance:.1f} points.**\n",
        _table(found),
    ]


def _table(found: Figures) -> str:
    head = ["trouble", "method", "within tolerance", "mean difference", "worst", "accuracy", "test loss"]
    head += ["diverged", "actions", "noticed"]
    lines = []
    for injection in ("clean", *TROUBLES):
        first = injection
        for method in METHODS:
            cell = found.cell(injection, method)
            if cell.runs:
                lines.append([first, method, *_cells(cell, of_itself=(injection, method))])
                first = ""
    for method in METHODS:
        good, total = found.overall(TROUBLES, method)
        if total:
            lines.append(["**all troubles**", method, f"**{_share(good, total)}**", *["-"] * (len(head) - 3)])
    return table(head, lines) + "\n"


def _cells(cell: Cell, of_itself: tuple[str, str]) -> list[str]:
    rows = [row for row in cell.runs.values() if "error" not in row]
    reference = of_itself[0] == "clean" and of_itself[1] != GUARD
    judged = (
        ["-", "-", "-"] if reference else [_share(cell.within, cell.judged), _points(cell.mean), _points(cell.worst)]
    )
    noticed = [after for row in rows if (after := first_alarm(row)) is not None]
    return [
        *judged,
        f"{100 * statistics.fmean(row['accuracy'] for row in rows):.1f} %" if rows else "-",
        _loss([row["loss"] for row in rows]),
        f"{sum(row['diverged'] for row in rows)} of {len(cell.runs)}",
        _actions(rows),
        f"{statistics.median(noticed):g} (in {len(noticed)})" if noticed else "-",
    ]


def _share(good: int, total: int) -> str:
    # Rounded down, so that a share that only rounds to the goal does not look like it.
    return f"{good} of {total} ({math.floor(1000 * good / total) / 10:g} %)" if total else "-"


def _points(difference: float | None) -> str:
    return "-" if difference is None else f"{100 * difference:+.1f}"


def _loss(losses: Sequence[Any]) -> str:
    finite = [loss for loss in losses if loss is not None]
    lost = f" ({len(losses) - len(finite)} not finite)" if len(finite) < len(losses) else ""
    return (f"{statistics.fmean(finite):.3f}" if finite else "-") + lost


def _actions(rows: Sequence[Row]) -> str:
    found = mean_actions(rows)
    if found is None:
        return "-"
    return ", ".join(f"{count:.3g} {name}" for name, count in found.items()) or "none"
