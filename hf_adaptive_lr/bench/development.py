"""The real tasks on other rows of their training sets: where controllers are chosen, so that test rows stay unseen.

    python -m hf_adaptive_lr.bench.development --controller universal --relative 0.005 --linear 1e-3

Trains the benchmark's real tasks with another draw of training and validation rows, and writes the final validation
loss. No test row is read. Rows of controllers that have been given up stay as the log of what was tried.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..demo.data import DemoDataError
from .rows import Row, append_row, read_rows
from .runner import command_parser
from .yardstick_methods import METHODS, Method, third_party
from .yardstick_run import commit
from .yardstick_tables import table
from .yardstick_tasks import COUNTED, REAL

OUTPUT = Path("model_cards/rows/development.jsonl")
SPLIT, FIRST_SEED = 777, 120
"""Draw of the rows, and the first seed; seeds from this on read no test rows."""


def entries(
    controllers: Sequence[str], rhos: Sequence[float] = (), lrs: Sequence[float] = ()
) -> dict[str, tuple[Method, float | None]]:
    """Name to method and learning rate, None for the default; "name=source" gives a controller another name."""
    found: dict[str, tuple[Method, float | None]] = {}
    for entry in controllers:
        name, equals, source = entry.partition("=")
        found[name] = (third_party(source if equals else name), None)
    for rho in rhos:
        method = dataclasses.replace(METHODS["relative"], config={"rho": rho})
        method.make_controller()
        found[f"relative {rho:g}"] = (method, None)
    for lr in lrs:
        if not 1e-8 <= lr <= 10:
            raise ValueError(f"learning rate {lr:g} must be within [1e-8, 10]")
        found[f"linear {lr:g}"] = (METHODS["linear"], lr)
    return found


def measure(methods: Mapping[str, tuple[Method, float | None]], seeds: int, output: Path) -> None:
    """Train what is not in the rows yet; `methods` are of [`entries`]."""
    from .yardstick_real import train

    done = {(row["task"], row["method"], row["seed"]) for row in read_rows(output)}
    runs = [
        (task, name, seed)
        for name in methods
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for task in REAL
        if (task.name, name, seed) not in done
    ]
    for task, name, seed in tqdm(runs, unit="run"):
        method, lr = methods[name]
        assert seed >= COUNTED  # or the test rows would be read
        found = train(dataclasses.replace(task, split_seed=SPLIT), method, seed, lr or method.default_lr(task))
        kept = {key: found[key] for key in ("valid_loss", "valid_curve")}
        append_row(output, {"task": task.name, "method": name, "seed": seed, **kept, "commit": commit()})


def summary(rows: Sequence[Row]) -> str:
    """Markdown: final validation loss by task, geometric means over seeds and over tasks; complete methods only."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        loss = row["valid_loss"]
        value = math.log(100) if loss is None else min(math.log(loss), math.log(100))
        found.setdefault(row["method"], {}).setdefault(row["task"], []).append(value)
    tasks, lines = [task.name for task in REAL], []
    for name, values in found.items():
        if set(tasks) <= set(values):
            means = [float(np.mean(values[task])) for task in tasks]
            cells = [f"{math.exp(value):.2f}" for value in means]
            seeds = min(len(values[task]) for task in tasks)
            lines.append((float(np.mean(means)), [f"`{name}`", str(seeds), *cells]))
    lines.sort(key=lambda line: line[0])
    return table(["", "seeds", *tasks, "all"], [[*cells, f"{math.exp(mean):.2f}"] for mean, cells in lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the table; 0 when done, 2 when something cannot be had."""
    parser = command_parser("development", __doc__)
    parser.add_argument(
        "--controller", action="append", default=[], metavar="[NAME=]X", help="name, folder, user/repo"
    )
    parser.add_argument("--relative", type=float, nargs="+", default=[], metavar="RHO", help="`relative` with these")
    parser.add_argument("--linear", type=float, nargs="+", default=[], metavar="LR", help="linear schedules")
    parser.add_argument("--seeds", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON-lines file; rows add up")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        if options.seeds < 1:
            raise ValueError(f"--seeds {options.seeds} must be at least 1")
        methods = entries(options.controller, options.relative, options.linear)
        measure(methods, options.seeds, options.output)
    except (OSError, ValueError, DemoDataError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{summary(read_rows(options.output))}\nrows in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
