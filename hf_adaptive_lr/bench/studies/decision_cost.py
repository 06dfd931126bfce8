"""The cost of a decision by itself: the policy net, and all that happens on the CPU from measured numbers to rates.

    python -m hf_adaptive_lr.bench.studies.decision_cost

The sensors are left out, as they cost what the model's size says (`overhead.py`): the fields are given as numbers.
Each figure is a median over many calls in one thread; interruptions by other programs make single calls longer, but
not half of them.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...artifacts import WEIGHTS_NAME
from ...auto import PRETRAINED, AutoController
from ...controller import Controller
from ...observation import OPTIONAL_FIELDS, Value
from ...scheduler.config import SchedulerConfig
from ...scheduler.runtime import ControllerRun
from ..markdown import table as markdown_table
from ..rows import Row
from ..runner import command_parser
from . import measured

OUTPUT = measured.ROWS / "decision_cost.jsonl"
CALLS, WARM = 2000, 100
"""Calls that are timed, and those before them."""


def seconds_of(call: Callable[[], object]) -> float:
    """Median seconds of a call, after some that are not counted."""
    return median(timeit.repeat(call, number=1, repeat=WARM + CALLS)[WARM:])


def measure(name: str, controller: Controller) -> Row:
    """One row: seconds of the net alone (None where it cannot be called alone) and of a whole decision."""
    # The decisions that are timed are the first ones of a long run.
    run = ControllerRun(controller, [1e-3], SchedulerConfig(total_steps=1_000_000, every=1))
    known = {"classes": 4.0, "prediction_variance": 0.1, "gain_ratio": 0.8, "alignment": 0.1, "update_ratio": 1e-3}
    fields: dict[str, Value] = {n: known.get(n, 1.0) for n in sorted(controller.needs & OPTIONAL_FIELDS.keys())}
    net: float | None = None
    if hasattr(controller, "n_features"):
        made: Any = controller
        hidden, features = torch.zeros(made.hidden_size), torch.zeros(made.n_features)
        with torch.no_grad():
            net = seconds_of(lambda: made.policy(features, hidden, made.params))
    path = PRETRAINED / name / WEIGHTS_NAME
    return {
        "controller": name,
        "net_seconds": net,
        "decision_seconds": seconds_of(lambda: run.advance(fields)),
        "calls": CALLS,
        "weights": sum(p.numel() for p in controller.params.values()),
        "bytes": path.stat().st_size if path.is_file() else None,
    }


def candidates() -> Mapping[str, Controller]:
    """The bundled controllers, and the rules beside them for comparison."""
    names = ["linear", "hypergradient", "relative", *sorted(p.name for p in PRETRAINED.iterdir() if p.is_dir())]
    return {name: AutoController.from_pretrained(name) for name in names}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = []
    for row in rows:
        net = "-" if row["net_seconds"] is None else f"{1e6 * row['net_seconds']:.0f} us"
        size = "-" if row["bytes"] is None else f"{row['bytes']:,}"
        decision = f"{1e3 * row['decision_seconds']:.2f} ms"
        lines.append([f"`{row['controller']}`", f"{row['weights']:,}", size, net, decision])
    return markdown_table(["controller", "weights", "bytes", "net", "decision"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all, print the table, write the rows."""
    parser = command_parser("studies.decision_cost", __doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON-lines file (default: {OUTPUT})")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    first = measured.header(parser.prog)
    rows = [measure(name, controller) for name, controller in candidates().items()]
    measured.publish(options.output, first, rows, table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
