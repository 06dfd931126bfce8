"""Inner training steps per second: many small MLPs in one batch, beside the other ways to train them.

    python -m hf_adaptive_lr.bench.throughput

A step is one update of one run. All columns (`throughput_columns.py`) train the same runs from the same weights on the
same batches, and must hold the same weights after a few updates, or nothing is timed. Then they take turns in blocks,
in an order that is drawn anew each round; a figure is the median over the rounds, a ratio the median of the rounds'
ratios. One large matrix product takes part as this machine's peak. The batches are drawn beforehand, except for the
columns with sensors, which draw their own, as meta-training does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import measured
from .throughput_columns import ADAMW, COLUMNS, HORIZON, Column, Eager, Jax, Sensed, Vector, Vmap, Work

COMMAND = "python -m hf_adaptive_lr.bench.throughput"
OUTPUT = Path("model_cards/rows/throughput.jsonl")
RUNS = (1, 16, 64, 256)
BATCHES = 8
"""Mini-batches of every run that come round again."""
CHECKED = 10
"""Updates after which all columns must agree."""
TARGETS = {Eager.name: 15.0, Vmap.name: 1.5, Jax.name: 1.0}
TARGET_RUNS = 256
"""The targets are for this many runs: `VectorRun` over the column, both plain SGD."""


def disagreement(columns: Sequence[Column]) -> float:
    """Train a few updates and compare with `VectorRun` under the same optimizer."""
    start, worst = columns[0].task.init(), 0.0
    own = {c.optimizer: c for c in columns if isinstance(c, Vector)}
    for column in columns:
        column.advance(CHECKED)
    for column in columns:
        mine, theirs = own[column.optimizer].weights()[: column.runs], column.weights()
        if not torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5):
            raise RuntimeError(f"'{column.name}' does not compute what VectorRun does: nothing was timed")
        moved = (mine - start[: column.runs]).norm(dim=-1)
        worst = max(worst, float(((mine - theirs).norm(dim=-1) / moved).max()))
    return worst


def clock(threads: int) -> tuple[str, Callable[[], float]]:
    """CPU time on one thread, which other programs disturb least; with several, only wall time means anything."""
    if threads == 1:
        return "CPU time of the process (time.process_time)", time.process_time
    return "wall time (time.perf_counter)", time.perf_counter


class Peak:
    """A large matrix product, in blocks like a column."""

    unit = 1

    def __init__(self, size: int) -> None:
        self.left, self.out, self.flops = torch.randn(size, size), torch.empty(size, size), 2 * size**3

    def advance(self, updates: int) -> None:
        """That many products."""
        for _ in range(updates):
            torch.mm(self.left, self.left, out=self.out)


def measure(work: Work, rounds: int, seconds: float, now: Callable[[], float]) -> list[dict[str, Any]]:
    """Check that all columns agree, then time them in turn."""
    task, order = work.task(BATCHES), random.Random(work.seed)
    columns = [kind(task, work.rates()) for kind in COLUMNS if kind is not Jax or Jax.installed()]
    worst = disagreement(columns)
    for column in columns:
        if isinstance(column, Sensed):
            column.draw()
    peak = Peak(2048 if seconds > 0.05 else 64)
    lanes: dict[str, Column | Peak] = {"peak": peak, **{c.name: c for c in columns}}
    blocks = {name: _block(lane, seconds, now) for name, lane in lanes.items()}
    times: dict[str, list[float]] = {name: [] for name in lanes}
    for _ in tqdm(range(rounds), desc=f"{work.runs} runs, {len(lanes)} in turn", unit="round"):
        for name in order.sample(list(lanes), len(lanes)):
            began = now()
            lanes[name].advance(blocks[name])
            times[name].append(max(now() - began, 1e-9) / blocks[name])
    flops = peak.flops / statistics.median(times.pop("peak"))
    common = {"row": "throughput", "runs": work.runs, "peak_gflops": round(flops / 1e9, 1), "disagreement": worst}
    rows = [{**common, **_figures(c, times, blocks[c.name], work, flops)} for c in columns]
    return rows if Jax.installed() else [*rows, {**common, "column": Jax.name, "note": "not installed"}]


def _block(lane: Column | Peak, seconds: float, now: Callable[[], float]) -> int:
    lane.advance(lane.unit)
    began = now()
    lane.advance(lane.unit)
    return lane.unit * max(1, round(seconds / max(now() - began, 1e-6)))


def _figures(
    column: Column, times: Mapping[str, Sequence[float]], block: int, work: Work, peak: float
) -> dict[str, Any]:
    mine = [column.runs / t for t in times[column.name]]
    # Steps under SGD are compared with VectorRun's under SGD; the others' ratios say what more than that costs.
    ratio = statistics.median(work.runs / t / m for t, m in zip(times[Vector.name], mine, strict=True))
    rate = statistics.median(mine)
    target = TARGETS.get(column.name) if work.runs == TARGET_RUNS else None
    return {
        "column": column.name,
        "optimizer": "AdamW, weight decay, clipping" if column.optimizer == ADAMW else "SGD",
        "steps_per_second": round(rate, 1),
        "lowest": round(min(mine), 1),
        "highest": round(max(mine), 1),
        "share_of_peak": round(rate * work.flops / peak, 8),
        "vector_run_over_it": round(ratio, 3),
        "target": target,
        "blocks": len(mine),
        "updates_per_block": block,
        "timed_runs": column.runs,
    }


def header(options: argparse.Namespace, work: Work) -> dict[str, Any]:
    """Where and with what the rows below were measured."""
    what = f"--runs {' '.join(map(str, options.runs))} --rounds {options.rounds} --seconds {options.seconds}"
    return measured.header(
        f"{COMMAND} {'--quick' if options.quick else what} --threads {options.threads}",
        ["torch", *(["jax", "jaxlib"] if Jax.installed() else [])],
        threads=options.threads,
        cpus=os.cpu_count(),
        clock=clock(options.threads)[0],
        net=f"{work.dims}-{work.width}-{work.classes} MLP, ReLU, batch {work.batch}",
        flops_per_step=work.flops,
        decisions=f"every {Sensed.unit} updates of runs of {HORIZON}, where there are sensors",
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    width = max(len(r["column"]) for r in rows)
    lines = [f"runs {'column':{width}} {'steps/s':>9} {'(lowest - highest)':>20}  of peak  VectorRun over it"]
    for r in rows:
        start = f"{r['runs']:4d} {r['column']:{width}}"
        if "note" in r:
            lines.append(f"{start} {r['note']:>9}")
            continue
        between = f"({r['lowest']:,.0f} - {r['highest']:,.0f})"
        ratio = "" if r["column"] == Vector.name else f"{r['vector_run_over_it']:.2f}"
        if r["target"] is not None:
            met = "yes" if r["vector_run_over_it"] >= r["target"] else "no"
            ratio += f"  (target {r['target']:g}: {met})"
        lines.append(
            f"{start} {r['steps_per_second']:9,.0f} {between:>20} {r['share_of_peak']:8.1%}  {ratio}".rstrip()
        )
    peaks = ", ".join(f"{p:g}" for p in sorted({r["peak_gflops"] for r in rows}))
    worst = max(r["disagreement"] for r in rows)
    lines.append(f"matmul peak {peaks} GFLOP/s; updates of all columns agree within {worst:.1e} of themselves")
    return "\n".join(lines)


@contextlib.contextmanager
def only(threads: int) -> Iterator[None]:
    """This many threads for everybody: JAX has no switch and takes as many as it may use CPUs when it starts."""
    before = torch.get_num_threads()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(threads)
    if allowed is not None:
        os.sched_setaffinity(0, sorted(allowed)[:threads])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if allowed is not None:
            os.sched_setaffinity(0, allowed)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the rows; the file appears whole or not at all."""
    p = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    p.add_argument("--quick", action="store_true", help="tiny nets, two rounds: does it run, not how fast")
    p.add_argument("--runs", nargs="+", type=int, default=list(RUNS), help="batches of runs to measure")
    p.add_argument("--rounds", type=int, default=9, help="blocks per column and batch")
    p.add_argument("--seconds", type=float, default=0.4, help="length of a block")
    p.add_argument("--threads", type=int, default=2, help="of torch and JAX; 1: CPU time instead of wall time")
    p.add_argument("--output", type=Path, help=f"JSON-lines file (default {OUTPUT}; --quick: none)")
    options = p.parse_args(argv)
    for name, value in (("rounds", options.rounds), ("threads", options.threads), ("runs", min(options.runs))):
        if value < 1:
            p.error(f"--{name} {value}: at least 1")
    work = Work(1)
    if options.quick:
        options.runs, options.rounds, options.seconds, options.threads = [1, 3], 2, 0.001, 1
        work = Work(1, dims=6, width=5, classes=3, batch=4)
    now = clock(options.threads)[1]
    with only(options.threads):
        first = header(options, work)
        if options.threads > 1 and first["load_at_start"] > 0.5:
            # Threads that wait for one whose core is taken: the columns of torch fall to a tenth, JAX's hardly.
            print("other programs are running: use --threads 1, or wait until they end", file=sys.stderr)
        rows = [
            row
            for runs in options.runs
            for row in measure(replace(work, runs=runs), options.rounds, options.seconds, now)
        ]
    print(table(rows))
    output = options.output or (None if options.quick else OUTPUT)
    if output is not None:
        measured.write_rows(output, [first, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
