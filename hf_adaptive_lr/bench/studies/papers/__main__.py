"""The paper study: tries a paper's claims on small real tasks, beside baselines and controls, and writes its page.

    python -m hf_adaptive_lr.bench.studies.papers plrs --quick
    python -m hf_adaptive_lr.bench.studies.papers all --jobs 2
    python -m hf_adaptive_lr.bench.studies.papers mlr_snet --tasks fashion-cnn
    python -m hf_adaptive_lr.bench.studies.papers all --render-only

Finished runs are not repeated: an interrupted command resumes where it was, and papers share the baselines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ...._checks import did_you_mean
from ....demo.data import DemoDataError
from ...data import load
from ...plan import Book
from ...rows import RowsError, forget_errors
from ...runner import WorkerError, Workers
from ...tasks import Task
from .claims import PAPERS, Paper
from .judge import find
from .methods import BASELINES, METHODS
from .pages import COMMAND, summary, write_page
from .plan import FULL, QUICK, Setup, book_of, complete, missing

CARDS, QUICK_CARDS = Path("model_cards"), Path("runs/papers-quick")


class RequestError(ValueError):
    """A request that cannot be carried out; its message is one line for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the missing runs and write the pages; 0 when done, 2 for a bad request, 130 when interrupted."""
    # Threads that wait by spinning starve the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = [*(sys.argv[1:] if argv is None else argv)]
    args = _parser().parse_args(words)
    try:
        book, cards = _folders(args)
        papers, setup = _papers(args.name), _setup(args)
        if not args.render_only:
            _run_missing(args, papers, setup, book)
        written = []
        for paper in papers:
            found = find(paper, setup, book)
            page, text = write_page(found, book, cards), summary(found)
            written.append({"paper": paper.name, "page": str(page), "rows": str(book.folder), "summary": text})
            if not args.json:
                print(f"{text}\n  written to {page}, from the rows in {book.folder}")
        if args.json:
            print(json.dumps(written, indent=2))
    except (RequestError, RowsError, WorkerError, DemoDataError) as error:
        print(f"{COMMAND}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = f"{COMMAND} {shlex.join(words)}"
        print(f"\n{COMMAND}: interrupted; finished runs are kept, continue with: {again}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(PAPERS)}, or all")
    parser.add_argument("--quick", action="store_true", help="tiny tasks and two seeds, to see that it runs")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument("--seeds", type=int, help="seeds that count, at least 2 (default: 5; 12 on digits-mlp)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="run these of the paper's tasks only")
    parser.add_argument("--rows-dir", type=Path, metavar="DIR", help=f"rows (default: {CARDS / 'rows'})")
    parser.add_argument("--cards-dir", type=Path, metavar="DIR", help=f"pages (default: {CARDS})")
    parser.add_argument("--render-only", action="store_true", help="run nothing, write the pages from the rows")
    parser.add_argument("--retry-failed", action="store_true", help="run again what ended in an error")
    parser.add_argument("--json", action="store_true", help="print JSON: the pages' paths and summaries")
    return parser


def _folders(args: argparse.Namespace) -> tuple[Book, Path]:
    cards = args.cards_dir or (QUICK_CARDS if args.quick else CARDS)
    rows = args.rows_dir or (QUICK_CARDS if args.quick else CARDS) / "rows"
    if args.quick and CARDS.resolve() in {cards.resolve(), rows.resolve().parent}:
        raise RequestError(f"--quick would mix its rows or pages with the real ones in '{CARDS}'; name another folder")
    return book_of(rows), cards


def _papers(name: str) -> list[Paper]:
    if name == "all":
        return list(PAPERS.values())
    if name not in PAPERS:
        raise RequestError(f"no paper '{name}'{did_you_mean(name, [*PAPERS, 'all'])}")
    return [PAPERS[name]]


def _setup(args: argparse.Namespace) -> Setup:
    setup = QUICK if args.quick else FULL
    if args.seeds is not None and args.seeds < 2:
        raise RequestError(f"--seeds {args.seeds}: at least 2, as differences need an interval")
    if args.jobs < 1:
        raise RequestError(f"--jobs {args.jobs}: at least 1")
    return setup if args.seeds is None else dataclasses.replace(setup, seeds=args.seeds)


def _run_missing(args: argparse.Namespace, papers: Sequence[Paper], setup: Setup, book: Book) -> None:
    work = [(_tasks(args, paper, setup), [METHODS[name] for name in (*BASELINES, *paper.methods)]) for paper in papers]
    for tasks, methods in work:
        for method in methods:
            try:
                method.make_controller()
            except ValueError as error:
                raise RequestError(str(error)) from error
        for task in tasks:
            if args.retry_failed:
                forget_errors(book.path(task.name))
                book.forget(task.name)
            if missing(task, methods, setup, book):
                load(task)  # missing data is reported before anything has run
    with Workers(args.jobs) as workers:
        for tasks, methods in work:
            complete(tasks, methods, setup, book, jobs=workers)
    book.pack(task.name for tasks, _ in work for task in tasks)


def _tasks(args: argparse.Namespace, paper: Paper, setup: Setup) -> list[Task]:
    for name in args.tasks or ():
        if name not in paper.tasks:
            raise RequestError(f"'{paper.name}' is not tried on '{name}'{did_you_mean(name, paper.tasks)}")
    return [setup.tasks[name] for name in paper.tasks if args.tasks is None or name in args.tasks]


if __name__ == "__main__":
    sys.exit(main())
