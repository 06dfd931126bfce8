"""What a run leaves in its folder, read with tolerance: lines cut short and files of another shape become notes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..artifacts import CONTROLLER_NAME, EVENTS_NAME, TRACE_NAME

RESULTS_NAME, SETTINGS_NAME, STATE_NAME = "results.json", "finetune_config.json", "trainer_state.json"
MAX_EVENTS = 10_000
"""Events of a run that a page has room for; the first ones are kept."""

_MAX_STEP = 2**53
_MAX_TEXT = 500
# `step` is the trace's index; a guard's own `update` also counts what it skipped, so it is second best.
_STEP_KEYS, _ACTION_KEYS = ("step", "update"), ("action", "event", "kind", "reason")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")

_FIRST_FACTS = [
    *("controller", "controller settings", "accuracy", "majority_accuracy", "last eval accuracy", "loss", "task"),
    *("data", "model", "optimizer", "learning_rate", "max_steps", "batch_size", "seed", "updates in the trace"),
    *("decisions", "bounded", "held", "guard events", "first LR", "largest LR", "last LR"),
]
_LAST_FACTS = ("versions", "wall_seconds", "command")
_UNTOLD_FACTS = ("lr", "updates", "controller_kwargs")  # told better by the trace and the controller's settings

Points = list[tuple[int, float]]


class ReportError(Exception):
    """A folder that no report can be made of; the message names it."""


@dataclass(frozen=True)
class Row:
    """One line of the trace, or, with no learning rate, a place for events of an update that was never applied.

    Args:
        step: 0-based index of the update.
        lr: learning rate of the charted group as applied, None where no update was.
        reason: code as in the trace; `event` where no update was applied.
        ramp: warm-up or cooldown multiplier.
        proposed: the controller's answer as it stands in the trace, a factor or a learning rate, or a text like "nan".
        bounded: the answer after bounds, as a learning rate of group 0.
        detail: which field or bound it was.
        lrs: learning rates of all groups where they differ.
        observation: measured fields: numbers, lists of numbers, or texts for what is not finite.
    """

    step: int
    lr: float | None
    reason: str
    ramp: float = 1.0
    proposed: float | str | None = None
    bounded: float | str | None = None
    detail: str = ""
    lrs: tuple[float, ...] = ()
    observation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """Something that a guard did.

    Args:
        step: 0-based index of the update, or None when the event does not say.
        action: what was done, or why, as the file has it.
        facts: all other keys, as texts and numbers.
        row: index of the row that it belongs to.
    """

    step: int | None
    action: str
    facts: Mapping[str, Any]
    row: int = 0


@dataclass(frozen=True)
class Run:
    """What is known of one run.

    Args:
        name: folder as it was given.
        rows: the trace in the order of the file; steps go back where a run was rolled back.
        events: what a guard did.
        losses: (update, mean training loss since the point before), from Trainer's log.
        evals: (update, loss on the evaluation set).
        seen: (update, loss that the controller was shown).
        base_lr: base LR of group 0 if the answers are factors of it and it could be told, else None.
        group: index of the parameter group whose learning rate is charted.
        facts: (name, value) pairs, for people.
        notes: what was missing or damaged.
    """

    name: str
    rows: Sequence[Row]
    events: Sequence[Event] = ()
    losses: Points = field(default_factory=list)
    evals: Points = field(default_factory=list)
    seen: Points = field(default_factory=list)
    base_lr: float | None = None
    group: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def proposals_unclear(self) -> bool:
        """Whether there are answers that cannot be shown as learning rates."""
        return self.base_lr is None and any(isinstance(row.proposed, float) for row in self.rows)

    @property
    def last_step(self) -> int:
        """The largest update on any chart of this run."""
        ends = [points[-1][0] for points in (self.losses, self.evals) if points]
        return max(1, *ends, *(row.step for row in self.rows))


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Args:
        folder: with `lr_trace.jsonl`; the other files are optional.

    Returns:
        The run; `notes` says what was missing or damaged.

    Raises:
        ReportError: no such folder, or no line of a trace in it.
    """
    path = folder / TRACE_NAME
    if not path.is_file():
        what = "no such folder" if not folder.is_dir() else f"it has no {TRACE_NAME}; was the run's LR controlled?"
        raise ReportError(f"'{folder}': {what}")
    notes: list[str] = []
    objects = list(_lines(path, notes, _is_row))
    if not objects:
        raise ReportError(f"'{path}' has no line that says what the learning rate was")
    group = _group(objects)
    rows = [_row(item, group) for item in objects]
    if group:
        notes.append(f"Group 0 does not train; the learning rate is that of parameter group {group}.")
    back = sum(now.step <= before.step for before, now in zip(rows, rows[1:], strict=False))
    if back:
        notes.append(f"The trace goes back {_times(back)}: those updates were run again, as after a rollback.")
    results, settings, who = (
        _mapping(folder / name, notes) for name in (RESULTS_NAME, SETTINGS_NAME, CONTROLLER_NAME)
    )
    if who and "controller" not in results:
        settings = {**settings, "controller": who}
    state = _newest_state(folder, notes)
    rows, events = _with_events(rows, _events(folder / EVENTS_NAME, notes))
    losses, evals = _logged(state, "loss"), _logged(state, "eval_loss")
    seen = [(row.step, loss) for row in rows if isinstance(loss := row.observation.get("loss"), float)]
    if not (losses or seen):
        notes.append("No loss was found: no trainer_state.json with one, and the controller was shown none.")
    base_lr = _base_lr(rows) or _declared_base_lr(rows, {**settings, **results})
    run = Run(clean(folder.as_posix()), rows, events, losses, evals, seen, base_lr, group, notes=notes)
    return replace(run, facts=_facts(run, results, settings, state))


# --- files -----------------------------------------------------------------------------------------------------------


def _lines(path: Path, notes: list[str], wanted: Callable[[Any], bool]) -> Iterable[dict[str, Any]]:
    raw = path.read_bytes()
    lines = raw.split(b"\n")
    bad: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = _parse(line)
        if wanted(item):
            yield item
        elif number == len(lines):  # the writer ends every line with a newline
            notes.append(f"The last line of {path.name} was cut short, as by a crash, and is left out.")
        else:
            bad.append(number)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        notes.append(f"{_count(len(bad), 'line')} of {path.name} could not be read and left out: {shown}.")


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = _parse(path.read_bytes())
    if not isinstance(found, dict):
        notes.append(f"{path.name} could not be read and is left out.")
        return {}
    return found


def _newest_state(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Trainer's state that has seen most: in the folder, or in a checkpoint."""
    best: dict[str, Any] = {}
    for path in [folder / STATE_NAME, *sorted(folder.glob(f"checkpoint-*/{STATE_NAME}"))]:
        state = _mapping(path, notes)
        if state and whole(state.get("global_step"), -1) > whole(best.get("global_step"), -1):
            best = state
    return best


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
        observation={text(k): measured(v) for k, v in seen.items()} if isinstance(seen, dict) else {},
    )


def _base_lr(rows: Sequence[Row]) -> float | None:
    """The base LR that turns answers into learning rates: told from decisions that no bound touched."""
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


def _declared_base_lr(rows: Sequence[Row], known: Mapping[str, Any]) -> float | None:
    """For a run whose every answer was cut: a bound on factors says that they are factors."""
    return number(known.get("learning_rate")) if any(row.detail == "factor bound" for row in rows) else None


# --- events ----------------------------------------------------------------------------------------------------------


def _events(path: Path, notes: list[str]) -> list[Event]:
    if not path.is_file():
        return []
    found = []
    for item in _lines(path, notes, lambda item: isinstance(item, dict)):
        step = next((item[key] for key in _STEP_KEYS if whole(item.get(key), -1) >= 0), None)
        named = next((key for key in _ACTION_KEYS if item.get(key)), None)
        said = {named, *(key for key in _STEP_KEYS if item.get(key) == step)}
        facts = {text(k): measured(v) for k, v in item.items() if v is not None and k not in said}
        found.append(Event(step, text(item[named]) if named else "event", facts))
    if len(found) > MAX_EVENTS:
        notes.append(f"{EVENTS_NAME} has {len(found):,} events; the first {MAX_EVENTS:,} are on this page.")
    return found[:MAX_EVENTS]


def _with_events(rows: list[Row], events: Sequence[Event]) -> tuple[list[Row], list[Event]]:
    """Rows with a place for every event: that of its update, or one of its own where no update was applied."""
    have = {row.step for row in rows}
    missing = sorted({event.step for event in events if event.step is not None} - have)
    if missing:
        starts = _later_than(rows, missing)
        out: list[Row] = []
        for index, row in enumerate(rows):
            out += [Row(step, None, "event") for step in starts.get(index, ())]
            out.append(row)
        out += [Row(step, None, "event") for step in starts.get(len(rows), ())]
        rows = out
    last = {row.step: index for index, row in enumerate(rows)}
    end = len(rows) - 1
    placed = [replace(event, row=end if event.step is None else last[event.step]) for event in events]
    return rows, sorted(placed, key=lambda event: event.row)


def _later_than(rows: Sequence[Row], steps: Sequence[int]) -> dict[int, list[int]]:
    """For each of the sorted steps the index of the row behind the last one that comes before it."""
    after: dict[int, list[int]] = {}
    index = len(rows)
    for step in reversed(steps):
        while index and rows[index - 1].step > step:
            index -= 1
        after.setdefault(index, []).insert(0, step)
    return after


# --- loss and facts --------------------------------------------------------------------------------------------------


def _logged(state: Mapping[str, Any], key: str) -> Points:
    """Trainer counts updates that are done; here an update has the index that the trace gives it, one less."""
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
    names += sorted(known.keys() - {*_FIRST_FACTS, *_LAST_FACTS, *_UNTOLD_FACTS})
    names += [name for name in _LAST_FACTS if name in known]
    ordered = {name: known[name] for name in names}
    return {text(k).replace("_", " "): flat(v) for k, v in ordered.items() if v is not None}


def _counted(run: Run) -> dict[str, Any]:
    applied = [row for row in run.rows if row.lr is not None]
    rates = [row.lr for row in applied if row.lr is not None]
    reasons = [row.reason for row in applied]
    return {
        "updates in the trace": len(applied),
        "decisions": sum(reason in ("decision", "bounded", "held") for reason in reasons),
        "bounded": reasons.count("bounded"),
        "held": reasons.count("held"),
        "guard events": len(run.events),
        "first LR": rates[0],
        "largest LR": max(rates),
        "last LR": rates[-1],
    }


# --- values from strangers' files ------------------------------------------------------------------------------------


def clean(value: str) -> str:
    """Text without control characters, direction marks and half characters, which could hide what it says."""
    return _UNPRINTABLE.sub("\ufffd", value.encode("utf-8", "replace").decode("utf-8"))


def text(value: Any) -> str:
    """Any JSON value as a text of bounded length."""
    try:
        written = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        written = "nested too deep"
    return clean(written if len(written) <= _MAX_TEXT else written[: _MAX_TEXT - 3] + "...")


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any, otherwise: int) -> int:
    """A whole number that a browser can hold, or `otherwise`."""
    good = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_STEP
    return value if good else otherwise


def measured(value: Any) -> Any:
    """A finite number, a short list of such values, None, or a text for everything else."""
    if value is None:
        return None
    finite = number(value)
    if finite is not None:
        return finite
    if isinstance(value, float):
        return str(value)
    if isinstance(value, list) and len(value) <= 64:
        return [measured(v) if not isinstance(v, list) else text(v) for v in value]
    return text(value)


def flat(value: Any, depth: int = 0) -> str:
    """A fact in one line: `name value, name value` for a mapping."""
    if isinstance(value, dict) and depth < 4:
        return ", ".join(f"{text(k).replace('_', ' ')} {flat(v, depth + 1)}" for k, v in value.items()) or "none"
    if isinstance(value, list) and depth < 4:
        return ", ".join(flat(v, depth + 1) for v in value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return "none" if value is None else text(value)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
