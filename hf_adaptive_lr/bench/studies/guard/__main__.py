"""The guard study: trainings disturbed on purpose, or healthy but restless, with and without the divergence guard.

    python -m hf_adaptive_lr.bench.studies.guard --jobs 2

What has run is not run again: an interrupted command goes on where it was. Rows are of the guard's settings as they
were; when these have changed since, its runs are done again. A change of how it works that leaves its settings alone
is not noticed: then delete its rows. See `injections.py` for what goes wrong or only looks like it, `run.py` for one
run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ....demo.data import DemoDataError
from ...data import load
from ...markdown import rewrite
from ...rows import RowsError, forget_errors, pack
from ...runner import WorkerError, Workers, command_parser, run_all
from ...tasks import Task
from ..measured import ROWS, count
from .figures import read_figures, rows_path
from .injections import CLEAN, INJECTIONS, STREAMS, TROUBLES
from .methods import GUARD, METHODS, UNGUARDED
from .pages import render, verdict
from .run import DisturbedRun
from .tasks import QUICK_TASKS, TASKS

SEEDS, OTHER_SEEDS, STREAM_SEEDS = 10, 3, 5
"""Seeds of the guard and of the clean runs it is compared with, of everything else, and of restless streams."""
COMMAND = "python -m hf_adaptive_lr.bench.studies.guard"
CARDS, QUICK = ROWS.parent, Path("runs/guard-quick")


def plan(task: Task, methods: Sequence[str], seeds: int) -> list[DisturbedRun]:
    """The runs of a task."""
    cases = {(CLEAN.name, UNGUARDED): seeds}
    for injection in (CLEAN.name, *TROUBLES):
        for method in methods:
            cases.setdefault((injection, method), seeds if method == GUARD else min(seeds, OTHER_SEEDS))
    if GUARD in methods:
        cases |= {(stream, m): min(seeds, STREAM_SEEDS) for stream in STREAMS for m in (GUARD, UNGUARDED)}
    return [
        DisturbedRun(task, METHODS[method], seed, task.lr, injection=INJECTIONS[injection])
        for (injection, method), count in cases.items()
        for seed in range(count)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page; 0 when done, 2 when it cannot be, 130 when interrupted."""
    # Threads that wait by spinning starve the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _options(argv)
    try:
        if not options.render_only:
            _run_missing(options)
        figures = read_figures(options.rows_dir)
        command = f"{COMMAND} --quick" if options.quick else f"{COMMAND} --jobs 2"
        rewrite(options.page, lambda notes: render(figures, notes or "", command=command, quick=options.quick))
    except (RowsError, WorkerError, DemoDataError, OSError) as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{COMMAND}: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    print(verdict(figures).replace("**", "").strip())
    print(f"written to {options.page}, from the rows in {options.rows_dir}")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    p = command_parser("studies.guard", __doc__)
    p.add_argument("--jobs", type=count, default=1, help="worker processes (default: 1)")
    for what, known in (("task", [*TASKS]), ("method", [*METHODS])):
        shown = f"{', '.join(known)} (default: all)"
        p.add_argument(f"--{what}s", nargs="+", metavar=what.upper(), choices=known, default=known, help=shown)
    shown = f"seeds of the guard and its clean runs (default: {SEEDS}); others have at most {OTHER_SEEDS}"
    p.add_argument("--seeds", type=count, help=shown)
    p.add_argument("--quick", action="store_true", help="tiny tasks and one seed: does it run, not what it is worth")
    p.add_argument("--render-only", action="store_true", help="run nothing, write the page from the rows")
    p.add_argument("--retry-failed", action="store_true", help="run again what ended in an error")
    p.add_argument("--rows-dir", type=Path, metavar="DIR", help=f"rows (default: {ROWS})")
    p.add_argument("--page", type=Path, metavar="FILE", help=f"page (default: {CARDS / 'GUARD.md'})")
    options = p.parse_args(argv)
    cards = QUICK if options.quick else CARDS
    options.rows_dir, options.page = options.rows_dir or cards / ROWS.name, options.page or cards / "GUARD.md"
    if options.quick and CARDS.resolve() in {options.rows_dir.resolve().parent, options.page.resolve().parent}:
        p.error(f"--quick would mix its rows or page with the real ones in '{CARDS}'; name another folder")
    return options


def _run_missing(options: argparse.Namespace) -> None:
    seeds = options.seeds or (1 if options.quick else SEEDS)
    tasks = [(QUICK_TASKS if options.quick else TASKS)[name] for name in options.tasks]
    for task in tasks:
        load(task)  # missing data is reported before anything has run
    with Workers(options.jobs) as workers:
        for task in tasks:
            path = rows_path(options.rows_dir, task.name)
            if options.retry_failed:
                forget_errors(path)
            run_all(plan(task, options.methods, seeds), path, jobs=workers)
            pack(path)


if __name__ == "__main__":
    sys.exit(main())
