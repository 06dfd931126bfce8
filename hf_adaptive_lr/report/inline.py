"""Small pieces of HTML for notebooks: a table of two columns, a line without axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_LONGEST = 200  # characters of a value
_WIDTH, _HEIGHT, _MOST = 240, 40, 240  # pixels, and points of a line


def facts(title: str, rows: Iterable[tuple[str, Any]], below: str = "") -> str:
    """A titled table of names and values, all escaped, with a piece of HTML below."""
    left = 'style="text-align:left"'
    cells = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(_short(str(value)))}</td></tr>" for name, value in rows
    )
    return f"<div><strong>{escape(title)}</strong><table>{cells}</table>{below}</div>"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def sparkline(values: Sequence[float], label: str) -> str:
    """A line through positive values on a logarithmic scale; others, and points beyond 240, are left out."""
    stride = max(1, -(-len(values) // _MOST))
    points = [(i, math.log(v)) for i, v in enumerate(values) if i % stride == 0 and v > 0 and math.isfinite(v)]
    if len(points) < 2:
        return ""
    low, high = (pick(level for _, level in points) for pick in (min, max))
    across, up = (_WIDTH - 2) / max(1, len(values) - 1), (_HEIGHT - 2) / (high - low or 1.0)
    drawn = " ".join(f"{1 + i * across:.1f},{_HEIGHT - 1 - (level - low) * up:.1f}" for i, level in points)
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<polyline points="{drawn}" fill="none" stroke="currentColor"/></svg>'
    )
