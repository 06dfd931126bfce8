"""Measures the worth of each part of `universal`, and how far two trainings of it are apart: the benchmark's rows.

Those that have to be trained again get a quarter of an hour each, or as many iterations as a whole one made in a
quarter of an hour, and stand beside that one ([`COMMANDS`]); the others stand beside the bundled one.
The folders of all that is not bundled are not in this repository; their rows are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .stat_compare import hierarchical_bootstrap
from .stat_runs import Array, log_regret
from .universal_figures import MINE, Pairs, figure, log_ratio, paired, real_tasks
from .yardstick_methods import REPLAY
from .yardstick_plan import PROFILES, Book, Profile, reference_runs
from .yardstick_tables import table
from .yardstick_tasks import TASKS, Task

WHOLE = "ablations/universal"
RETRAINED: Mapping[str, str] = {
    "ablations/newcomers": "without fine-tuning in training",
    "ablations/without_gain": "without the gain ratio",
    "ablations/without_probing": "without probing: the first decision is after a twentieth of the run",
}
"""Folders to what they lack."""
AS_THEY_ARE: Mapping[str, str] = {
    f"{REPLAY}{MINE}": "without feedback: its mean schedule, open loop",
    "relative": "without the net: a straight line",
    "relative_walk": "random steps in place of the net's: the placebo",
}
"""Methods of the benchmark to what they lack."""
AGAIN: Mapping[str, str] = {
    "trainings/seed-0": "trained for 60 minutes, seed 0",
    "trainings/seed-1": "trained for 60 minutes, seed 1",
}
"""Other weights of the whole one."""
_TRAIN = "torchrun --nproc-per-node 2 -m hf_adaptive_lr.cli train universal"
COMMANDS = f"""\
{_TRAIN} --minutes 15 --output-dir ablations/universal
{_TRAIN} --minutes 15 --output-dir ablations/newcomers --suite newcomers
{_TRAIN} --iterations 59 --output-dir ablations/without_gain --controller-kwargs '{{"without_gain": true}}'
{_TRAIN} --iterations 59 --output-dir ablations/without_probing --controller-kwargs '{{"probing": false}}'
hf-adaptive-lr bench --full --jobs 2 --output-dir model_cards --methods cosine \\
  --controller ablations/universal --controller ablations/newcomers \\
  --controller ablations/without_gain --controller ablations/without_probing
hf-adaptive-lr bench --full --output-dir model_cards --render-only
"""


def ablations(profile: Profile, book: Book) -> str:
    """Table of the ablations that there are rows of, on the real tasks; empty without any."""
    lines = [_line(name, "", None, profile, book) for name in (MINE, WHOLE)]
    for whole, lacking in ((MINE, AS_THEY_ARE), (MINE, AGAIN), (WHOLE, RETRAINED)):
        lines += [_line(name, text, whole, profile, book) for name, text in lacking.items()]
    found = [line for line in lines if line]
    head = ["", "beside", "tasks", "accuracy", "minus the whole one's", "loss over the whole one's"]
    return table(head, found) if len(found) > 1 else ""


def _line(name: str, text: str, whole: str | None, profile: Profile, book: Book) -> list[str]:
    other = whole or name
    accuracy, loss = (side_by_side(name, other, what, profile, book) for what in ("test_accuracy", "test_loss"))
    if not accuracy.tasks:
        return []
    title = text or ("the bundled one" if name == MINE else "the whole one, trained for a quarter of an hour")
    cells = [title, "", str(len(accuracy.tasks)), f"{accuracy.mine.mean():.3f}", "", ""]
    if whole is not None:
        cells[1] = "the bundled one" if whole == MINE else "that of a quarter of an hour"
        ratio = hierarchical_bootstrap(log_ratio(loss))
        cells[4] = accuracy.difference_text()
        cells[5] = f"{math.exp(ratio.value):.2f} [{math.exp(ratio.low):.2f}, {math.exp(ratio.high):.2f}]"
    return cells


def side_by_side(mine: str, other: str, what: str, profile: Profile, book: Book) -> Pairs:
    """Two methods on the real tasks on which both have all seeds, found by their names.

    The folders of ablations are not in this repository, so that their digests cannot be computed: of two trainings
    under one name the newest rows count.
    """

    def values(task: Task, name: str) -> Array | None:
        return by_seed(name, what, task, profile.seeds, book)

    return paired({task.name: (values(task, mine), values(task, other)) for task in real_tasks(profile)})


def by_seed(method: str, what: str, task: Task, seeds: int, book: Book) -> Array | None:
    """A figure of every seed, found by the method's name alone; None without all seeds; a failed run is the worst."""
    found = {
        row["seed"]: figure(row, what)
        for row in book.rows(task.name).values()
        if row["method"] == method and row["task_digest"] == task.digest
    }
    return np.array([found[seed] for seed in range(seeds)]) if all(seed in found for seed in range(seeds)) else None


# --- trained again --------------------------------------------------------------------------------------------------

TRAININGS: Mapping[str, str] = {
    MINE: "bundled, 15 minutes",
    "trainings/seed-0": "60 minutes, seed 0",
    "trainings/seed-1": "60 minutes, seed 1",
}
"""Methods of the benchmark to how they were trained."""
TRAINING_COMMANDS = f"""\
{_TRAIN} --minutes 60 --output-dir trainings/seed-0
{_TRAIN} --minutes 60 --output-dir trainings/seed-1 --seed 1
hf-adaptive-lr bench --quick --jobs 2 --output-dir model_cards --methods cosine \\
  --controller trainings/seed-0 --controller trainings/seed-1
hf-adaptive-lr bench --full --jobs 2 --output-dir model_cards --methods cosine \\
  --controller trainings/seed-0 --controller trainings/seed-1
hf-adaptive-lr bench --full --output-dir model_cards --render-only
"""


def trainings(book: Book) -> str:
    """Table of log-regret by quick task, mean over seeds; empty without the rows of at least two trainings."""
    profile = PROFILES["quick"]
    tasks = [TASKS[name] for name in profile.tasks]
    references = {task.name: found for task in tasks if (found := _tuned_loss(task, profile, book)) is not None}
    lines = []
    for name, text in TRAININGS.items():
        losses = {task.name: by_seed(name, "test_loss", task, profile.seeds, book) for task in tasks}
        regrets = [
            float(log_regret(found[:, None].T, np.array([references[task]])).mean())
            for task, found in losses.items()
            if found is not None and task in references
        ]
        if len(regrets) == len(tasks):
            lines.append([text, *(f"{regret:+.2f}" for regret in regrets), f"{np.mean(regrets):+.2f}"])
    return table(["trained", *profile.tasks, "mean"], lines) if len(lines) > 1 else ""


def _tuned_loss(task: Task, profile: Profile, book: Book) -> float | None:
    """Geometric mean of the tuned linear schedule's final test loss; None without its rows."""
    losses = [float(row.get("test_loss") or 0.0) for row in book.all(reference_runs(task, profile, book)) or ()]
    return math.exp(np.mean(np.log(losses))) if losses and all(losses) else None
