"""The cost of a controller and of the guard: CPU time of an update over a plain `Trainer` with the linear schedule.

    python -m hf_adaptive_lr.bench.studies.overhead
    python -m hf_adaptive_lr.bench.studies.overhead guard

All trainers live in one process and take turns update by update (`timing.py`). A pair is a block of a method, as many
updates as it makes per decision or snapshot, and the block of the plain trainer in the same rounds; the figure is the
median of the ratios of all pairs, with an interval from their order statistics. A second plain trainer shows the
noise. `inside` counts only the time in our own code, over the rest of the same updates; what the plain schedule costs
is not taken off.

The forward pass that `gain_ratio` repeats is counted apart: its cost is measured at every update, and the ratio of
runs that measure it twenty times is computed from that.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from ...controller import Controller, Params, State
from ...controllers import Hypergradient, Linear, Universal
from ...observation import Observation
from ...trainer.arguments import AdaptiveLRTrainingArguments
from ...trainer.guard_callback import GuardCallback
from ...trainer.mixin import AdaptiveLRTrainer
from ..markdown import table as markdown_table
from ..method import TRAINER_LR
from ..rows import Row
from ..runner import command_parser
from ..trainers import trainer_settings
from . import measured
from .timing import WARM_UP, Seconds, block_ratios, take_turns
from .tiny_bert import TINY, Size

FILES = {"controllers": "overhead.jsonl", "guard": "guard_overhead.jsonl"}
TARGETS, TARGET_PARAMETERS = {"controllers": 1.01, "guard": 1.02}, 10_000_000
# 10M has the layers of MiniLM-L6-H384.
SIZES = (Size("1M", 128, 4, 16, 128), Size("10M", 384, 6, 16, 128))
CADENCE, SNAPSHOT_EVERY = 10, 50
"""Updates per decision of the methods that do not decide at every update, and from one snapshot to the next."""
FEWEST = 6
"""Pairs of blocks without which there is no interval."""
DECISIONS, RUNS = 20, (100, 300, 1000)
"""Decisions with `gain_ratio` in a run, and the lengths of runs for which its ratio is computed."""


@dataclass(frozen=True, kw_only=True)
class Reader(Controller):
    """Has fields of [`Observation`] measured and answers with the learning rate in force."""

    controller_type = "bench_reader"

    # Those that need neither another forward pass nor held-out data.
    fields: tuple[str, ...] = ("loss", "grad_norm", "alignment", "update_ratio")

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset(self.fields))
        super().__post_init__()

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """The factor in force, of `batch_shape`."""
        for name in self.fields:
            obs.require(name)
        return obs.lr / obs.base_lr, state


@dataclass(frozen=True)
class Method:
    """What is compared with the plain trainer; no controller is another plain trainer."""

    name: str
    controller: Controller | None = None
    every: int = 1  # updates per decision; 0 leaves them to the controller
    guard: bool = False


PLAIN, GAIN = Method("plain"), Method("gain_ratio", Reader(fields=("gain_ratio",)))
NOISE = "plain again (noise)"
METHODS = {
    "controllers": (
        Method(NOISE),
        Method("linear", Linear()),
        Method("hypergradient", Hypergradient()),
        Method("hypergradient", Hypergradient(), CADENCE),
        Method("all cheap sensors", Reader(), CADENCE),
        Method("recurrent net (32)", Universal(without_gain=True, params=Universal.random_params()), CADENCE),
        GAIN,
    ),
    "guard": (Method(NOISE, every=SNAPSHOT_EVERY), Method("guard", every=SNAPSHOT_EVERY, guard=True)),
}


def measure(what: str, size: Size, pairs: int) -> list[Row]:
    """One row per method; `what` is a key of [`METHODS`]."""
    rounds = pairs * max(method.every for method in METHODS[what])
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            method: trainer_for(method, size, rounds + WARM_UP + 1, f"{folder}/{index}")
            for index, method in enumerate((PLAIN, *METHODS[what]))
        }
        # A cost of a third of an update needs fewer measurements than one of a thousandth.
        times = take_turns(trainers, rounds, 0, rarely=GAIN, bar=f"{size.name}, {len(trainers)} trainers in turn")
    weights = sum(p.numel() for p in size.model().parameters())
    common = {
        "size": size.name,
        "parameters": weights,
        "batch_size": size.batch,
        "length": size.length,
        "plain_ms": round(1e3 * statistics.median(times[PLAIN].whole.values()), 2),
    }
    rows = [{**common, "method": m.name, **figures(m, times[PLAIN], times[m])} for m in METHODS[what]]
    large = weights >= TARGET_PARAMETERS
    return [{**row, "target": TARGETS[what] if large and row["method"] != NOISE else None} for row in rows]


def trainer_for(method: Method, size: Size, updates: int, folder: str, **changes: Any) -> Trainer:
    """A trainer with the Trainer's defaults (AdamW, clipping at 1.0) but for what the measurement needs."""
    settings = trainer_settings(folder, updates, size.batch, TRAINER_LR, 0)
    settings |= {"optim": "adamw_torch", "logging_strategy": "steps", "logging_steps": 10, **changes}
    torch.manual_seed(0)
    inputs: dict[str, Any] = {"model": size.model(), "train_dataset": size.rows(64 * size.batch, 0)}
    if method.guard:
        inputs["callbacks"] = [GuardCallback(snapshot_every=SNAPSHOT_EVERY)]
    if method.controller is None:
        trainer = Trainer(args=TrainingArguments(**settings), **inputs)
    else:
        args = AdaptiveLRTrainingArguments(**settings, controller_every=method.every or None)
        trainer = AdaptiveLRTrainer(args=args, controller=method.controller, **inputs)
    trainer.remove_callback(PrinterCallback)
    return trainer


def figures(method: Method, plain: Seconds, mine: Seconds) -> Row:
    """Ratios of a method's blocks to those of the plain trainer in the same rounds."""
    ratios = block_ratios(mine.whole, plain.whole, method.every)
    others = {i: whole - mine.own[i] for i, whole in mine.whole.items()}
    return {
        "every": method.every,
        "pairs": len(ratios),
        "ratio": round(statistics.median(ratios), 5),
        "interval": [round(x, 5) for x in median_interval(ratios)],
        "inside": round(1 + statistics.median(block_ratios(mine.own, others, method.every)), 5),
    }


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median from order statistics; of fewer than six values, which have none, the extremes."""
    from scipy.stats import quantile_test

    found = quantile_test(values, p=0.5).confidence_interval(0.95)
    return (min(values), max(values)) if len(values) < FEWEST else (float(found.low), float(found.high))


def verdict(row: Mapping[str, Any]) -> str:
    """`yes` or `no` where a 95% interval lies on one side of the target, `unsure` otherwise; "-" without a target."""
    if row["target"] is None:
        return "-"
    # The gain ratio's target is for a whole run; its interval shrinks with it.
    scale = DECISIONS / RUNS[-1] if row["method"] == GAIN.name else 1.0
    low, high = (1 + scale * (x - 1) for x in row["interval"])
    if row["pairs"] < FEWEST or low <= row["target"] < high:
        return "unsure"
    return "yes" if high <= row["target"] else "no"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: each method at each size, and what the gain ratio costs whole runs."""
    lines = []
    for row in rows:
        cells = [row["method"], str(row["every"]), _ratio(row), f"{100 * (row['inside'] - 1):.1f} %"]
        if row["method"] == GAIN.name:
            runs = ", ".join(f"{1 + DECISIONS * (row['ratio'] - 1) / run:.3f} in {run}" for run in RUNS)
            cells = [f"gain ratio, {DECISIONS} a run (computed)", "-", f"{runs} updates", "-"]
        lines.append([f"{row['parameters'] / 1e6:.1f}M", *cells, verdict(row)])
    head = ["parameters", "method", "decides every", "ratio (interval)", "in our own code", "at most 1.01?"]
    return markdown_table(head, lines)


def guard_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: what the guard costs."""
    lines = [
        [f"{r['parameters'] / 1e6:.1f}M", r["method"], _ratio(r), f"at most {r['target']}" if r["target"] else "-"]
        for r in rows
    ]
    return markdown_table(["parameters", "method", "ratio (interval)", "aim"], lines)


def _ratio(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['ratio']:.3f} ({low:.3f} ... {high:.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the rows."""
    p = command_parser("studies.overhead", __doc__)
    p.add_argument("what", nargs="?", choices=METHODS, default="controllers", help="(default: controllers)")
    p.add_argument("--quick", action="store_true", help="a tiny model and one pair: does it run, not what it costs")
    p.add_argument("--output", type=Path, help="JSON-lines file (--quick: none unless one is given)")
    options = p.parse_args(argv)
    torch.set_num_threads(1)
    first = measured.header(
        f"{p.prog} {options.what}{' --quick' * options.quick}",
        clock="CPU time of the process (time.process_time)",
        optimizer="adamw_torch, clipping 1.0, logging every 10 updates",
    )
    sizes: Sequence[Size] = (TINY,) if options.quick else SIZES if options.what == "controllers" else SIZES[-1:]
    rows = [row for size in sizes for row in measure(options.what, size, 1 if options.quick else FEWEST)]
    output = options.output or (None if options.quick else measured.ROWS / FILES[options.what])
    measured.publish(output, first, rows, (table if options.what == "controllers" else guard_table)(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
