"""A long run: do memory, time per update and the trace stay as small at update 200,000 as at the start?

    python -m hf_adaptive_lr.bench.studies.long_run

A layer of 64 weights is trained by AdamW in a loop of its own, with `universal`, its trace in a file and a checkpoint
of the scheduler at every tenth of the run, which is read back; a twin without a scheduler takes turns with it.
"""

from __future__ import annotations

import io
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...auto import AutoController
from ...scheduler.controlled_lr import ControlledLR
from ...scheduler.trace import TraceWriter
from ..markdown import table as markdown_table
from ..rows import Row
from ..runner import command_parser
from . import measured

UPDATES, PARTS, BLOCK = 200_000, 10, 100
OUTPUT = measured.ROWS / "long_run.jsonl"


class _Loop:
    """A model, its optimizer and the updates of its own loop."""

    def __init__(self, total: int, folder: Path | None) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(64, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.batches = torch.Generator().manual_seed(1)
        self.scheduler: ControlledLR | None = None
        if folder is not None:
            controller = AutoController.from_pretrained("universal")
            self.scheduler = ControlledLR(self.optimizer, controller, model=self.model, total_steps=total)
            self.scheduler.listeners.append(TraceWriter(folder / "lr_trace.jsonl", controller, total))

    def run(self, updates: int) -> float:
        """Make updates; returns their CPU seconds."""
        start = time.process_time()
        for _ in range(updates):
            x = torch.randn(16, 64, generator=self.batches)
            error: torch.Tensor = self.model(x) - x.sum(1, keepdim=True)
            error.square().mean().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.process_time() - start

    def save_and_load(self) -> int:
        """Put the scheduler's state through a checkpoint; returns its bytes."""
        assert self.scheduler is not None  # noqa: S101 - narrowed for mypy
        buffer = io.BytesIO()
        torch.save(self.scheduler.state_dict(), buffer)
        buffer.seek(0)
        self.scheduler.load_state_dict(torch.load(buffer, weights_only=True))
        return buffer.tell()


def measure(total: int) -> Iterator[Row]:
    """A row for each tenth of the run: time per update of both, peak memory, and the files' sizes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, plain = _Loop(total, folder), _Loop(total, None)
        for _ in tqdm(range(PARTS), desc=f"{total:,} updates", unit="part"):
            seconds = {"ours": 0.0, "plain": 0.0}
            for _ in range(total // PARTS // BLOCK):
                seconds["plain"] += plain.run(BLOCK)
                seconds["ours"] += ours.run(BLOCK)
            assert ours.scheduler is not None  # noqa: S101 - narrowed for mypy
            path = folder / "lr_trace.jsonl"
            yield {
                "updates": ours.scheduler.updates,
                "microseconds": round(1e6 * seconds["ours"] * PARTS / total, 2),
                "plain_microseconds": round(1e6 * seconds["plain"] * PARTS / total, 2),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),  # kB on Linux
                "trace_bytes": path.stat().st_size,
                "trace_lines": len(path.read_bytes().splitlines()),
                "state_bytes": ours.save_and_load(),
                "lr": ours.scheduler.get_last_lr()[0],
            }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the run in tenths."""
    head = ["updates", "us per update", "without", "peak MB", "trace lines", "trace kB", "state bytes"]
    lines = [
        [
            f"{row['updates']:,}",
            f"{row['microseconds']:.0f}",
            f"{row['plain_microseconds']:.0f}",
            f"{row['peak_mb']:.0f}",
            f"{row['trace_lines']:,}",
            f"{row['trace_bytes'] / 1e3:,.0f}",
            f"{row['state_bytes']:,}",
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and write the rows."""
    p = command_parser("studies.long_run", __doc__)
    p.add_argument("--quick", action="store_true", help="2,000 updates: does it run, not what it costs")
    p.add_argument("--output", type=Path, help="JSON-lines file (--quick: none unless one is given)")
    options = p.parse_args(argv)
    torch.set_num_threads(1)
    first = measured.header(f"{p.prog}{' --quick' * options.quick}", clock="CPU time of the process")
    rows = list(measure(2_000 if options.quick else UPDATES))
    measured.publish(options.output or (None if options.quick else OUTPUT), first, rows, table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
