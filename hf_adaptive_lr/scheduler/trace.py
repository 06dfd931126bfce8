"""Writes the learning rate of every update to a file that survives a crash and a resume: one JSON object per line."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifacts import CONTROLLER_NAME, json_lines, replace_file
from ..controller import Controller
from .decision import Decision

LONG = 20_000
"""Updates of which each has a line; after these, one at which nothing has changed may have none."""
_RATES = ("lr", "lrs", "ramp")
_AT_LEAST = 100  # of the updates after these, every so many have a line


class TraceWriter:
    """Appends every applied [`Decision`] to a JSON-lines file, usually `lr_trace.jsonl` in the output folder.

    At the first decision of a run it keeps the lines of earlier updates and drops the rest, so that a run resumed from
    a checkpoint continues exactly there, and a new run starts a new file. `controller` goes into `controller.json`
    beside it.

    After the first 20,000 updates those between two decisions that leave all learning rates as they were are only
    counted, as `unchanged` in the next line; every 100th still has a line of its own, and so has the last of
    `total_steps`.
    """

    def __init__(self, path: Path, controller: Controller | None = None, total_steps: int | None = None) -> None:
        self.path, self._controller, self._total = path.absolute(), controller, total_steps
        self._started, self._said = False, False
        self._size: int | None = None  # of the file after the last line
        self._written: Mapping[str, Any] = {}  # the last line
        self._unchanged = 0  # updates since then

    def __call__(self, decision: Decision) -> None:
        """Append one line; the file is opened each time (about 30 us), so that nothing stays open or unwritten."""
        if not self._started:
            self._start_at(decision.step)
        row = decision.as_dict()
        if self._may_be_counted(row):
            self._unchanged += 1
            return
        line = {**row, "unchanged": self._unchanged} if self._unchanged else row
        with self.path.open("a", encoding="utf-8") as file:
            self._check_alone(file.tell())
            file.write(json.dumps(line) + "\n")
            self._size = file.tell()
        self._written, self._unchanged = row, 0

    def _check_alone(self, size: int) -> None:
        if self._size not in (None, size) and not self._said:
            self._said = True
            warnings.warn(
                f"another process writes into '{self.path}' or has changed it: the trace mixes runs; give each run an "
                "output folder of its own (said once)",
                UserWarning,
                stacklevel=4,
            )

    def _may_be_counted(self, row: Mapping[str, Any]) -> bool:
        step, last = row["step"], self._written
        if step < LONG or step % _AT_LEAST == 0 or step + 1 == self._total or row["reason"] != "between":
            return False
        return all(row.get(key) == last.get(key) for key in _RATES)

    def _start_at(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = _rewrite(self.path, "step", step)
        if kept and kept[-1]["step"] >= LONG - 1:
            self._written, self._unchanged = kept[-1], step - 1 - kept[-1]["step"]
        if self._controller is not None:
            known = {"controller_type": self._controller.controller_type, **self._controller.config()}
            origin = {k: v for k, v in self._controller.provenance.items() if v and k != "folder"}
            said = json.dumps({**known, **({"provenance": origin} if origin else {})}, indent=2, default=str) + "\n"
            replace_file(self.path.with_name(CONTROLLER_NAME), said)
        self._started = True


class EventWriter:
    """Appends the events of a guard to a JSON-lines file, `events.jsonl` in the output folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def start(self, updates: int) -> None:
        """Drop the lines of this and later updates (as the guard counts them): the run begins there, perhaps again."""
        if self.path.is_file():
            _rewrite(self.path, "update", updates)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Append one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _rewrite(path: Path, key: str, end: int) -> list[dict[str, Any]]:
    """Keep only the lines whose number is below `end`, and return them."""
    rows = [row for row in _whole_lines(path) if row[key] < end] if end > 0 else []
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def read_trace(path: Path) -> list[dict[str, Any]]:
    """One dict for every update of a [`TraceWriter`]'s file, also for those that have no line because nothing changed.

    A line cut short is left out, with all after it; a missing file is empty.
    """
    rows: list[dict[str, Any]] = []
    for row in _whole_lines(path):
        count = row.pop("unchanged") if rows and "unchanged" in row else 0
        if count:
            same = {key: value for key, value in rows[-1].items() if key in _RATES}
            first = rows[-1]["step"] + 1
            rows += [{"step": step, "reason": "between", **same} for step in range(first, first + count)]
        rows.append(row)
    return rows


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    rows = (row for _, row in json_lines(path)) if path.is_file() else iter(())
    return list(itertools.takewhile(lambda row: row is not None, rows))
