"""The known answer: how close trained controllers come to the best possible schedule on held-out noisy quadratics.

    python -m hf_adaptive_lr.bench.known_answer

Every method trains on the quadratic suite's `train` problems and is judged on 200 `test` problems (a split that no
trainer reads): 200 updates of SGD, initial learning rate log-uniform over four decades, 20 decisions. The figure is
the geometric mean of (final expected loss) / (that of the best open-loop schedule of the same problem, found
numerically); ratios are capped at 100. Beside it: linear decay with a peak tuned for each problem, with one peak for
all, and with peaks ten times off.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts import TRAINING_NAME
from ..controller import Controller
from ..meta.driver import DriverConfig
from ..meta.driver import run as drive
from ..meta.episode import Episode, play_through
from ..meta.problem import Problem
from ..meta.suites import SUITES
from ..meta.tasks.quadratic import Quadratic
from ..meta.trainers import make_trainer
from . import measured

CAP = 100.0
BAR = 1.3
DECISIONS = 20
_DRAW = 7


def held_out(runs: int) -> Problem:
    """The problems that judge: a draw that no setting was chosen on (draw 0 was, `max_move` among them)."""
    (problem,) = SUITES["quadratic"].problems("test", _DRAW, runs)
    return problem


def mean_ratio(log_final: Tensor, log_best: Tensor) -> float:
    """Geometric mean of final over best loss, each ratio capped at 100."""
    return float((log_final - log_best).clamp(max=math.log(CAP)).mean().exp())


def judge(controller: Controller, problem: Problem, log_best: Tensor) -> dict[str, Any]:
    """A controller's ratio, and the same by decade of the initial learning rate."""
    episode = Episode(problem.start(), DECISIONS, "test")
    log_final = play_through(controller, episode).float()
    decade = episode.run.base_lr.log10().floor().clamp(max=math.log10(problem.high_lr) - 1)
    by_decade = {
        f"1e{int(d)}": round(mean_ratio(log_final[decade == d], log_best[decade == d]), 4)
        for d in sorted(set(decade.tolist()))
    }
    return {"ratio": round(mean_ratio(log_final, log_best), 4), "by_decade": by_decade}


def linear_rows(task: Quadratic, steps: int, log_best: Tensor) -> list[dict[str, Any]]:
    """Linear decay with four ways of choosing its peak."""
    ramp, peaks = torch.linspace(1, 1 / steps, steps), torch.logspace(-4, 1, 61)
    losses = torch.stack([task.expected_final_loss(p * ramp.expand(task.runs, -1)) for p in peaks])
    logs = losses.nan_to_num(1e30, 1e30).clamp(1e-30, 1e30).log()
    own = logs.argmin(0)
    off = {"own peak": 0, "own peak x10": 12, "own peak /10": -12}  # 12 grid points are one decade
    columns = torch.arange(task.runs)
    ratios = {name: mean_ratio(logs[(own + shift).clamp(0, 60), columns], log_best) for name, shift in off.items()}
    ratios["one peak for all"] = min(mean_ratio(row, log_best) for row in logs)
    return [
        {"row": "known_answer", "method": f"linear, {name}", "ratio": round(ratio, 4)}
        for name, ratio in ratios.items()
    ]


def train(
    suite: str, method: str, options: argparse.Namespace, iterations: int | None = None
) -> tuple[Controller, Mapping[str, Any]]:
    """Train one method on a suite for `options.minutes`; the controller and its training record."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / method
        settings = {"runs": options.runs, "minutes": options.minutes, "iterations": iterations, "seed": options.seed}
        config = DriverConfig(suite=suite, output_dir=output, **settings)
        controller = drive(make_trainer(method, hidden_size=32, seed=options.seed), config)
        record = json.loads((output / TRAINING_NAME).read_text(encoding="utf-8"))
    return controller, record


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows."""
    problem = held_out(options.problems)
    task = Quadratic(problem.task)
    _, best = task.best_schedule(problem.total_steps)
    log_best = best.log()
    rows = linear_rows(task, problem.total_steps, log_best)
    for method in options.methods:
        started = time.perf_counter()
        controller, record = train("quadratic", method, options, options.iterations)
        rows.append(
            {
                "row": "known_answer",
                "method": method,
                **judge(controller, problem, log_best),
                "bar": BAR,
                "seconds": round(time.perf_counter() - started, 1),
                "iterations": record["iterations"],
                "inner_steps": record["inner_steps"],
                "seed": options.seed,
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text."""
    lines = [f"{'method':26} {'final / best':>12}  by decade of the initial learning rate"]
    for row in rows:
        decades = "  ".join(f"{k}: {v:.2f}" for k, v in row.get("by_decade", {}).items())
        cost = f"  ({row['iterations']} iterations, {row['seconds']:.0f} s)" if "seconds" in row else ""
        lines.append(f"{row['method']:26} {row['ratio']:12.3f}  {decades}{cost}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge, print the table, write the rows."""
    p = argparse.ArgumentParser(prog="python -m hf_adaptive_lr.bench.known_answer", description=__doc__.split("\n")[0])
    p.add_argument("--methods", nargs="+", choices=("ppo", "evolution", "bilevel"), default=["ppo", "evolution"])
    p.add_argument("--minutes", type=float, help="time to train each method (default: 4, unless --iterations)")
    p.add_argument("--iterations", type=int, help="iterations to train each method")
    p.add_argument("--runs", type=int, default=128, help="runs per iteration")
    p.add_argument("--problems", type=int, default=200, help="held-out problems")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, default=Path("model_cards/rows/known_answer.jsonl"), help="JSON-lines file")
    options = p.parse_args(argv)
    if options.minutes is None and options.iterations is None:
        options.minutes = 4.0
    rows = measure(options)
    print(table(rows))
    words = " ".join(argv if argv is not None else sys.argv[1:])
    first = measured.header(f"{p.prog} {words}", suite_digest=SUITES["quadratic"].digest(), cap=CAP)
    measured.write_rows(options.output, [first, *rows])
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
