"""The paper study: tries a paper's claims on small real tasks, beside baselines and controls, and writes its page.

    python -m hf_adaptive_lr.bench.studies.papers plrs --quick
    python -m hf_adaptive_lr.bench.studies.papers all --jobs 2
    python -m hf_adaptive_lr.bench.studies.papers all --render-only

Finished runs are not repeated: an interrupted command goes on where it was, and papers share the baselines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from ...data import load
from ...markdown import rewrite
from ...plan import Book
from ...rows import forget_errors
from ...runner import Workers
from ..command import carry_out, parsed, study_parser
from . import overview
from .claims import PAPERS, Paper
from .judge import find, methods_of, verdict
from .pages import render
from .plan import FULL, QUICK, Setup, book_of, complete, missing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the missing runs and write the pages; 0 when done, 2 when it cannot be, 130 when interrupted."""
    parser = study_parser("papers", __doc__)
    parser.add_argument("name", metavar="NAME", choices=(*PAPERS, "all"), help=f"{', '.join(PAPERS)}, or all")
    parser.add_argument("--quick", action="store_true", help="tiny tasks and two seeds, to see that it runs")
    options = parsed(parser, argv)
    return carry_out(parser.prog, lambda: _study(options))


def _study(options: argparse.Namespace) -> None:
    papers = [paper for name, paper in PAPERS.items() if options.name in (name, "all")]
    setup, book = QUICK if options.quick else FULL, book_of(options.rows)
    if not options.render_only:
        _run_missing(options, papers, setup, book)
    every = {paper.name: find(paper, setup, book) for paper in papers}
    for name, found in every.items():
        page = options.output_dir / f"{name}.md"
        rewrite(page, partial(render, found, book))
        print(f"{name}: {verdict(found)}, written to {page}, from the rows in {book.folder}")
    if options.name == "all":
        print(f"all: written to {overview.write(every, options.output_dir, quick=options.quick)}")


def _run_missing(options: argparse.Namespace, papers: Sequence[Paper], setup: Setup, book: Book) -> None:
    work = [(setup.tasks[name], methods_of(paper)) for paper in papers for name in paper.tasks]
    for task, _ in work if options.retry_failed else ():
        forget_errors(book.path(task.name))
    for task, methods in work:
        if missing(task, methods, setup, book):
            load(task)  # missing data is reported before anything has run
    with Workers(options.jobs) as workers:
        for task, methods in work:
            complete(task, methods, setup, book, jobs=workers)
    book.pack({task.name for task, _ in work})


if __name__ == "__main__":
    sys.exit(main())
