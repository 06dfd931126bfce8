"""The cost of the divergence guard: CPU time of a Trainer with `GuardCallback` over one without.

    python -m hf_adaptive_lr.bench.guard_overhead

As in `overhead.py`, trainers take turns update by update in one process. A block is the 50 updates from one snapshot
to the next, so that each holds one; a second plain trainer shows the noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import measured
from .overhead import PLAIN, Method, Times, figures, header, measure, setting
from .workload import SIZES, SNAPSHOT_EVERY, TINY, Size

TARGET = 1.02
ROWS = Path("model_cards/rows/guard_overhead.jsonl")
METHODS = (
    Method("plain again (noise)", None, every=SNAPSHOT_EVERY),
    Method("guard", None, every=SNAPSHOT_EVERY, guard=True),
)


def rows_for(size: Size, times: Times) -> list[dict[str, Any]]:
    """One row per method."""
    common = {"row": "guard_overhead", **setting(size, times), "snapshot_every": SNAPSHOT_EVERY}
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
    size, pairs = (TINY, 1) if options.quick else (SIZES["10M"], options.pairs)
    first = header(f"{p.prog} --pairs {options.pairs} --seed {options.seed}")
    rows = rows_for(size, measure(size, METHODS, pairs * SNAPSHOT_EVERY, options.seed))
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
