"""The rows of a run as compact JSON for the page's table: one column per field, nothing written twice.

A column is `{"v": values}` with one value per row, or `{"i": gaps, "v": values}` for some rows, where `gaps` are the
distances from one row with a value to the next. In a column that holds, a row without a value has the one before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from .read import Event, Row, Run

MAX_ROWS = 200_000
"""Updates on one page; runs share them evenly."""
EXACT_ROWS = 20_000
"""A run with more updates on the page has its numbers rounded to `DIGITS` significant digits."""
DIGITS = 8

REASONS = {
    "decision": "The controller decided.",
    "bounded": "The controller decided; its answer was outside the bounds and was cut to them.",
    "between": "No decision was due: the last one stays in force.",
    "held": "The controller's answer or what it would have seen was not finite: the learning rate stays.",
    "cooldown": "Cooldown: the learning rate falls linearly to zero and the controller is not asked.",
    "handed_over": "The controller was dismissed: the learning rate falls linearly to zero over what is left.",
    "event": "This update was not applied.",
}
"""Reason codes of the trace, in words."""


def page_data(runs: Sequence[Run]) -> str:
    """All runs as JSON that may stand inside a `<script>` element.

    Args:
        runs: in the order of the page.

    Returns:
        JSON in ASCII in which no text can end the element or start a comment.
    """
    data = {"reasons": REASONS, "runs": [_run(run, MAX_ROWS // len(runs)) for run in runs]}
    return script_safe(json.dumps(data, allow_nan=False, separators=(",", ":")))


def script_safe(text: str) -> str:
    """JSON without the characters that mean something to an HTML parser."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def kept_rows(rows: Sequence[Row], events: Sequence[Event], limit: int) -> list[int]:
    """Indices of the rows that a page keeps: all, or as many as it has room for.

    Updates without a decision go first, then plain decisions, evenly; then what was held or bounded, evenly. The
    first, the last and those with an event stay longest.

    Args:
        rows: all rows.
        events: with the rows that they belong to.
        limit: how many may stay.
    """
    if len(rows) <= limit:
        return list(range(len(rows)))
    marked = {0, len(rows) - 1, *(event.row for event in events)}
    ranks: list[list[int]] = [[], [], [], []]
    for index, row in enumerate(rows):
        rank = 0 if index in marked else {"between": 3, "decision": 2, "cooldown": 3}.get(row.reason, 1)
        ranks[rank].append(index)
    kept: list[int] = []
    for indices in ranks:
        room = min(limit - len(kept), len(indices))
        kept += [indices[k * len(indices) // room] for k in range(room)]
    return sorted(kept)


def is_exact(run: Run, limit: int) -> bool:
    """Whether the page has the numbers of this run as they stand in the trace."""
    return min(len(run.rows), limit) <= EXACT_ROWS


def _run(run: Run, limit: int) -> dict[str, Any]:
    exact = is_exact(run, limit)
    kept = kept_rows(run.rows, run.events, limit)
    place = {index: position for position, index in enumerate(kept)}
    rows = [run.rows[index] for index in kept]
    names = sorted({name for row in rows for name in row.observation})
    events = [
        [place[event.row], event.step, event.action, _rounded(dict(event.facts), exact)]
        for event in run.events
        if event.row in place
    ]
    return {
        "name": run.name,
        "base": None if run.base_lr is None or is_rate(run.base_lr) else _rounded(run.base_lr, exact),
        "group": run.group,
        "rows": len(rows),
        "steps": _steps(row.step for row in rows),
        "lr": _holding((row.lr for row in rows), exact),
        "reason": _holding((row.reason for row in rows), exact),
        "ramp": _holding((row.ramp for row in rows), exact),
        "detail": _column(row.detail or None for row in rows),
        "proposed": _column(_rounded(row.proposed, exact) for row in rows),
        "bounded": _bounded(rows, exact),
        "lrs": _column(_rounded(list(row.lrs), exact) or None for row in rows),
        "seen": {name: _column(_rounded(row.observation.get(name), exact) for row in rows) for name in names},
        "events": events,
    }


def is_rate(base_lr: float) -> bool:
    """Whether answers are learning rates already: a base of 1 changes nothing."""
    return abs(base_lr - 1) < 1e-6


def _bounded(rows: Sequence[Row], exact: bool) -> dict[str, Any]:
    """As `_column`, with 0 standing for "as applied", which it is outside warm-up."""
    found = _column(
        None if row.bounded is None else (0 if row.bounded == row.lr and row.lr else _rounded([row.bounded], exact))
        for row in rows
    )
    return found


def _steps(steps: Iterable[int]) -> list[list[int]]:
    """[first, count] of every stretch of consecutive updates."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][0] + parts[-1][1]:
            parts[-1][1] += 1
        else:
            parts.append([step, 1])
    return parts


def _column(values: Iterable[Any]) -> dict[str, Any]:
    return _gapped([(index, value) for index, value in enumerate(values) if value is not None])


def _holding(values: Iterable[Any], exact: bool) -> dict[str, Any]:
    """A column that holds; a row where no update was applied has nothing to say."""
    changes, before = [], object()
    for index, value in enumerate(values):
        if value is not None and value != before:
            changes.append((index, _rounded(value, exact)))
            before = value
    return _gapped(changes)


def _gapped(cells: Sequence[tuple[int, Any]]) -> dict[str, Any]:
    values = [value for _, value in cells]
    if cells and cells[-1][0] == len(cells) - 1:  # the first rows without a gap; all of them, or the column holds
        return {"v": values}
    return {
        "i": [now - before for (now, _), before in zip(cells, [0, *(i for i, _ in cells)], strict=False)],
        "v": values,
    }


def _rounded(value: Any, exact: bool) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return value if exact else float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(v, exact) for v in value]
    if isinstance(value, dict):
        return {k: _rounded(v, exact) for k, v in value.items()}
    return value
