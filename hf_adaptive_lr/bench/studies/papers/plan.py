"""Plans the paper study: which runs a comparison needs, in which order, and which rows then count.

First learning rates (and alternatives) are tuned, on a seed of their own and by validation loss alone; then the seeds
that count run at the choice; then the replays, whose schedules come out of these rows. Each step is a function of the
rows there are, so that an interrupted comparison simply goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...method import Method
from ...plan import Book, Choice, lowest, replays
from ...rows import Row
from ...runner import Workers, identity, run_all
from ...tasks import Task
from ...train import TrainingRun
from .methods import BASELINES, METHODS, TUNED_FOR
from .tasks import TASKS, TUNED_ON, quick

TUNING_SEED = 1000
"""Learning rates are tuned on this seed, which never counts."""
SEEDS, MORE_SEEDS = 5, {"digits-mlp": 12}
"""Seeds that count, from 0 on; more where a run takes a second."""
MOST_SEEDS = {("fashion-cnn", name): 20 for name in (*BASELINES, "mlr_snet")}
"""Methods that have more on a task than the others, for comparisons whose intervals were too wide."""
LADDER = (*(float(f"{mantissa}e{power}") for power in range(-7, 1) for mantissa in (1, 3)), 10.0)
"""Learning rates that may be tried; the last is the scheduler's own bound."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How much is run."""

    tasks: Mapping[str, Task]
    below: int = 2  # learning rates that are tried first, on the ladder below the task's own
    above: int = 3
    extensions: int = 3  # tried beyond these, at most, while the best is the smallest or largest
    required: int = 5  # paired seeds below which nothing is called met
    seeds: int | None = None  # on every task; None for the study's own numbers

    def counting_seeds(self, task: Task, method: Method) -> range:
        """The seeds that count."""
        return range(self.seeds or MOST_SEEDS.get((task.name, method.name), self.first_seeds(task)))

    def first_seeds(self, task: Task) -> int:
        """How many all methods have; at first these were all."""
        return self.seeds or MORE_SEEDS.get(task.name, SEEDS)


FULL = Setup(tasks=TASKS)
QUICK = Setup(
    tasks={name: quick(task) for name, task in TASKS.items()}, below=0, above=1, extensions=0, required=2, seeds=2
)


def book_of(folder: Path) -> Book:
    """The study's rows in a folder."""
    return Book(folder, "papers")


def tuned(task: Task, method: Method, setup: Setup, book: Book) -> Choice:
    """The variant and the learning rate with the lowest validation loss."""
    task = setup.tasks.get(TUNED_ON.get(task.name, ""), task)
    if method.lr != "tuned":
        of = tuned(task, METHODS[str(method.lr).removeprefix(TUNED_FOR)], setup, book)
        return of if of.method is None else dataclasses.replace(of, method=method)
    middle = LADDER.index(task.lr)
    first, last = middle - setup.below, middle + setup.above
    for _ in range(setup.extensions):
        choice = _best(task, method, LADDER[first : last + 1], book)
        if choice.lr == LADDER[last] and last + 1 < len(LADDER):
            last += 1
        elif choice.lr == LADDER[first] and first > 0:
            first -= 1
        else:
            return choice
    return _best(task, method, LADDER[first : last + 1], book)


def _best(task: Task, method: Method, lrs: Sequence[float], book: Book) -> Choice:
    choices = [lowest(task, variant, lrs, (TUNING_SEED,), book) for variant in method.variants()]
    wanted = tuple(run for choice in choices for run in choice.wanted)
    return Choice(wanted) if wanted else min(choices, key=lambda choice: (choice.loss, choice.lr or math.inf))


def counting_runs(task: Task, method: Method, setup: Setup, book: Book) -> list[TrainingRun]:
    """A method's runs on the seeds that count; none while the rows that decide how they are made are missing."""
    choice = tuned(task, method, setup, book)
    if choice.method is None or choice.lr is None:
        return []
    if method.replay_of is None:
        return [TrainingRun(task, choice.method, seed, choice.lr) for seed in setup.counting_seeds(task, method)]
    runs = counting_runs(task, METHODS[method.replay_of], setup, book)
    rows = book.all(runs[: len(setup.counting_seeds(task, method))])
    return replays(task, method, choice.lr, rows) if rows else []


def counted(task: Task, method: Method, setup: Setup, book: Book) -> dict[int, Row]:
    """The rows that count, by seed: of the method and task as they are now, at the tuned settings."""
    runs = counting_runs(task, method, setup, book)
    return {run.seed: row for run in runs if (row := book.get(run)) is not None}


def missing(task: Task, methods: Sequence[Method], setup: Setup, book: Book) -> list[TrainingRun]:
    """Runs that can be done now and have not been; empty when the comparison is complete."""
    runs = [
        run
        for method in methods
        for run in (*tuned(task, method, setup, book).wanted, *counting_runs(task, method, setup, book))
    ]
    return list({identity(run): run for run in runs if book.get(run) is None}.values())


def complete(
    task: Task, methods: Sequence[Method], setup: Setup, book: Book, *, jobs: int | Workers = 1, bar: bool = True
) -> None:
    """Do all runs of a task that are missing; see [`missing`] and [`run_all`]."""
    while runs := missing(task, methods, setup, book):
        for name in dict.fromkeys(run.task.name for run in runs):  # settings may be tuned on another task
            run_all([run for run in runs if run.task.name == name], book.path(name), jobs=jobs, bar=bar)
            book.forget(name)
