"""How often the divergence guard alarms where nothing is wrong: the paper study's tasks at their tuned learning rates.

    python -m hf_adaptive_lr.bench.studies.guard.false_alarms --jobs 2

Every run is one that the paper study has: same task, method, seed and learning rate, this time with a guard. The guard
study's runs that are not disturbed are counted on its own page.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import markdown
from ...rows import RowsError, forget_errors, pack, read_rows, row_identity
from ...runner import identity, run_all
from ...train import TrainingRun
from ..command import carry_out, parsed, study_parser
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


def plan(rows: Path) -> list[TrainingRun]:
    """The healthy runs of the paper study, each with a guard; none of methods without a run that went well."""
    book, runs = book_of(rows), []
    for task in (task for name, task in TASKS.items() if name != SLOW):
        for name in GUARDED:
            found = tuned(task, METHODS[name], FULL, book)
            if found.method is None or found.lr is None:
                continue
            arguments = {**found.method.arguments, "divergence_guard": True}
            watched = dataclasses.replace(found.method, name=f"{name}+guard", arguments=arguments)
            runs += [TrainingRun(task, watched, seed, found.lr) for seed in range(SEEDS)]
    if not runs:
        raise RowsError(f"'{rows}' has no tuned runs; run: {COMMAND} all")
    return runs


def counts(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int, int, int]:
    """Alarmed updates, updates, runs with an alarm, and runs."""
    alarms = [sum(row["guard"].values()) for row in rows]
    return sum(alarms), sum(row["setting"]["updates"] for row in rows), sum(a > 0 for a in alarms), len(rows)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per task, and all together; runs that ended in an error are left out."""
    rows, lines = [row for row in rows if "error" not in row], []
    for task in [*dict.fromkeys(row["task"] for row in rows), "all"]:
        a, n, r, m = counts([row for row in rows if task in (row["task"], "all")])
        lines.append([task, f"{a} of {n:,}", f"{r} of {m}"])
    return markdown.table(["task", "alarmed updates", "runs with an alarm"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table; 0 when done, 2 when it cannot be, 130 when interrupted."""
    parser = study_parser("guard.false_alarms", __doc__)
    options = parsed(parser, argv)
    return carry_out(parser.prog, lambda: _study(options))


def _study(options: argparse.Namespace) -> None:
    path = options.rows / FILE
    if not options.render_only:
        if options.retry_failed:
            forget_errors(path)
        run_all(plan(options.rows), path, jobs=options.jobs)
        pack(path)
    wanted = {identity(run) for run in plan(options.rows)}  # not those of an earlier guard
    rows = [row for row in read_rows(path) if row_identity(row) in wanted]
    failed = sum("error" in row for row in rows)
    print(table(rows))
    print(f"rows in {path}" + (f"; {failed} runs ended in an error" if failed else ""))


if __name__ == "__main__":
    sys.exit(main())
