"""The cost of a controller: CPU time of `AdaptiveLRTrainer` over a plain `Trainer` with the linear schedule.

    python -m hf_adaptive_lr.bench.overhead

All trainers live in one process and take turns update by update, in an order that is drawn anew each round (see
`lanes.py`). A pair is a block of a method, as many updates as it makes per decision, and the block of the plain
trainer in the same rounds; the figure is the median of the ratios of all pairs, with an interval from their order
statistics. A second plain trainer shows the noise. `inside` counts only the time in our own code, over the rest of the
same updates; what the plain schedule costs is not taken off.

The forward pass that `gain_ratio` repeats is counted apart: its cost is measured at every update, and the ratio of
runs that measure it twenty times is computed from that.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..controller import Controller
from ..controllers import CONTROLLERS
from . import measured
from .lanes import Lane, OwnTime, share_one_heap
from .probes import CHEAP, Reader, Recurrent
from .workload import SIZES, TINY, Size, trainer_for

COMMAND = "python -m hf_adaptive_lr.bench.overhead"
ROWS = Path("model_cards/rows/overhead.jsonl")
CADENCE = 10
"""Updates per decision of the methods that do not decide at every update; `--pairs` is the number of their pairs."""
WARM_UP = 3
"""Untimed updates of every trainer: start-up, the optimizer's state, the allocator."""
TARGET, TARGET_PARAMETERS = 1.01, 10_000_000
DECISIONS = 20
RUNS = (100, 300, 1000)


@dataclass(frozen=True)
class Method:
    """What is compared with the plain trainer; no controller is another plain trainer."""

    name: str
    controller: Controller | None
    every: int = 1
    guard: bool = False


PLAIN = Method("plain", None)
GAIN = Method("gain_ratio", Reader(fields=("gain_ratio",)))
METHODS = (
    Method("plain again (noise)", None),
    Method("linear", CONTROLLERS["linear"]()),
    Method("hypergradient", CONTROLLERS["hypergradient"]()),
    Method("hypergradient", CONTROLLERS["hypergradient"](), every=CADENCE),
    Method("all cheap sensors", Reader(fields=CHEAP), every=CADENCE),
    Method("recurrent net (32)", Recurrent.seeded(0), every=CADENCE),
)


# --- measuring ----------------------------------------------------------------------------------------------------

Times = dict[Method, dict[int, tuple[float, float]]]
"""Per method and round: CPU seconds of the update, and those of them spent in our own code."""


def measure(size: Size, methods: Sequence[Method], rounds: int, seed: int) -> Times:
    """Run the plain trainer and those of all methods in turn."""
    order, times = random.Random(seed), {method: dict[int, tuple[float, float]]() for method in (PLAIN, *methods)}
    share_one_heap()
    with tempfile.TemporaryDirectory() as folder, OwnTime().measured() as own:
        lanes = {}
        for index, m in enumerate(times):
            path = Path(folder, str(index))
            updates = WARM_UP + rounds + 1
            lanes[m] = Lane(trainer_for(m.controller, size, m.every, updates, path, seed, guard=m.guard))
        for _ in range(WARM_UP):
            for lane in lanes.values():
                lane.advance()
        # What is alive now stays alive: the collector need not search it in whichever trainer's turn it wakes up.
        gc.collect()
        gc.freeze()
        try:
            for index in tqdm(range(rounds), desc=f"{size.name}, {len(lanes)} trainers in turn", unit="round"):
                # A cost of a third of an update needs fewer measurements than one of a thousandth.
                turn = [m for m in lanes if m is not GAIN or index % 4 == 0]
                order.shuffle(turn)
                for method in turn:
                    own.take()
                    times[method][index] = (lanes[method].advance(), own.take())
        finally:
            gc.unfreeze()
            for lane in lanes.values():
                lane.close()
    return times


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, tuple[float, float], float]:
    """Median, an interval from order statistics, and the confidence that this interval really has.

    The k-th smallest and k-th largest of n values enclose the true median with probability 1 - 2 P(B(n, 1/2) < k),
    whatever the distribution. Below six values even the extremes do not reach 95%, and the confidence says so.
    """
    ordered, n = sorted(values), len(values)
    confidence = [1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(1, max(2, n // 2 + 1))]
    k = max([i for i, c in enumerate(confidence) if c >= level], default=0)
    return statistics.median(ordered), (ordered[k], ordered[n - 1 - k]), confidence[k]


def setting(size: Size, times: Times) -> dict[str, Any]:
    """The model, and how long a plain update of it takes."""
    return {
        "size": size.name,
        "parameters": sum(p.numel() for p in size.model().parameters()),
        "batch_size": size.batch,
        "length": size.length,
        "plain_ms": round(1e3 * statistics.median(cpu for cpu, _ in times[PLAIN].values()), 2),
    }


def rows_for(size: Size, times: Times) -> list[dict[str, Any]]:
    """One row per method; the last one is the gain ratio's."""
    common = {
        **setting(size, times),
        "embedding_parameters": sum(p.numel() for p in size.model().bert.embeddings.parameters()),
    }
    rows = []
    for method in (*METHODS, GAIN):
        bound = TARGET if common["parameters"] >= TARGET_PARAMETERS and method.controller is not None else None
        found = figures(method, times[PLAIN], times[method])
        rows.append({"row": "overhead", **common, "method": method.name, **found, "target": bound})
    share = rows[-1]["ratio"] - 1
    rows[-1] |= {
        "row": "gain_ratio",
        "target_updates": RUNS[-1],
        "decisions_per_run": DECISIONS,
        "computed_ratio": {str(n): round(1 + DECISIONS * share / n, 5) for n in RUNS},
        "computed_from": "1 + decisions_per_run * (ratio - 1) / updates of the run",
    }
    return rows


def figures(
    method: Method, plain: Mapping[int, tuple[float, float]], mine: Mapping[int, tuple[float, float]]
) -> dict[str, Any]:
    """Ratios of a method's blocks to those of the plain trainer in the same rounds."""
    turns = sorted(mine)
    blocks = [turns[first : first + method.every] for first in range(0, len(turns), method.every)]
    paired = [sum(mine[i][0] for i in b) / sum(plain[i][0] for i in b) for b in blocks]
    own = [sum(mine[i][1] for i in b) / sum(mine[i][0] - mine[i][1] for i in b) for b in blocks]
    ratio, interval, confidence = median_interval(paired)
    return {
        "every": method.every,
        "pairs": len(blocks),
        "updates_per_block": method.every,
        "ratio": round(ratio, 5),
        "interval": [round(x, 5) for x in interval],
        "confidence": round(confidence, 4),
        "inside": round(1 + statistics.median(own), 5),
    }


def header(command: str) -> dict[str, Any]:
    """Where and with what the rows below were measured; the folder they go to has no influence and is left out."""
    return measured.header(
        command,
        ("torch", "transformers", "accelerate"),
        clock="CPU time of the process (time.process_time)",
        optimizer="adamw_torch, clipping 1.0, logging every 10 updates",
    )


def verdict(row: Mapping[str, Any]) -> str:
    """`yes` or `no` where a 95% interval lies on one side of the target, `unsure` otherwise."""
    if row["target"] is None:
        return ""
    # The gain ratio's target is for a whole run; its interval shrinks with it.
    scale = row["decisions_per_run"] / row["target_updates"] if "target_updates" in row else 1.0
    low, high = (1 + scale * (x - 1) for x in row["interval"])
    if row["confidence"] < 0.95:
        return "unsure"
    return "yes" if high <= row["target"] else "no" if low > row["target"] else "unsure"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [f"{'size':5} {'method':20} every {'ratio':>7}  {'interval':16}  conf. pairs  inside  <= {TARGET}"]
    for r in rows:
        low, high = r["interval"]
        lines.append(
            f"{r['size']:5} {r['method']:20} {r['every']:5d} {r['ratio']:7.4f}  [{low:.4f}, {high:.4f}]  "
            f"{r['confidence']:5.3f} {r['pairs']:5d} {r['inside']:7.4f}  {verdict(r)}".rstrip()
        )
        if "computed_ratio" in r:
            runs = ", ".join(f"{n} updates {x:.4f}" for n, x in r["computed_ratio"].items())
            lines.append(f"{'':5}   computed for {DECISIONS} decisions a run: {runs}")
    for r in {r["size"]: r for r in rows}.values():
        lines.append(
            f"{r['size']}: {r['parameters']:,} parameters ({r['embedding_parameters']:,} in embeddings), batch "
            f"{r['batch_size']} x {r['length']}, {r['plain_ms']:.1f} ms per plain update"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the rows; the file appears whole or not at all."""
    p = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0])
    p.add_argument("--quick", action="store_true", help="a tiny model and two pairs: does it run, not what it costs")
    p.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models to measure")
    p.add_argument("--pairs", type=int, default=6, help="blocks of ten updates per method; at least 6 for 95%%")
    p.add_argument("--seed", type=int, default=0, help="of data, weights and the order of turns")
    p.add_argument("--output", type=Path, help=f"JSON-lines file (default {ROWS}; --quick: none)")
    options = p.parse_args(argv)
    if options.pairs < 1:
        p.error(f"--pairs {options.pairs}: at least 1")
    torch.set_num_threads(1)
    sizes = [TINY] if options.quick else [SIZES[name] for name in options.sizes]
    rounds = CADENCE * (2 if options.quick else options.pairs)
    what = f"--sizes {' '.join(options.sizes)} --pairs {options.pairs}"
    first = header(f"{COMMAND} {'--quick' if options.quick else what} --seed {options.seed}")
    methods = (*METHODS, GAIN)
    rows = [row for size in sizes for row in rows_for(size, measure(size, methods, rounds, options.seed))]
    print(table(rows))
    output = options.output or (None if options.quick else ROWS)
    if output is not None:
        measured.write_rows(output, [first, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
