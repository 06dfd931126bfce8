"""`hf-adaptive-lr verdict`: what a paper's claims are worth, on small real tasks."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import PROGRAM
from .errors import UserError, did_you_mean

if TYPE_CHECKING:
    from ..bench.verdict_methods import Method
    from ..bench.verdict_papers import Paper
    from ..bench.verdict_plan import Book
    from ..bench.verdict_tasks import Task

NAMES = ("ppo_schedule", "mlr_snet", "actor_critic", "dsa", "plrs")
"""The papers, as the help lists them."""
CARDS, QUICK = Path("model_cards"), Path("runs/verdict-quick")
_EXAMPLES = """\
examples:
  hf-adaptive-lr verdict plrs --quick
  hf-adaptive-lr verdict all --jobs 2
  hf-adaptive-lr verdict mlr_snet --tasks fashion-cnn
  hf-adaptive-lr verdict all --render-only

What has run is not run again: an interrupted command goes on where it was, and papers share the baselines."""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "verdict",
        help="try a paper's claims on small real tasks",
        description="Run what a paper's claims need (baselines, the method, ablations, controls) and write its page.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(NAMES)}, or all")
    parser.add_argument("--quick", action="store_true", help="tiny tasks and two seeds: does it run, not what it says")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument("--seeds", type=int, help="seeds that count, at least 2 (default: 5)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="run these of the paper's tasks only")
    parser.add_argument("--rows-dir", type=Path, metavar="DIR", help=f"rows (default: {CARDS / 'rows'})")
    parser.add_argument("--cards-dir", type=Path, metavar="DIR", help=f"pages (default: {CARDS})")
    parser.add_argument("--render-only", action="store_true", help="run nothing, write the pages from the rows")
    parser.add_argument("--retry-failed", action="store_true", help="run again what ended in an error")
    parser.add_argument("--json", action="store_true", help="print JSON: where the pages are, and what they say")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run what is missing and write the pages; 0 when done, 130 when interrupted."""
    # As in `finetune`: threads that wait by spinning starve the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..bench.runner import RowsError, WorkerError
    from ..bench.verdict_pages import summary, write_page
    from ..bench.verdict_papers import PAPERS
    from ..bench.verdict_plan import Book
    from ..demo.data import DemoDataError

    rows, cards = _folders(args)
    papers = _papers(args.name, PAPERS)
    book = Book(rows)
    try:
        if not args.render_only:
            _run_missing(args, papers, book)
        said = []
        for paper in papers:
            page = write_page(paper, book, cards, quick=args.quick)
            text = summary(paper, book, quick=args.quick)
            said.append({"paper": paper.name, "page": str(page), "rows": str(rows), "summary": text})
            if not args.json:
                print(f"{text}\n  written to {page}, from the rows in {rows}")
        if args.json:
            print(json.dumps(said, indent=2))
    except (RowsError, WorkerError, DemoDataError) as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        again = shlex.join([PROGRAM, *sys.argv[1:]])
        print(f"\n{PROGRAM}: interrupted; finished runs are kept, continue with: {again}", file=sys.stderr)
        return 130
    return 0


def _folders(args: argparse.Namespace) -> tuple[Path, Path]:
    cards = args.cards_dir or (QUICK if args.quick else CARDS)
    rows = args.rows_dir or (QUICK / "rows" if args.quick else CARDS / "rows")
    if args.quick and CARDS.resolve() in {cards.resolve(), rows.resolve().parent}:
        raise UserError(f"--quick would mix its rows or pages with the real ones in '{CARDS}'; name another folder")
    return rows, cards


def _papers(name: str, known: Any) -> list[Paper]:
    if name == "all":
        return list(known.values())
    if name not in known:
        raise UserError(f"no paper '{name}'{did_you_mean(name, [*known, 'all'])}")
    return [known[name]]


def _run_missing(args: argparse.Namespace, papers: Sequence[Paper], book: Book) -> None:
    from ..bench.runner import Workers, forget_errors
    from ..bench.verdict_data import load
    from ..bench.verdict_methods import BASELINES, METHODS
    from ..bench.verdict_plan import complete, missing
    from ..bench.verdict_tasks import QUICK_TASKS, TASKS

    seeds = range(_seeds(args))
    known = QUICK_TASKS if args.quick else TASKS
    work = [(_tasks(args, paper, known), [METHODS[name] for name in (*BASELINES, *paper.methods)]) for paper in papers]
    for tasks, methods in work:
        _check(methods)
        for task in tasks:
            if args.retry_failed:
                forget_errors(book.path(task))
                book.forget(task)
            if next(missing([task], methods, seeds, book, known), None) is not None:
                load(task)  # that data is missing is said before anything has run
    with Workers(args.jobs) as workers:
        for tasks, methods in work:
            complete(tasks, methods, seeds, book, known, jobs=workers)


def _check(methods: Sequence[Method]) -> None:
    for method in methods:
        try:
            method.make_controller()
        except ValueError as error:
            raise UserError(str(error)) from error


def _seeds(args: argparse.Namespace) -> int:
    seeds: int = args.seeds if args.seeds is not None else (2 if args.quick else 5)
    if seeds < 2:
        raise UserError(f"--seeds {seeds}: at least 2, as differences need an interval")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least 1")
    return seeds


def _tasks(args: argparse.Namespace, paper: Paper, known: Any) -> list[Task]:
    unknown = [name for name in args.tasks or () if name not in paper.tasks]
    if unknown:
        raise UserError(f"'{paper.name}' is not tried on '{unknown[0]}'{did_you_mean(unknown[0], paper.tasks)}")
    return [known[name] for name in paper.tasks if args.tasks is None or name in args.tasks]
