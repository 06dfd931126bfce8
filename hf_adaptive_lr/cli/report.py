"""`hf-adaptive-lr report`: one HTML page that explains the learning rate of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..artifacts import printable
from .errors import UserError

_EXAMPLES = """\
examples:
  hf-adaptive-lr report runs/text
  hf-adaptive-lr report runs/text runs/text-linear --output compared.html

The page opens offline. report.html#run=0&step=812 is the line of update 812 of the first run."""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "report",
        help="explain a run's learning rate on one HTML page",
        description="Write one HTML page with the loss, the learning rate proposed, bounded and applied, all events, "
        "and why it changed at any update.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path, help="folder with lr_trace.jsonl")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", default=Path("report.html"), help="page (default: report.html)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: where the page is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the folders, write the page and print its path."""
    from ..report.notebook import show_report
    from ..report.run import ReportError

    try:
        page = show_report(*args.run_dirs)
        page.save(args.output)
    except (ReportError, OSError) as error:
        raise UserError(str(error)) from error
    size = len(page.html.encode())
    if args.json:
        runs = [str(folder) for folder in args.run_dirs]
        print(json.dumps({"output": str(args.output), "bytes": size, "runs": runs}, indent=2))
    else:
        print(f"written to {printable(args.output)} ({size / 1e3:,.0f} kB): open it in a browser")
    return 0
