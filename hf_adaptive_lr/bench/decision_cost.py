"""The cost of a decision by itself: the policy net, and all that happens on the CPU from measured numbers to rates.

    python -m hf_adaptive_lr.bench.decision_cost

The sensors are left out, as they cost what the model's size says (`python -m hf_adaptive_lr.bench.overhead`): the
fields are given as numbers. Each figure is a median over many calls in one thread; interruptions by other programs
make single calls longer, but not half of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..artifacts import WEIGHTS_NAME, library_version, replace_file
from ..auto import PRETRAINED, AutoController
from ..controller import Controller
from ..observation import OPTIONAL_FIELDS, Value
from ..scheduler.config import SchedulerConfig
from ..scheduler.runtime import ControllerRun
from . import markdown
from .rows import Row, append_row

OUTPUT = Path("model_cards/rows/decision_cost.jsonl")
CALLS, WARM = 2000, 100
STEPS = 1_000_000
"""Length of the run that is told; the decisions that are timed are its first."""


def fields_of(controller: Controller) -> dict[str, Value]:
    """A plausible number for every field that a controller reads."""
    known = {"classes": 4.0, "prediction_variance": 0.1, "gain_ratio": 0.8, "alignment": 0.1, "update_ratio": 1e-3}
    return {name: known.get(name, 1.0) for name in sorted(controller.needs & OPTIONAL_FIELDS.keys())}


def seconds_of(call: Callable[[], object], calls: int = CALLS) -> float:
    """Median seconds of a call, after some that are not counted."""
    spent = []
    for number in range(WARM + calls):
        began = time.perf_counter()
        call()
        if number >= WARM:
            spent.append(time.perf_counter() - began)
    return median(spent)


def measure(name: str, controller: Controller, calls: int = CALLS) -> Row:
    """One row: seconds of the net alone (None where it cannot be called alone) and of a whole decision."""
    controlled = ControllerRun(controller, [1e-3], SchedulerConfig(total_steps=STEPS, every=1))
    fields, path = fields_of(controller), PRETRAINED / name / WEIGHTS_NAME
    net: float | None = None
    if hasattr(controller, "n_features"):
        made: Any = controller
        hidden, features = torch.zeros(made.hidden_size), torch.zeros(made.n_features)
        with torch.no_grad():
            net = seconds_of(lambda: made.policy(features, hidden, made.params), calls)
    return {
        "controller": name,
        "net_seconds": net,
        "decision_seconds": seconds_of(lambda: controlled.advance(fields), calls),
        "calls": calls,
        "weights": sum(p.numel() for p in controller.params.values()),
        "bytes": path.stat().st_size if path.is_file() else None,
        "versions": {"hf_adaptive_lr": library_version(), "torch": torch.__version__},
    }


def candidates() -> Mapping[str, Controller]:
    """The bundled controllers, and the rules beside them for comparison."""
    names = ["linear", "hypergradient", "relative", *sorted(p.name for p in PRETRAINED.iterdir() if p.is_dir())]
    return {name: AutoController.from_pretrained(name) for name in names}


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = []
    for row in rows:
        net = "-" if row["net_seconds"] is None else f"{1e6 * row['net_seconds']:.0f} us"
        size = "-" if row["bytes"] is None else f"{row['bytes']:,}"
        decision = f"{1e3 * row['decision_seconds']:.2f} ms"
        lines.append([f"`{row['controller']}`", f"{row['weights']:,}", size, net, decision])
    return markdown.table(["controller", "weights", "bytes", "net", "decision"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all; 0 when done."""
    parser = argparse.ArgumentParser(prog="python -m hf_adaptive_lr.bench.decision_cost", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON-lines file")
    parser.add_argument("--calls", type=int, default=CALLS, help=f"timed calls (default: {CALLS})")
    options = parser.parse_args(argv)
    if options.calls < 1:
        print(f"{parser.prog}: error: --calls {options.calls} must be at least 1", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    rows = [measure(name, controller, options.calls) for name, controller in candidates().items()]
    replace_file(options.output, "")
    for row in rows:
        append_row(options.output, row)
    print(f"{table(rows)}\nwritten to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
