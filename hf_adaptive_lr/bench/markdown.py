"""Markdown: tables, and pages with notes that a person writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import Template

from ..artifacts import replace_file
from ..hub.card import notes_of

QUICK_RUN = "**A quick run on shortened tasks.** It shows that the command works; its figures are worth nothing.\n\n"
"""What a page says of a run that only shows that its command works."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, without a line break at its end."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def filled(template: Path, **parts: str) -> str:
    """A page from its template: `$name` stands for a part."""
    return Template(template.read_text(encoding="utf-8")).substitute(parts)


def rewrite(path: Path, render: Callable[[str | None], str]) -> None:
    """Render a page, with the notes of the one that is there, and put it in place."""
    text = render(notes_of(path.read_text(encoding="utf-8")) if path.is_file() else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
