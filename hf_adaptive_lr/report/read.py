"""Reads a run folder with tolerance: lines cut short and files of another shape become notes on the page."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..artifacts import (
    CONTROLLER_NAME,
    EVENTS_NAME,
    RESULTS_NAME,
    SETTINGS_NAME,
    STATE_NAME,
    TRACE_NAME,
    json_lines,
    numbered_checkpoints,
    parse_json,
    printable,
)
from .run import Event, Points, ReportError, Row, Run
from .values import flat, measured, number, text, whole

MAX_EVENTS = 10_000
"""Events of a run that a page has room for; the first ones are kept."""

# `step` is the trace's index; a guard's own `update` also counts skipped batches, so it is second best.
_STEP_KEYS, _ACTION_KEYS = ("step", "update"), ("action", "event", "kind", "reason")

_FIRST_FACTS = [
    *("controller", "controller settings", "accuracy", "majority_accuracy", "last eval accuracy", "loss", "task"),
    *("data", "model", "optimizer", "learning_rate", "max_steps", "batch_size", "seed", "updates in the trace"),
    *("decisions", "bounded", "held", "guard events", "first LR", "largest LR", "last LR"),
]
_LAST_FACTS = ("versions", "wall_seconds", "command")
_LEFT_OUT = ("lr", "updates", "controller_kwargs")  # the trace and the controller's settings say it better


def read_run(folder: Path) -> Run:
    """Read a run folder; the run's `notes` name the files and lines that were missing or damaged.

    All files but `lr_trace.jsonl` are optional; ReportError: no such folder, or no line of a trace in it.
    """
    path = folder / TRACE_NAME
    if not path.is_file():
        why = (
            "no such folder"
            if not folder.is_dir()
            else f"it has no {TRACE_NAME}, which AdaptiveLRTrainer and AdaptiveLRCallback write"
        )
        raise ReportError(f"'{folder}': {why}")
    notes: list[str] = []
    objects = list(_lines(path, notes, _is_row))
    if not objects:
        raise ReportError(f"'{path}' has no line with a learning rate")
    group = _group(objects)
    rows = [_row(item, group) for item in objects]
    if group:
        notes.append(f"Group 0 does not train; the learning rate is that of parameter group {group}.")
    back = sum(now.step <= before.step for before, now in zip(rows, rows[1:], strict=False))
    if back:
        notes.append(f"The trace goes back {_times(back)}: those updates were run again, as after a rollback.")
    results, settings, decider = (
        _mapping(folder / name, notes) for name in (RESULTS_NAME, SETTINGS_NAME, CONTROLLER_NAME)
    )
    if decider and "controller" not in results:
        settings = {**settings, "controller": decider}
    state = _newest_state(folder, notes)
    rows, events = _with_events(rows, _events(folder / EVENTS_NAME, notes))
    losses, evals = _logged(state, "loss"), _logged(state, "eval_loss")
    seen = [(row.step, loss) for row in rows if (loss := number(row.seen.get("loss"))) is not None]
    if not (losses or seen):
        notes.append("No loss was found: no trainer_state.json with one, and the controller observed none.")
    base_lr = _base_lr(rows)
    if base_lr is None and any(row.detail == "factor bound" for row in rows):  # so the answers are factors
        base_lr = number({**settings, **results}.get("learning_rate"))
    run = Run(printable(folder.as_posix()), rows, events, losses, evals, seen, base_lr, group, notes=notes)
    return replace(run, facts=_facts(run, results, settings, state))


# --- files -----------------------------------------------------------------------------------------------------------


def _lines(path: Path, notes: list[str], wanted: Callable[[Any], bool]) -> Iterable[dict[str, Any]]:
    bad, cut = [], not path.read_bytes().endswith(b"\n")  # the writer ends every line with a newline
    last = 0
    for last, item in json_lines(path):
        if wanted(item):
            yield item
        else:
            bad.append(last)
    if cut and bad and bad[-1] == last:
        bad.pop()
        notes.append(f"The last line of {path.name} was cut short, as by a crash, and is left out.")
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        notes.append(f"{_count(len(bad), 'line')} of {path.name} could not be read and left out: {shown}.")


def _mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = parse_json(path.read_bytes())
    if not isinstance(found, dict):
        notes.append(f"{path.name} could not be read and is left out.")
        return {}
    return found


def _newest_state(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Trainer's state with the most updates: in the folder, or in the newest checkpoint that can be read.

    Only that one is opened: each holds the whole log up to it, so that all together grow with the square of a run.
    """
    found = (_mapping(path / STATE_NAME, notes) for _, path in numbered_checkpoints(folder))
    newest: dict[str, Any] = next(filter(None, found), {})
    return max(_mapping(folder / STATE_NAME, notes), newest, key=lambda state: whole(state.get("global_step"), -1))


# --- the trace -------------------------------------------------------------------------------------------------------


def _is_row(item: Any) -> bool:
    return isinstance(item, dict) and whole(item.get("step"), -1) >= 0 and number(item.get("lr")) is not None


def _group(objects: Sequence[Mapping[str, Any]]) -> int:
    """The first parameter group that ever has a positive learning rate."""
    if any(item["lr"] > 0 for item in objects):
        return 0
    every = [_lrs(item) for item in objects]
    positive = [i for lrs in every for i, lr in enumerate(lrs) if lr > 0]
    return min(positive, default=0)


def _lrs(item: Mapping[str, Any]) -> tuple[float, ...]:
    found = item.get("lrs")
    values = [number(lr) for lr in found] if isinstance(found, list) else []
    return tuple(lr for lr in values if lr is not None) if None not in values else ()


def _row(item: Mapping[str, Any], group: int) -> Row:
    lrs = _lrs(item)
    seen = item.get("observation")
    ramp = number(item.get("ramp", 1.0))
    return Row(
        step=item["step"],
        lr=lrs[group] if group < len(lrs) else float(item["lr"]),
        reason=text(item.get("reason", "")),
        ramp=1.0 if ramp is None else ramp,
        proposed=measured(item.get("proposed")),
        bounded=measured(item.get("bounded")),
        detail=text(item.get("detail", "")),
        lrs=lrs,
        unwritten=max(0, whole(item.get("straight", item.get("unchanged")), 0)),
        seen=seen if isinstance(seen, dict) else {},
    )


def _base_lr(rows: Sequence[Row]) -> float | None:
    """The base LR that turns answers into learning rates, inferred from decisions that no bound touched."""
    ratios = sorted(
        row.bounded / row.proposed
        for row in rows
        if row.reason == "decision"
        and isinstance(row.bounded, float)
        and isinstance(row.proposed, float)
        and row.proposed
    )
    if not ratios or ratios[0] <= 0 or not math.isfinite(ratios[-1]) or ratios[-1] > ratios[0] * (1 + 1e-4):
        return None
    return ratios[len(ratios) // 2]


# --- events ----------------------------------------------------------------------------------------------------------


def _events(path: Path, notes: list[str]) -> list[Event]:
    if not path.is_file():
        return []
    found = []
    for item in _lines(path, notes, lambda item: isinstance(item, dict)):
        step = next((item[key] for key in _STEP_KEYS if whole(item.get(key), -1) >= 0), None)
        named = next((key for key in _ACTION_KEYS if item.get(key)), None)
        used = {named, *(key for key in _STEP_KEYS if item.get(key) == step)}
        facts = {text(k): measured(v) for k, v in item.items() if v is not None and k not in used}
        found.append(Event(step, text(item[named]) if named else "event", facts))
    if len(found) > MAX_EVENTS:
        notes.append(f"{EVENTS_NAME} has {len(found):,} events; the first {MAX_EVENTS:,} are on this page.")
    return found[:MAX_EVENTS]


def _with_events(rows: Sequence[Row], events: Sequence[Event]) -> tuple[list[Row], list[Event]]:
    """Rows with a place for every event: that of its update, or one of its own where no update was applied."""
    placed = list(rows)
    least = [*accumulate((row.step for row in reversed(rows)), min)][::-1]  # step of a row or of one after it
    missing = {event.step for event in events if event.step is not None} - {row.step for row in rows}
    for step in sorted(missing, reverse=True):
        placed.insert(bisect_left(least, step), Row(step, None, "event"))
    last, end = {row.step: index for index, row in enumerate(placed)}, len(placed) - 1
    found = [replace(event, row=end if event.step is None else last[event.step]) for event in events]
    return placed, sorted(found, key=lambda event: event.row)


# --- loss and facts --------------------------------------------------------------------------------------------------


def _logged(state: Mapping[str, Any], key: str) -> Points:
    """(update, value) pairs of Trainer's log, which counts finished updates: one more than the trace's index."""
    points: Points = []
    for entry in _history(state):
        if key in entry:
            value = entry[key]
            finite = number(value)
            points.append((max(0, whole(entry.get("step"), 0) - 1), math.nan if finite is None else finite))
    return sorted(points, key=lambda point: point[0])


def _history(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    history = state.get("log_history")
    return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []


def _facts(
    run: Run, results: Mapping[str, Any], settings: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, str]:
    known = {**settings, **results}
    controller = known.get("controller")
    if isinstance(controller, dict):
        kind = controller.get("controller_type", "unknown")
        config = {k: v for k, v in controller.items() if k != "controller_type"}
        known = {**known, "controller": kind, "controller settings": config or None}
    elif not controller:
        known = {**known, "controller": "the files do not say"}
    scores = [entry for entry in _history(state) if "eval_accuracy" in entry]
    if scores and "accuracy" not in known:
        known["last eval accuracy"] = scores[-1]["eval_accuracy"]
    known |= {**_counted(run), **{k: state.get(k) for k in ("global_step", "epoch")}}
    names = [name for name in _FIRST_FACTS if name in known]
    names += sorted(known.keys() - {*_FIRST_FACTS, *_LAST_FACTS, *_LEFT_OUT})
    names += [name for name in _LAST_FACTS if name in known]
    ordered = {name: known[name] for name in names}
    return {text(k).replace("_", " "): flat(v) for k, v in ordered.items() if v is not None}


def _counted(run: Run) -> dict[str, Any]:
    applied = [row for row in run.rows if row.lr is not None]
    rates = [row.lr for row in applied if row.lr is not None]
    reasons = [row.reason for row in applied]
    return {
        "updates in the trace": sum(1 + row.unwritten for row in applied),
        "decisions": sum(reason in ("decision", "bounded", "held") for reason in reasons),
        "bounded": reasons.count("bounded"),
        "held": reasons.count("held"),
        "guard events": len(run.events),
        "first LR": rates[0],
        "largest LR": max(rates),
        "last LR": rates[-1],
    }


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
