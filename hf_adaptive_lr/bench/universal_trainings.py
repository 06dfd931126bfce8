"""How far two trainings of `universal` are apart: the quick tasks of weights trained from scratch, seed by seed.

The folders of trainings that are not bundled are not in this repository; their rows are ([`COMMANDS`]).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .stat_runs import log_regret
from .universal_ablations import by_seed
from .universal_figures import MINE
from .yardstick_plan import PROFILES, Book, Profile, reference_runs
from .yardstick_tables import table
from .yardstick_tasks import TASKS, Task

TRAININGS: Mapping[str, str] = {
    MINE: "bundled, 15 minutes",
    "trainings/seed-0": "60 minutes, seed 0",
    "trainings/seed-1": "60 minutes, seed 1",
}
"""Methods of the yardstick to how they were trained."""
_TRAIN = "torchrun --nproc-per-node 2 -m hf_adaptive_lr.cli train universal --minutes 60"
COMMANDS = f"""\
{_TRAIN} --output-dir trainings/seed-0
{_TRAIN} --output-dir trainings/seed-1 --seed 1
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
    rows = [book.get(run) for run in reference_runs(task, profile, book)]
    losses = [row["test_loss"] for row in rows if row is not None and row.get("test_loss")]
    return math.exp(np.mean(np.log(losses))) if rows and len(losses) == len(rows) else None
