"""How far the size of an update is off when it is measured on a sample of the weights.

    python -m tests.compatibility.sampling --output-dir model_cards

An encoder from scratch learns classes of its first token; its eleventh update is measured whole and with many seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, optim
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification
from transformers.optimization import Adafactor

from hf_adaptive_lr.artifacts import replace_file
from hf_adaptive_lr.bench.rows import Row, read_rows, write_rows
from hf_adaptive_lr.bench.studies.measured import header
from hf_adaptive_lr.hub.markdown import table
from hf_adaptive_lr.sensors.difference import DifferenceSensor
from tests.optimizers import Lion

PAGE, ROWS = "SAMPLING.md", "rows/sampling.jsonl"
SEEDS, UPDATES = 20, 10
SHARES = (0.05, 0.25)
OPTIMIZERS: dict[str, Callable[[list[Tensor]], optim.Optimizer]] = {
    "Lion": lambda p: Lion(p, lr=1e-4),
    "Muon (matrices alone)": lambda p: optim.Muon([one for one in p if one.ndim == 2], lr=1e-3),
    "RMSprop": lambda p: optim.RMSprop(p, lr=1e-3),
    "Adafactor": lambda p: optim.Adafactor(p, lr=1e-2),
    "Adafactor of transformers": lambda p: Adafactor(p, lr=1e-3, relative_step=False, scale_parameter=False),
}


def encoder(width: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8000,
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * width,
        num_labels=4,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config)


def measure(names: Iterable[str], seeds: int, width: int = 256) -> Iterable[Row]:
    """A row for each optimizer, share and seed."""
    for name in tqdm(list(names), unit="optimizer"):
        model = encoder(width)
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        size = 4 * sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        generator = torch.Generator().manual_seed(1)
        for update in range(UPDATES + 1):
            tokens = torch.randint(0, 8000, (16, 32), generator=generator)
            model(input_ids=tokens, labels=tokens[:, 0] % 4).loss.backward()
            if update < UPDATES:
                optimizer.step()
                optimizer.zero_grad()
        budgets = [(1.0, 0, size)] + [(share, seed, int(share * size)) for share in SHARES for seed in range(seeds)]
        sensors = []
        for share, seed, budget in budgets:
            sensor = DifferenceSensor(optimizer, frozenset({"update_ratio"}), budget=budget, seed=seed)
            sensor.before_step(UPDATES, lambda: ())
            sensors.append((share, seed, sensor))
        optimizer.step()
        for _, _, sensor in sensors:
            sensor.after_step(lambda: (), lambda: None, lambda terms: [float(term) for term in terms])
        true = sensors[0][2].ratio
        for share, seed, sensor in sensors[1:]:
            yield {
                "row": "sample",
                "optimizer": name,
                "weights": size // 4,
                "wanted": share,
                "copied": round(sensor.share, 4),
                "seed": seed,
                "update_ratio": true,
                "error": sensor.ratio / true - 1,
            }


def page(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    runs = [row for row in rows if row["row"] == "sample"]
    lines, worst = [], 0.0
    for name in dict.fromkeys(row["optimizer"] for row in runs):
        cells = [name]
        for share in SHARES:
            own = [row for row in runs if (row["optimizer"], row["wanted"]) == (name, share)]
            errors = [row["error"] for row in own]
            worst = max(worst, *map(abs, errors))
            spread = statistics.fmean(error**2 for error in errors) ** 0.5
            cells += [f"{own[0]['copied']:.1%}", f"{spread:.2%}", f"{max(map(abs, errors)):.2%}"]
        lines.append(cells)
    titles = ["optimizer", *(title for _ in SHARES for title in ("copied", "RMS error", "largest"))]
    return f"""# The size of an update, measured on a sample

Relative error of `update_ratio` where the copy of the weights keeps to a budget (`ControlledLR(copy_budget=)`): one of
every few coordinates is copied, small tensors and adapters whole. An encoder of {runs[0]["weights"] / 1e6:.1f} million
weights from scratch, its update {UPDATES + 1}, {len({row["seed"] for row in runs})} seeds. Larger tensors have smaller
errors, as the number of coordinates counts. The largest of all errors is {worst:.2%}.

{table(titles, lines).strip()}

The gradient's norm is never sampled: its few largest entries make most of it. Nor are angles, which are of the size of
a sample's noise.

```bash
python -m tests.compatibility.sampling --output-dir model_cards
```
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write rows and page; 0, or 2 for a bad argument."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.sampling", description=about)
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"samples of each kind; {SEEDS} if not given")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the page and its rows")
    options = parser.parse_args(argv)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    rows = [header("python -m tests.compatibility.sampling", ["torch", "transformers"])]
    rows += measure(OPTIMIZERS, options.seeds)
    write_rows(options.output_dir / ROWS, rows)
    replace_file(options.output_dir / PAGE, page(read_rows(options.output_dir / ROWS)))
    print(json.dumps({"samples": len(rows) - 1, "page": str(options.output_dir / PAGE)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
