"""`hf-adaptive-lr bench`: compares controllers with tuned and untuned schedules on real fine-tunes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._checks import did_you_mean
from ..artifacts import PROGRAM, shell_word
from .errors import UserError, begun, user_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..bench.comparison import Comparison
    from ..bench.method import Method
    from ..bench.plan import Book, Profile
    from ..bench.tasks import Task

OUTPUT = Path("runs/bench")
_EXAMPLES = """\
examples:
  hf-adaptive-lr bench --quick --jobs 2
  hf-adaptive-lr bench --full --jobs 2 --output-dir runs/bench-full
  hf-adaptive-lr bench --quick --controller user/repo
  hf-adaptive-lr bench --full --suite development --controller FILE.py:CLASS --output-dir runs/bench-full
  torchrun --nproc-per-node 8 -m hf_adaptive_lr bench --full --output-dir runs/bench-full

Finished runs are not repeated: an interrupted command resumes where it was. Several commands may share a folder; each
takes runs that no other is at. --suite and --tasks do --full in parts. Choose on `development`; `test` is to be looked
at once per version of what is judged by it."""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "bench",
        help="measure controllers against baselines on real fine-tunes",
        description="Run the benchmark: tasks, methods, and a page of tables and pictures from the rows.",
        epilog=_EXAMPLES,
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="three development tasks, few methods; minutes (default)")
    size.add_argument("--full", action="store_true", help="all tasks and methods; about eight core-hours, in parts")
    parser.add_argument("--suite", choices=("development", "test"), help="run the tasks of this suite only")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help=f"rows and page (default: {OUTPUT}-PROFILE)")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes (default: 1)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="run these tasks only")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="run these methods only")
    parser.add_argument(
        "--controller",
        action="append",
        default=[],
        metavar="X",
        help="also this: a name, a folder, user/repo, FILE.py:CLASS or FILE.py:CLASS:FOLDER",
    )
    parser.add_argument(
        "--write-results",
        action="store_true",
        help="write eval_results.json, which its card is made of, into the folder of each --controller",
    )
    parser.add_argument("--render-only", action="store_true", help="run nothing, write the page from the rows")
    parser.add_argument("--retry-failed", action="store_true", help="run again what ended in an error")
    parser.add_argument("--json", action="store_true", help="print JSON: path and summary of the page")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the missing runs and write the page; 0 when done, 1 when some failed, 130 when interrupted."""
    # As in `finetune`: threads that wait by spinning starve the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..bench.plan import PROFILES, Book
    from ..bench.rows import RowsError
    from ..bench.runner import WorkerError, leave_launcher
    from ..demo.data import DemoDataError

    profile = PROFILES["full" if args.full else "quick"]
    folder = args.output_dir or OUTPUT.with_name(f"{OUTPUT.name}-{profile.name}")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least 1")
    if args.write_results and not any(Path(source).is_dir() for source in args.controller):
        raise UserError("--write-results: give the folder of a controller, --controller my-controller")
    tasks, book = _tasks(args, profile), Book(folder / "rows")
    methods = _methods(args, profile)
    rank, ranks = leave_launcher()
    if not args.render_only:
        book.folder.mkdir(parents=True, exist_ok=True)  # a name that cannot be is no run that had begun
    try:
        with begun("the benchmark", "finished runs are kept, give the command again"):
            if not args.render_only:
                _run_missing(args, tasks, methods, profile, book, rank)
            if rank:
                return 0
            book.pack(profile.tasks)
            lacking = _write(args, profile, book, methods, folder)
            failed = lacking | _print_failures(args, book, methods, tasks)
    except (RowsError, WorkerError, DemoDataError) as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        again = " ".join(map(shell_word, [PROGRAM, *sys.argv[1:]]))
        print(f"\n{PROGRAM}: interrupted; finished runs are kept, continue with: {again}", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _run_missing(
    args: argparse.Namespace, tasks: list[Task], methods: list[Method], profile: Profile, book: Book, rank: int
) -> None:
    from ..bench.data import load
    from ..bench.plan import complete, missing, with_sources
    from ..bench.rows import forget_errors
    from ..bench.tasks import changed

    if stale := changed():
        raise UserError(f"these tasks are not as they were frozen, so their rows would mean something else: {stale}")
    methods = with_sources(methods)
    for task in tasks:
        if args.retry_failed and not rank:
            forget_errors(book.path(task.name))
            book.forget(task.name)
        if missing(task, methods, profile, book):
            load(task)  # missing data is reported before anything has run
    # Each process of a launcher begins with another task.
    start = rank % max(1, len(tasks))
    for _ in complete([*tasks[start:], *tasks[:start]], methods, profile, book, jobs=args.jobs, bar=not rank):
        pass


def _print_failures(args: argparse.Namespace, book: Book, methods: list[Method], tasks: list[Task]) -> bool:
    """Print errors of the controllers that were asked for on stderr; returns whether there were any."""
    rows = [row for task in tasks for row in book.rows(task.name).values() if "error" in row]
    asked = [method.name for method in methods if method.controller in args.controller]
    for name in asked:
        mine = [row for row in rows if row["method"] == name]
        if mine:
            text = f"{len(mine)} runs ended in an error, the first: {mine[0]['error']}"
            print(f"{PROGRAM}: {name}: {text}", file=sys.stderr)
    return any(row["method"] in asked for row in rows)


def _write(args: argparse.Namespace, profile: Profile, book: Book, methods: list[Method], folder: Path) -> bool:
    """Write the page, and results for cards; returns whether these were asked for and there are none."""
    from ..bench.comparison import compare
    from ..bench.page import summary, write_page
    from ..bench.tasks import TASKS

    # The page has all tasks with rows, whichever part was run just now.
    suites = compare([TASKS[name] for name in profile.tasks], methods, profile, book)
    extra = "".join(f" --controller {shlex.quote(source)}" for source in args.controller)
    command = f"{PROGRAM} bench --{profile.name}{extra} --jobs 2"
    page = write_page(suites, folder, command=command)
    written = _write_results(args, suites, methods, command) if args.write_results else []
    asked = [m.name for m in methods if m.controller in args.controller and not m.part_of] or ["universal"]
    text = "\n".join(summary(suites, name) for name in asked)
    if args.json:
        found = {"profile": profile.name, "page": str(page), "rows": str(book.folder), "summary": text}
        print(json.dumps({**found, "eval_results": written}, indent=2))
        return args.write_results and not written
    print(f"{text}\nwritten to {page}, from the rows in {book.folder}")
    for path in written:
        print(f"written to {path}, for the controller's card")
    return args.write_results and not written


def _write_results(
    args: argparse.Namespace, suites: Mapping[str, Comparison], methods: list[Method], command: str
) -> list[str]:
    from ..artifacts import EVAL_NAME, replace_file
    from ..bench.results import as_text, results_of

    written = []
    for method in (m for m in methods if m.controller in args.controller and Path(m.controller).is_dir()):
        found = results_of(method.name, suites, command)
        path = Path(method.controller) / EVAL_NAME
        if not found["results"]:
            names = ", ".join(text.partition(":")[0] for text in found["not_tested"])
            why = f"no task has all its runs, so {path} is left as it is; lacking: {names}"
            print(f"{PROGRAM}: {why}", file=sys.stderr)
            continue
        replace_file(path, as_text(found))
        written.append(str(path))
    return written


def _tasks(args: argparse.Namespace, profile: Profile) -> list[Task]:
    from ..bench.tasks import TASKS

    for name in args.tasks or ():
        if name not in profile.tasks:
            raise UserError(f"no task '{name}' in this profile{did_you_mean(name, profile.tasks)}")
    chosen = [TASKS[name] for name in profile.tasks if args.tasks is None or name in args.tasks]
    return [task for task in chosen if args.suite in (None, task.suite)]


def _methods(args: argparse.Namespace, profile: Profile) -> list[Method]:
    from ..bench.methods import METHODS, third_party
    from ..bench.rivals import check_package, missing_package

    for name in args.methods or ():
        if name not in METHODS:
            raise UserError(f"no method '{name}'{did_you_mean(name, METHODS)}")
    chosen = [METHODS[name] for name in args.methods or profile.methods]
    with user_errors():
        extra = [third_party(source) for source in args.controller]
        for method in () if args.render_only else chosen:
            check_package(method)
    absent = {package for method in chosen if (package := missing_package(method))}
    if absent and not args.render_only:
        left_out = f"left out for want of a package: {', '.join(sorted(absent))}; pip install 'hf_adaptive_lr[bench]'"
        print(left_out, file=sys.stderr if args.json else sys.stdout)
    return [*(m for m in chosen if args.render_only or missing_package(m) is None), *extra]
