"""Plans the benchmark: which runs, in which order; a function of the rows there are, so that it can be interrupted.

First the schedules are tuned: on seeds of their own, by validation loss. Then they and all methods run on the seeds
that count; then the replays, whose schedules come out of these rows.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .method import Method
from .methods import METHODS, TUNED_METHODS
from .rows import Identity, Row, pack, read_rows, row_identity
from .runner import Workers, identity, run_all
from .tasks import TASKS, Task
from .train import TrainingRun

SEEDS, TUNING_SEEDS = (0, 1, 2), (100, 101, 102)
"""Seeds that count, and those on which learning rates are chosen, which never do."""
FIRST = METHODS["linear_warmup"]
"""The schedule that is tried at every learning rate; the others are tried around its best."""
REFERENCES = ("linear", "linear_warmup")
"""Whichever of these has the lower validation loss is "tuned linear" on a task."""
SPACING, COARSE = 2.0, 4.0
"""Ratio of neighbouring learning rates around the best, and of those that look for it."""
_COARSE_STEPS, _EXTENSIONS = range(-2, 3), 8
_NO_RATE = 1e-12

PRIMARY = ("universal", "universal_1", "rule", "prodigy", "schedule_free_radam", "schedule_free_rule", "hyperball")
"""The methods that are tested; all others are description."""
PRIMARY_ENDPOINT = """\
Suite `test`, each method with one configuration for all tasks, seeds 0, 1 and 2. A run's score is ln(test loss /
geometric mean of the test losses of tuned linear on that task), where a loss below one hundredth of the best constant
answer's counts as that; for a loss that may be negative it is the difference in nats instead. A loss that is not
finite counts as ln 100, and scores are clipped to +-ln 100. The endpoint is the mean score over tasks and seeds for
seven methods named in advance: `universal`, `universal_1`, `rule`, `prodigy`, `schedule_free_radam`,
`schedule_free_rule` and `hyperball`, and any controller given on the command line; each on the tasks that it is made
for: `universal` and `universal_1` with SGD, Adam and AdamW alone, `hyperball` without adapters. The test of this mean
against zero, which is tuned linear, is two-sided, swaps the two methods' names for all tasks of one origin together,
since tasks whose data have one origin are alike, and is corrected by Holm's method for all of these, whether they have
run or not; the level is 0.05. (`universal` was named when it was a net, and again, with the net as `universal_1`, when
a rule took its name; none of the rule's test runs had been made by then. The tasks of `test` are others since they
were read to judge that rule, and no run that counts had been made on the new ones when this was written.) Before it
stand ruin and harm, which are counts and not tested. What is not in this list is description."""

DEVELOPMENT_METHODS = (
    "linear",
    "linear_warmup",
    "rule",
    "default",
    "universal",
    "replay:universal",
    "universal_1",
    "replay:universal_1",
    "relative",
    "prodigy",
    "schedule_free_radam",
    "schedule_free_rule",
    "hyperball",
)
"""What runs on development tasks: what a new controller is chosen against."""
LONG = 500
"""Tasks of more updates have these methods alone."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much is run."""

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]  # of the tasks of `test`
    seeds: tuple[int, ...] = SEEDS
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    coarse: range = _COARSE_STEPS  # powers of `COARSE` around the task's own learning rate


PROFILES: Mapping[str, Profile] = {
    "quick": Profile(
        name="quick",
        tasks=("news-two", "mnist-cnn", "diabetes-mlp"),
        methods=(*(m.name for m in TUNED_METHODS[:2]), "rule", "default", "universal", "prodigy"),
        seeds=(0, 1),
        tuning_seeds=(100,),
        coarse=range(-1, 2),
    ),
    "full": Profile(name="full", tasks=tuple(TASKS), methods=tuple(METHODS)),
}
"""The profiles by name."""


class Book:
    """The rows of a comparison, by run; a file per task in `folder`."""

    def __init__(self, folder: Path, prefix: str = "bench") -> None:
        self.folder, self._prefix = folder, prefix
        self._rows: dict[str, dict[Identity, Row]] = {}

    def path(self, task: str) -> Path:
        """File of a task's rows."""
        return self.folder / f"{self._prefix}_{task}.jsonl"

    def rows(self, task: str) -> dict[Identity, Row]:
        """A task's rows by identity."""
        if task not in self._rows:
            self._rows[task] = {row_identity(row): row for row in read_rows(self.path(task))}
        return self._rows[task]

    def get(self, run: TrainingRun) -> Row | None:
        """The row of a run, None when it has not run."""
        return self.rows(run.task.name).get(identity(run))

    def all(self, runs: Sequence[TrainingRun]) -> list[Row] | None:
        """The rows of runs, None when there are no runs or one is missing."""
        rows = [row for run in runs if (row := self.get(run)) is not None]
        return rows if runs and len(rows) == len(runs) else None

    def forget(self, task: str) -> None:
        """Read the task's file again when it is next asked for."""
        self._rows.pop(task, None)

    def pack(self, tasks: Iterable[str]) -> None:
        """Pack the rows of tasks."""
        for task in tasks:
            pack(self.path(task))


# --- tuning -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Where the tuning of a method on a task stands."""

    wanted: tuple[TrainingRun, ...] = ()  # runs without which there is no choice yet
    tried: Mapping[float, list[Row]] = dataclasses.field(default_factory=dict)  # rows of the tuning seeds, by LR
    lr: float | None = None  # the chosen one; None while runs are wanted or when every run failed
    loss: float = math.inf  # its mean validation loss
    method: Method | None = None  # that was tuned; None as long as `lr` is

    @property
    def at_edge(self) -> bool:
        """Whether it is the smallest or largest that was tried."""
        return self.lr in (min(self.tried, default=None), max(self.tried, default=None))


def tuned(task: Task, method: Method, profile: Profile, book: Book) -> Choice:
    """The learning rate with the lowest mean validation loss over the tuning seeds."""
    if method.name == FIRST.name:
        lrs = {rounded(task.lr * COARSE**k) for k in profile.coarse}
    else:
        first = tuned(task, FIRST, profile, book)
        if first.lr is None:
            return Choice()
        lrs = {first.lr}
    for _ in range(_EXTENSIONS):
        choice = lowest(task, method, sorted(lrs), profile.tuning_seeds, book)
        if choice.lr is None:
            return choice
        around = {rounded(choice.lr / SPACING), rounded(choice.lr * SPACING)}
        if around <= lrs:
            break
        lrs |= around
    return choice


def lowest(task: Task, method: Method, lrs: Sequence[float], seeds: Sequence[int], book: Book) -> Choice:
    """Of these learning rates the one with the lowest mean validation loss over these seeds."""
    runs = {lr: [TrainingRun(task, method, seed, lr, counts=False) for seed in seeds] for lr in lrs}
    wanted = tuple(run for some in runs.values() for run in some if book.get(run) is None)
    tried = {lr: rows for lr, some in runs.items() if (rows := book.all(some)) is not None}
    if wanted:
        return Choice(wanted, tried)
    losses = {lr: mean_loss(rows) for lr, rows in tried.items()}
    best = min(losses, key=lambda lr: (losses[lr], lr))
    return Choice((), tried, best, losses[best], method) if losses[best] < math.inf else Choice((), tried)


def mean_loss(rows: Iterable[Row]) -> float:
    """Mean validation loss; infinite when a run failed."""
    losses = [row.get("valid_loss") for row in rows]
    return math.inf if None in losses else sum(map(float, losses)) / len(losses)  # type: ignore[arg-type]


def rounded(lr: float) -> float:
    """A learning rate to six digits, so that both ways to it are one."""
    return float(f"{lr:.6g}")


def reference(task: Task, profile: Profile, book: Book) -> tuple[Method, float] | None:
    """Tuned linear on a task: schedule and learning rate; None while runs are missing or when all failed."""
    found = [(tuned(task, METHODS[name], profile, book), METHODS[name]) for name in REFERENCES]
    if any(choice.lr is None for choice, _ in found):
        return None
    choice, method = min(found, key=lambda pair: pair[0].loss)
    assert choice.lr is not None
    return method, choice.lr


# --- the runs that count ------------------------------------------------------------------------------------------


def counting_runs(task: Task, method: Method, profile: Profile, book: Book) -> list[TrainingRun]:
    """A method's runs on the seeds that count; none while the rows that decide how they are made are missing."""
    lr = tuned(task, method, profile, book).lr if method.lr == "tuned" else method.fixed_lr(task)
    if lr is None:
        return []
    if method.replay_of is None:
        return [TrainingRun(task, method, seed, lr) for seed in profile.seeds]
    rows = book.all(counting_runs(task, METHODS[method.replay_of], profile, book)) or []
    # Who controls a rate multiplies it, so the mean that loses nothing is the geometric one.
    runs = replays(task, method, lr, rows, geometric=True)
    return runs if len(runs) == len(rows) else []


def replays(
    task: Task, method: Method, lr: float, rows: Sequence[Row], *, geometric: bool = False
) -> list[TrainingRun]:
    """Runs of a replay, one for each of these rows where any other came through: it plays their mean schedule."""
    runs = []
    for row in rows:
        others = [other["lr_curve"] for other in rows if other is not row and "error" not in other]
        if others:
            replay = dataclasses.replace(method, config=mean_schedule(others, lr, geometric=geometric))
            runs.append(TrainingRun(task, replay, row["seed"], lr))
    return runs


def counted_rows(task: Task, method: Method, profile: Profile, book: Book) -> list[Row] | None:
    """A method's rows of the seeds that count, in their order; None when there are none or one is missing."""
    return book.all(counting_runs(task, method, profile, book)) if method.fits(task) else None


def mean_schedule(
    curves: Sequence[Sequence[Sequence[float]]], base: float = 1.0, *, geometric: bool = False
) -> dict[str, tuple[float, ...]]:
    """Config of the replay of the mean of several runs' learning rates, as factors of the base learning rate."""
    shares = [tuple(point[0] for point in points) for points in curves]
    if any(other != shares[0] for other in shares):
        raise ValueError("these runs were of different length; their schedules have no common mean")
    together = [[point[1] for point in points] for points in zip(*curves, strict=True)]
    if geometric:
        rates = [statistics.geometric_mean([max(rate, _NO_RATE) for rate in some]) for some in together]
    else:
        rates = [sum(some) / len(some) for some in together]
    return {"progress": shares[0], "factors": tuple(float(f"{rate / base:.6g}") for rate in rates)}


def of_task(task: Task, methods: Sequence[Method]) -> list[Method]:
    """The methods that run on a task: fewer on development and very long ones, what the command line names on all."""
    development = task.suite == "development"
    fewer = development or task.updates > LONG
    chosen = [
        m
        for m in methods
        if m.name not in METHODS or (development if m.part_of else not fewer or m.name in DEVELOPMENT_METHODS)
    ]
    return [method for method in chosen if method.fits(task)]


def missing(task: Task, methods: Sequence[Method], profile: Profile, book: Book) -> list[TrainingRun]:
    """Runs that can be done now and have not been; empty when complete. Tuned linear and `rule` are in every plan."""
    always = (*(METHODS[name] for name in REFERENCES), METHODS["rule"])
    everything = {method.name: method for method in (*always, *with_sources(methods))}
    runs: list[TrainingRun] = []
    for method in of_task(task, list(everything.values())):
        if method.lr == "tuned":
            runs += tuned(task, method, profile, book).wanted
        runs += counting_runs(task, method, profile, book)
    return list({identity(run): run for run in runs if book.get(run) is None}.values())


def with_sources(methods: Iterable[Method]) -> list[Method]:
    """Methods, and what those of them replay that are replays."""
    found: dict[str, Method] = {}
    for method in methods:
        if method.replay_of:
            found.setdefault(method.replay_of, METHODS[method.replay_of])
        found[method.name] = method
    return list(found.values())


def complete(
    tasks: Sequence[Task], methods: Sequence[Method], profile: Profile, book: Book, *, jobs: int = 1, bar: bool = True
) -> Iterator[str]:
    """Do all runs that are missing; yields the name of each task when it is complete."""
    with Workers(jobs) as workers:
        for task in tasks:
            while runs := missing(task, methods, profile, book):
                run_all(runs, book.path(task.name), jobs=workers, bar=bar)
                book.forget(task.name)
            yield task.name
