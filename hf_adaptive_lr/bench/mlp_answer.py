"""A trained controller beside linear decay on held-out MLPs, by initial learning rate.

    python -m hf_adaptive_lr.bench.mlp_answer

PPO trains on the `mlp` suite's `train` problems (AdamW, horizon 200; depth, width, activation, data, batch size vary).
Then, on `test` problems, every initial learning rate of a grid is tried with linear decay and with the controller, on
the same weights and mini-batches. The figure is the log of the final test loss over that of linear decay *at that
problem's best rate of the grid*, averaged over problems: 0 is as good as a linear decay tuned for each problem.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..controller import Controller
from ..meta.episode import RISE, Episode, play_through
from ..meta.problem import Problem
from ..meta.suites import SUITES
from . import measured
from .known_answer import train

RATES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_DRAW = 9000
"""First test problem; nothing was chosen on those from here on."""


def compare(controller: Controller, problems: int, runs: int) -> tuple[Tensor, Tensor]:
    """Logs of the final test losses of linear decay and of a controller, both of shape (rates, problems).

    A run that blows up counts as a loss e^3 times its start.
    """
    linear, learned = torch.zeros(len(RATES), problems), torch.zeros(len(RATES), problems)
    for index in tqdm(range(problems), desc="held-out problems"):
        (problem,) = SUITES["mlp"].problems("test", _DRAW + index, runs)
        for row, rate in enumerate(RATES):
            fixed = replace(problem, low_lr=rate, high_lr=rate)
            linear[row, index] = _linear(fixed).mean()
            learned[row, index] = play_through(controller, Episode(fixed.start(), 20, "test")).mean()
    return linear, learned


def _linear(problem: Problem) -> Tensor:
    run, steps = problem.start(), problem.total_steps
    start = run.evaluate("test").log()
    for t in range(steps):
        run.advance(run.base_lr * (steps - t) / steps, 1)
    return torch.minimum(run.evaluate("test").log(), start + RISE)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per method."""
    trained, record = train("mlp", "ppo", options)
    linear, learned = compare(trained, options.problems, options.problem_runs)
    best = linear.amin(0)
    rows: list[dict[str, Any]] = []
    for name, losses in (("linear", linear), ("ppo", learned)):
        regret = {f"{r:g}": round(float(v), 4) for r, v in zip(RATES, (losses - best).mean(1), strict=True)}
        rows.append({"row": "mlp_answer", "method": name, "log_regret": regret})
    rows[-1] |= {key: record[key] for key in ("iterations", "seconds", "inner_steps")}
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = ["log of final test loss over tuned linear decay, by initial learning rate"]
    lines.append(f"{'':8}" + "".join(f"{rate:>8g}" for rate in RATES))
    lines += [f"{row['method']:8}" + "".join(f"{value:8.3f}" for value in row["log_regret"].values()) for row in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare, print the table, write the rows."""
    p = argparse.ArgumentParser(prog="python -m hf_adaptive_lr.bench.mlp_answer", description=__doc__.split("\n")[0])
    p.add_argument("--minutes", type=float, default=6.0, help="time to train")
    p.add_argument("--runs", type=int, default=64, help="runs per iteration of training")
    p.add_argument("--problems", type=int, default=12, help="held-out problems")
    p.add_argument("--problem-runs", type=int, default=8, help="runs of each held-out problem and rate")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, default=Path("model_cards/rows/mlp_answer.jsonl"), help="JSON-lines file")
    options = p.parse_args(argv)
    rows = measure(options)
    print(table(rows))
    command = (
        f"{p.prog} --minutes {options.minutes:g} --runs {options.runs} "
        f"--problems {options.problems} --problem-runs {options.problem_runs} --seed {options.seed}"
    )
    first = measured.header(command, suite_digest=SUITES["mlp"].digest())
    measured.write_rows(options.output, [first, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
