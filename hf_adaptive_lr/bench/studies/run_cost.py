"""The cost of a whole run with `universal`: CPU time over that of a plain `Trainer` with the linear schedule.

    python -m hf_adaptive_lr.bench.studies.run_cost

Both train one BERT-like encoder on equal batches and take turns update by update (`timing.py`), from the start of
`train()` to the last update but one, so that everything counts: a look at the weights, each decision, and the updates
between. A second plain trainer shows the noise. `inside` counts only the time in our own
code, over the rest of the same updates, and is far less noisy.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...auto import AutoController
from ..markdown import table as markdown_table
from ..rows import Row
from ..runner import command_parser
from . import measured
from .overhead import NOISE, PLAIN, Method, trainer_for
from .timing import take_turns
from .tiny_bert import TINY, Size

SIZE = Size("10M", 384, 6, 8, 32)
TARGETS = {200: 1.03, 1000: 1.01}
"""The ratio that a run of so many updates is to stay below."""
REPEATS = {200: 3, 1000: 3}
OUTPUT = measured.ROWS / "run_cost.jsonl"


def measure(size: Size, updates: int, seed: int) -> list[Row]:
    """A row for `universal` and one for a second plain trainer, of one run each."""
    universal = Method("universal", AutoController.from_pretrained("universal"), every=0)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            method: trainer_for(method, size, updates, f"{folder}/{index}")
            for index, method in enumerate((PLAIN, Method(NOISE), universal))
        }
        bar = f"{size.name}, {updates} updates, {len(trainers)} trainers in turn"
        times = take_turns(trainers, updates - 1, seed, warm_up=0, bar=bar)
    plain = sum(times[PLAIN].whole.values())
    rows = []
    for method in (Method(NOISE), universal):
        whole, own = (sum(found.values()) for found in (times[method].whole, times[method].own))
        rows.append(
            {
                "size": size.name,
                "updates": updates,
                "seed": seed,
                "method": method.name,
                "ratio": round(whole / plain, 5),
                "inside": round(1 + own / (whole - own), 5),
                "plain_ms": round(1e3 * plain / (updates - 1), 2),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the median run of each length, with the least and the most."""
    lines = []
    for updates in dict.fromkeys(row["updates"] for row in rows):
        for method in (NOISE, "universal"):
            runs = [row for row in rows if (row["updates"], row["method"]) == (updates, method)]
            aim = f"{TARGETS[updates]}" if method != NOISE and updates in TARGETS else "-"
            cells = [_middle([run["ratio"] for run in runs]), _middle([run["inside"] for run in runs])]
            lines.append([f"{updates:,}", method, str(len(runs)), *cells, aim])
    return markdown_table(["updates", "method", "runs", "ratio", "own code alone", "to stay below"], lines)


def _middle(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.3f} ({ordered[0]:.3f} ... {ordered[-1]:.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the rows."""
    p = command_parser("studies.run_cost", __doc__)
    p.add_argument("--quick", action="store_true", help="a tiny model and short runs: does it run, not what it costs")
    p.add_argument("--output", type=Path, help="JSON-lines file (--quick: none unless one is given)")
    p.add_argument("--updates", type=int, nargs="+", choices=REPEATS, help="these lengths only (default: all)")
    options = p.parse_args(argv)
    torch.set_num_threads(1)
    lengths = options.updates or REPEATS
    size, repeats = (TINY, {20: 1}) if options.quick else (SIZE, {updates: REPEATS[updates] for updates in lengths})
    first = measured.header(
        f"{p.prog}{' --quick' * options.quick}{''.join(f' --updates {n}' for n in options.updates or ())}",
        clock="CPU time of the process (time.process_time)",
        optimizer="adamw_torch, clipping 1.0, logging every 10 updates",
    )
    rows = [row for updates, many in repeats.items() for seed in range(many) for row in measure(size, updates, seed)]
    measured.publish(options.output or (None if options.quick else OUTPUT), first, rows, table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
