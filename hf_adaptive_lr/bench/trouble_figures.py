"""The figures of the guard study, from rows alone: tolerance, shares within it, differences, false alarms."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .rows import Row

MARGIN = 0.02
"""Loss of accuracy that is always tolerated."""
SPREADS = 2.0
"""Standard deviations of the clean runs that are tolerated, where that is more."""
GOAL = 0.95
"""Share of the guarded runs that are to end within the tolerance."""
GUARD, UNGUARDED = "guard", "none"


@dataclass(frozen=True)
class Cell:
    """The runs of one injection and method, by seed."""

    runs: Mapping[int, Row]
    differences: Mapping[int, float]  # accuracy minus that of the clean run, of the seeds that have both
    tolerance: float  # how far below zero a difference may be

    @property
    def judged(self) -> int:
        """Runs that can be judged: those with a clean run of their seed, and those that raised."""
        return len(self.differences) + sum("error" in row for row in self.runs.values())

    @property
    def within(self) -> int:
        """Runs within the tolerance; one that raised is not."""
        return sum(within(difference, self.tolerance) for difference in self.differences.values())

    @property
    def mean(self) -> float | None:
        """Mean difference."""
        return statistics.fmean(self.differences.values()) if self.differences else None

    @property
    def worst(self) -> float | None:
        """Lowest difference."""
        return min(self.differences.values(), default=None)


@dataclass(frozen=True)
class Stream:
    """The guarded runs of one healthy but restless stream."""

    actions: Sequence[Mapping[str, int]]  # how often the guard did what, by run
    differences: Sequence[float]  # accuracy minus that of the unguarded run of the same stream and seed

    @property
    def stops(self) -> int:
        """Runs that the guard ended."""
        return sum(a.get("stop", 0) > 0 for a in self.actions)

    @property
    def rollbacks(self) -> int:
        """Most rollbacks in a run."""
        return max((a.get("rollback", 0) for a in self.actions), default=0)

    @property
    def within(self) -> int:
        """Runs that were left alone: not ended, one rollback at most, and no more than the margin below."""
        return sum(
            within(difference, MARGIN) and not a.get("stop") and a.get("rollback", 0) <= 1
            for a, difference in zip(self.actions, self.differences, strict=True)
        )


def within(difference: float, tolerance: float) -> bool:
    """Whether a run is no further below its clean run than it may be."""
    return difference >= -tolerance - 1e-9  # shares of rows are not exact in binary


def tolerance(accuracies: Sequence[float]) -> float:
    """Two points, or twice the standard deviation over the seeds of clean, unguarded runs if that is more."""
    return max(MARGIN, SPREADS * spread(accuracies))


def spread(accuracies: Sequence[float]) -> float:
    """Standard deviation; 0 of fewer than two values."""
    return statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


class Figures:
    """The figures of one task, from its rows in the order they were written.

    Rows of an older version of the task, or of older settings of a method, are left out: of each case those count
    that are of the same version as the newest.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._runs: dict[tuple[str, str], dict[int, Row]] = {}
        for row in _current(list(rows)):
            injection, method = row["method"].split("/")
            self._runs.setdefault((injection, method), {})[row["seed"]] = row
        self.clean = self._accuracies("clean", UNGUARDED)
        self.tolerance = tolerance(list(self.clean.values()))

    @property
    def setting(self) -> Mapping[str, Any] | None:
        """What was trained, None without rows."""
        return next((row["setting"] for row in self.all() if "setting" in row), None)

    def all(self) -> list[Row]:
        """Every row that counts."""
        return [row for runs in self._runs.values() for row in runs.values()]

    def runs(self, injection: str, method: str) -> Mapping[int, Row]:
        """The rows of one injection and method, by seed."""
        return dict(sorted(self._runs.get((injection, method), {}).items()))

    def cell(self, injection: str, method: str) -> Cell:
        """The figures of one injection and method.

        A schedule is compared with its own clean runs, since it may be better or worse on these to begin with; a
        guard with runs without one.
        """
        clean = self.clean if method in (GUARD, UNGUARDED) else self._accuracies("clean", method)
        found = self._accuracies(injection, method)
        differences = {seed: accuracy - clean[seed] for seed, accuracy in found.items() if seed in clean}
        return Cell(self.runs(injection, method), differences, self.tolerance)

    def stream(self, name: str) -> Stream:
        """The figures of one restless stream."""
        guarded, alone = self._accuracies(name, GUARD), self._accuracies(name, UNGUARDED)
        both = [seed for seed in guarded if seed in alone]
        runs = self.runs(name, GUARD)
        return Stream([runs[s]["actions"] for s in both], [guarded[s] - alone[s] for s in both])

    def _accuracies(self, injection: str, method: str) -> dict[int, float]:
        """Accuracy by seed, of runs that ended well."""
        return {s: row["accuracy"] for s, row in self.runs(injection, method).items() if "error" not in row}

    def overall(self, injections: Iterable[str], method: str) -> tuple[int, int]:
        """Runs within the tolerance, and runs, over several injections."""
        found = [self.cell(injection, method) for injection in injections]
        return sum(cell.within for cell in found), sum(cell.judged for cell in found)

    def false_alarms(self) -> tuple[int, int, int]:
        """Updates of the guard's clean runs that it took for trouble, updates, and runs."""
        runs = [row for row in self.runs("clean", GUARD).values() if "error" not in row]
        alarms = sum(len({event["step"] for event in _alarms(row)}) for row in runs)
        return alarms, sum(row["updates"] for row in runs), len(runs)


def _current(rows: Sequence[Row]) -> list[Row]:
    tasks = {row["task"]: row["task_digest"] for row in rows}
    methods = {row["method"]: row["method_digest"] for row in rows if row["task_digest"] == tasks[row["task"]]}
    return [
        row
        for row in rows
        if row["task_digest"] == tasks[row["task"]] and row["method_digest"] == methods[row["method"]]
    ]


def mean_actions(runs: Iterable[Row]) -> dict[str, float] | None:
    """What the guard did per run, by action; None without runs of a guard."""
    found = [row["actions"] for row in runs if "actions" in row]
    names = sorted({name for actions in found for name in actions})
    return {name: statistics.fmean(a.get(name, 0) for a in found) for name in names} if found else None


def first_alarm(row: Row) -> int | None:
    """Updates from the beginning of the trouble to the guard's first alarm; None when there was none."""
    steps = [event["step"] - row["strike"] for event in _alarms(row) if row["strike"] is not None]
    return min((step for step in steps if step >= 0), default=None)


def _alarms(row: Row) -> list[Mapping[str, Any]]:
    """The events that were about an update; the guard may also note that all is well again."""
    return [event for event in row.get("events", ()) if event.get("reason") is not None]
