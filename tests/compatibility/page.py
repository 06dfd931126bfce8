"""The compatibility table: every trainer and habit, run for real with the versions that are installed.

    python -m tests.compatibility --output-dir model_cards

Rows of what is not installed stay as they were, so environments that exclude each other can fill one table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch
from tqdm import tqdm

from hf_adaptive_lr.artifacts import replace_file
from hf_adaptive_lr.bench.record import commit
from hf_adaptive_lr.bench.rows import Row, read_rows
from hf_adaptive_lr.hub.markdown import table
from tests.compatibility.checks import Check
from tests.compatibility.habits import HABITS
from tests.compatibility.trackers import TRACKERS
from tests.compatibility.trainers import TRAINERS

CHECKS: tuple[Check, ...] = (*TRAINERS, *HABITS, *TRACKERS)
"""Every row of the table, in order."""

PAGE, ROWS = "COMPATIBILITY.md", "rows/compatibility.jsonl"


def measure(check: Check) -> Row | None:
    """The row of one check, or None when a package of it is not installed."""
    try:
        versions = check.versions()
    except PackageNotFoundError:
        return None
    held, error, start = [], "", time.perf_counter()
    try:
        held = check.run()
    except Exception as found:  # whatever another package raises is the finding
        error = f"{type(found).__name__}: {found}".splitlines()[0]
    seconds = round(time.perf_counter() - start, 1)
    return {
        "name": check.name,
        "versions": versions,
        "held": held,
        "error": error,
        "seconds": seconds,
        "python": platform.python_version(),
        "commit": commit(),
    }


def page(rows: Iterable[Row]) -> str:
    """The table in Markdown, in the order of [`CHECKS`]."""
    found = {row["name"]: row for row in rows}
    lines = []
    for check in CHECKS:
        row = found.get(check.name)
        if row is None:
            lines.append([check.name, ", ".join(check.packages), "not run", "not installed where this was written"])
            continue
        versions = ", ".join(f"{package} {number}" for package, number in row["versions"].items())
        result, facts = ("fails", row["error"]) if row["error"] else ("works", "; ".join(row["held"]))
        lines.append([check.name, versions, result, facts.replace("|", "\\|")])
    return f"""# What it works with

Every row is a set of short real trainings with the packages named, with equal weights at the end where it says "to
the bit".
"Subclass" is `class Mine(AdaptiveLRMixin, ThatTrainer)`, "callback" is `AdaptiveLRCallback` on the unmodified trainer.

{table(["what", "versions", "result", "what was checked"], lines).strip()}

```bash
pip install -e ".[demo,test]" timm torchvision trackio wandb
python -m tests.compatibility --output-dir model_cards
```
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is installed and write the table; 0 when every row works, 1 when one fails, 2 for a bad argument."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility", description=description)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="rows whose name has one of these words in it")
    parser.add_argument("--output-dir", type=Path, default=Path("model_cards"), help="folder of the page and its rows")
    options = parser.parse_args(argv)
    chosen = [c for c in CHECKS if not options.only or any(w.lower() in c.name.lower() for w in options.only)]
    if not chosen:
        names = "; ".join(check.name for check in CHECKS)
        print(f"{parser.prog}: error: no row has {' or '.join(options.only)} in it; rows: {names}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # compiled code on two adds in another order from run to run
    path, failed = options.output_dir / ROWS, []
    known = {row["name"]: row for row in (read_rows(path) if path.exists() else [])}
    for check in tqdm(chosen, unit="row"):
        row = measure(check)
        if row is None:
            tqdm.write(f"{check.name}: not installed ({', '.join(check.packages)})")
            continue
        known[check.name] = row
        if row["error"]:
            failed.append(check.name)
            tqdm.write(f"{check.name}: {row['error']}")
        _write(path, "".join(json.dumps(known[c.name]) + "\n" for c in CHECKS if c.name in known))
        _write(options.output_dir / PAGE, page(known.values()))
    print(f"{len(chosen) - len(failed)} of {len(chosen)} rows without a failure; page: {options.output_dir / PAGE}")
    return 1 if failed else 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))
