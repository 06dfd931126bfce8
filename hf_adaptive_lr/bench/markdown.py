"""Markdown: tables, and pages with notes that a person writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..artifacts import replace_file
from ..hub.card import notes_of


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, without a line break at its end."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def rewrite(path: Path, render: Callable[[str | None], str]) -> None:
    """Render a page, with the notes of the one that is there, and put it in place."""
    text = render(notes_of(path.read_text(encoding="utf-8")) if path.is_file() else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
