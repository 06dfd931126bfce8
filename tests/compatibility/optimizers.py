"""What `universal` does with other optimizers than AdamW, beside linear decay at a tuned and at the usual rate.

    python -m tests.compatibility.optimizers --output-dir model_cards

A perceptron is trained from scratch on scikit-learn's digits. The tuned rate is the best of a grid around the usual
one, on a seed of its own; the test rows are read once a run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn, optim
from tqdm import tqdm
from transformers.optimization import Adafactor

from hf_adaptive_lr import AutoController, ControlledLR
from hf_adaptive_lr.artifacts import replace_file
from hf_adaptive_lr.bench.rows import Row, read_rows, write_rows
from hf_adaptive_lr.bench.studies.measured import header
from hf_adaptive_lr.hub.markdown import table
from tests.optimizers import Lion

UPDATES, SEEDS, BATCH, TUNING_SEED = 200, 3, 32, 100
GRID = (1 / 16, 1 / 4, 1, 4, 16, 64)
"""Learning rates that are tried, over the usual one."""
PAGE, ROWS = "OPTIMIZERS.md", "rows/optimizers.jsonl"

Make = Callable[[list[Tensor], float], optim.Optimizer]


def _matrices(params: list[Tensor]) -> list[Tensor]:
    return [p for p in params if p.ndim == 2]


OPTIMIZERS: dict[str, tuple[Make, float]] = {
    "AdamW": (lambda p, lr: optim.AdamW(p, lr=lr), 1e-3),
    "SGD, momentum 0.9": (lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9), 1e-2),
    "ASGD": (lambda p, lr: optim.ASGD(p, lr=lr), 1e-2),
    "Adadelta": (lambda p, lr: optim.Adadelta(p, lr=lr), 1.0),
    "Adafactor": (lambda p, lr: optim.Adafactor(p, lr=lr), 1e-2),
    "Adafactor of transformers": (
        lambda p, lr: Adafactor(p, lr=lr, relative_step=False, scale_parameter=False),
        1e-3,
    ),
    "Adagrad": (lambda p, lr: optim.Adagrad(p, lr=lr), 1e-2),
    "Adamax": (lambda p, lr: optim.Adamax(p, lr=lr), 2e-3),
    "Lion": (lambda p, lr: Lion(p, lr=lr), 1e-4),
    "Muon (matrices alone)": (lambda p, lr: optim.Muon(_matrices(p), lr=lr), 1e-3),
    "NAdam": (lambda p, lr: optim.NAdam(p, lr=lr), 2e-3),
    "RAdam": (lambda p, lr: optim.RAdam(p, lr=lr), 1e-3),
    "RMSprop": (lambda p, lr: optim.RMSprop(p, lr=lr), 1e-2),
}
"""By name: how it is made, and its usual learning rate, the class's default (Lion's: of its paper's code)."""


@cache
def _digits() -> tuple[Tensor, Tensor]:
    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.data, dtype=torch.float32)[order] / 16, torch.tensor(found.target)[order]


class Perceptron(nn.Module):
    """One hidden layer; the output carries the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.body(x), labels)}


def run(name: str, controller: str, lr: float, *, seed: int, rows: slice, updates: int = UPDATES) -> float:
    """Loss at the end, on these rows."""
    torch.manual_seed(seed)
    model, (x, y) = Perceptron(), _digits()
    optimizer = OPTIMIZERS[name][0](list(model.parameters()), lr)
    method = AutoController.from_pretrained(controller)
    ControlledLR(optimizer, method, model=model, total_steps=updates, max_grad_norm=0, max_lr=1e3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        batch = torch.randint(0, 1000, (BATCH,), generator=generator)
        model(x[batch], y[batch])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return float(model.eval()(x[rows], y[rows])["loss"])


def measure(names: Iterable[str], seeds: int, updates: int) -> Iterable[Row]:
    """Rows of all optimizers."""
    tuning, test = slice(1000, 1300), slice(1300, None)
    for name in tqdm(list(names), unit="optimizer"):
        usual = OPTIMIZERS[name][1]
        tried = {
            usual * factor: run(name, "linear", usual * factor, seed=TUNING_SEED, rows=tuning, updates=updates)
            for factor in GRID
        }
        tuned = min(tried, key=lambda lr: tried[lr] if tried[lr] == tried[lr] else float("inf"))
        for seed in range(seeds):
            for method, lr in (("universal", usual), ("linear, tuned", tuned), ("linear, usual", usual)):
                loss = run(name, method.partition(",")[0], lr, seed=seed, rows=test, updates=updates)
                yield {
                    "row": "run",
                    "optimizer": name,
                    "method": method,
                    "lr": lr if method != "universal" else None,
                    "seed": seed,
                    "updates": updates,
                    "test_loss": round(loss, 4),
                }


def page(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown: means over the seeds."""
    runs = [row for row in rows if row["row"] == "run"]
    names = list(dict.fromkeys(row["optimizer"] for row in runs))
    lines, below = [], dict.fromkeys(_METHODS, 0)
    for name in names:
        own = {m: [r for r in runs if r["optimizer"] == name and r["method"] == m] for m in _METHODS}
        means = {m: sum(row["test_loss"] for row in own[m]) / len(own[m]) for m in _METHODS}
        for method, loss in means.items():
            below[method] += means["universal"] < loss
        losses = [f"{means[m]:.3f}" for m in _METHODS]
        lines.append([name, *losses, f"{own['linear, tuned'][0]['lr']:g}", f"{own['linear, usual'][0]['lr']:g}"])
    worst = max(lines, key=lambda line: float(line[1]) / float(line[2]))[0]
    titles = ["optimizer", "`universal`", "linear, tuned", "linear, usual rate", "tuned rate", "usual rate"]
    return f"""# `universal` with other optimizers

Test loss at the end, means over {len({row["seed"] for row in runs})} seeds of {max(row["updates"] for row in runs)}
updates: a perceptron of 64 hidden units from scratch on scikit-learn's digits, batches of {BATCH}. Linear decay is
tuned on a seed and rows of its own, over {len(GRID)} rates from 1/16 to 64 times the usual one, which is the class's
default (Lion's: that of its paper's code). One small task: it shows that steering works, not how well it does
elsewhere.

{table(titles, lines).strip()}

`universal` ends below linear decay at the usual rate with {below["linear, usual"]} of {len(names)} optimizers, and
below tuned linear decay with {below["linear, tuned"]}. Worst: {worst}.

AdamW and SGD are read from their state, and `universal` knows their usual rates; the others are measured by the
difference of the weights. Refused by name, as their learning rate does not make the size of their updates: LBFGS,
Rprop, Prodigy, D-Adaptation, Schedule-Free, LOMO and `DSA`. SparseAdam's gradients are sparse and fail fast.

```bash
python -m tests.compatibility.optimizers --output-dir model_cards
```
"""


_METHODS = ("universal", "linear, tuned", "linear, usual")


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write rows and page; 0, or 2 for a bad argument."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.optimizers", description=about)
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs of each kind; {SEEDS} if not given")
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"length of a run; {UPDATES} if not given")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the page and its rows")
    options = parser.parse_args(argv)
    if options.seeds < 1 or options.updates < 2:
        parser.error("--seeds must be at least 1 and --updates at least 2")
    rows = [header("python -m tests.compatibility.optimizers", ["torch", "transformers", "scikit-learn"])]
    rows += measure(OPTIMIZERS, options.seeds, options.updates)
    write_rows(options.output_dir / ROWS, rows)
    replace_file(options.output_dir / PAGE, page(read_rows(options.output_dir / ROWS)))
    print(json.dumps({"runs": len(rows) - 1, "page": str(options.output_dir / PAGE)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
