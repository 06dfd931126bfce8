"""Untrusted text and numbers in Markdown, so that no HTML, Markdown or YAML of a file becomes part of a card."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from ..artifacts import printable

_LONGEST = 300  # characters of a value that a card shows
_HUGE = 1e15  # from here on numbers are shown in short


def escaped(value: object) -> str:
    """An untrusted value as one line of bounded length without `<` or `>`."""
    return printable(value, _LONGEST).replace("<", "&lt;").replace(">", "&gt;")


def text(value: object) -> str:
    """An untrusted value with every character escaped that Markdown would interpret."""
    return re.sub(r"([\\`*\[\]|#~$!])", r"\\\1", escaped(value))


def code(value: object) -> str:
    """An untrusted value as a code span, which it cannot close."""
    return f"`{escaped(value).replace('`', chr(39))}`"


def shell(command: str) -> str:
    """An untrusted command line as a code block."""
    return f"```bash\n{escaped(command).replace('`', chr(39))}\n```\n"


def number(value: float) -> str:
    """A setting: 1,000 or 0.001."""
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < _HUGE else f"{value:g}"


def measured(value: float) -> str:
    """A measured value, four decimals."""
    return f"{value:.4f}" if abs(value) < _HUGE else f"{value:g}"


def signed(value: float) -> str:
    """A measured difference, with its sign."""
    return f"{value:+.4f}" if abs(value) < _HUGE else f"{value:+g}"


def finite(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; "None." without rows."""
    if not rows:
        return "None.\n"
    lines = [head, ["---"] * len(head), *rows]
    whole = ([re.sub(r"(?<!\\)\|", r"\|", cell) for cell in line] for line in lines)
    return "\n".join([*(f"| {' | '.join(line)} |" for line in whole), ""])
