"""How close trained controllers come to the best possible schedule, and to a tuned linear one, on unseen problems.

    python -m hf_adaptive_lr.bench.studies.known_answer quadratic --minutes 3
    python -m hf_adaptive_lr.bench.studies.known_answer mlp --minutes 4.5

`quadratic`: methods train on noisy quadratics and are judged on 200 of the `test` split, which no trainer reads: 200
updates of SGD, initial learning rate log-uniform over four decades, 20 decisions. The figure is the geometric mean of
(final expected loss) / (that of the best open-loop schedule of the same problem, found numerically); ratios are capped
at 100. Beside it: linear decay with a peak tuned for each problem, with one for all, and with peaks ten times off.

`mlp`: PPO trains on the `mlp` suite (AdamW, 200 updates; depth, width, activation, data, batch size vary). Then every
initial learning rate of a grid is tried on `test` problems with linear decay and with the controller, on the same
weights and batches. The figure is the log of the final test loss over that of linear decay *at that problem's best
rate of the grid*, averaged over problems: 0 is as good as a linear decay tuned for each problem.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...artifacts import TRAINING_NAME
from ...controller import Controller
from ...meta.driver import DriverConfig
from ...meta.driver import run as drive
from ...meta.episode import RISE, Episode, play_through
from ...meta.problem import Problem
from ...meta.suites import SUITES
from ...meta.tasks.quadratic import Quadratic
from ...meta.trainers import make_trainer
from ..markdown import table
from ..rows import Row
from ..runner import command_parser
from . import measured

OUTPUTS = {"quadratic": measured.ROWS / "known_answer.jsonl", "mlp": measured.ROWS / "mlp_answer.jsonl"}
CAP, DECISIONS = 100.0, 20
RATES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_RUNS, _PROBLEMS = {"quadratic": 128, "mlp": 64}, {"quadratic": 200, "mlp": 12}
"""Runs of an iteration of the training, and problems that judge."""
_DRAW = {"quadratic": 7, "mlp": 9000}
"""First draw of problems that judge; nothing was chosen on those from here on."""


def train(method: str, suite: str, minutes: float) -> tuple[Controller, Mapping[str, Any]]:
    """Train one method on a suite; the controller and what its training says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        config = DriverConfig(suite=suite, output_dir=Path(folder, method), runs=_RUNS[suite], minutes=minutes)
        controller = drive(make_trainer(method, hidden_size=32, seed=0), config)
        record = json.loads((config.output_dir / TRAINING_NAME).read_text(encoding="utf-8"))
    return controller, {key: record[key] for key in ("seconds", "iterations", "inner_steps", "seed")}


# --- quadratics ---------------------------------------------------------------------------------------------------


def quadratic(minutes: float) -> list[Row]:
    """Ratios of linear schedules, and of every method."""
    problem = held_out(_PROBLEMS["quadratic"])
    task = Quadratic(problem.task)
    log_best = task.best_schedule(problem.total_steps)[1].log()
    rows = linear_rows(task, problem.total_steps, log_best)
    for method in ("ppo", "evolution"):
        controller, record = train(method, "quadratic", minutes)
        rows.append({"row": "known_answer", "method": method, **judge(controller, problem, log_best), **record})
    return rows


def held_out(runs: int) -> Problem:
    """The problems that judge."""
    (problem,) = SUITES["quadratic"].problems("test", _DRAW["quadratic"], runs)
    return problem


def mean_ratio(log_final: Tensor, log_best: Tensor) -> float:
    """Geometric mean of final over best loss, each ratio capped at 100."""
    return float((log_final - log_best).clamp(max=math.log(CAP)).mean().exp())


def judge(controller: Controller, problem: Problem, log_best: Tensor) -> Row:
    """A controller's ratio, and the same by decade of the initial learning rate."""
    episode = Episode(problem.start(), DECISIONS, "test")
    log_final = play_through(controller, episode).float()
    decade = episode.run.base_lr.log10().floor().clamp(max=math.log10(problem.high_lr) - 1)
    by_decade = {
        f"1e{int(d)}": round(mean_ratio(log_final[decade == d], log_best[decade == d]), 4)
        for d in sorted(set(decade.tolist()))
    }
    return {"ratio": round(mean_ratio(log_final, log_best), 4), "by_decade": by_decade}


def linear_rows(task: Quadratic, steps: int, log_best: Tensor) -> list[Row]:
    """Linear decay with four ways of choosing its peak."""
    ramp, peaks = torch.linspace(1, 1 / steps, steps), torch.logspace(-4, 1, 61)
    losses = torch.stack([task.expected_final_loss(p * ramp.expand(task.runs, -1)) for p in peaks])
    logs = losses.nan_to_num(1e30, 1e30).clamp(1e-30, 1e30).log()
    own = logs.argmin(0)
    off = {"own peak": 0, "own peak x10": 12, "own peak /10": -12}  # 12 grid points are one decade
    columns = torch.arange(task.runs)
    ratios = {name: mean_ratio(logs[(own + shift).clamp(0, 60), columns], log_best) for name, shift in off.items()}
    ratios["one peak for all"] = min(mean_ratio(row, log_best) for row in logs)
    return [{"row": "known_answer", "method": f"linear, {name}", "ratio": round(r, 4)} for name, r in ratios.items()]


def quadratic_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ratio to the best schedule, by method."""
    lines = []
    for row in rows:
        decades = ", ".join(f"{decade}: {ratio:.2f}" for decade, ratio in row.get("by_decade", {}).items())
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "-"
        lines.append([row["method"], f"{row['ratio']:.2f}", decades or "-", seconds])
    head = ["method", "final loss / best", "by decade of the initial learning rate", "seconds to train"]
    return table(head, lines)


# --- perceptrons --------------------------------------------------------------------------------------------------


def mlp(minutes: float) -> list[Row]:
    """Log-regret by initial learning rate, of linear decay and of a controller that PPO trained."""
    trained, record = train("ppo", "mlp", minutes)
    linear, learned = compare(trained, _PROBLEMS["mlp"])
    rows = []
    for name, losses in (("linear", linear), ("ppo", learned)):
        means = (losses - linear.amin(0)).mean(1).tolist()
        regret = {f"{rate:g}": round(mean, 4) for rate, mean in zip(RATES, means, strict=True)}
        rows.append({"row": "mlp_answer", "method": name, "log_regret": regret})
    rows[-1] |= record
    return rows


def compare(controller: Controller, problems: int, runs: int = 8) -> tuple[Tensor, Tensor]:
    """Logs of the final test losses of linear decay and of a controller, both of shape (rates, problems).

    A run that blows up counts as a loss e^3 times its start.
    """
    linear, learned = torch.zeros(len(RATES), problems), torch.zeros(len(RATES), problems)
    for index in tqdm(range(problems), desc="held-out problems"):
        (problem,) = SUITES["mlp"].problems("test", _DRAW["mlp"] + index, runs)
        for row, rate in enumerate(RATES):
            fixed = replace(problem, low_lr=rate, high_lr=rate)
            linear[row, index] = _linear(fixed).mean()
            learned[row, index] = play_through(controller, Episode(fixed.start(), DECISIONS, "test")).mean()
    return linear, learned


def _linear(problem: Problem) -> Tensor:
    run, steps = problem.start(), problem.total_steps
    start = run.evaluate("test").log()
    for t in range(steps):
        run.advance(run.base_lr * (steps - t) / steps, 1)
    return torch.minimum(run.evaluate("test").log(), start + RISE)


def mlp_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Log-regret by initial learning rate."""
    rates = list(rows[0]["log_regret"])
    lines = [[row["method"], *(f"{row['log_regret'][rate]:.2f}" for rate in rates)] for row in rows]
    return table(["initial learning rate", *rates], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge, print the table, write the rows."""
    p = command_parser("studies.known_answer", __doc__)
    p.add_argument("suite", choices=OUTPUTS, help="problems to train on and to be judged on")
    p.add_argument("--minutes", type=float, default=4.0, help="time to train each method (default: 4)")
    p.add_argument("--output", type=Path, help="JSON-lines file")
    options = p.parse_args(argv)
    measure, show = (quadratic, quadratic_table) if options.suite == "quadratic" else (mlp, mlp_table)
    rows = measure(options.minutes)
    command = f"{p.prog} {options.suite} --minutes {options.minutes:g}"
    first = measured.header(command, suite_digest=SUITES[options.suite].digest())
    measured.publish(options.output or OUTPUTS[options.suite], first, rows, show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
