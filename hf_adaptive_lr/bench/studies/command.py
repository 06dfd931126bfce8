"""What the studies' commands have in common: their options, where their files are, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ...demo.data import DemoDataError
from ..rows import RowsError
from ..runner import WorkerError, command_parser

CARDS = Path("model_cards")


def count(text: str) -> int:
    """A whole number of at least 1, from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def study_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Options of a study that runs what is missing among its rows, then writes a page."""
    parser = command_parser(f"studies.{name}", doc)
    parser.add_argument("--jobs", type=count, default=1, help="worker processes (default: 1)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help=f"pages, and rows in DIR/rows (default: {CARDS})"
    )
    parser.add_argument("--render-only", action="store_true", help="run nothing, write what the rows say")
    parser.add_argument("--retry-failed", action="store_true", help="run again what ended in an error")
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `rows`, the folder of the rows; `--quick` has a place of its own."""
    options = parser.parse_args(argv)
    quick = getattr(options, "quick", False)
    options.output_dir = options.output_dir or (Path("runs/studies-quick") if quick else CARDS)
    options.rows = options.output_dir / "rows"
    if quick and options.output_dir.resolve() == CARDS.resolve():
        parser.error(f"--quick would mix its rows and pages with the real ones in '{CARDS}'; name another folder")
    return options


def carry_out(prog: str, work: Callable[[], object]) -> int:
    """Do a command's work; 0 when done, 2 with one line of why when it cannot be, 130 when interrupted."""
    # Threads that wait by spinning starve the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        work()
    except (RowsError, WorkerError, DemoDataError, ModuleNotFoundError, OSError, ValueError) as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0
