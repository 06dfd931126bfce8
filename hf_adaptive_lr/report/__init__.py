"""One self-contained HTML page that explains the learning rate of one or several runs.

It reads files only and treats every text in them as untrusted input. It needs neither torch nor a network, its pages
have no scripts, and the same input gives the same bytes.
"""

from __future__ import annotations

from .page import render_report
from .read import read_run
from .run import ReportError, Run

__all__ = ["ReportError", "Run", "read_run", "render_report"]
