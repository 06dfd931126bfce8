"""The page of the guard study, rendered from rows."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....hub.card import NOTES, NOTES_END
from ...markdown import QUICK_RUN, filled, table
from ...rows import Row
from .figures import GOAL, Cell, Figures, first_alarm
from .injections import CLEAN, STREAMS, TROUBLES
from .methods import GUARD, METHODS

TEMPLATE = Path(__file__).with_name("page.md")
COMMAND = "python -m hf_adaptive_lr.bench.studies.guard"


def render(figures: Mapping[str, Figures], notes: str, *, quick: bool = False) -> str:
    """The page."""
    return filled(
        TEMPLATE,
        quick=QUICK_RUN * quick,
        verdict=verdict(figures),
        false_alarms=_false_alarms(figures),
        streams=_listed(STREAMS),
        stream_results=_streams(figures),
        troubles=_listed(TROUBLES),
        methods=_listed(METHODS),
        results="\n\n".join(_task(task, found) for task, found in figures.items()),
        losses=_losses(figures),
        settings=_settings(figures),
        notes="\n".join(part for part in (NOTES, notes, NOTES_END) if part),
        command=f"{COMMAND} {'--quick' if quick else '--jobs 2'}",
        rows=", ".join(f"`rows/guard_{task}.jsonl.gz`" for task in figures),
        versions=_versions(figures),
    )


def verdict(figures: Mapping[str, Figures]) -> str:
    """Shares of the guarded runs within the tolerance, and whether the goal is met."""
    counts = {task: found.overall(TROUBLES, GUARD) for task, found in figures.items()}
    good, total = map(sum, zip(*counts.values(), strict=True))
    if not total:
        return "**No guarded runs yet.**"
    met = "met" if good >= GOAL * total else "not met"
    each = "; ".join(f"{task} {share(*count)}" for task, count in counts.items())
    return f"**Within tolerance with the guard: {share(good, total)}. Goal of {100 * GOAL:.0f} %: {met}.** {each}."


def _listed(entries: Mapping[str, Any]) -> str:
    return "\n".join(f"- `{name}`: {entry.text}." for name, entry in entries.items())


def _false_alarms(figures: Mapping[str, Figures]) -> str:
    found = {task: of.false_alarms() for task, of in figures.items()}
    lines = [f"- {task}: {a} of {n:,} updates, in {m} clean guarded runs." for task, (a, n, m) in found.items() if m]
    return "\n".join(lines or ["- no runs yet."])


def _streams(figures: Mapping[str, Figures]) -> str:
    head = ["task", "stream", "left alone", "stopped", "most rollbacks", "actions", "mean difference", "worst"]
    cells = [(task, name, found.cell(name, GUARD)) for task, found in figures.items() for name in STREAMS]
    lines = []
    for task, name, cell in cells:
        if cell.differences:
            stops, rollbacks = (cell.counts(action).values() for action in ("stop", "rollback"))
            shares = [f"{count} of {len(stops)}" for count in (cell.left_alone, sum(n > 0 for n in stops))]
            did = _actions(cell.runs[seed] for seed in cell.differences)
            lines.append([task, name, *shares, str(max(rollbacks)), did, *_points(cell)])
    return table(head, lines) if lines else "No runs yet."


def _losses(figures: Mapping[str, Figures]) -> str:
    lines = []
    for task, name, cell in ((t, i, of.cell(i, GUARD)) for t, of in figures.items() for i in (CLEAN.name, *TROUBLES)):
        for seed, row in cell.runs.items():
            if "error" in row:
                lines.append(f"- {task}, {name}, seed {seed}: ended in an error ({row['error']}).")
            elif seed in cell.outside:
                lost = f"{100 * cell.differences[seed]:+.1f}"
                lines.append(f"- {task}, {name}, seed {seed}: {lost} ({_actions([row])}).")
    return "\n".join(lines or ["None."])


def _settings(figures: Mapping[str, Figures]) -> str:
    specs = [row.get("method_spec", {}) for found in figures.values() for row in found.all]
    settings = sorted({json.dumps(spec["guard"]) for spec in specs if "guard" in spec})
    mixed = "**Rows of several settings are mixed here: run the command again.**\n\n" if len(settings) > 1 else ""
    return mixed + "\n".join(f"```json\n{text}\n```" for text in settings)


def _versions(figures: Mapping[str, Figures]) -> str:
    versions = [row["versions"] for found in figures.values() for row in found.all if "versions" in row]
    texts = {", ".join(f"{package} {version}" for package, version in some.items()) for some in versions}
    return "\n".join(f"Measured with {text}." for text in sorted(texts))


def _task(task: str, found: Figures) -> str:
    row = next((row for row in found.all if "setting" in row), None)
    if row is None:
        return f"### {task}\n\nNo runs yet."
    setting, rows, clean = row["setting"], row["setting"]["rows"], found.clean
    mean = f"{100 * statistics.fmean(clean):.1f} %" if clean else "-"
    return (
        f"### {task}\n\n"
        f"{setting['model']}, {setting['parameters']:,} parameters of which {setting['trained_parameters']:,} are "
        f"trained, {setting['updates']} updates of {setting['batch_size']} rows at a learning rate of "
        f"{row['lr']:g}; {rows['train']:,} / {rows['valid']:,} / {rows['test']:,} rows to train, validate and "
        f"test. Clean, unguarded runs: accuracy {mean}, standard deviation {100 * found.spread:.1f} points over "
        f"{len(clean)} seeds. **Tolerance: {100 * found.tolerance:.1f} points.**\n\n{_table(found)}"
    )


def _table(found: Figures) -> str:
    head = ["trouble", "method", "within tolerance", "mean difference", "worst", "accuracy", "test loss"]
    head += ["diverged", "actions", "noticed"]
    lines = []
    for injection in (CLEAN.name, *TROUBLES):
        first = injection
        for method in METHODS:
            cell = found.cell(injection, method)
            if cell.runs:
                reference = injection == CLEAN.name and method != GUARD
                judged = ["-"] * 3 if reference else [share(cell.within, cell.judged), *_points(cell)]
                lines.append([first, method, *judged, *_measured(cell)])
                first = ""
    for method in METHODS:
        good, total = found.overall(TROUBLES, method)
        if total:
            lines.append(["**all troubles**", method, f"**{share(good, total)}**", *["-"] * (len(head) - 3)])
    return table(head, lines)


def _measured(cell: Cell) -> list[str]:
    rows = [row for row in cell.runs.values() if "error" not in row]
    noticed = [after for row in rows if (after := first_alarm(row)) is not None]
    return [
        f"{100 * statistics.fmean(row['test_metric'] for row in rows):.1f} %" if rows else "-",
        _loss([row["test_loss"] for row in rows]),
        f"{sum(row['diverged'] for row in rows)} of {len(cell.runs)}",
        _actions(rows),
        f"{statistics.median(noticed):g} (in {len(noticed)})" if noticed else "-",
    ]


def share(good: int, total: int) -> str:
    """How many of how many, and in per cent."""
    # Rounded down, so that a share that only rounds to the goal does not look like it.
    return f"{good} of {total} ({math.floor(1000 * good / total) / 10:g} %)" if total else "-"


def _points(cell: Cell) -> list[str]:
    """Mean and lowest difference, in points of accuracy."""
    found = cell.differences.values()
    return [f"{100 * value:+.1f}" for value in (statistics.fmean(found), min(found))] if found else ["-", "-"]


def _loss(losses: Sequence[float | None]) -> str:
    finite = [loss for loss in losses if loss is not None]
    lost = f" ({len(losses) - len(finite)} not finite)" if len(finite) < len(losses) else ""
    return (f"{statistics.fmean(finite):.3f}" if finite else "-") + lost


def _actions(rows: Iterable[Row]) -> str:
    """What the guard did per run."""
    found = [row["actions"] for row in rows if "actions" in row]
    names = sorted({name for actions in found for name in actions})
    did = [f"{statistics.fmean(actions.get(name, 0) for actions in found):.3g} {name}" for name in names]
    return ", ".join(did) or ("none" if found else "-")
