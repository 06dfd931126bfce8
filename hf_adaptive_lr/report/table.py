"""The decision table of a run: one line per update with its reason, what was observed, and the learning rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from .charts import short
from .run import Event, Row, Run

MAX_ROWS = 5_000
"""Updates on one page; runs share them evenly."""

REASONS = {
    "decision": "The controller decided.",
    "bounded": "The controller decided; its answer was outside the bounds and was cut to them.",
    "between": "No decision was due: the last one stays in force.",
    "held": "The controller's answer, or a value it would have observed, was not finite: the learning rate is kept.",
    "cooldown": "Cooldown: the learning rate falls linearly to zero and the controller is not asked.",
    "handed_over": "The run fell back from the controller: linear decay to zero over the updates left.",
    "event": "This update was not applied.",
}
"""Reason codes of the trace, in words."""

_THINNED = "Updates without a decision were left out first, then plain decisions, evenly."


def legend(runs: Sequence[Run]) -> str:
    """The reason codes that occur in these runs, explained, as a `<dl>` element."""
    found = {row.reason for run in runs for row in run.rows}
    items = "".join(f"<dt><code>{code}</code></dt><dd>{REASONS[code]}</dd>" for code in REASONS if code in found)
    return f"<dl>{items}</dl>"


def table(run: Run, index: int, limit: int) -> str:
    """The table of one run, with a note where it has not every update, of which the page has room for `limit`.

    The line of update 812 of the first run (`index` 0) has the address `#run=0&step=812`; of an update that was run
    again, the last one has it.
    """
    kept = kept_rows(run.rows, run.events, limit)
    events: dict[int, list[Event]] = {}
    for event in run.events:
        events.setdefault(event.row, []).append(event)
    changes, last = _changes(run.rows), {run.rows[k].step: k for k in kept}
    columns = [column for column in _columns(run, events, changes) if any(column[2](k) for k in kept)]
    head = "".join(f'<th scope="col"{_class(kind)}>{name}</th>' for name, kind, _ in columns)
    lines = []
    for k in kept:
        step = run.rows[k].step
        address = f' id="run={index}&amp;step={step}"' if last[step] == k else ""
        quiet = ' class="between"' if run.rows[k].reason == "between" and k not in events else ""
        cells = "".join(f"<td{_class(kind)}>{escape(cell(k))}</td>" for _, kind, cell in columns)
        lines.append(f"<tr{address}{quiet}>{cells}</tr>")
    updates = sum(1 + row.unwritten for row in run.rows)
    note = f"{len(kept):,} of {updates:,} updates are in this table. {_THINNED}" if len(kept) < updates else ""
    name = escape(f"updates of {run.name}")
    return (
        f'<label><input type="checkbox"> only decisions and events</label> <span class="soft">{note}</span>'
        f'<div class="scroll rows" tabindex="0" role="region" aria-label="{name}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def kept_rows(rows: Sequence[Row], events: Sequence[Event], limit: int) -> list[int]:
    """Indices of the rows that a page keeps: all, or `limit` of them.

    Updates without a decision are left out first, then plain decisions, then held or bounded ones, each evenly. The
    first, the last and those with an event stay longest.
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


def percent(ratio: float) -> str:
    """A change of the learning rate, given as a ratio: +5 %, x 20."""
    if ratio >= 10:
        return f"\u00d7 {ratio:,.3g}" if ratio < 1000 else f"\u00d7 {ratio:,.0f}"
    return f"{100 * (ratio - 1):+.3g} %".replace("-", "\u2212")


_Column = tuple[str, str, Callable[[int], str]]  # name, CSS class, text of a row's cell by the row's index


def _columns(run: Run, events: Mapping[int, Sequence[Event]], changes: Sequence[float | None]) -> list[_Column]:
    """All columns; those that are empty in every row are not shown."""
    rows = run.rows
    scale = None if run.base_lr is None or abs(run.base_lr - 1) < 1e-6 else run.base_lr  # 1: answers are rates already
    seen = {row.step: k for k, row in reversed(list(enumerate(rows)))}

    def reason(k: int) -> str:
        parts = [rows[k].reason + (f": {rows[k].detail}" if rows[k].detail else "")]
        parts += [_event(event) for event in events.get(k, ())]
        return "; ".join(parts + (["run again"] if seen[rows[k].step] < k else []))

    def proposed(k: int) -> Any:
        answer = rows[k].proposed
        return answer * scale if isinstance(answer, float) and scale is not None else answer

    def change(k: int) -> str:
        ratio = changes[k]
        return "" if ratio is None else percent(ratio)

    return [
        ("update", "n", lambda k: str(rows[k].step)),
        ("reason", "", reason),
        ("observed", "", lambda k: _facts(rows[k].observation)),
        ("factor", "n", lambda k: _shown(rows[k].proposed) if scale is not None else ""),
        ("proposed", "n", lambda k: _shown(proposed(k))),
        ("bounded", "n", lambda k: _shown(rows[k].bounded)),
        ("ramp", "n", lambda k: "" if rows[k].ramp == 1 else _shown(rows[k].ramp)),
        ("applied", "n", lambda k: _shown(rows[k].lr)),
        ("all groups", "n", lambda k: _shown(list(rows[k].lrs))),
        ("change", "n", change),
    ]


def _changes(rows: Sequence[Row]) -> list[float | None]:
    """Every learning rate over the one applied before it; None where there is none or it was 0."""
    out: list[float | None] = []
    before = None
    for row in rows:
        out.append(row.lr / before if row.lr is not None and before else None)
        before = before if row.lr is None else row.lr
    return out


def _event(event: Event) -> str:
    return f"guard: {event.action}" + (f" ({_facts(event.facts)})" if event.facts else "")


def _facts(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in facts.items() if value is not None)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return short(value, 6)
    return "" if value is None else str(value)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
