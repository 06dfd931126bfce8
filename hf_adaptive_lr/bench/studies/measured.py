"""Files of single measurements: a header that says how they came about, then a row of each."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..record import versions
from ..rows import packed_path, write_rows
from .command import CARDS

ROWS = CARDS / "rows"


def header(command: str, packages: Iterable[str] = (), **more: Any) -> dict[str, Any]:
    """The first row: the command, the date, the machine, and versions, also of further packages."""
    return {
        "row": "header",
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions() | {package: version(package) for package in packages},
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "cpu": _cpu(),
        **more,
    }


def publish(path: Path | None, first: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], shown: str) -> None:
    """Print what was found, and replace a file, if there is one, by the header and these rows."""
    print(shown)
    if path is not None:
        write_rows(path, [first, *rows])
        print(f"rows in {packed_path(path)}")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
