"""All methods on the tasks of one suite: shares of ruin and harm, mean regret, and what may be chance in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from . import plan
from .method import Method
from .methods import METHODS, TUNED_METHODS
from .scores import DEFAULT, RULE, TUNED, Cell, TaskRows, Tuning, cell, chance_harm, measured, tuning
from .sources import SOURCES
from .stats import Array, Difference, Estimate, corrected, swap_test, task_difference, task_interval
from .tasks import Task

GROUPS: Mapping[str, Callable[[Task], str]] = {
    "kind": lambda task: task.kind,
    "length": lambda task: _length(task.updates),
    "optimizer": lambda task: task.optimizer,
    "origin": lambda task: origin(task.data),
}
"""How tasks are put together in breakdowns."""


def origin(data: str) -> str:
    """Where a data set comes from: tasks of one origin are alike, and count as one draw where chance is judged."""
    return SOURCES[data].origin


_SMOOTHED = 5  # points of a loss curve, a fifth of the run
_FLAT = 0.1  # of the way that a loss makes, which it has not made while it lies flat


def _length(updates: int) -> str:
    return "up to 60 updates" if updates <= 60 else "61 to 600" if updates <= 600 else "over 600"


@dataclass(frozen=True)
class Line:
    """A method over tasks; shares are means over tasks of the shares of their seeds, NaN where nothing is known."""

    method: str
    tasks: int
    ruin: float
    ended_worse: float
    at_chance: float
    above_rule: float
    harm_rule: float
    harm_default: float
    regret: Estimate
    worst: tuple[str, float]  # the task with the largest mean regret
    over_rule: float  # mean regret minus `rule`'s on the same tasks
    better: float  # share of tasks with a mean regret below `rule`'s
    points: float  # mean over tasks whose metric is a share
    seconds: float  # median over tasks
    met: float  # share of runs that meet the target
    steps: float  # share of the run until then, median over all runs; infinite when most miss


class Comparison:
    """The scores of a suite, from the rows of its tasks."""

    def __init__(self, suite: str, rows: Iterable[TaskRows], methods: Iterable[Method]) -> None:
        every = list(rows)
        self.suite, self.methods = suite, {method.name: method for method in (METHODS[RULE], *methods)}
        self.rows = {of.task.name: of for of in every if of.complete}
        self.waiting = [of.task.name for of in every if not of.complete]
        self.cells: dict[str, dict[str, Cell]] = {}
        for name in (TUNED, *self.methods):
            found = {task: cell(of.counted[name], of) for task, of in self.rows.items() if name in of.counted}
            if found:
                self.cells[name] = found

    @property
    def tasks(self) -> list[Task]:
        """The tasks that can be scored."""
        return [of.task for of in self.rows.values()]

    @property
    def whole(self) -> list[str]:
        """The methods that are no part of another one."""
        return [name for name in self.cells if name == TUNED or not self.methods[name].part_of]

    @property
    def decided(self) -> bool:
        """Whether the endpoint's runs are all there: whoever tests as rows come in finds something sooner or later."""
        return not self.waiting and not any(there < wanted for there, wanted in map(self._runs, self._tested()))

    def _tested(self) -> list[str]:
        """The methods named in advance and strangers'."""
        return [name for name in self.methods if name in plan.PRIMARY or name not in METHODS]

    def _runs(self, method: str) -> tuple[int, int]:
        """On how many tasks a method has all its runs, and on how many it is to run."""
        return len(self.cells.get(method, {})), sum(method in of.wanted for of in self.rows.values())

    def lacking(self) -> str:
        """What has not been run, in one line; empty when everything has."""
        parts = [f"no tuned linear or `{RULE}` yet on {', '.join(self.waiting)}"] if self.waiting else []
        methods: dict[str, list[str]] = {}
        for name in self.methods:
            there, wanted = self._runs(name)
            if there < wanted:
                methods.setdefault(f"on {wanted - there} of {wanted} tasks", []).append(f"`{name}`")
        return "; ".join([*parts, *(f"{_some(names)} {where}" for where, names in methods.items())])

    # --- over tasks -----------------------------------------------------------------------------------------------

    def regret(self, method: str, tasks: Sequence[str] | None = None) -> Array:
        """A method's regret on its tasks, of shape (tasks, seeds)."""
        return np.array([self.cells[method][task].regret for task in self._of(method, tasks)])

    def origins(self, tasks: Iterable[str]) -> list[str]:
        """The origin of each of these tasks."""
        return [origin(self.rows[task].task.data) for task in tasks]

    def _of(self, method: str, tasks: Sequence[str] | None) -> list[str]:
        return [task for task in self.cells.get(method, {}) if tasks is None or task in tasks]

    def line(self, method: str, tasks: Sequence[str] | None = None) -> Line | None:
        """A method over its tasks, or those of them that are named; None where it has none."""
        names = self._of(method, tasks)
        if not names:
            return None
        cells = [self.cells[method][name] for name in names]
        regrets = [float(c.regret.mean()) for c in cells]
        rules = [float(self.cells[RULE][name].regret.mean()) for name in names]
        worst = int(np.argmax(regrets))
        targets = np.concatenate([c.target for c in cells])
        return Line(
            method=method,
            tasks=len(names),
            ruin=_mean(c.ruin.any.mean() for c in cells),
            ended_worse=_mean(c.ruin.ended_worse.mean() for c in cells),
            at_chance=_mean(c.ruin.at_chance.mean() for c in cells),
            above_rule=_mean(c.ruin.above_rule.mean() for c in cells),
            harm_rule=_mean(c.harm[RULE].mean() for c in cells),
            harm_default=_mean(c.harm[DEFAULT].mean() for c in cells if DEFAULT in c.harm),
            regret=task_interval([c.regret for c in cells], self.origins(names)),
            worst=(names[worst], regrets[worst]),
            over_rule=_mean(mine - rule for mine, rule in zip(regrets, rules, strict=True)),
            better=_mean(mine < rule for mine, rule in zip(regrets, rules, strict=True)),
            points=_mean(c.points for c in cells if math.isfinite(c.points)),
            seconds=_median([c.seconds for c in cells]),
            met=float(np.isfinite(targets).mean()),
            steps=float(np.median(targets)),
        )

    def lines(self) -> list[Line]:
        """All methods, the least ruinous first, then those that are farthest below `rule` on their tasks.

        Parts of a method are left out: they stand in a table beside it.
        """
        found = [line for name in self.whole if (line := self.line(name)) is not None]
        return sorted(found, key=lambda line: (line.ruin, line.over_rule, line.method))

    def groups(self, by: str) -> dict[str, list[str]]:
        """Names of tasks by a key of `GROUPS`, in the order in which they come."""
        found: dict[str, list[str]] = {}
        for task in sorted(self.tasks, key=lambda task: task.updates) if by == "length" else self.tasks:
            found.setdefault(GROUPS[by](task), []).append(task.name)
        return found

    # --- what may be chance ---------------------------------------------------------------------------------------

    def primary(self) -> dict[str, Difference]:
        """Mean regret to tuned linear: the methods named in advance and strangers', corrected for their number."""
        names = (*plan.PRIMARY, *(name for name in self.methods if name not in METHODS))
        found = {name: self.regret(name) for name in names if name in self.cells}
        differences = {
            name: task_difference(regret, np.zeros_like(regret), self.origins(self.cells[name]))
            for name, regret in found.items()
        }
        return corrected(differences, of=len(names))

    def against(self, method: str, other: str) -> Difference | None:
        """Mean regret minus another method's on the tasks that both have; None where there is none."""
        common = self._of(other, self._of(method, None))
        if not common:
            return None
        return task_difference(self.regret(method, common), self.regret(other, common), self.origins(common))

    def chance_harm(self) -> float:
        """How often one run of `RULE` is above another seed's as far as harm is; mean over tasks."""
        return _mean(share for of in self.rows.values() if math.isfinite(share := chance_harm(of)))

    def same_against_same(self, level: float = 0.05) -> tuple[int, int]:
        """A/A: how often two seeds of one method differ by the test of the endpoint, and the number of such tests."""
        tests = [
            swap_test(regret[:, a] - regret[:, b], self.origins(self.cells[name]))[0] <= level
            for name in self.whole
            for regret in [self.regret(name)]
            for a, b in combinations(range(regret.shape[1]), 2)
        ]
        return sum(tests), len(tests)

    # --- tuning ---------------------------------------------------------------------------------------------------

    def tuning(self, task: str, schedule: str | None = None) -> Tuning | None:
        """The tuning curve of a schedule on a task, of the reference where none is named."""
        of = self.rows[task]
        return tuning(of, schedule or (of.reference or plan.REFERENCES)[0])

    def ruin_from(self, task: str) -> float:
        """Lowest rate above tuned linear's at which half of the linear runs, with or without warm-up, are ruined."""
        best = (self.rows[task].reference or ("", 0.0))[1]
        curves = [curve for name in plan.REFERENCES if (curve := self.tuning(task, name)) is not None]
        return min((curve.ruin for curve in curves if curve.ruin > best), default=math.inf)

    def flat_until(self, task: str) -> float:
        """Share of tuned linear's run until its training loss, the mean over seeds, has made a tenth of its way.

        Smoothed, as the losses of small batches cross that line long before they stay below it.
        """
        curves = [row.get("loss_curve", ()) for row in self.rows[task].counted[TUNED]]
        points = max(map(len, curves), default=0)  # a run that was lost has fewer
        if points <= _SMOOTHED:
            return math.nan
        shares, losses = np.array([curve for curve in curves if len(curve) == points], float).mean(0).T
        smooth = np.convolve(losses, np.full(_SMOOTHED, 1 / _SMOOTHED), "valid")
        fallen = np.flatnonzero(smooth < smooth[0] - _FLAT * (smooth[0] - smooth.min()))
        return float(shares[fallen[0] + _SMOOTHED // 2]) if len(fallen) else 1.0

    def tuned(self, method: str) -> tuple[str, ...]:
        """The schedules whose tuning chose a method's learning rate on each task; none for most methods."""
        if method == TUNED:
            return plan.REFERENCES
        lr = str(self.methods[method].lr)
        return (lr.partition(":")[2] or method,) if lr.startswith("tuned") else ()

    def tuning_cost(self, method: str) -> tuple[float, float] | None:
        """CPU seconds that tuning a method took, mean over tasks, and as many of tuned linear's runs."""
        if not self.tuned(method):
            return None
        schedules = dict.fromkeys((plan.FIRST.name, *self.tuned(method)))  # the first told all others where to look
        seconds, runs = [], []
        for task in self.cells.get(method, {}):
            found = [t.seconds for schedule in schedules if (t := self.tuning(task, schedule)) is not None]
            one = float(np.nanmedian(measured(self.rows[task].counted[TUNED], "cpu_seconds")))
            seconds.append(sum(found))
            runs.append(sum(found) / one)
        return (float(np.mean(seconds)), float(np.mean(runs))) if seconds else None


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _mean(values: Iterable[float]) -> float:
    found = [float(value) for value in values]
    return float(np.mean(found)) if found else math.nan


def _median(values: Sequence[float]) -> float:
    found = [value for value in values if math.isfinite(value)]
    return float(np.median(found)) if found else math.nan


def task_rows(task: Task, methods: Iterable[Method], profile: plan.Profile, book: plan.Book) -> TaskRows:
    """What there is of a task; `rule` and the schedules are read whether they were asked for or not."""
    wanted = plan.of_task(task, [*methods])
    every = {method.name: method for method in (METHODS[RULE], *wanted)}
    counted = {name: rows for name, m in every.items() if (rows := plan.counted_rows(task, m, profile, book))}
    reference = plan.reference(task, profile, book)
    if reference is not None and (rows := plan.counted_rows(task, reference[0], profile, book)):
        counted[TUNED] = rows
    tried = {method.name: plan.tuned(task, method, profile, book).tried for method in TUNED_METHODS}
    chosen = None if reference is None else (reference[0].name, reference[1])
    return TaskRows(task, [method.name for method in wanted], chosen, counted, tried)


def compare(
    tasks: Iterable[Task], methods: Sequence[Method], profile: plan.Profile, book: plan.Book
) -> dict[str, Comparison]:
    """The comparisons by suite, `test` first."""
    rows = [task_rows(task, methods, profile, book) for task in tasks]
    suites = sorted({of.task.suite for of in rows}, key=lambda suite: (suite != "test", suite))
    return {suite: Comparison(suite, [of for of in rows if of.task.suite == suite], methods) for suite in suites}
