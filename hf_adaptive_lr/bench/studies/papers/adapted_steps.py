"""Whether a step after an adapted rate lowers the loss: DSA by weight, tensor or run beside hypergradient descent.

    python -m hf_adaptive_lr.bench.studies.papers.adapted_steps

What DSA's abstract holds against hypergradient descent, on many perceptrons (64-64-10) on the digits at once: after an
adaptation of the rate the loss often does not fall; mini-batches do not suit it; a low training loss validates badly.
DSA has one rate for every weight, every tensor, or the whole run. A step is judged by the loss of its own batch and by
that of another one, before and after it. All make as many updates, so DSA, which looks at each batch twice, has twice
the gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ....controller import Controller
from ....controllers import Constant, Hypergradient
from ....meta.inner import InnerOptimizer
from ....meta.problem import Problem
from ....meta.tasks.base import TaskSpec
from ....meta.tasks.mlp import MLPTask
from ....optimizers import DSA
from ...markdown import table
from ...rows import Row, read_rows
from ...runner import command_parser
from ...stats import mean_interval
from .. import measured
from ..command import carry_out

NAME = "dsa_steps.jsonl"
COMMAND = "python -m hf_adaptive_lr.bench.studies.papers.adapted_steps"
RUNS, UPDATES, LRS, BATCHES, OTHER = 20, 150, (0.03, 0.3), (8, 64), 64
METHODS: dict[str, Controller | str] = {
    "constant": Constant(),
    "hypergradient, additive": Hypergradient.from_preset("paper"),
    "hypergradient, additive, a hundred times the step": Hypergradient(rule="additive", beta=0.1),
    "hypergradient, multiplicative": Hypergradient(),
    "DSA, every weight": "weight",
    "DSA, every layer's tensor": "tensor",
    "DSA, one rate": "run",
}
"""A controller, or what has a rate of its own under DSA."""
Step = tuple[Tensor, Tensor, Tensor]
"""Losses of a step's own batch before and after it, (runs,), and the weights after it, (runs, size)."""


def _spec(runs: int, batch_size: int) -> TaskSpec:
    return TaskSpec("mlp", runs, 0, {"data": "digits", "width": 64, "depth": 1, "batch_size": batch_size})


def controlled(controller: Controller, lr: float, runs: int, batch_size: int) -> Iterator[Step]:
    """Plain SGD under a controller."""
    run = Problem(_spec(runs, batch_size), InnerOptimizer(), 1, lr, lr).start()
    state, rate = controller.init((runs,)), run.base_lr
    while True:
        factor, state = controller.decide(run.observe(rate, controller.needs), state)
        rate, batch, before = run.base_lr * factor, run.batch, run.loss
        run.advance(rate, 1, gain=False)
        yield before, run.task.loss(run.weights, batch), run.weights


def wrapped(per: str, lr: float, runs: int, batch_size: int) -> Iterator[Step]:
    """DSA around plain SGD."""
    task = MLPTask(_spec(runs, batch_size))
    sizes = {"weight": None, "run": [task.net.layout.size], "tensor": task.net.layout.sizes}[per]
    parts = [task.init()] if sizes is None else [part for row in task.init() for part in row.split(sizes)]
    leaves = [part.clone().requires_grad_() for part in parts]
    optimizer = DSA(torch.optim.SGD(leaves, lr=lr), granularity="element" if sizes is None else "tensor")
    while True:
        batch = task.batch("train")

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            losses = task.loss(torch.cat([leaf.flatten() for leaf in leaves]).view(runs, -1), batch)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            return losses.detach()

        with torch.enable_grad():
            before = closure()
            optimizer.step(closure)
        weights = torch.cat([leaf.detach().flatten() for leaf in leaves]).view(runs, -1)
        yield before, task.loss(weights, batch), weights


@torch.no_grad()
def measure(name: str, lr: float, batch_size: int, runs: int, updates: int) -> Row:
    """A row: shares of steps after which the losses are lower, and where the runs end."""
    method = METHODS[name]
    if isinstance(method, str):
        steps = wrapped(method, lr, runs, batch_size)
    else:
        steps = controlled(method, lr, runs, batch_size)
    judge = MLPTask(_spec(runs, OTHER))
    judge.generator.manual_seed(1)
    weights, own, other = judge.init(), torch.zeros(runs), torch.zeros(runs)
    for _ in range(updates):
        batch, earlier = judge.batch("train"), weights
        before, after, weights = next(steps)
        own += after < before
        other += judge.loss(weights, batch) < judge.loss(earlier, batch)
    row: Row = {"row": "steps", "method": name, "lr": lr, "batch_size": batch_size, "runs": runs, "updates": updates}
    kept = judge.evaluate(weights, "test") <= judge.evaluate(judge.init(), "test")
    measures = {"own_fell": own / updates, "other_fell": other / updates}
    measures |= {f"{split}_loss": judge.evaluate(weights, split)[kept] for split in ("train", "test")}
    row["lost"] = runs - int(kept.sum())
    for key, values in measures.items():
        if len(values) > 1:
            found = mean_interval(values.tolist())
            row |= {key: round(found.value, 4), f"{key}_half": round(found.half, 4)}
    return row


def section(folder: Path) -> str:
    """The section of the paper's page; empty without rows."""
    rows = [row for row in read_rows(folder / NAME) if row["row"] == "steps"]
    keys = ("own_fell", "other_fell", "train_loss", "test_loss")
    lines = []
    for row in rows:
        shown = [f"{row[key]:.3f} ± {row[f'{key}_half']:.3f}" if key in row else "-" for key in keys]
        lost = f"{row['lost']} of {row['runs']}"
        lines.append([str(row["batch_size"]), f"{row['lr']:g}", row["method"], *shown[:2], lost, *shown[2:]])
    head = ["batch", "base LR", "method", "own batch fell", "another batch fell", "lost", "training loss", "test loss"]
    return f"{_TEXT}\n\n{table(head, lines)}\n\n```bash\n{COMMAND}\n```\n\nRows: `rows/{NAME}`.\n\n" if rows else ""


_TEXT = """## Steps after an adaptation

The share of updates after which the loss is lower than before them: of their own batch, and of another one. Many runs
at once of the network of the digits task, plain SGD underneath. ± is half a ninety-five percent t interval over runs.
A run is lost if its test loss ends above where it began, or not finite; losses are of the others. All make as many
updates; DSA has twice the gradients."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write the rows; 0 when done, 2 when it cannot be."""
    parser = command_parser("studies.papers.adapted_steps", __doc__)
    parser.add_argument("--output-dir", type=Path, default=measured.ROWS, metavar="DIR", help="folder of the rows")
    options = parser.parse_args(argv)
    return carry_out(parser.prog, lambda: _study(options.output_dir))


def _study(folder: Path) -> None:
    torch.set_num_threads(1)
    first = measured.header(COMMAND)
    work = [(name, lr, size) for size in BATCHES for lr in LRS for name in METHODS]
    rows = [measure(name, lr, size, RUNS, UPDATES) for name, lr, size in tqdm(work)]
    measured.publish(folder / NAME, first, rows, "\n".join(map(str, rows)))


if __name__ == "__main__":
    sys.exit(main())
