"""The report as one HTML page without scripts: facts, charts, time lines of events, and the decision tables."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from .charts import Curve, chart, loss_axis, outside, rate_axis, timeline
from .run import Run
from .summary import summary
from .table import MAX_ROWS, legend, percent, table

MARK = '<meta name="generator" content="hf_adaptive_lr">'
"""Marks a page that this library wrote and may write over."""

_KEY_FACTS = [
    *("controller", "controller settings", "data", "accuracy", "loss", "last eval accuracy", "learning rate"),
    *("updates in the trace", "bounded", "held", "guard events", "largest LR", "last LR"),
]
_LANES = 8
_LARGEST = 8
_COLOURS = 8


def render_report(runs: Sequence[Run]) -> str:
    """One HTML page of at least one run, that needs nothing else: no network, no other file.

    The same runs, in the order of the page, give the same text.
    """
    runs = _numbered(runs)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    # Nothing may be fetched and no script may run, whatever a run's files say.
    known = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{known}'; base-uri 'none'; form-action 'none'"
    title = "Learning rate of " + ", ".join(run.name for run in runs)
    last = max(run.last_step for run in runs)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8">{MARK}',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        '<p class="soft">Updates are counted from 0, as in lr_trace.jsonl; a value that Trainer logs at its step s is '
        "that of update s \u2212 1.</p>",
        *([f"<p>{escape(summary(runs[0]))}</p>"] if len(runs) == 1 else []),
        _facts(runs, _KEY_FACTS),
        *([_comparison(runs, last)] if len(runs) > 1 else []),
        *(_section(run, index, alone=len(runs) == 1) for index, run in enumerate(runs)),
        _tables(runs),
        "<h2>All facts</h2>",
        _facts(runs, None),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


# --- facts -----------------------------------------------------------------------------------------------------------


def _facts(runs: Sequence[Run], wanted: Sequence[str] | None) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    if wanted is not None:
        names = [name for name in wanted if name in names]
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    lines = []
    for name in names:
        values = [run.facts.get(name, "") for run in runs]
        mark = ' class="differs"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f'<tr{mark}><th scope="row">{escape(name)}</th>{cells}</tr>')
    top = f'<thead><tr><th scope="col">run</th>{head}</tr></thead>' if len(runs) > 1 else ""
    return f'<div class="scroll"><table class="facts">{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


# --- charts ----------------------------------------------------------------------------------------------------------


def _comparison(runs: Sequence[Run], last: int) -> str:
    losses = [
        Curve(run.name, run.losses or run.seen, _colour(index))
        for index, run in enumerate(runs)
        if run.losses or run.seen
    ]
    rates = [Curve(run.name, _applied(run), _colour(index), step=True) for index, run in enumerate(runs)]
    parts = ['<section class="run"><h2>Compared</h2>']
    if losses:
        parts.append(_figure("Training loss of all runs", losses, "loss", last))
    parts.append(_figure("Learning rate of all runs, as applied", rates, "lr", last))
    return "".join(parts) + "</section>"


def _section(run: Run, index: int, *, alone: bool) -> str:
    last = run.last_step
    notes = [*run.notes]
    losses = [
        Curve("observed by the controller", run.seen, "k7 faint"),
        Curve("training, as logged", run.losses, "k0"),
        Curve("evaluation", run.evals, "k2 dash"),
    ]
    losses = [curve for curve in losses if curve.points]
    parts = [_figure("Loss", losses, "loss", last)] if losses else []
    parts.append(
        _figure(f"Learning rate{f' of group {run.group}' if run.group else ''}", _rates(run, notes), "lr", last)
    )
    if run.proposals_unclear:
        notes.append("Proposals are not drawn: whether they are factors of the base LR or learning rates is unclear.")
    parts.append(_timeline(run, last))
    parts.append(_largest(run, index))
    # With one run its name is the page's title already.
    head = "<h2>What happened</h2>" if alone else f"<h2>{escape(run.name)}</h2>"
    told = "" if alone else f"<p>{escape(summary(run))}</p>"
    return f'<section class="run">{head}{told}{_notes(notes)}{"".join(parts)}</section>'


def _applied(run: Run) -> list[tuple[float, float]]:
    return [(row.step, row.lr) for row in run.rows if row.lr is not None]


def _rates(run: Run, notes: list[str]) -> list[Curve]:
    scale = run.base_lr
    answers = [
        (row.step, row.proposed * scale)
        for row in run.rows
        if scale is not None and isinstance(row.proposed, float) and not run.group
    ]
    bounded = [(row.step, row.bounded) for row in run.rows if isinstance(row.bounded, float) and not run.group]
    curves = [
        Curve("proposed", answers, "k1 wide", step=True, dots=_sparse(answers, run), sets_axis=False),
        Curve("bounded", bounded, "k3 mid", step=True, dots=_sparse(bounded, run)),
        Curve("applied", _applied(run), "k0", step=True),
    ]
    axis = rate_axis(curves)
    hidden = outside(curves[0], axis)
    if hidden:
        notes.append(
            f"{hidden:,} of {len(answers):,} proposals are far outside and drawn at the edge, or not above 0."
        )
    zero = sum(lr <= 0 for _, lr in curves[2].points)
    below = sum(0 < lr < axis.low for _, lr in curves[2].points)
    if below:
        times = f"{below:,} update{'s' * (below != 1)}"
        notes.append(f"At {times} the learning rate was far below the others and is drawn at the edge.")
    if zero:
        notes.append(f"The learning rate was 0 at {zero:,} updates, which a logarithmic axis cannot show.")
    return [curve for curve in curves if curve.points]


def _sparse(points: Sequence[object], run: Run) -> bool:
    """Whether there are few enough to show as single dots."""
    return len(points) <= 150 and 2 * len(points) < len(run.rows)


def _figure(title: str, curves: Sequence[Curve], kind: str, last: int) -> str:
    axis = loss_axis(curves) if kind == "loss" else rate_axis(curves)
    unit = ("loss" if kind == "loss" else "learning rate") + (" (log)" if axis.log else "")
    bad = sum(not math.isfinite(y) for curve in curves for _, y in curve.points)
    note = f'<p class="soft">{bad:,} values that were not finite are left out.</p>' if bad else ""
    samples = [("M17 6h0", " dots") if curve.dots else ("M0 6H34", "") for curve in curves]
    items = "".join(
        f'<li><svg viewBox="0 0 34 12" aria-hidden="true"><path class="curve {curve.style}{dots}" d="{path}"/></svg>'
        f"{escape(curve.label)}</li>"
        for curve, (path, dots) in zip(curves, samples, strict=True)
    )
    legend = f'<ul class="legend">{items}</ul>'
    return f"<figure><h3>{escape(title)}</h3>{legend}{chart(title, unit, curves, axis, last)}{note}</figure>"


def _colour(index: int) -> str:
    return f"k{index % _COLOURS}" + (" dash" if index >= _COLOURS else "")


# --- events ----------------------------------------------------------------------------------------------------------


def _timeline(run: Run, last: int) -> str:
    lanes: dict[str, list[int]] = {}
    for row in run.rows:
        if row.reason not in ("decision", "between", "event"):
            lanes.setdefault(row.reason, []).append(row.step)
    for event in run.events:
        lanes.setdefault(f"guard: {event.action}", []).append(
            run.rows[event.row].step if event.step is None else event.step
        )
    names = list(lanes)
    if len(names) > _LANES:
        rest = [step for name in names[_LANES - 1 :] for step in lanes.pop(name)]
        lanes["other"] = rest
    if not lanes:
        none = "no answer was bounded, no learning rate was kept, and no guard acted"
        return f"<figure><h3>Events</h3><p>None: {none}.</p></figure>"
    sorted_lanes = [(name, sorted(steps)) for name, steps in lanes.items()]
    return f"<figure><h3>Events</h3>{timeline('Events', sorted_lanes, last)}</figure>"


def _largest(run: Run, index: int) -> str:
    """Links to the updates at which the learning rate moved most, those of a ramp left out."""
    applied = [row for row in run.rows if row.lr is not None and row.lr > 0]
    moves = []
    for before, row in zip(applied, applied[1:], strict=False):
        if before.lr and row.lr and row.ramp == before.ramp and row.step > before.step:
            change = row.lr / before.lr
            moves.append((abs(math.log(change)), -row.step, change))
    found = [move for move in sorted(moves, reverse=True)[:_LARGEST] if move[0] > 1e-9]
    if not found:
        return ""
    links = ", ".join(
        f'<a href="#run={index}&amp;step={-step}">{-step:,}</a> ({percent(change)})' for _, step, change in found
    )
    return f"<p>Largest changes, at update {links}.</p>"


# --- the tables ------------------------------------------------------------------------------------------------------


def _tables(runs: Sequence[Run]) -> str:
    parts = [
        '<section id="explain"><h2>Why did it change?</h2>',
        legend(runs),
        '<p class="soft">Proposed and bounded are learning rates where that can be inferred, of parameter group 0, '
        "before the ramp, which is the multiplier of warm-up or cooldown. Numbers have six digits; lr_trace.jsonl has "
        "them in full.</p>",
    ]
    for index, run in enumerate(runs):
        head = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        parts.append(f'<div class="updates">{head}{table(run, index, MAX_ROWS // len(runs))}</div>')
    return "\n".join(parts) + "</section>"


def _numbered(runs: Sequence[Run]) -> list[Run]:
    """The runs, with a number behind a name that occurs again, as of one folder given twice."""
    seen: Counter[str] = Counter()
    out = []
    for run in runs:
        seen[run.name] += 1
        out.append(replace(run, name=f"{run.name} ({seen[run.name]})") if seen[run.name] > 1 else run)
    return out
