"""The report inside a notebook, without the command line."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ..artifacts import replace_file
from .page import MARK, render_report
from .read import read_run


class ReportPage:
    """A finished page, which a notebook shows in a frame of its own; `html` is its text."""

    def __init__(self, html: str, height: int) -> None:
        self.html, self._height = html, height

    def save(self, path: str | Path) -> Path:
        """Write the page, which needs no other file, and return where it is; FileExistsError for what is no report."""
        target = Path(path)
        if target.is_file() and MARK not in target.read_text(encoding="utf-8", errors="replace")[:4096]:
            raise FileExistsError(f"'{target}' is there and is no report; move it, or name another file")
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, self.html)
        return target

    def _repr_html_(self) -> str:
        # Sandboxed, so that nothing in a run's files reaches the notebook around it.
        style = f'width="100%" height="{self._height}" style="border:0"'
        return f'<iframe sandbox srcdoc="{escape(self.html, quote=True)}" {style}></iframe>'


def show_report(*folders: str | Path, height: int = 900) -> ReportPage:
    """Explain the learning rate of one or several runs; the last expression of a notebook's cell shows it.

    Args:
        *folders: folders with `lr_trace.jsonl`, at least one.
        height: of the frame, in pixels, at least 100.

    Raises:
        ValueError: no folder, or a height out of range.
        ReportError: a folder that no report can be made of.

    Example:
        ```python
        show_report("runs/a", "runs/b").save("compared.html")
        ```
    """
    if not folders:
        raise ValueError("show_report() takes at least one folder with lr_trace.jsonl, an output folder of a trainer")
    if height < 100:
        raise ValueError(f"height={height} must be at least 100 pixels")
    return ReportPage(render_report([read_run(Path(folder)) for folder in folders]), height)
