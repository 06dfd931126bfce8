"""The frozen tasks of the benchmark: real fine-tunes through `Trainer`, and vectorised trainings.

They were written down, with their digests, before any method was judged by them: `frozen.json`. Nothing that trains a
controller may read them. The vectorised ones are draws 1,000,101 and 1,000,102 of the suite `full`, split `test`, cut
to 60 ... 150 updates: draws below 10,000 were looked at while the library was made, and 1,000,001 and 1,000,002 while
this benchmark was. The rows of the real ones are chosen by seeds of their own for the same reason, but the sources are
small: of MNIST all test rows are read, whatever the seed, and a row of the newsgroups may have been read before.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..meta.problem import Problem
from .rows import Specified

FROZEN = Path(__file__).with_name("frozen.json")
"""Digest of every task; of the vectorised ones the whole problem."""
COUNTED, LANES = 10, 13
"""Seeds below the first may count; the reference is tuned on those from it on, which never do."""
POINTS = 10
"""Evaluations on validation rows in a run, evenly spaced, and one before the first update."""

_REAL_LRS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_VECTOR_LRS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class RealTask(Specified):
    """A classification task trained by `Trainer` with AdamW and clipping at 1."""

    name: str  # in keys and tables
    model: Literal[
        "minilm3", "minilm3-lora", "minilm6", "minilm6-lora", "bert", "vit", "resnet", "cnn", "efficientnet"
    ]
    data: Literal["20newsgroups", "fashion-mnist", "mnist-5000"]
    batch_size: int  # rows per update
    updates: int
    train_rows: int  # rows read from the training set, before groups are chosen; also `valid_rows`, `controller_rows`
    valid_rows: int  # rows of the curves, by which the reference is tuned
    controller_rows: int  # the only held-out rows that a method may see
    test_rows: int  # rows read from the test set; read once, after the last update
    # For each class the labels that belong to it, rows of other labels are left out; none keeps all.
    topics: tuple[tuple[int, ...], ...] = ()
    split_seed: int = 30_611  # chooses the rows of all parts

    family = "real"
    classification = True
    lrs = _REAL_LRS
    tuning_seeds = (COUNTED,)

    def spec(self) -> dict[str, Any]:
        """All that a run depends on, as JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "name"}

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.topics) or (20 if self.data == "20newsgroups" else 10)


@dataclass(frozen=True, kw_only=True)
class VectorTask(Specified):
    """A problem of the suites; its lanes are the seeds.

    All lanes always train together, whichever of them are asked for: a lane's numbers do not depend on the plan.
    """

    name: str  # in keys and tables
    problem: Problem
    axis: str = ""  # in what a variant of another task differs from it; empty for a task of its own
    optimizer: Literal["", "lion"] = ""  # "lion" for one that no controller was trained with, instead of the problem's

    lrs = _VECTOR_LRS
    tuning_seeds = tuple(range(COUNTED, LANES))  # they train along with the others, so they cost nothing

    @property
    def family(self) -> str:
        """Family of the suite."""
        return self.problem.task.family

    @property
    def classification(self) -> bool:
        """Whether there are classes, so that a controller can see predictions."""
        return self.family != "quadratic"

    @property
    def updates(self) -> int:
        """Length of the run."""
        return self.problem.total_steps

    def spec(self) -> dict[str, Any]:
        """All that a run depends on, as JSON values."""
        spec: dict[str, Any] = json.loads(self.problem.to_json())
        return spec | ({"optimizer_instead": self.optimizer} if self.optimizer else {})


Task = RealTask | VectorTask

# Newsgroups in the order of their names.
_SCIENCE_POLITICS = ((11, 12, 13, 14), (16, 17, 18))
_SPARE_TIME = ((1, 2, 3, 4, 5), (7, 8), (9, 10), (0, 15, 19))
_GROUPS = ((6,), (13,), (14,), (10,))


def _real(name: str, model: Any, data: Any, updates: int, train_rows: int, batch_size: int, **more: Any) -> RealTask:
    rows = (400, 400, 1200) if data == "20newsgroups" else (200, 200, 1000)
    sizes = dict(zip(("valid_rows", "controller_rows", "test_rows"), rows, strict=True))
    about = {"model": model, "data": data, "updates": updates, "train_rows": train_rows, "batch_size": batch_size}
    return RealTask(**{"name": name, **about, **sizes, **more})


_LARGER = {"valid_rows": 900, "controller_rows": 900, "test_rows": 3000}
REAL: tuple[RealTask, ...] = (
    _real("text-minilm", "minilm3", "20newsgroups", 60, 6000, 16, topics=_SPARE_TIME),
    _real("text-lora", "minilm3-lora", "20newsgroups", 60, 6000, 16, topics=_SCIENCE_POLITICS),
    _real("text-scratch", "bert", "20newsgroups", 150, 8000, 32, topics=_GROUPS, **_LARGER),
    _real("image-vit", "vit", "fashion-mnist", 150, 4000, 32),
    _real("image-resnet", "resnet", "fashion-mnist", 150, 3000, 32, split_seed=30_612),
    _real("image-cnn", "cnn", "mnist-5000", 100, 2400, 32),
    _real("image-pretrained", "efficientnet", "fashion-mnist", 80, 1600, 16, split_seed=30_613),
)
"""The real tasks."""

EXTENDED: tuple[RealTask, ...] = (
    _real("text-minilm-whole", "minilm6", "20newsgroups", 200, 8000, 16, split_seed=30_614),
    _real("text-lora-whole", "minilm6-lora", "20newsgroups", 200, 8000, 16, split_seed=30_615),
)
"""Real tasks of the extended profile: the whole text model, all twenty newsgroups."""


def _read() -> dict[str, dict[str, Any]]:
    tasks: dict[str, dict[str, Any]] = json.loads(FROZEN.read_text(encoding="utf-8"))
    return tasks


VECTOR: tuple[VectorTask, ...] = tuple(
    VectorTask(name=name, problem=Problem.from_json(json.dumps(entry["problem"])))
    for name, entry in _read().items()
    if "problem" in entry  # variants are made from these
)
"""The vectorised tasks."""


def _variants(base: VectorTask) -> list[VectorTask]:
    """The task with one thing changed: length and batch by a quarter and four, width by four, the optimizer."""
    problem, task = base.problem, base.problem.task
    steps, batch, width = problem.total_steps, task.config["batch_size"], task.config["width"]

    def with_config(**changes: Any) -> Problem:
        return dataclasses.replace(problem, task=dataclasses.replace(task, config={**task.config, **changes}))

    changed = {
        "length / 4": dataclasses.replace(problem, total_steps=max(1, steps // 4)),
        "length x 4": dataclasses.replace(problem, total_steps=4 * steps),
        "batch / 4": with_config(batch_size=max(1, batch // 4)),
        "batch x 4": with_config(batch_size=4 * batch),
        "width x 4": with_config(width=4 * width),
        "Lion": problem,
    }
    return [
        VectorTask(
            name=f"{base.name}-{axis.lower().replace(' / ', '-over-').replace(' x ', '-times-')}",
            problem=made,
            axis=axis,
            optimizer="lion" if axis == "Lion" else "",
        )
        for axis, made in changed.items()
    ]


VARIANTS: tuple[VectorTask, ...] = tuple(
    variant for task in VECTOR if task.name in ("mlp-2", "transformer-1") for variant in _variants(task)
)
"""Variants of a task trained with SGD and of one trained with AdamW: one thing at a time."""

_ALL: tuple[Task, ...] = (*VECTOR, *REAL, *VARIANTS, *EXTENDED)
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""Every task by its name."""


def changed() -> list[str]:
    """Names of tasks that are not what they were when they were frozen; empty as it should be."""
    frozen = {name: entry["digest"] for name, entry in _read().items()}
    now = {name: task.digest for name, task in TASKS.items()}
    return sorted(name for name in frozen.keys() | now.keys() if frozen.get(name) != now.get(name))
