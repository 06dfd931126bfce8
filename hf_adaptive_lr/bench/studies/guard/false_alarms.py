"""How often the divergence guard alarms where nothing is wrong: the paper study's tasks at their tuned learning rates.

    python -m hf_adaptive_lr.bench.studies.guard.false_alarms --jobs 2

Every run is one that the paper study has: same task, method, seed and learning rate, this time with a guard. The guard
study's runs that are not disturbed are counted on its own page.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....demo.data import DemoDataError
from ... import markdown
from ...rows import RowsError, pack, read_rows
from ...runner import WorkerError, command_parser, run_all
from ...train import TrainingRun
from .. import measured
from ..papers.methods import METHODS
from ..papers.pages import COMMAND
from ..papers.plan import FULL, book_of, tuned
from ..papers.tasks import TASKS

FILE = "guard_false_alarms.jsonl"
GUARDED = ("constant", "linear", "cosine", "hypergradient")
"""Methods whose healthy runs are repeated with a guard."""
SEEDS = 3
SLOW = "newsgroups-minilm3"
"""Left out: its undisturbed runs are the guard study's."""


def plan(rows: Path, tasks: Sequence[str], seeds: int) -> list[TrainingRun]:
    """The healthy runs of the paper study, each with a guard; none of methods without a run that went well."""
    book, runs = book_of(rows), []
    for task in (TASKS[name] for name in tasks):
        for name in GUARDED:
            found = tuned(task, METHODS[name], FULL, book)
            if found.method is None or found.lr is None:
                continue
            arguments = {**found.method.arguments, "divergence_guard": True}
            watched = dataclasses.replace(found.method, name=f"{name}+guard", arguments=arguments)
            runs += [TrainingRun(task, watched, seed, found.lr) for seed in range(seeds)]
    if not runs:
        raise RowsError(f"'{rows}' has no tuned runs of {', '.join(tasks)}; run: {COMMAND} all")
    return runs


def counts(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int, int, int]:
    """Alarmed updates, updates, runs with an alarm, and runs."""
    alarms = [sum(row["guard"].values()) for row in rows]
    return sum(alarms), sum(row["setting"]["updates"] for row in rows), sum(a > 0 for a in alarms), len(rows)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per task, and all together."""
    lines = []
    for task in [*dict.fromkeys(row["task"] for row in rows), "all"]:
        a, n, r, m = counts([row for row in rows if task in (row["task"], "all")])
        lines.append([task, f"{a} of {n:,}", f"{r} of {m}"])
    return markdown.table(["task", "alarmed updates", "runs with an alarm"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table; 0 when done, 2 when it cannot be."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    p = command_parser("studies.guard.false_alarms", __doc__)
    known, shown = [*TASKS], f"rows, the paper study's as well (default: {measured.ROWS})"
    p.add_argument("--jobs", type=measured.count, default=1, help="worker processes")
    p.add_argument("--tasks", nargs="+", choices=known, default=[t for t in known if t != SLOW], metavar="TASK")
    p.add_argument("--seeds", type=measured.count, default=SEEDS, help=f"of each method (default: {SEEDS})")
    p.add_argument("--rows-dir", type=Path, default=measured.ROWS, help=shown)
    p.add_argument("--render-only", action="store_true", help="run nothing")
    options = p.parse_args(argv)
    path = options.rows_dir / FILE
    try:
        if options.render_only:
            rows = read_rows(path)
        else:
            rows = run_all(plan(options.rows_dir, options.tasks, options.seeds), path, jobs=options.jobs)
            pack(path)
    except (RowsError, WorkerError, DemoDataError) as error:
        print(f"{p.prog}: error: {error}", file=sys.stderr)
        return 2
    failed = [row for row in rows if "error" in row]
    print(table([row for row in rows if "error" not in row]))
    print(f"written to {path}" + (f"; {len(failed)} runs ended in an error" if failed else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
