"""Inner training steps per second: many small MLPs in one batch, beside the other ways to train them.

    python -m hf_adaptive_lr.bench.studies.throughput

A step is one update of one run. All columns train the same runs from the same weights on the same batches, and must
hold the same weights after a few updates, or nothing is timed. Then they take turns in blocks, in an order that is
drawn anew each round; a figure is the median over the rounds. One large matrix product takes part as this machine's
peak. Batches are drawn beforehand, but by columns with sensors when they are timed, as meta-training does.
"""

from __future__ import annotations

import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..markdown import table as markdown_table
from ..runner import command_parser
from . import measured
from .throughput_columns import ADAMW, EVERY, HORIZON, VECTOR, Column, Work, columns

OUTPUT = measured.ROWS / "throughput.jsonl"
RUNS, CHECKED = (1, 16, 64, 256), 10
"""Runs at once, and updates after which all columns must agree."""


def disagreement(made: Sequence[Column], start: Tensor) -> float:
    """Train a few updates and compare with `VectorRun` under the same optimizer."""
    for column in made:
        column.advance(CHECKED)
    own, worst = {c.optimizer: c.weights() for c in made if c.name.startswith(VECTOR)}, 0.0
    for column in made:
        mine, theirs = own[column.optimizer][: column.runs], column.weights()
        if not torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5):
            raise RuntimeError(f"'{column.name}' does not compute what VectorRun does: nothing was timed")
        moved = (mine - start[: column.runs]).norm(dim=-1)
        worst = max(worst, float(((mine - theirs).norm(dim=-1) / moved).max()))
    return worst


def peak(size: int) -> Column:
    """A large matrix product, in blocks like a column."""
    left, out = torch.randn(size, size), torch.empty(size, size)
    return Column("peak", 2 * size**3, lambda n: [torch.mm(left, left, out=out) for _ in range(n)], lambda: out)


def measure(work: Work, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Check that all columns agree, then time them in turn."""
    task, order = work.task(), random.Random(work.seed)
    worst = disagreement(columns(task, work.rates()), task.init())
    timed = [peak(2048 if seconds > 0.05 else 64), *columns(task, work.rates(), fresh=True)]
    blocks = [_block(column, seconds) for column in timed]
    rates: dict[str, list[float]] = {column.name: [] for column in timed}  # runs times updates per second
    for _ in tqdm(range(rounds), desc=f"{work.runs} runs, {len(timed)} in turn", unit="round"):
        for column, block in order.sample(list(zip(timed, blocks, strict=True)), len(timed)):
            rates[column.name].append(column.runs * block / _seconds(column, block))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    common = {"row": "throughput", "runs": work.runs, "blocks": rounds, "disagreement": worst}
    return [
        {
            **common,
            "peak_gflops": round(middle["peak"] / 1e9, 1),
            "column": column.name,
            "optimizer": "AdamW, weight decay, clipping" if column.optimizer is ADAMW else "SGD",
            "steps_per_second": round(middle[column.name], 1),
            "lowest": round(min(rates[column.name]), 1),
            "highest": round(max(rates[column.name]), 1),
            "share_of_peak": round(middle[column.name] * work.flops / middle["peak"], 8),
            "updates_per_block": block,
            "timed_runs": column.runs,
        }
        for column, block in list(zip(timed, blocks, strict=True))[1:]
    ]


def _block(column: Column, seconds: float) -> int:
    column.advance(column.unit)
    return column.unit * max(1, round(seconds / _seconds(column, column.unit)))


def _seconds(column: Column, updates: int) -> float:
    began = time.process_time()
    column.advance(updates)
    return max(time.process_time() - began, 1e-6)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: every column at the largest number of runs."""
    most = max(row["runs"] for row in rows)
    lines = [
        [row["column"], f"{row['steps_per_second']:,.0f}", f"{100 * row['share_of_peak']:.1f} %"]
        for row in rows
        if row["runs"] == most and row["steps_per_second"]
    ]
    return markdown_table(["column", "steps / s", "share of the matmul peak"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the rows."""
    p = command_parser("studies.throughput", __doc__)
    p.add_argument("--quick", action="store_true", help="tiny nets, two rounds: does it run, not how fast")
    p.add_argument("--runs", nargs="+", type=measured.count, default=list(RUNS), help="batches of runs to measure")
    p.add_argument("--rounds", type=measured.count, default=9, help="blocks per column and batch")
    p.add_argument("--seconds", type=float, default=0.4, help="length of a block")
    p.add_argument("--output", type=Path, help=f"JSON-lines file (default {OUTPUT}; --quick: none)")
    options = p.parse_args(argv)
    torch.set_num_threads(1)
    work = Work(1)
    if options.quick:
        options.runs, options.rounds, options.seconds = [1, 3], 2, 0.001
        work = Work(1, dims=6, width=5, classes=3, batch=4)
    how = f"--runs {' '.join(map(str, options.runs))} --rounds {options.rounds} --seconds {options.seconds}"
    first = measured.header(
        f"{p.prog} {'--quick' if options.quick else how}",
        ["torch", *(["jax", "jaxlib"] if importlib.util.find_spec("jax") else [])],
        clock="CPU time of the process (time.process_time)",
        net=f"{work.dims}-{work.width}-{work.classes} MLP, ReLU, batch {work.batch}",
        flops_per_step=work.flops,
        decisions=f"every {EVERY} updates of runs of {HORIZON}, where there are sensors",
    )
    rows = []
    for runs in options.runs:
        rows += measure(replace(work, runs=runs), options.rounds, options.seconds)
    print(table(rows))
    output = options.output or (None if options.quick else OUTPUT)
    if output is not None:
        measured.save(output, first, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
