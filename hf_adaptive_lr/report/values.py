"""JSON values of untrusted files as numbers and short texts."""

from __future__ import annotations

import json
import math
from typing import Any

from ..artifacts import printable

_MAX_STEP = 2**53
_MAX_TEXT = 500


def text(value: Any) -> str:
    """Any JSON value as one printable line of at most 500 characters."""
    try:
        written = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        written = "nested too deep"
    return printable(written if len(written) <= _MAX_TEXT else written[: _MAX_TEXT - 3] + "...")


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any, otherwise: int) -> int:
    """A whole number below 2**53 in size, or `otherwise`."""
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
    """A JSON value in one line: `name value, name value` for a mapping."""
    if isinstance(value, dict) and depth < 4:
        return ", ".join(f"{text(k).replace('_', ' ')} {flat(v, depth + 1)}" for k, v in value.items()) or "none"
    if isinstance(value, list) and depth < 4:
        return ", ".join(flat(v, depth + 1) for v in value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return "none" if value is None else text(value)
