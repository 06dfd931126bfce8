"""The guard study: trainings disturbed on purpose, or healthy but restless, with and without the divergence guard.

    python -m hf_adaptive_lr.bench.trouble --jobs 2

What has run is not run again: an interrupted command goes on where it was. Rows are of the guard's settings as they
were; when these have changed since, its runs are done again. A change of how it works that leaves its settings alone
is not noticed: then delete its rows. See `trouble_injections.py` for what goes wrong, `trouble_restless.py` for what
only looks like it, `trouble_run.py` for one run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..demo.data import DemoDataError
from .rows import RowsError, forget_errors, read_rows
from .runner import WorkerError, Workers, run_all
from .trouble_figures import GUARD, UNGUARDED
from .trouble_injections import INJECTIONS
from .trouble_methods import METHODS
from .trouble_pages import rows_file, summary, write_page
from .trouble_restless import STREAMS
from .trouble_run import TroubleRun
from .trouble_tasks import QUICK_TASKS, TASKS, TroubleTask, load_parts

SEEDS, OTHER_SEEDS, STREAM_SEEDS = 10, 3, 5
"""Seeds of the guard and of the clean runs it is compared with, of everything else, and of restless streams."""
COMMAND = "python -m hf_adaptive_lr.bench.trouble"
CARDS, QUICK = Path("model_cards"), Path("runs/trouble-quick")


class RequestError(ValueError):
    """A request that cannot be carried out; its message is one line for the user."""


def plan(task: TroubleTask, methods: Sequence[str], seeds: int) -> list[TroubleRun]:
    """The runs of a task."""
    cases = [("clean", UNGUARDED, seeds)]
    for injection in INJECTIONS:
        cases += [(injection, m, seeds if m == GUARD else min(seeds, OTHER_SEEDS)) for m in METHODS if m in methods]
    cases += [
        (stream, m, min(seeds, STREAM_SEEDS)) for stream in STREAMS for m in (GUARD, UNGUARDED) if GUARD in methods
    ]
    known = {**INJECTIONS, **STREAMS}
    runs = [TroubleRun(task, known[i], METHODS[m], seed) for i, m, count in cases for seed in range(count)]
    return list({run.key: run for run in runs}.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page; 0 when done, 2 when it cannot be, 130 when interrupted."""
    # Threads that wait by spinning starve the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    p = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").split("\n")[0])
    p.add_argument("--jobs", type=int, default=1, help="worker processes (default: 1)")
    for what, known in (("task", list(TASKS)), ("method", list(METHODS))):
        shown = f"{', '.join(known)} (default: all)"
        p.add_argument(f"--{what}s", nargs="+", metavar=what.upper(), default=known, help=shown)
    p.add_argument(
        "--seeds",
        type=int,
        help=f"seeds of the guard and its clean runs (default: {SEEDS}); others have at most {OTHER_SEEDS}",
    )
    p.add_argument("--quick", action="store_true", help="tiny tasks and one seed: does it run, not what it is worth")
    p.add_argument("--render-only", action="store_true", help="run nothing, write the page from the rows")
    p.add_argument("--retry-failed", action="store_true", help="run again what ended in an error")
    p.add_argument("--rows-dir", type=Path, metavar="DIR", help=f"rows (default: {CARDS / 'rows'})")
    p.add_argument("--page", type=Path, metavar="FILE", help=f"page (default: {CARDS / 'GUARD.md'})")
    options = p.parse_args(argv)
    try:
        folder, page = _places(options)
        tasks = _chosen(options)
        if not options.render_only:
            _run_missing(options, tasks, folder)
        rows = {name: read_rows(folder / rows_file(name)) for name in TASKS}
        write_page(rows, page, command=command(options.quick), quick=options.quick)
        print(summary(rows))
        print(f"written to {page}, from the rows in {folder}")
    except (RequestError, RowsError, WorkerError, DemoDataError, OSError) as error:
        print(f"trouble: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntrouble: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def _run_missing(options: argparse.Namespace, tasks: Sequence[TroubleTask], folder: Path) -> None:
    seeds = options.seeds if options.seeds is not None else (1 if options.quick else SEEDS)
    for what, value in (("--jobs", options.jobs), ("--seeds", seeds)):
        if value < 1:
            raise RequestError(f"{what} {value}: at least 1")
    for task in tasks:
        load_parts(task)  # missing data is reported before anything has run
    with Workers(options.jobs) as workers:
        for task in tasks:
            path = folder / rows_file(task.name)
            if options.retry_failed:
                forget_errors(path)
            run_all(plan(task, options.methods, seeds), path, jobs=workers)


def _places(options: argparse.Namespace) -> tuple[Path, Path]:
    folder = options.rows_dir or (QUICK if options.quick else CARDS) / "rows"
    page = options.page or (QUICK if options.quick else CARDS) / "GUARD.md"
    if options.quick and CARDS.resolve() in {folder.resolve().parent, page.resolve().parent}:
        raise RequestError(f"--quick would mix its rows or page with the real ones in '{CARDS}'; name another folder")
    return folder, page


def _chosen(options: argparse.Namespace) -> list[TroubleTask]:
    known: Any
    for what, names, known in (("task", options.tasks, TASKS), ("method", options.methods, METHODS)):
        for name in names:
            if name not in known:
                raise RequestError(f"no {what} '{name}'; known: {', '.join(known)}")
    tasks = QUICK_TASKS if options.quick else TASKS
    return [tasks[name] for name in TASKS if name in options.tasks]


def command(quick: bool) -> str:
    """The page is the same whoever renders it, so it names the command for all rows, not the one that was given."""
    return f"{COMMAND} --quick" if quick else f"{COMMAND} --jobs 2"


if __name__ == "__main__":
    sys.exit(main())
