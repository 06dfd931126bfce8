"""Writes the learning rate of every update to a file that survives a crash and a resume: one JSON object per line."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import CONTROLLER_NAME, json_lines, replace_file
from ..controller import Controller
from .decision import Decision

LONG = 20_000
"""Updates of which each has a line; after these, one whose rates go straight on may have none."""
_RATES = ("lr", "lrs", "ramp")
_UNASKED = ("between", "cooldown", "handed_over")  # reasons of updates that say nothing but their rates
_GAPS = ("straight", "unchanged")  # keys of the number of updates before a line; the latter in files of before
_NEAR = 1e-6  # relative distance from a straight line that counts as on it


class TraceWriter:
    """Appends every applied [`Decision`] to a JSON-lines file, usually `lr_trace.jsonl` in the output folder.

    At the first decision of a run it keeps the lines of earlier updates and drops the rest, so that a run resumed from
    a checkpoint continues exactly there, and a new run starts a new file. `controller` goes into `controller.json`
    beside it.

    After the first 20,000 updates those without a decision whose learning rates lie on the straight line through the
    two lines before are only counted, as `straight` in the next line. One of every 100 still has a line of its own, of
    every 1,000 after 100,000 updates, and so on; and so has the last of `total_steps`. A million updates take some
    21,000 lines, ten million 22,000, beside those of decisions.
    """

    def __init__(self, path: Path, controller: Controller | None = None, total_steps: int | None = None) -> None:
        self.path, self._controller, self._total = path.absolute(), controller, total_steps
        self._started, self._said = False, False
        self._size: int | None = None  # of the file after the last line
        self._written: list[Mapping[str, Any]] = []  # the last two lines
        self._counted = 0  # updates since then
        self._last: Mapping[str, Any] = {}  # the newest of these
        self._gap = "straight"  # how the next line calls them

    def __call__(self, decision: Decision) -> None:
        """Append one line; the file is opened each time (about 30 us), so that nothing stays open or unwritten."""
        if not self._started:
            self._start_at(decision.step)
        row = decision.as_dict()
        if self._may_be_counted(row):
            self._counted, self._last = self._counted + 1, row
            return
        self._write(row)

    def flush(self) -> None:
        """Give the last update a line where it has none, as at the end of a run that ends before its planned one."""
        if self._counted and self._last:
            self._counted -= 1
            self._write(self._last)

    def _write(self, row: Mapping[str, Any]) -> None:
        line = {**row, self._gap: self._counted} if self._counted else row
        with self.path.open("a", encoding="utf-8") as file:
            self._check_alone(file.tell())
            file.write(json.dumps(line) + "\n")
            self._size = file.tell()
        self._written, self._counted, self._last, self._gap = [*self._written[-1:], row], 0, {}, "straight"

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
        step = row["step"]
        if step < LONG or step % 10 ** (len(str(step)) - 3) == 0 or step + 1 == self._total or len(self._written) < 2:
            return False
        expected = _straight_on(self._written, step)
        return row.keys() == expected.keys() and row["reason"] == expected["reason"] and _near(row, expected)

    def _start_at(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = _rewrite(self.path, "step", step)
        if kept and kept[-1]["step"] >= LONG - 1:
            self._written = [{k: v for k, v in row.items() if k not in _GAPS} for row in kept[-2:]]
            self._counted = step - 1 - kept[-1]["step"]
            if any("unchanged" in row for row in kept) and not any("straight" in row for row in kept):
                self._written, self._gap = self._written[-1:] * 2, "unchanged"  # what an older version left out
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
    """One dict for every update of a [`TraceWriter`]'s file, also for those that have no line of their own.

    Rates of the latter are right to a millionth. A line cut short is left out, with all after it; a missing file is
    empty.
    """
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for row in _whole_lines(path):
        straight, unchanged = (row.pop(key, 0) for key in _GAPS)
        before = lines if straight else lines[-1:] * 2
        if (count := straight or unchanged) and len(before) > 1:
            first = lines[-1]["step"] + 1
            rows += [_straight_on(before, step) for step in range(first, first + count)]
        rows.append(row)
        lines = [*lines[-1:], row]
    return rows


def _straight_on(two_lines: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """The line of an update without a decision whose rates go on as they went between two others."""
    one, two = two_lines
    apart = two["step"] - one["step"]
    share = (step - two["step"]) / apart if apart else 0.0

    def go_on(name: str) -> Any:
        before, last = one.get(name, two[name]), two[name]
        if isinstance(last, list):
            before = before if isinstance(before, list) and len(before) == len(last) else last
            return [b + (b - a) * share for a, b in zip(before, last, strict=True)]
        return last + (last - before) * share

    reason = two["reason"] if two["reason"] in _UNASKED else _UNASKED[0]
    return {"step": step, "reason": reason, **{name: go_on(name) for name in _RATES if name in two}}


def _near(row: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(
        math.isclose(a, b, rel_tol=_NEAR)
        for name in _RATES
        if name in row
        for a, b in zip(_listed(row[name]), _listed(expected[name]), strict=True)
    )


def _listed(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    rows = (row for _, row in json_lines(path)) if path.is_file() else iter(())
    return list(itertools.takewhile(lambda row: row is not None, rows))
