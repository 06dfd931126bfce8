"""A visitor's own run, read as untrusted input: any Trainer's `trainer_state.json`, or our `lr_trace.jsonl`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from replayed import Recorded

from hf_adaptive_lr.hub.untrusted import read_text
from hf_adaptive_lr.observation import OPTIONAL_FIELDS

MAX_BYTES = 2_000_000
MAX_UPDATES = 2_000
OWN = "your own run"
_SIGNALS = [name for name in OPTIONAL_FIELDS if not name.startswith("group_")]  # those are lists
_LARGEST = 1e30  # float32 holds it
_NOT_FINITE = ("nan", "inf", "-inf")  # as a trace writes them


def read_upload(path: Path) -> Recorded:
    """The run in a file; nothing of it but numbers is kept, of at most 2,000 updates.

    Every line of the log or the trace counts as an update. Lines without a learning rate or with a value that is not
    finite are left out, and in a trace those at which nothing was observed. Signals of single parameter groups, or
    that not every line has, are dropped.

    Args:
        path: a JSON file with `log_history`, or JSON lines with `lr` and `observation`; of at most 2 MB.

    Raises:
        ValueError: another file, one that is larger or nested too deeply, or values out of range.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"the file has more than {MAX_BYTES:,} bytes; log less often, or cut the run")
    try:
        rows = _traced(path) if path.suffix == ".jsonl" else _logged(path)
    except (ValueError, RecursionError) as error:
        raise ValueError("the file is not valid JSON in UTF-8") from error
    if rows is None:
        raise ValueError("the file has no list 'log_history'; upload a Trainer's trainer_state.json")
    rows = [{name: row[name] for name in ("lr", *_SIGNALS) if name in row} for row in rows if "lr" in row]
    rows = [row for row in rows if None not in row.values()]
    if len(rows) < 2:
        raise ValueError("the file has fewer than two updates with a learning rate")
    kept = rows[:: math.ceil(len(rows) / MAX_UPDATES)]
    names = [name for name in _SIGNALS if all(name in row for row in kept)]
    fields = {name: [_number(row[name], name, -_LARGEST, _LARGEST) for row in kept] for name in names}
    rates = [_number(row["lr"], "a learning rate", 0.0, 10.0) for row in kept]
    logged = ", ".join(names) or "learning rates alone"
    return Recorded(OWN, f"Your own run: {len(kept):,} of {len(rows):,} lines, with {logged}", rates, fields)


def _logged(path: Path) -> list[dict[str, Any]] | None:
    state = _parse(read_text(path, MAX_BYTES))
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        return None
    entries = [entry for entry in history if isinstance(entry, dict) and "learning_rate" in entry]
    named = [{name.removeprefix("adaptive_lr/"): value for name, value in entry.items()} for entry in entries]
    return [{**entry, "lr": entry["learning_rate"]} for entry in named]


def _traced(path: Path) -> list[dict[str, Any]]:
    rows = [_parse(line) for line in read_text(path, MAX_BYTES).splitlines() if line.strip()]
    rows = [row for row in rows if isinstance(row, dict) and "lr" in row]
    seen = [(row["lr"], row["observation"]) for row in rows if isinstance(row.get("observation"), dict)]
    found = [{**{name: None if v in _NOT_FINITE else v for name, v in look.items()}, "lr": lr} for lr, look in seen]
    return found or [{"lr": row["lr"]} for row in rows]


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)


def _number(value: object, name: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is not a number in [{low:g}, {high:g}]")
    return float(value)
