"""The guard study: trainings disturbed on purpose, or healthy but restless, with and without the divergence guard.

    python -m hf_adaptive_lr.bench.studies.guard --jobs 2

What has run is not run again: an interrupted command goes on where it was. Rows are of the guard's settings as they
were; when these have changed since, its runs are done again. A change of how it works that leaves its settings alone
is not noticed: then delete its rows. See `injections.py` for what goes wrong or only looks like it, `run.py` for one
run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ...data import load
from ...markdown import rewrite
from ...rows import forget_errors
from ...runner import Workers, run_all
from ...tasks import Task
from ..command import carry_out, parsed, study_parser
from .figures import book_of, read_figures
from .injections import CLEAN, INJECTIONS, STREAMS, TROUBLES
from .methods import GUARD, METHODS, UNGUARDED
from .pages import render, verdict
from .run import DisturbedRun
from .tasks import QUICK_TASKS, TASKS

SEEDS, OTHER_SEEDS, STREAM_SEEDS = 10, 3, 5
"""Seeds of the guard and of the clean runs it is compared with, of everything else, and of restless streams."""


def plan(task: Task, seeds: int) -> list[DisturbedRun]:
    """The runs of a task."""
    cases = {(injection, method): OTHER_SEEDS for injection in (CLEAN.name, *TROUBLES) for method in METHODS}
    cases |= {(stream, method): STREAM_SEEDS for stream in STREAMS for method in (GUARD, UNGUARDED)}
    cases |= {case: seeds for case in cases if case[1] == GUARD and case[0] not in STREAMS}
    cases[CLEAN.name, UNGUARDED] = seeds
    return [
        DisturbedRun(task, METHODS[method], seed, task.lr, injection=INJECTIONS[injection])
        for (injection, method), count in cases.items()
        for seed in range(min(count, seeds))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page; 0 when done, 2 when it cannot be, 130 when interrupted."""
    parser = study_parser("guard", __doc__)
    parser.add_argument("--quick", action="store_true", help="tiny tasks and one seed: does it run?")
    options = parsed(parser, argv)
    return carry_out(parser.prog, lambda: _study(options))


def _study(options: argparse.Namespace) -> None:
    if not options.render_only:
        _run_missing(options)
    figures, page = read_figures(options.rows), options.output_dir / "GUARD.md"
    rewrite(page, lambda notes: render(figures, notes or "", quick=options.quick))
    print(verdict(figures).replace("**", "").strip())
    print(f"written to {page}, from the rows in {options.rows}")


def _run_missing(options: argparse.Namespace) -> None:
    tasks, book = (QUICK_TASKS if options.quick else TASKS).values(), book_of(options.rows)
    for task in tasks:
        load(task)  # missing data is reported before anything has run
        if options.retry_failed:
            forget_errors(book.path(task.name))
    with Workers(options.jobs) as workers:
        for task in tasks:
            run_all(plan(task, 1 if options.quick else SEEDS), book.path(task.name), jobs=workers)
            book.pack([task.name])


if __name__ == "__main__":
    sys.exit(main())
