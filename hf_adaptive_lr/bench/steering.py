"""Compares one learning rate for all problems, one relative update for all, and controllers, on unseen problems.

    python -m hf_adaptive_lr.bench.steering --controller universal

Problems of the suite `strangers`, split `valid`: small nets of eight families with SGD and AdamW, 40 to 240 updates,
of known length.
Each is trained with linear decay from every learning rate of a grid, with linear decay of the relative update from
every value of another (`relative`), and by controllers. The figure is the log of the final held-out loss over that of
linear decay from the problem's own best learning rate: 0 is as good as a linear schedule tuned for that problem.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..artifacts import library_version
from ..auto import AutoController
from ..controller import Controller
from ..controllers import Linear, Relative
from ..meta.episode import Episode, play_through
from ..meta.problem import Problem
from ..meta.suites import SUITES
from .markdown import table
from .rows import Row, append_row, read_rows
from .run_record import short

OUTPUT = Path("model_cards/rows/steering.jsonl")
LRS = tuple(float(f"{10 ** (k / 2):.2g}") for k in range(-9, 1))
RHOS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SUITE, DECISIONS, FIRST = "strangers", 20, 5000
"""Suite, decisions of controllers without a rhythm of their own, and the first draw of problems."""


def methods(controllers: Sequence[str]) -> dict[str, tuple[Controller, float | None]]:
    """Name to controller and base learning rate, None where any will do; "name=source" gives another name."""
    found: dict[str, tuple[Controller, float | None]] = {f"linear {lr:g}": (Linear(), lr) for lr in LRS}
    found |= {f"relative {rho:g}": (Relative(rho=rho), None) for rho in RHOS}
    for entry in controllers:
        name, equals, source = entry.partition("=")
        found[name] = (AutoController.from_pretrained(source if equals else name), None)
    return found


def play(problem: Problem, controller: Controller, lr: float | None) -> Tensor:
    """Log of the final held-out loss over the first, of shape (runs,)."""
    fixed = problem if lr is None else replace(problem, low_lr=lr, high_lr=lr)
    every = fixed.total_steps if isinstance(controller, Linear) else DECISIONS
    episode = Episode(fixed.start(), every, controller=controller)
    play_through(controller, episode)
    return episode.value - episode.start


def measure(draws: int, runs: int, controllers: Sequence[str], output: Path) -> None:
    """Train what is not in the rows yet; a draw of the suite is eight problems."""
    done = {(row["problem"], row["method"]) for row in read_rows(output)}
    entries = methods(controllers)
    with tqdm(total=draws * len(SUITES[SUITE].draws) * len(entries), unit="problem") as bar:
        for draw in range(draws):
            for number, problem in enumerate(SUITES[SUITE].problems("valid", FIRST + draw, runs)):
                told, key = replace(problem, hidden=False), f"{draw}/{number}"
                for name, (controller, lr) in entries.items():
                    if (key, name) not in done:
                        append_row(output, _row(key, told, name, play(told, controller, lr)))
                    bar.update()


def _row(key: str, problem: Problem, name: str, logs: Tensor) -> Row:
    return {
        "problem": key,
        "family": problem.task.family,
        "optimizer": problem.optimizer.kind,
        "updates": problem.total_steps,
        "method": name,
        "log_loss": [short(value) for value in logs.tolist()],
        "version": library_version(),
    }


def regrets(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean log loss of every method on every problem, minus that of its own best learning rate.

    Problems without all learning rates are left out.
    """
    means: dict[str, dict[str, float]] = {}
    for row in rows:
        means.setdefault(row["problem"], {})[row["method"]] = float(np.mean(row["log_loss"]))
    out: dict[str, dict[str, float]] = {}
    for problem, found in means.items():
        tuned = [found.get(f"linear {lr:g}", math.nan) for lr in LRS]
        if not any(math.isnan(value) for value in tuned):
            for name, value in found.items():
                out.setdefault(name, {})[problem] = value - min(tuned)
    return out


def summary(rows: Sequence[Row]) -> str:
    """Markdown: the best shared values, the problems' own, and the controllers."""
    found = regrets(rows)
    every = {name: values for name, values in found.items() if len(values) == len(next(iter(found.values()), {}))}
    lines = []
    for kind, text in (("linear", "one learning rate for all"), ("relative", "one relative update for all")):
        shared = {name: values for name, values in every.items() if name.startswith(f"{kind} ")}
        if not shared:
            continue
        name = min(shared, key=lambda each: float(np.mean(list(shared[each].values()))))
        own = np.min([list(values.values()) for values in shared.values()], axis=0)
        lines += [_line(f"{text}, the best: {name.split()[1]}", list(shared[name].values()))]
        lines += [_line(f"each problem's own best, {kind}", own.tolist())]
    rest = [name for name in every if not name.startswith(("linear ", "relative "))]
    lines += [_line(f"`{name}`", list(every[name].values())) for name in rest]
    return table(["", "problems", "mean", "median", "worst"], lines)


def _line(name: str, values: Sequence[float]) -> list[str]:
    return [name, str(len(values)), *(f"{f(values):+.2f}" for f in (np.mean, np.median, np.max))]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the table; 0 when done, 2 when a controller cannot be had."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m hf_adaptive_lr.bench.steering", description=description)
    parser.add_argument(
        "--controller", action="append", default=[], metavar="[NAME=]X", help="name, folder, user/repo"
    )
    parser.add_argument("--draws", type=int, default=4, help="draws of eight problems (default: 4)")
    parser.add_argument("--runs", type=int, default=8, help="runs of each problem (default: 8)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON-lines file; rows add up")
    options = parser.parse_args(argv)
    for name in ("draws", "runs"):
        if getattr(options, name) < 1:
            print(f"{parser.prog}: error: --{name} {getattr(options, name)} must be at least 1", file=sys.stderr)
            return 2
    torch.set_num_threads(1)
    try:
        measure(options.draws, options.runs, options.controller, options.output)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{summary(read_rows(options.output))}\nrows in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
