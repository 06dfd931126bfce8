"""Lost runs of `actor_critic`: the published rule and its preset `safe`, a hundred runs at once and through `Trainer`.

    python -m hf_adaptive_lr.bench.studies.papers.survival

The paper study's digits task: one hidden layer of 64, plain SGD, batches of 64, 400 updates. At the base LR 1 a
constant rate loses no run and is best; at 2 it loses nearly all. A run is lost if at its end the loss on held-out rows
is not finite, or above half of what it was before the first update. Methods share weights and batches run by run.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ....controllers import ActorCritic
from ....meta.inner import InnerOptimizer
from ....meta.problem import Problem
from ....meta.tasks.base import TaskSpec
from ....observation import Outcome
from ...markdown import table
from ...rows import Row, append_row, read_rows
from ...runner import command_parser
from ...stats import mean_interval, paired_difference
from ...train import TrainingRun
from .. import measured
from ..command import carry_out
from .methods import METHODS
from .tasks import TASKS

NAME = "actor_critic_survival.jsonl"
COMMAND = "python -m hf_adaptive_lr.bench.studies.papers.survival"
AT_ONCE, THROUGH_TRAINER = "at once", "through Trainer"
RUNS, UPDATES = {AT_ONCE: 100, THROUGH_TRAINER: 20}, 400
_SAFE = ActorCritic.presets["safe"]
METHODS_TRIED: Mapping[str, Mapping[str, Any] | None] = {
    "constant": None,
    "paper": {},
    "paper, taught on the same batch": {"same_batch": True},
    "paper, gradient through the newest inputs alone": {"window": 2},
    "paper, its critic kept as it starts": {"critic_lr": 1e-12},
    "paper, the actor ten times slower": {"actor_lr": 1e-4},
    "safe": _SAFE,
    "safe, taught on the same batch": {**_SAFE, "same_batch": True},
    "safe, gradient through the newest inputs alone": {**_SAFE, "window": 2},
}
"""Config by name; None is a constant rate."""
WORK: Sequence[tuple[str, str, float]] = (
    *((AT_ONCE, name, 1.0) for name in ("constant", "paper", "safe")),
    *((THROUGH_TRAINER, name, 1.0) for name in ("constant", "safe")),
    *((AT_ONCE, name, 1.0) for name in METHODS_TRIED if name not in ("constant", "paper", "safe")),
    *((AT_ONCE, name, 0.1) for name in ("constant", "safe")),
    (AT_ONCE, "constant", 2.0),
)
"""How, what, and at which base LR."""


def play(config: Mapping[str, Any] | None, lr: float, runs: int, updates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses before and after, of shape (runs,), and the factors of the base LR, (updates, runs), of many runs."""
    spec = TaskSpec("mlp", runs, 0, {"data": "digits", "width": 64, "depth": 1, "batch_size": 64})
    run = Problem(spec, InnerOptimizer(), updates, lr, lr).start()
    start, factors = run.evaluate("test"), []
    controller = None if config is None else ActorCritic(**config)
    states = [controller.init(seed=seed) for seed in range(runs)] if controller else []
    state = {name: torch.stack([each[name] for each in states]) for name in (states[0] if states else ())}
    # The actor's other batches have a generator of their own: the batches of all methods stay the same.
    others, factor = torch.Generator().manual_seed(1), torch.ones(runs)
    for step in range(updates):
        batch, before = run.batch, run.loss
        if controller:
            factor, state = controller.decide(run.observe(run.base_lr, controller.needs), state)
        run.advance(run.base_lr * factor, 1, gain=False)
        if controller:
            with torch.no_grad():
                own, run.task.generator = run.task.generator, others
                other = run.task.loss(run.weights, run.task.batch("train"))
                run.task.generator = own
                after = run.task.loss(run.weights, batch)
            seen = Outcome(step=step, loss_before=before, loss_after=after, loss_other=other)
            state = controller.learn(seen, state)
        factors.append(factor)
    return start, run.evaluate("test"), torch.stack(factors)


def vectorised(config: Mapping[str, Any] | None, lr: float, runs: int, updates: int) -> Row:
    """What a row says of many runs at once."""
    start, end, factors = play(config, lr, runs, updates)
    if config is None:
        return _ends(start.tolist(), end.tolist())
    ends = factors[-1].quantile(torch.tensor([0.1, 0.5, 0.9], dtype=factors.dtype)).tolist()
    row = {**_ends(start.tolist(), end.tolist()), "factor_at_end": [round(f, 3) for f in ends]}
    if "ceiling" not in config:
        # Adam's first step goes where the first critic points, whatever was seen.
        sides = (factors - 1).sign()
        row["on_first_side"] = int((sides[-1] == sides[1]).sum())
    return row


def real(config: Mapping[str, Any] | None, lr: float, runs: int) -> Row:
    """What a row says of runs through `AdaptiveLRTrainer`, seeds from 0 on."""
    of = METHODS["constant" if config is None else "actor_critic"]
    method = dataclasses.replace(of, config=config or {}, alternatives=())
    rows = [TrainingRun(TASKS["digits-mlp"], method, seed, lr).execute() for seed in range(runs)]
    ends = [math.nan if row["test_loss"] is None else row["test_loss"] for row in rows]
    return _ends([row["first_loss"] for row in rows], ends)


def _ends(start: Sequence[float], end: Sequence[float]) -> Row:
    """Test losses, None for a lost run."""
    return {"test_losses": [round(e, 4) if e <= s / 2 else None for s, e in zip(start, end, strict=True)]}


def _kept(row: Row) -> dict[int, float]:
    return {run: loss for run, loss in enumerate(row["test_losses"]) if loss is not None}


def section(folder: Path) -> str:
    """The section of the paper's page; empty without rows."""
    rows = {
        (row["runs"], row["method"], row["lr"]): row for row in read_rows(folder / NAME) if row["row"] == "survival"
    }
    lines = []
    for (how, method, lr), row in rows.items():
        kept, rival = _kept(row), _kept(rows.get((how, "constant", lr), {"test_losses": []}))
        loss, gap = "-", "-"
        if len(kept) > 1:
            loss = f"{(found := mean_interval([*kept.values()])).value:.4f} ± {found.half:.4f}"
        if method != "constant" and len(kept.keys() & rival.keys()) > 1:
            gap = f"{(found := paired_difference(kept, rival)).value:+.4f} ± {found.half:.4f}"
        ends = " / ".join(f"{f:.2f}" for f in row.get("factor_at_end", ()))
        lost = f"{len(row['test_losses']) - len(kept)} of {len(row['test_losses'])}"
        lines.append([how, method, f"{lr:g}", lost, loss, gap, ends or "-", str(row.get("on_first_side", "-"))])
    head = ["runs", "method", "base LR", "lost", "test loss of the others", "minus constant"]
    head += ["rate at the end / base LR", "on the first side"]
    return f"{_TEXT}\n\n{table(head, lines)}\n\n```bash\n{COMMAND}\n```\n\nRows: `rows/{NAME}`.\n\n" if rows else ""


_TEXT = """## Lost runs

A run is lost if at its end the loss on held-out rows is not finite, or above half of what it was at first. The network
of the digits task, once many runs at once and once through `Trainer`, all at plain SGD; of the rate at the end stand
the tenth, fiftieth and ninetieth percentile. *First side*: runs whose rate ends on that side of the base LR to which
the first critic, which is random, points. `ActorCritic.from_preset("safe")` keeps the rate between a tenth of the base
LR and the base LR, and has a slower actor."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is missing among the rows, print the section; 0 when done, 2 when it cannot be."""
    parser = command_parser("studies.papers.survival", __doc__)
    parser.add_argument("--output-dir", type=Path, default=measured.ROWS, metavar="DIR", help="folder of the rows")
    options = parser.parse_args(argv)
    return carry_out(parser.prog, lambda: _study(options.output_dir))


def _study(folder: Path) -> None:
    torch.set_num_threads(1)
    path = folder / NAME
    done = {(row.get("runs"), row.get("method"), row.get("lr")) for row in read_rows(path)}
    if not done:
        append_row(path, measured.header(COMMAND, updates=UPDATES))
    for how, name, lr in tqdm([each for each in WORK if each not in done]):
        config = METHODS_TRIED[name]
        found = vectorised(config, lr, RUNS[how], UPDATES) if how == AT_ONCE else real(config, lr, RUNS[how])
        append_row(path, {"row": "survival", "runs": how, "method": name, "lr": lr, **found})
    print(f"{section(folder)}rows in {path}")


if __name__ == "__main__":
    sys.exit(main())
