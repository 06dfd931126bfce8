"""What taught policies of `ppo_schedule` are worth: beside tuned schedules, on their own task and frozen on others.

Tuned by the loss on `outer_valid` of runs of the suite's validation problems, on the task that the policies were
taught on; the other tasks take the settings over, as in the paper. Then runs of test problems count, by the loss on
`test`: one run of one method and of another start from the same weights, with the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ....controller import Controller
from ....controllers import Constant, Cosine, Linear, PPOSchedule, RandomWalk, Replay
from ....meta.episode import Episode, as_lr
from ....meta.problem import Problem
from ....meta.suites import SUITES, TaskSplit
from ....meta.tasks.base import Split
from ...markdown import table
from ...rows import Row, append_row, read_rows
from ...stats import paired_difference
from .methods import _stairs

LADDER = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Base learning rates that are tried for every schedule and policy; the paper's are 1e-4 ... 1e-1, by tens."""
TUNING_RUNS, TEST_RUNS = 16, 48
SUITE, HOME, RIVAL = "perceptrons", "fashion", "step_decay"
TASKS: Mapping[str, str] = {
    HOME: "as taught",
    "mnist": "other data",
    "lenet": "another net",
    "twice": "as taught, twice as long",
}
"""Tasks and what is other about them."""
_CHANGES: Mapping[str, Mapping[str, Any]] = {
    "mnist": {"data": "mnist-5000", "n_train": 2000},
    "lenet": {"channels": 4},
}
_EXPONENTIAL, _POINTS = (0.3, 0.1, 0.03, 0.01), 51


def _exponential(final: float) -> Replay:
    shares = [k / (_POINTS - 1) for k in range(_POINTS)]
    return Replay(progress=tuple(shares), factors=tuple(final**share for share in shares))


SCHEDULES: Mapping[str, Sequence[Controller]] = {
    "constant": (Constant(),),
    "linear": (Linear(),),
    "cosine": (Cosine(),),
    "exponential": tuple(map(_exponential, _EXPONENTIAL)),
    RIVAL: tuple(Replay(**_stairs(share, f)) for share in (0.01, 0.02, 0.05, 0.1) for f in (0.99, 0.9, 0.88)),
}
"""Every schedule with its variants; the steps and factors of the paper's table."""


def problem_of(task: str, split: TaskSplit, runs: int) -> Problem:
    """The runs of a task."""
    (home,) = SUITES[SUITE].problems(split, 0, runs)
    config = {**home.task.config, **_CHANGES.get(task, {})}
    steps = home.total_steps * (2 if task == "twice" else 1)
    return replace(home, task=replace(home.task, config=config), total_steps=steps)


def ends(controller: Controller, problem: Problem, lr: float, split: Split) -> tuple[Tensor, list[float]]:
    """Losses at the end, (runs,), and the mean factor of the base LR after each decision."""
    run = replace(problem, low_lr=lr, high_lr=lr).start()
    decides = controller if controller.learned else None
    episode = Episode(
        run, problem.total_steps // 2, split, decides
    )  # as often as a policy that decides at every second
    state, factors = controller.init((run.task.runs,), seed=0), []
    while not episode.done:
        answer, state = controller.decide(episode.observe(controller.needs), state)
        episode.play(as_lr(controller, answer, run.base_lr))
        factors.append(float((episode.lr / run.base_lr).mean()))
    return episode.value.exp(), factors


def tuned(variants: Sequence[Controller]) -> Row:
    """The variant and the base learning rate with the lowest validation loss."""
    problem = problem_of(HOME, "valid", TUNING_RUNS)
    tried = [
        (float(ends(variant, problem, lr, "outer_valid")[0].mean()), lr, number)
        for number, variant in enumerate(variants)
        for lr in LADDER
    ]
    loss, lr, number = min(tried)
    return {"variant": number, "lr": lr, "valid_loss": round(loss, 5), "tried": len(tried)}


def replayed(policy: PPOSchedule, lr: float) -> Replay:
    """The mean schedule of a policy on the validation problems, as an open loop."""
    _, factors = ends(policy, problem_of(HOME, "valid", TUNING_RUNS), lr, "outer_valid")
    shares = [k / len(factors) for k in range(len(factors))]
    return Replay(progress=tuple(shares), factors=tuple(round(f, 5) for f in factors))


def compare(path: Path, policies: Mapping[str, Sequence[PPOSchedule]]) -> None:
    """Tune and test everything that has no rows yet; `policies` are the trainings of each kind."""
    entries = [(name, 0, variants) for name, variants in SCHEDULES.items()]
    entries += [(name, i, (each,)) for name, trainings in policies.items() for i, each in enumerate(trainings)]
    for name, training, variants in tqdm(entries):
        row = next((row for row in _rows(path, "tuned", name) if row["training"] == training), None)
        if row is None:
            row = {"row": "tuned", "method": name, "training": training, **tuned(variants)}
            append_row(path, row)
        _test(path, name, training, variants[row["variant"]], row["lr"])
    for name, trainings in policies.items():
        lr = _rows(path, "tuned", name)[0]["lr"]
        _test(path, f"replay:{name}", 0, replayed(trainings[0], lr), lr)
    _test(path, "random_walk", 0, RandomWalk(step=0.035), _rows(path, "tuned", "constant")[0]["lr"])


def _test(path: Path, name: str, training: int, controller: Controller, lr: float) -> None:
    done = {row["task"] for row in _rows(path, "test", name) if row["training"] == training}
    for task in TASKS:
        if task not in done:
            losses, factors = ends(controller, problem_of(task, "test", TEST_RUNS), lr, "test")
            row = {"row": "test", "task": task, "method": name, "training": training, "lr": lr}
            row |= {"losses": [round(x, 4) for x in losses.tolist()], "factors": [round(f, 3) for f in factors[::5]]}
            append_row(path, row)


def _rows(path: Path, kind: str, name: str) -> list[Row]:
    return [row for row in read_rows(path) if row["row"] == kind and row["method"] == name]


def section(rows: Sequence[Row]) -> str:
    """The part of the page's section; empty without rows."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for row in rows:
        if row["row"] == "test":
            found.setdefault(row["method"], {}).setdefault(row["task"], []).append(row["losses"])
    if not found:
        return ""
    lrs: dict[str, list[float]] = {}
    for row in rows:
        if row["row"] == "test" and row["task"] == HOME:
            lrs.setdefault(row["method"], []).append(row["lr"])
    lines = [
        [name, " / ".join(f"{lr:g}" for lr in lrs[name]), *(_cell(found, name, task) for task in TASKS)]
        for name in found
    ]
    head = ["method", "base LR", *(f"{task}: {what}" for task, what in TASKS.items())]
    return f"{_TEXT}\n{table(head, lines)}\n"


def _cell(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], name: str, task: str) -> str:
    mine = [fmean(losses) for losses in zip(*found[name][task], strict=True)]  # over the trainings of a policy
    if name == RIVAL:
        return f"{fmean(mine):.4f}"
    rival = found[RIVAL][task][0]
    gap = paired_difference(dict(enumerate(mine)), dict(enumerate(rival)))
    each = ", ".join(f"{fmean(losses):.3f}" for losses in found[name][task])
    shown = f"{fmean(mine):.4f}, {gap.value:+.4f} ± {gap.half:.4f}"
    return f"{shown} ({each})" if len(found[name][task]) > 1 else shown


_TEXT = f"""Beside schedules that were tuned on {TUNING_RUNS} runs of the first task, each at the same learning rates,
step decay with the paper's steps and factors, exponential decay to four ends: mean test loss of {TEST_RUNS} runs, and
the difference from step decay, paired by run, with half a ninety-five percent interval. Of three trainings the mean,
and each in brackets. The other tasks take over what was tuned on the first.
"""
