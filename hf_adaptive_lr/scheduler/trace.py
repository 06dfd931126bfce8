"""Writes the learning rate of every update to a file that survives a crash and a resume: one JSON object per line."""

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
    """Appends every applied [`Decision`] to a JSON-lines file, usually `lr_trace.jsonl` in the output folder.

    At the first decision of a run it keeps the lines of earlier updates and drops the rest, so that a run resumed from
    a checkpoint continues exactly there, and a new run starts a new file. `controller` goes into `controller.json`
    beside it.
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
        _rewrite(self.path, "step", step)
        if self._controller is not None:
            known = {"controller_type": self._controller.controller_type, **self._controller.config()}
            origin = {k: v for k, v in self._controller.provenance.items() if v and k != "folder"}
            said = json.dumps({**known, **({"provenance": origin} if origin else {})}, indent=2, default=str) + "\n"
            replace_file(self.path.with_name(CONTROLLER_NAME), said)
        self._started = True


class EventWriter:
    """Appends the events of a guard to a JSON-lines file, `events.jsonl` in the output folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, updates: int) -> None:
        """Drop the lines of this and later updates (as the guard counts them): the run begins there, perhaps again."""
        if self.path.is_file():
            _rewrite(self.path, "update", updates)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Append one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _rewrite(path: Path, key: str, end: int) -> None:
    """Keep only the lines whose number is below `end`."""
    rows = read_trace(path) if end > 0 else []
    text = "".join(json.dumps(row) + "\n" for row in rows if row[key] < end)
    replace_file(path, text)


def read_trace(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a [`TraceWriter`]'s file as dicts; a line cut short is left out, a missing file is empty."""
    rows = (row for _, row in json_lines(path)) if path.is_file() else iter(())
    return list(itertools.takewhile(lambda row: row is not None, rows))
