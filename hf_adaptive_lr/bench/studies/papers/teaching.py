"""Teaches `ppo_schedule` on many small nets at once, by the published reward and by whole runs played in pairs.

    python -m hf_adaptive_lr.bench.studies.papers.teaching

Three trainings by each of two presets, from the same first policies, with as many episodes; a learning curve of each
on problems that none was trained on; how much of the published reward is about the actions; and then what the policies
are worth beside schedules that were tuned (`taught.py`). Rows that are there are not made again, and the same rows
come out of every run of the command. A training by `paired` is one command of its own, too, with `--seed` and
`--output-dir`:

    hf-adaptive-lr train schedule_ppo --suite perceptrons --preset paired --runs 16 --iterations 32 --every-steps 2

Beside the paper's scale: its perceptron, not its convolutional nets, of which hundreds at once are too slow here (the
costs are rows, too); images of 7x7 pixels, 32 hidden units (128), 32 images in a batch (1,000), 100 updates (1,000), a
decision at every second (tenth), 51 decisions (109), 64 validation images (10,000); 1,024 episodes (1,000), of which
16 or 32 at once (1), so that the policy is updated 64 or 32 times (1,000). All start from a rate of 0.003.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ....artifacts import replace_file
from ....controllers import PPOSchedule
from ....meta.episode import Episode, play_through
from ....meta.schedule_ppo import ScheduleConfig, SchedulePPOTrainer
from ....meta.suites import SUITES
from ...markdown import table
from ...pictures import png
from ...rows import Row, append_row, pack, read_rows
from ...runner import command_parser
from ...stats import Estimate, mean_interval
from .. import measured
from ..command import carry_out
from . import taught
from .credit import credit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, PICTURE = "ppo_teaching.jsonl", "papers_ppo_learning.png"
COMMAND = "python -m hf_adaptive_lr.bench.studies.papers.teaching"
SUITE, EVERY, WIDTH = "perceptrons", 2, 32
LESSONS: Mapping[str, tuple[int, int]] = {"paired": (16, 32), "paper": (16, 64)}
"""Runs and iterations by preset; a run of `paired` is two episodes."""
SEEDS, POINTS, JUDGED = (0, 1, 2), 8, 32
"""Trainings, points of a learning curve beside the first, and problems that each is judged on."""
CREDIT_RUNS, CREDIT_PLAYS = 32, 8
_TIMES = 5  # that each is timed
_SMALL = {"side": 7, "width": 32}
COSTS: Mapping[str, tuple[int, dict[str, Any]]] = {
    "the paper's LeNet, 100 images": (1, {"batch_size": 100}),
    "LeNet of 4 channels, 14x14 pixels": (64, {**_SMALL, "side": 14, "channels": 4}),
    "LeNet of 4 channels, 7x7 pixels": (64, {**_SMALL, "channels": 4}),
    "perceptron, 7x7 pixels": (64, {**_SMALL, "channels": 0}),
}
"""Nets whose updates are timed: how many at once, and what is other than in the suite `fashion`."""


def teacher(preset: str, seed: int) -> SchedulePPOTrainer:
    """A trainer before its first iteration: `make_trainer`'s, but that all presets start close to a constant rate."""
    params = PPOSchedule.random_params(hidden_size=WIDTH, bias=0.15, gain=0.01, seed=seed)
    start = PPOSchedule.from_preset("paper", hidden_size=WIDTH, every_steps=EVERY, params=params)
    return SchedulePPOTrainer(start, ScheduleConfig.from_preset(preset), seed=seed)


def judged(controller: PPOSchedule) -> tuple[float, float]:
    """Means of the loss at the end of runs that nothing was trained on, and of the last rate's factor; unexplored."""
    (problem,) = SUITES[SUITE].problems("valid", 0, JUDGED)
    episode = Episode(problem.start(), 1, controller=controller)
    losses = play_through(controller, episode).exp()
    return round(float(losses.mean()), 5), round(float((episode.lr / episode.run.base_lr).mean()), 4)


def learn(preset: str, seed: int, runs: int, iterations: int) -> Row:
    """A whole training: its curve, and the policy's weights."""
    trainer, curve, started = teacher(preset, seed), [], time.process_time()
    for iteration in range(iterations + 1):
        if iteration % max(1, iterations // POINTS) == 0:
            loss, factor = judged(trainer.controller())
            episodes = iteration * runs * trainer.config.plays
            curve.append({"episodes": episodes, "loss": loss, "last_factor": factor})
        if iteration < iterations:
            trainer.iterate(SUITES[SUITE].problems("train", iteration, runs, seed), iteration)
    weights = {name: tensor.tolist() for name, tensor in trainer.controller().params.items()}
    seconds = round(time.process_time() - started, 1)
    return {"row": "training", "preset": preset, "seed": seed, "curve": curve, "weights": weights, "seconds": seconds}


def policy(row: Row) -> PPOSchedule:
    """The policy of a training's row."""
    params = {name: torch.tensor(values) for name, values in row["weights"].items()}
    return PPOSchedule.from_preset("paper", hidden_size=WIDTH, every_steps=EVERY, params=params)


def costs() -> list[Row]:
    """Processor milliseconds of an update and of a decision's look at 64 validation images, of one net."""
    rows = []
    for name, (runs, changes) in COSTS.items():
        (home,) = SUITES[SUITE].problems("train", 0, runs)
        config = {key: value for key, value in home.task.config.items() if key in ("data", "n_train", "eval_size")}
        problem = replace(home, task=replace(home.task, family="lenet", config={**config, **changes}))
        run = problem.start()
        row: Row = {"row": "cost", "net": name, "runs": runs}
        works: dict[str, Callable[[], Any]] = {
            "update": partial(run.advance, run.base_lr, 1, gain=False),
            "decision": partial(run.observe, run.base_lr, PPOSchedule.needs),
        }
        for what, work in works.items():
            work()
            started = time.process_time()
            for _ in range(_TIMES):
                work()
            row[f"ms_{what}"] = round((time.process_time() - started) * 1e3 / _TIMES / runs, 3)
        rows.append(row)
    return rows


def section(folder: Path) -> str:
    """The section of the paper's page, of all that has been done; empty without rows."""
    rows = read_rows(folder / NAME)
    curves = _curves(rows)
    if not curves:
        return ""
    parts = [_TEXT, f"![Loss of the policies over their training]({PICTURE})\n", _curve_table(rows, curves)]
    parts += [_credit_part(rows), taught.section(rows), _cost_part(rows)]
    return "\n".join([*filter(None, parts), f"```bash\n{COMMAND}\n```\n\nRows: `rows/{NAME}.gz`.\n\n"])


def _curve_table(rows: Sequence[Row], curves: Mapping[str, list[list[float]]]) -> str:
    episodes = [point["episodes"] for point in next(row for row in rows if row["row"] == "training")["curve"]]
    head = ["reward", "trainings", *(f"{n:,} episodes" for n in episodes), "fall"]
    lines = [
        [
            f"`{preset}`",
            str(len(each)),
            *(_shown(mean_interval(at)) for at in zip(*each, strict=True)),
            _shown(_fall(each), "+"),
        ]
        for preset, each in curves.items()
    ]
    return f"{table(head, lines)}\n"


def _credit_part(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row["row"] == "credit"]
    spread = next((row for row in rows if row["row"] == "spread"), None)
    if spread is None:
        return ""
    lines = [[row["way"], *(_needed(row[part]) for part in ("all", "first_half", "second_half"))] for row in found]
    told = _WHY.format(
        episodes=spread["episodes"], correlation=spread["return_and_end"], between=100 * spread["between_problems"]
    )
    return f"{told}\n{table(['advantage', 'all actions', 'of the first half', 'of the second half'], lines)}\n"


def _cost_part(rows: Sequence[Row]) -> str:
    lines = [
        [row["net"], str(row["runs"]), f"{row['ms_update']:.2f}", f"{row['ms_decision']:.2f}"]
        for row in rows
        if row["row"] == "cost"
    ]
    return f"{_COST}\n{table(['net', 'at once', 'update, ms', 'decision, ms'], lines)}\n" if lines else ""


def _curves(rows: Sequence[Row]) -> dict[str, list[list[float]]]:
    """Losses by preset, training and point."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        if row["row"] == "training":
            found.setdefault(row["preset"], []).append([point["loss"] for point in row["curve"]])
    return found


def _fall(curves: Sequence[Sequence[float]]) -> Estimate:
    return mean_interval([losses[0] - losses[-1] for losses in curves])


def _shown(found: Estimate, sign: str = "") -> str:
    return f"{found.value:{sign}.3f}" + ("" if math.isnan(found.half) else f" ± {found.half:.3f}")


def _needed(signal: float) -> str:
    """Signal over noise of an episode, and the episodes whose mean is two standard errors from 0."""
    return f"{signal:+.3f} ({(2 / signal) ** 2:,.0f})" if signal else "0"


def figure(rows: Sequence[Row]) -> Figure:
    """Learning curves, each training and their mean."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 3.2), layout="constrained")
    axes = drawn.subplots()
    for preset, curves in _curves(rows).items():
        colour = {"paired": "C0", "paper": "C1"}[preset]
        first = next(row for row in rows if row["row"] == "training" and row["preset"] == preset)
        episodes = [point["episodes"] for point in first["curve"]]
        for losses in curves:
            axes.plot(episodes, losses, color=colour, linewidth=0.8, alpha=0.5)
        found = [mean_interval(at) for at in zip(*curves, strict=True)]
        axes.plot(episodes, [f.value for f in found], color=colour, linewidth=2, label=preset)
        axes.fill_between(episodes, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.15)
    axes.set(xlabel="episodes", ylabel="loss at the end of a run")
    axes.legend(fontsize=8, title="reward", title_fontsize=8)
    return drawn


_TEXT = """## Many small nets at once

The paper's perceptron in small, many runs at once: how far from the paper's scale says the head of
`bench/studies/papers/teaching.py`. Trainings by each way of rewarding, from the same first policies, all close to a
constant rate of 0.003, which is too small. `paper` is the published reward and critic; `paired` is not the
paper's: every run is played twice with the same weights and batches, and each play is judged by how it ended beside
the other. Loss at the end of runs that nothing was trained on, without exploration; ± is half a ninety-five percent t
interval over trainings, and the bands of the picture are that interval.
"""
_WHY = """What an episode tells about the actions of the first policy, from {episodes} episodes, each run played eight
times: the mean of an episode's push towards larger actions over its standard deviation, and in brackets how many
episodes it takes until the mean is two standard errors from zero. Of the variance of the last reward {between:.0f} %
lies between runs that differ in weights and data, which no action can change; within a run the sum of its rewards and
its last one correlate at {correlation:.2f}.
"""
_COST = """Processor time of one net on one thread, by which the perceptron was chosen; a decision looks at a few dozen
validation images.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is missing among the rows, print the section; 0 when done, 2 when it cannot be."""
    parser = command_parser("studies.papers.teaching", __doc__)
    parser.add_argument("--output-dir", type=Path, default=measured.ROWS, metavar="DIR", help="folder of the rows")
    parser.add_argument("--render-only", action="store_true", help="run nothing, draw and print what the rows say")
    options = parser.parse_args(argv)
    return carry_out(parser.prog, lambda: _study(options.output_dir, render_only=options.render_only))


def _study(folder: Path, *, render_only: bool) -> None:
    path = folder / NAME
    if not render_only:
        _complete(path)
    picture = png(figure(read_rows(path)))
    pack(path)
    replace_file(folder.parent / PICTURE, lambda draft: draft.write_bytes(picture))
    print(f"{section(folder)}rows in {path}")


def _complete(path: Path) -> None:
    torch.set_num_threads(1)
    if not read_rows(path):
        append_row(path, measured.header(COMMAND, suite=SUITE, suite_digest=SUITES[SUITE].digest()))
    (problem,) = SUITES[SUITE].problems("train", 10**6, CREDIT_RUNS)  # none that a training gets
    _once(path, "credit", lambda: credit(teacher("paper", 0), problem, CREDIT_PLAYS))
    done = {(row.get("preset"), row.get("seed")) for row in read_rows(path)}
    lessons = [(preset, seed) for preset in LESSONS for seed in SEEDS if (preset, seed) not in done]
    for preset, seed in tqdm(lessons):
        append_row(path, learn(preset, seed, *LESSONS[preset]))
    _once(path, "cost", costs)
    rows = read_rows(path)
    taught.compare(path, {name: [policy(row) for row in rows if row.get("preset") == name] for name in LESSONS})


def _once(path: Path, kind: str, measure: Callable[[], list[Row]]) -> None:
    if not any(row["row"] == kind for row in read_rows(path)):
        for row in measure():
            append_row(path, row)


if __name__ == "__main__":
    sys.exit(main())
