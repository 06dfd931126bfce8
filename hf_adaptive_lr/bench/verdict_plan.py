"""Plans the paper study: which runs a comparison needs, in which order, and which rows then count.

First learning rates (and alternatives) are tuned, on a seed of their own and by validation loss alone; then the seeds
that count run at the choice; then the replays, whose schedules come out of these rows. Each step is a function of the
rows there are, so that an interrupted comparison simply goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .rows import Row, read_rows, row_identity
from .runner import Workers, identity, run_all
from .training_run import TrainingRun
from .verdict_methods import METHODS, TUNED, Method
from .verdict_tasks import Task

TUNING_SEED = 1000
"""Learning rates are tuned on this seed, which never counts."""
_LOWEST, _HIGHEST = 1e-7, 10.0  # the second is the scheduler's own bound


class Book:
    """The rows of all tasks, by run; the folder has one file per task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, dict[object, Row]] = {}

    def path(self, task: Task) -> Path:
        """File of a task's rows, those of all methods of all papers."""
        return self.folder / f"verdict_{task.name}.jsonl"

    def rows(self, task: Task) -> dict[object, Row]:
        """A task's rows by identity; of several with one identity the newest."""
        if task.name not in self._rows:
            self._rows[task.name] = {row_identity(row): row for row in read_rows(self.path(task))}
        return self._rows[task.name]

    def get(self, run: TrainingRun) -> Row | None:
        """The row of a run, None when it has not run."""
        return self.rows(run.task).get(identity(run))

    def seeds(self, task: Task, method: str) -> list[int]:
        """Seeds other than the tuning seed that a method has any rows of."""
        found = {r["seed"] for r in self.rows(task).values() if r["method"] == method}
        return sorted(found - {TUNING_SEED})

    def forget(self, task: Task) -> None:
        """Read the task's file again when it is next asked for."""
        self._rows.pop(task.name, None)


@dataclass(frozen=True)
class Tuning:
    """Where the tuning of a method stands."""

    wanted: tuple[TrainingRun, ...] = ()  # runs without which there is no choice yet
    runs: int = 0  # that were compared
    variant: Method | None = None  # the chosen one; None while runs are wanted or when every run failed
    lr: float = math.nan  # the chosen one
    at_edge: bool = False  # it is the smallest or largest one tried


def tuned(task: Task, method: Method, book: Book, tasks: Mapping[str, Task]) -> Tuning:
    """The choice of variant and learning rate with the lowest validation loss."""
    if task.tuned_on is not None:
        return tuned(tasks[task.tuned_on], method, book, tasks)
    if method.lr != TUNED:
        of = tuned(task, METHODS[method.lr], book, tasks)
        return dataclasses.replace(of, runs=0, variant=method if of.variant else None)
    lrs, extended = list(task.lrs), 0
    while True:
        runs = [
            TrainingRun(task, variant, TUNING_SEED, lr, tuning=True) for variant in method.variants() for lr in lrs
        ]
        wanted = tuple(run for run in runs if book.get(run) is None)
        if wanted:
            return Tuning(wanted, len(runs))
        best = min(runs, key=lambda run: (_valid_loss(book.get(run)), run.lr))
        if _valid_loss(book.get(best)) == math.inf:
            return Tuning(runs=len(runs))
        beyond = _beyond(best.lr, lrs)
        if beyond is None or extended == task.extensions:
            return Tuning((), len(runs), best.method, best.lr, at_edge=best.lr in (lrs[0], lrs[-1]))
        lrs, extended = sorted([*lrs, beyond]), extended + 1


def _valid_loss(row: Row | None) -> float:
    if row is None or failed(row) or row.get("valid_loss") is None:
        return math.inf
    return float(row["valid_loss"])


def _beyond(best: float, lrs: Sequence[float]) -> float | None:
    """The next learning rate outside those tried when the best is the outermost, None when it is not."""
    if best == lrs[-1]:
        following = _round(best * 10**0.5)
    elif best == lrs[0]:
        following = _round(best / 10**0.5)
    else:
        return None
    return following if _LOWEST <= following <= _HIGHEST else None


def _round(lr: float) -> float:
    """The nearest of ..., 0.1, 0.3, 1, 3, ..."""
    exponent = math.floor(math.log10(lr) + 1e-9)
    near = [float(f"{mantissa}e{exponent}") for mantissa in (1, 3, 10)]
    return min(near, key=lambda candidate: abs(math.log(candidate / lr)))


def failed(row: Row) -> bool:
    """Whether a run ended in an error or came apart."""
    return "error" in row or bool(row["diverged"])


def counting_run(task: Task, method: Method, seed: int, book: Book, tasks: Mapping[str, Task]) -> TrainingRun | None:
    """The run of one seed at the tuned settings; None while the rows that decide them are missing."""
    choice = tuned(task, method, book, tasks)
    if choice.variant is None:
        return None
    variant = choice.variant
    if method.replay_of is not None:
        curves = [
            row["factor_curve"]
            for other, row in counted(task, METHODS[method.replay_of], book, tasks).items()
            if other != seed and not failed(row)
        ]
        if not curves:
            return None
        variant = dataclasses.replace(variant, config=mean_schedule(curves))
    return TrainingRun(task, variant, seed, choice.lr)


def mean_schedule(curves: Sequence[Sequence[Sequence[float]]]) -> dict[str, tuple[float, ...]]:
    """Config of the replay of the mean of several runs' factors."""
    shares = [tuple(point[0] for point in points) for points in curves]
    if any(other != shares[0] for other in shares):
        raise ValueError("these runs were of different length; their schedules have no common mean")
    factors = [sum(point[1] for point in points) / len(points) for points in zip(*curves, strict=True)]
    return {"progress": shares[0], "factors": tuple(float(f"{factor:.6g}") for factor in factors)}


def counted(task: Task, method: Method, book: Book, tasks: Mapping[str, Task]) -> dict[int, Row]:
    """The rows that count, by seed: of the method and task as they are now, at the tuned settings."""
    rows = {}
    for seed in book.seeds(task, method.name):
        run = counting_run(task, method, seed, book, tasks)
        row = None if run is None else book.get(run)
        if row is not None:
            rows[seed] = row
    return rows


def missing(
    tasks: Iterable[Task], methods: Sequence[Method], seeds: Sequence[int], book: Book, known: Mapping[str, Task]
) -> Iterator[TrainingRun]:
    """Runs that can be done now and have not been; empty when the comparison is complete."""
    for task in tasks:
        for method in methods:
            choice = tuned(task, method, book, known)
            yield from choice.wanted
            if choice.wanted or not _source_complete(task, method, seeds, book, known):
                continue
            runs = (counting_run(task, method, seed, book, known) for seed in seeds)
            yield from (run for run in runs if run is not None and book.get(run) is None)


def _source_complete(task: Task, method: Method, seeds: Sequence[int], book: Book, tasks: Mapping[str, Task]) -> bool:
    if method.replay_of is None:
        return True
    return set(seeds) <= counted(task, METHODS[method.replay_of], book, tasks).keys()


def complete(
    tasks: Sequence[Task],
    methods: Sequence[Method],
    seeds: Sequence[int],
    book: Book,
    known: Mapping[str, Task],
    *,
    jobs: int | Workers = 1,
    bar: bool = True,
) -> None:
    """Do all runs that are missing, task by task; see [`missing`] and [`run_all`]."""
    if isinstance(jobs, int):
        with Workers(jobs) as workers:
            complete(tasks, methods, seeds, book, known, jobs=workers, bar=bar)
        return
    for task in tasks:
        while runs := list(missing([task], methods, seeds, book, known)):
            for there in {run.task.name: run.task for run in runs}.values():
                run_all([run for run in runs if run.task == there], book.path(there), jobs=jobs, bar=bar)
                book.forget(there)
