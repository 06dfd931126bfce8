"""Plans the benchmark: which runs, in which order; a function of the rows there are, so that it can be interrupted.

First the reference, a linear schedule, is tuned: on seeds of its own, by validation loss. Then it and all methods run
on the seeds that count; then the replays, whose schedules come out of these rows. `PRIMARY_ENDPOINT` was written
before the first of these runs, but after looks at other draws of the vectorised tasks and at some of the real ones.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .rows import Identity, Row, read_rows, row_identity
from .runner import Workers, identity, run_all
from .verdict_plan import mean_schedule
from .yardstick_methods import METHODS, Method, Trouble
from .yardstick_run import YardstickRun
from .yardstick_tasks import COUNTED, EXTENDED, TASKS, VECTOR, Task, VectorTask

REFERENCE, DEFAULT = METHODS["linear"], METHODS["cosine"]
"""What is tuned and regretted, and what a user would otherwise have."""
PRIMARY = ("universal_bundled", "ppo_schedule_bundled", "hypergradient", "greedy_repaired", "schedule_free", "prodigy")
"""The comparisons that are tested; all others are description."""
PRIMARY_ENDPOINT = """\
Self-tuning track of the full profile: each method with one configuration and its published default learning rate on
all frozen tasks that can run it, variants of tasks left out, seeds 0, 1 and 2. A run's score is ln(test loss /
geometric mean of the test losses of the tuned linear schedule), where a loss that is not finite counts as ln 100 and
all scores are clipped to +-ln 100. The endpoint is the mean score over tasks and seeds, minus that of `cosine` at its
default learning rate on the same tasks, for six methods named in advance: `universal_bundled`, `ppo_schedule_bundled`,
`hypergradient`, `greedy_repaired`, `schedule_free` and `prodigy`, and any controller given on the command line. The
test is two-sided, swaps the two methods' names task by task, and is corrected by Holm's method for all of these; the
level is 0.05. What is not in this list is description."""

BUDGET, STUDIES = 5, 3
"""Trials of a study of the equal-budget track, and studies."""
_ON_VARIANTS = (*PRIMARY, DEFAULT.name, REFERENCE.name, "constant", "wsd", "dadapt_adam", "random_walk", "relative")
_SWEPT = (
    "linear",
    "cosine",
    "schedule_free",
    "prodigy",
    "greedy_repaired",
    "hypergradient",
    "relative",
    "universal_bundled",
)
_DECADES = tuple(float(f"1e{k}") for k in range(-7, 1))
_NINE = tuple(10 ** (k / 2) for k in range(-4, 5))
_TOLD = (0.25, 4.0)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How much is run."""

    name: str  # "quick", "full" or "extended"
    tasks: tuple[str, ...]
    seeds: int  # seeds of the self-tuning track, from 0 on
    vector_seeds: int  # seeds of the vectorised robustness track
    sweep_seeds: int  # seeds of the real tasks' robustness track; 0 leaves it out
    sweep_real: tuple[str, ...] = ()  # names of the real tasks that have a robustness track
    tuning_stride: int = 1  # one of so many learning rates is tried for the reference
    # Whether the robustness track of vectorised tasks has all methods, and not a few, wrong lengths and trouble; and
    # whether there is an equal-budget track.
    sweep_all: bool = True


# The vectorised transformer takes a quarter of the time; the fine-tuned ones are transformers, too.
_QUICK_VECTOR = tuple(task.name for task in VECTOR if task.name.endswith("-1") and task.name != "transformer-1")
PROFILES: Mapping[str, Profile] = {
    "quick": Profile(
        name="quick",
        tasks=(*_QUICK_VECTOR, "image-cnn", "text-scratch"),
        seeds=3,
        vector_seeds=3,
        sweep_seeds=0,
        tuning_stride=2,
        sweep_all=False,
    ),
    "full": Profile(
        name="full",
        tasks=tuple(name for name in TASKS if TASKS[name] not in EXTENDED),
        seeds=3,
        vector_seeds=COUNTED,
        sweep_seeds=3,
        # Two more text tasks would take the profile beyond its four core-hours.
        sweep_real=("text-minilm", "image-vit", "image-resnet", "image-cnn", "image-pretrained"),
    ),
    "extended": Profile(
        name="extended",
        tasks=tuple(TASKS),
        seeds=COUNTED,
        vector_seeds=COUNTED,
        sweep_seeds=3,
        sweep_real=tuple(name for name in TASKS if TASKS[name].family == "real"),
    ),
}
"""The profiles by name."""


class Book:
    """The rows of a comparison, by run; a file per task in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, dict[Identity, Row]] = {}

    def path(self, task: str) -> Path:
        """File of a task's rows."""
        return self.folder / f"bench_{task}.jsonl"

    def rows(self, task: str) -> dict[Identity, Row]:
        """A task's rows by identity."""
        if task not in self._rows:
            self._rows[task] = {row_identity(row): row for row in read_rows(self.path(task))}
        return self._rows[task]

    def get(self, run: YardstickRun) -> Row | None:
        """The row of a run, None when it has not run."""
        return self.rows(run.task.name).get(identity(run))

    def all(self, runs: Sequence[YardstickRun]) -> list[Row] | None:
        """The rows of runs, None when there are no runs or one is missing."""
        rows = [row for run in runs if (row := self.get(run)) is not None]
        return rows if runs and len(rows) == len(runs) else None

    def forget(self, task: str) -> None:
        """Read the task's file again when it is next asked for."""
        self._rows.pop(task, None)


# --- the reference ------------------------------------------------------------------------------------------------


def tuning_runs(task: Task, profile: Profile) -> list[YardstickRun]:
    """The runs that tune the reference."""
    lrs = task.lrs[:: profile.tuning_stride]
    return [YardstickRun(task, REFERENCE, seed, lr) for lr in lrs for seed in task.tuning_seeds]


def tuned_lr(task: Task, profile: Profile, book: Book) -> float | None:
    """The reference's learning rate: lowest mean validation loss; None while runs are missing or when all failed."""
    losses: dict[float, float] = defaultdict(float)
    for row in book.all(tuning_runs(task, profile)) or ():
        loss = row.get("valid_loss")
        losses[row["lr"]] += math.inf if loss is None else loss
    best = min(losses, key=lambda lr: (losses[lr], lr), default=None)
    return None if best is None or losses[best] == math.inf else best


# --- the tracks ---------------------------------------------------------------------------------------------------


def reference_runs(task: Task, profile: Profile, book: Book) -> list[YardstickRun]:
    """The tuned reference on the seeds that count; none while it is not tuned."""
    lr = tuned_lr(task, profile, book)
    return [] if lr is None else [YardstickRun(task, REFERENCE, seed, lr) for seed in range(profile.seeds)]


def own_lr_runs(task: Task, method: Method, profile: Profile, book: Book) -> list[YardstickRun]:
    """The self-tuning track: default learning rate; of a replay none while its source is not complete.

    Variants of tasks have fewer methods.
    """
    lr, seeds = method.default_lr(task), range(profile.seeds)
    if is_variant(task) and method.name in METHODS and method.name not in _ON_VARIANTS:
        return []
    if method.replay_of is None:
        return [YardstickRun(task, method, seed, lr) for seed in seeds]
    source = METHODS[method.replay_of]
    rows = book.all([YardstickRun(task, source, seed, source.default_lr(task)) for seed in seeds])
    if rows is None:
        return []
    runs = []
    for seed in seeds:
        curves = [row["factor_curve"] for i, row in enumerate(rows) if i != seed and "error" not in row]
        config = mean_schedule(curves) if curves else {}
        runs.append(YardstickRun(task, dataclasses.replace(method, config=config), seed, lr))
    return runs


def sweep_lrs(task: Task, method: Method) -> tuple[float, ...]:
    """Initial learning rates of the robustness track: eight decades, or four around the default if vectorised."""
    if task.family == "real":
        return _DECADES
    return tuple(float(f"{method.default_lr(task) * factor:.3g}") for factor in _NINE)


def sweep_runs(task: Task, method: Method, profile: Profile) -> list[YardstickRun]:
    """The robustness track's learning rates; nothing for methods and variants of tasks that are not in it.

    Of a method that finds the learning rate by itself it is the same run for all of them.
    """
    real = task.family == "real"
    if is_variant(task) or (real and task.name not in profile.sweep_real):
        return []
    named = method.name in _SWEPT or method.name not in METHODS
    if method.replay_of or method.finder or not (named or (profile.sweep_all and not real)):
        return []
    seeds = profile.sweep_seeds if real else profile.vector_seeds
    return _swept(task, method, range(seeds))


def _swept(task: Task, method: Method, seeds: Iterable[int]) -> list[YardstickRun]:
    own = method.default_lr(task) if method.finds_lr else None
    return [YardstickRun(task, method, seed, own or lr) for lr in sweep_lrs(task, method) for seed in seeds]


def misled(method: Method) -> list[Method]:
    """The method when it is told that the run is a quarter or four times as long as it is; none without a horizon."""
    if not method.controller or method.replay_of or method.finder:
        return []
    return [dataclasses.replace(method, name=f"{method.name}@told={told:g}", told=told) for told in _TOLD]


def troubled(method: Method) -> list[Method]:
    """The method when something goes wrong half-way; none for open loops, which cannot answer."""
    if method.replay_of or method.finder:
        return []
    kinds: tuple[Trouble, ...] = ("loss_spike", "weight_noise")
    return [dataclasses.replace(method, name=f"{method.name}@trouble={kind}", trouble=kind) for kind in kinds]


def changed_runs(task: Task, methods: Sequence[Method], profile: Profile) -> list[YardstickRun]:
    """The robustness track's wrong lengths or trouble; vectorised tasks of the full profile only."""
    if task.family == "real" or is_variant(task) or not profile.sweep_all:
        return []
    seeds = range(profile.seeds)
    return [YardstickRun(task, method, seed, method.default_lr(task)) for method in methods for seed in seeds]


def budget_runs(task: Task, method: Method, profile: Profile) -> list[YardstickRun]:
    """What the equal-budget track needs beside the robustness track's runs: the same on the seeds that tune."""
    if task.family == "real" or not profile.sweep_all or not sweep_runs(task, method, profile):
        return []
    return _swept(task, method, task.tuning_seeds)


def studies() -> list[list[int]]:
    """For each study, which of the robustness track's nine learning rates it tries; the same for all methods."""
    return [sorted(random.Random(number).sample(range(len(_NINE)), BUDGET)) for number in range(STUDIES)]


def is_variant(task: Task) -> bool:
    """Whether a task is another one with one thing changed."""
    return isinstance(task, VectorTask) and bool(task.axis)


def missing(tasks: Sequence[Task], methods: Sequence[Method], profile: Profile, book: Book) -> Iterator[YardstickRun]:
    """Runs that can be done now and have not been, reference and default included; empty when complete."""
    everything = {method.name: method for method in (REFERENCE, DEFAULT, *methods)}
    for task in tasks:
        runs: list[YardstickRun] = [*tuning_runs(task, profile), *reference_runs(task, profile, book)]
        for method in everything.values():
            if not method.fits(task):
                continue
            runs += own_lr_runs(task, method, profile, book)
            runs += sweep_runs(task, method, profile) + budget_runs(task, method, profile)
            runs += changed_runs(task, [*misled(method), *troubled(method)], profile)
        yield from {identity(run): run for run in runs if book.get(run) is None}.values()


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
) -> None:
    """Do all runs that are missing; see [`missing`] and [`run_all`]."""
    with Workers(jobs) as workers:
        for task in tasks:
            while runs := list(missing([task], methods, profile, book)):
                run_all(runs, book.path(task.name), jobs=workers, bar=bar)
                book.forget(task.name)
