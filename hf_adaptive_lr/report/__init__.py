"""One self-contained HTML page that explains the learning rate of one or several runs.

It reads files only, and treats every text in them as data: a run folder may come from anybody. It needs neither torch
nor a network, and the same input gives the same bytes.
"""

from __future__ import annotations

from .page import render_report
from .read import ReportError, Run, read_run

__all__ = ["ReportError", "Run", "read_run", "render_report"]
