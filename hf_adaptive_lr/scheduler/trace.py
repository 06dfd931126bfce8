"""The learning rate of every update, as a file that survives a crash and a resume: one JSON object per line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifacts import CONTROLLER_NAME, json_lines, replace_file
from ..controller import Controller
from .decision import Decision


class TraceWriter:
    """Appends every applied [`Decision`] to a JSON-lines file.

    At the first decision of a run it keeps what the file says of earlier updates and drops the rest, so that a run
    resumed from a checkpoint continues exactly there, and a new run starts a new file.

    Args:
        path: file, usually `lr_trace.jsonl` in the output folder.
        controller: who decides; goes into `controller.json` beside it.
    """

    def __init__(self, path: Path, controller: Controller | None = None) -> None:
        self.path, self._controller = path, controller
        self._started = False

    def __call__(self, decision: Decision) -> None:
        """Append one line; the file is opened each time (about 30 us), so that nothing stays open or unwritten."""
        if not self._started:
            self._start_at(decision.step)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(decision.as_dict()) + "\n")

    def _start_at(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_trace(self.path) if row["step"] < step] if step > 0 else []
        text = "".join(json.dumps(row) + "\n" for row in kept)
        replace_file(self.path, lambda path: path.write_text(text, encoding="utf-8"))
        if self._controller is not None:
            known = {"controller_type": self._controller.controller_type, **self._controller.config()}
            origin = {k: v for k, v in self._controller.provenance.items() if v and k != "folder"}
            said = json.dumps({**known, **({"provenance": origin} if origin else {})}, indent=2, default=str) + "\n"
            replace_file(self.path.with_name(CONTROLLER_NAME), lambda path: path.write_text(said, encoding="utf-8"))
        self._started = True


class EventWriter:
    """Appends what a guard did to a JSON-lines file, `events.jsonl` in the output folder.

    Args:
        path: the file; `start` makes it fit the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, updates: int) -> None:
        """Drop what the file says of updates from this one on: the run is there (again), and nothing has happened yet.

        Args:
            updates: how many updates the guard has seen.
        """
        kept = [row for row in read_trace(self.path) if row["update"] < updates] if updates > 0 else []
        if kept or self.path.is_file():
            text = "".join(json.dumps(row) + "\n" for row in kept)
            replace_file(self.path, lambda path: path.write_text(text, encoding="utf-8"))

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Append one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def read_trace(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a trace file; a line cut short by a crash is left out, a missing file is empty.

    Args:
        path: file written by [`TraceWriter`].

    Returns:
        One dict per update: `step`, `lr`, `reason` and, at decisions, `proposed`, `bounded`, `observation`.
    """
    rows = (row for _, row in json_lines(path)) if path.is_file() else iter(())
    return list(itertools.takewhile(lambda row: row is not None, rows))
