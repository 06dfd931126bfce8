"""What the divergence guard costs: CPU time of a Trainer with `GuardCallback` over one without.

    python -m hf_adaptive_lr.bench.guard_overhead

As in `overhead.py`, trainers take turns update by update in one process. A block is the 50 updates from one snapshot
to the next, so that each holds one; a second plain trainer shows the noise.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import measured
from .overhead import PLAIN, WARM_UP, Method, Times, figures, header, lanes_of
from .workload import SIZES, SNAPSHOT_EVERY, TINY, Size

TARGET = 1.02
ROWS = Path("model_cards/rows/guard_overhead.jsonl")
METHODS = (
    Method("plain again (noise)", None, every=SNAPSHOT_EVERY),
    Method("guard", None, every=SNAPSHOT_EVERY, guard=True),
)


def measure(size: Size, pairs: int, seed: int) -> Times:
    """Run the trainers in turn."""
    methods, rounds, order = [PLAIN, *METHODS], pairs * SNAPSHOT_EVERY, random.Random(seed)
    times: Times = {method: {} for method in methods}
    with lanes_of(methods, size, WARM_UP + rounds + 1, seed) as (lanes, own):
        for index in tqdm(range(rounds), desc=f"{size.name}, {len(methods)} trainers in turn", unit="round"):
            order.shuffle(methods)
            for method in methods:
                own.take()
                times[method][index] = (lanes[method].advance(), own.take())
    return times


def rows_for(size: Size, times: Times) -> list[dict[str, Any]]:
    """One row per method."""
    common = {
        "row": "guard_overhead",
        "size": size.name,
        "parameters": sum(p.numel() for p in size.model().parameters()),
        "batch_size": size.batch,
        "length": size.length,
        "snapshot_every": SNAPSHOT_EVERY,
        "plain_ms": round(1e3 * statistics.median(cpu for cpu, _ in times[PLAIN].values()), 2),
    }
    return [
        {**common, "method": m.name, **figures(m, times[PLAIN], times[m]), "target": TARGET if m.guard else None}
        for m in METHODS
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the rows; the file appears whole or not at all."""
    p = argparse.ArgumentParser(prog="python -m hf_adaptive_lr.bench.guard_overhead", description="The guard's cost.")
    p.add_argument("--quick", action="store_true", help="a tiny model and one pair: does it run, not what it costs")
    p.add_argument("--pairs", type=int, default=6, help="blocks of fifty updates; at least 6 for 95%%")
    p.add_argument("--seed", type=int, default=0, help="of data, weights and the order of turns")
    p.add_argument("--output", type=Path, help=f"JSON-lines file (default {ROWS}; --quick: none)")
    options = p.parse_args(argv)
    if options.pairs < 1:
        p.error(f"--pairs {options.pairs}: at least 1")
    torch.set_num_threads(1)
    options.sizes, size = ["10M"], TINY if options.quick else SIZES["10M"]
    first = header(options)
    first["command"] = f"python -m hf_adaptive_lr.bench.guard_overhead --pairs {options.pairs} --seed {options.seed}"
    rows = rows_for(size, measure(size, 1 if options.quick else options.pairs, options.seed))
    for row in rows:
        low, high = row["interval"]
        print(f"{row['size']:5} {row['method']:20} {row['ratio']:7.4f}  [{low:.4f}, {high:.4f}]  {row['pairs']} pairs")
    output = options.output or (None if options.quick else ROWS)
    if output is not None:
        measured.write_rows(output, [first, *rows])
        print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
