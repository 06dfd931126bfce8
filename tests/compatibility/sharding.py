"""Which ways to shard weights steer as one process does: every cell is a run on real processes, or why there is none.

    python -m tests.compatibility.sharding --output-dir model_cards

Rows of what is not installed stay as they were. On a CPU, with gloo; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hf_adaptive_lr.artifacts import replace_file
from hf_adaptive_lr.bench.record import commit
from hf_adaptive_lr.bench.rows import Row, packed_path, read_rows, write_rows
from hf_adaptive_lr.hub.markdown import table
from tests.controllers_for_tests import Watcher
from tests.sharded import Run, lora, results, seen, train

PAGE, ROWS = "SHARDING.md", "rows/sharding.jsonl"
SIGNALS = Watcher(fields=("alignment", "gain_ratio", "grad_norm", "loss", "pretrained", "slope", "update_ratio"))
WAYS: dict[str, tuple[str, int, int]] = {
    "ddp": ("DistributedDataParallel", 2, 2),
    "fsdp2": ("`fully_shard` (FSDP 2)", 2, 2),
    "hsdp": ("`fully_shard` on a mesh of 2 x 2 (HSDP)", 4, 4),
    "tp": ("tensor parallelism", 2, 1),
    "fsdp2_tp": ("`fully_shard` x tensor parallelism", 4, 2),
    "fsdp1": ("FSDP 1, original parameters", 2, 2),
    "fsdp1_flat": ("FSDP 1, flat parameters", 2, 2),
    "zero1": ("DeepSpeed ZeRO-1", 2, 2),
    "zero2": ("DeepSpeed ZeRO-2", 2, 2),
    "zero3": ("DeepSpeed ZeRO-3", 2, 2),
    "zero1 bf16": ("DeepSpeed ZeRO-1, bf16", 2, 2),
    "zero2 bf16": ("DeepSpeed ZeRO-2, bf16", 2, 2),
    "zero3 bf16": ("DeepSpeed ZeRO-3, bf16", 2, 2),
}
"""By name: what it is, its processes, and how many of these have data of their own."""
CELLS: dict[str, Run] = {
    "universal": Run(clip=0.05, accumulation=2),
    "signals": Run(controller=SIGNALS, clip=0.05, accumulation=2, steps=6),
    "adapters": Run(controller=Watcher(fields=("update_ratio",)), make=lora, steps=4),
}
_TITLES = ("`universal`: learning rates", "all signals", "LoRA: relative update")


def runs(way: str, cell: str) -> bool:
    """Whether there is such a run: the plan for tensor parallelism is a perceptron's."""
    return cell != "adapters" or not ("tp" in way or "bf16" in way)


def measure(way: str, cell: str) -> Row:
    """The row of one cell: the largest difference from one process with all the data, or why there is none."""
    _, processes, data_ranks = WAYS[way]
    alone = CELLS[cell]
    run = replace(alone, sharding=way.split()[0], data_ranks=data_ranks, bf16="bf16" in way)
    found: dict[str, Any] = {"ranks_equal": False, "difference": None, "field": "", "error": ""}
    try:
        with tempfile.TemporaryDirectory() as folder:
            ranks = results(run, Path(folder), processes)
        _, _, scheduler = train(alone)
        found["ranks_equal"] = all(r["lr"] == ranks[0]["lr"] and r["seen"] == ranks[0]["seen"] for r in ranks)
        found["difference"], found["field"] = _difference(cell, ranks[0], scheduler)
    except Exception as error:  # a refusal is the finding
        found["error"] = str(error).strip().splitlines()[-1]
    packages = ["torch", *(["deepspeed"] if way.startswith("zero") else [])]
    return {
        "row": "cell",
        "way": way,
        "cell": cell,
        "processes": processes,
        **found,
        "versions": {package: version(package) for package in packages},
        "commit": commit(),
    }


def _difference(cell: str, found: dict[str, Any], scheduler: Any) -> tuple[float, str]:
    """Largest relative difference of rates; of signals (after the first) relative where above 1, and whose it is."""
    if cell == "universal":
        pairs = zip(found["lr"], scheduler.lr_history(), strict=True)
        return max(abs(a / b - 1) for a, b in pairs), ""
    least = 0.0 if cell == "adapters" else 1.0
    return max(
        (abs(a - b) / max(least, abs(b)), name if cell == "signals" else "")
        for name, of in seen(scheduler).items()
        for a, b in zip(found["seen"][name][1:], of[1:], strict=True)
    )


def page(rows: Iterable[Row]) -> str:
    """The rows as a table in Markdown."""
    found = {(row["way"], row["cell"]): row for row in rows if row["row"] == "cell"}
    refusals = sorted({row["error"].split(": ", 1)[-1] for row in found.values() if row["error"]})
    lines = []
    for way, (name, processes, _) in WAYS.items():
        cells = [_cell(found.get((way, cell)), there=runs(way, cell)) for cell in CELLS]
        lines.append([name, str(processes), *cells])
    used = sorted({f"{name} {number}" for row in found.values() for name, number in row["versions"].items()})
    return f"""# Sharded weights: what steers as one process does

Every number is the largest difference from one process with all the data, of the same tiny net, with clipping and
accumulation of two micro-batches for the first two columns; every rank has data of its own (tensor parallelism has
none). Of learning rates and relative updates it is relative, of other signals absolute where they are below 1.
Rounding alone gives up to 2e-4 in float32; under bf16 the net itself computes in bfloat16. All ranks held the same
bits, unless it says otherwise. In brackets is the signal that differs most. On CPUs with gloo, never on GPUs.
Versions: {", ".join(used)}.

{table(["weights", "processes", *_TITLES], lines).strip()}

Where a cell says so, the run was refused: {" ".join(f"“{text}”." for text in refusals)}

Also refused by name, before the first update: partial sums, meshes of other ranks than those that decide (pipelines:
pass `process_group=`), `meta_inner` and the statistics of the last weight matrices, DeepSpeed without ZeRO (that is
DDP), with offload, a float16 loss scale, a mixture of experts, tensor or pipeline parallelism, a scheduler in its
config, and its versions that nobody has tested. The divergence guard does not work under DeepSpeed, which makes the
update in the backward pass.

```bash
DS_BUILD_OPS=0 pip install -e ".[test,deepspeed]"
python -m tests.compatibility.sharding --output-dir model_cards
```
"""


def _cell(row: Row | None, *, there: bool) -> str:
    if not there:
        return "-"
    if row is None:
        return "not run"
    if row["error"]:
        return "refused"
    field = f" ({row['field']})" if row.get("field") else ""
    return f"{row['difference']:.0e}{field}" + ("" if row["ranks_equal"] else ", ranks differ")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is installed and write rows and page; 0, or 2 for a bad argument."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.sharding", description=about)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=[*WAYS], help="these ways; none rewrites the page")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the page and its rows")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = options.output_dir / ROWS
    known = {(row["way"], row["cell"]): row for row in (read_rows(path) if packed_path(path).exists() else [])}
    for way in tqdm(options.only, unit="way"):
        if way.startswith("zero") and not _installed("deepspeed"):
            tqdm.write(f"{way}: deepspeed is not installed")
            continue
        for cell in CELLS:
            if runs(way, cell):
                known[way, cell] = measure(way, cell)
        _write(options.output_dir, known)
    _write(options.output_dir, known)
    print(json.dumps({"cells": len(known), "page": str(options.output_dir / PAGE)}))
    return 0


def _write(folder: Path, known: dict[tuple[str, str], Row]) -> None:
    """In the order of the page, after each way: a run takes minutes."""
    write_rows(folder / ROWS, [known[key] for key in ((w, c) for w in WAYS for c in CELLS) if key in known])
    replace_file(folder / PAGE, page(read_rows(folder / ROWS)))


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
