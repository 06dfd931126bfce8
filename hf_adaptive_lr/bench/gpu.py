"""Checks on one GPU what a CPU cannot show: host syncs, captured steps, precision, snapshots, FSDP, memory, time.

    python -m hf_adaptive_lr.bench.gpu                  # under eight minutes, no download: rows, and the page
    python -m hf_adaptive_lr.bench.gpu --render-only    # the page by the rows that there are

Each check gives rows that say whether it held. One that raises is a row with the error, one for which no time is left
a row that says so; the others go on. Without a GPU it says so, and ends with exit code 2.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..artifacts import replace_file
from .gpu_checks import CHECKS
from .gpu_runs import Card, Scale
from .markdown import table
from .rows import Row, read_rows, write_rows
from .runner import command_parser
from .studies.command import CARDS
from .studies.measured import header

ROWS, PAGE = "rows/gpu.jsonl", "GPU.md"
SECONDS = 400.0
"""After so many no further check begins."""


def measure(card: Card, scale: Scale, seconds: float) -> Iterator[Row]:
    """Rows of all checks; none begins after so many seconds."""
    began = time.monotonic()
    for name, check in tqdm(CHECKS.items(), unit="check"):
        try:
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"not begun: {seconds:g} seconds were over")
            yield from ({"row": "check", "check": name, **_rounded(row)} for row in check(card, scale))
        except Exception as error:  # whatever it is, the other checks are worth having
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            yield {"row": "check", "check": name, "case": "error", "held": False, "error": text}
    yield {"row": "seconds", "seconds": round(time.monotonic() - began)}


def _rounded(row: Row) -> Row:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown; without any, that nothing was run yet."""
    about = "Not run yet: no GPU was at hand."
    if rows:
        lines, first = [], rows[0]
        for row in (row for row in rows if row["row"] == "check"):
            held = {True: "yes", False: "**no**", None: "-"}[row["held"]]
            known = ("row", "check", "case", "held")
            figures = ", ".join(f"{name} {value}" for name, value in row.items() if name not in known)
            lines.append([row["check"], row["case"], held, figures])
        about = (
            f"On {first['device']}, torch {first['versions']['torch']}, {first['date']}, in {rows[-1]['seconds']} s."
        )
        about += "\n\n" + table(["check", "case", "held", "figures"], lines).strip()
    return f"# On a GPU\n\n{about}\n\n```bash\npython -m hf_adaptive_lr.bench.gpu\n```\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks, write rows and page; 1 where one did not hold, 2 without a GPU."""
    parser = command_parser("gpu", __doc__)
    parser.add_argument("--render-only", action="store_true", help="run nothing, write the page by the rows")
    parser.add_argument(
        "--output-dir", type=Path, default=CARDS, help=f"page, and rows in DIR/rows (default: {CARDS})"
    )
    options = parser.parse_args(argv)
    if not options.render_only:
        if not torch.cuda.is_available():
            print(f"{parser.prog}: torch sees no GPU here, so nothing was run", file=sys.stderr)
            return 2
        found = [header(parser.prog, device=torch.cuda.get_device_name()), *measure(Card("cuda"), Scale(), SECONDS)]
        write_rows(options.output_dir / ROWS, found)
    rows = read_rows(options.output_dir / ROWS)
    replace_file(options.output_dir / PAGE, page(rows))
    print(page(rows))
    return int(any(row.get("held") is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
