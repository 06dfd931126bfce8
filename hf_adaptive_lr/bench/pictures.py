"""The benchmark's pictures, from rows alone: equal rows give equal files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifacts import replace_file
from .comparison import Comparison
from .method import REPLAY
from .scores import RULE, TUNED, measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS_PICTURE, TUNING_PICTURE, RATES_PICTURE = "bench_methods.png", "bench_tuning.png", "bench_rates.png"
_COLOURS = {"pretrained": "C0", "adapter": "C1", "scratch": "C2"}
_SCHEDULES = {"linear": "C0", "linear_warmup": "C1", "cosine": "C2", "cosine_warmup": "C3"}
_COLUMNS = 5


def write_pictures(suites: Mapping[str, Comparison], shown: Comparison, folder: Path, subject: str) -> None:
    """Draw the methods of one suite, the tuning curves of all, and the rates that one method chose in all."""
    drawn = {METHODS_PICTURE: methods(shown), TUNING_PICTURE: tuning(suites), RATES_PICTURE: rates(suites, subject)}
    for name, figure in drawn.items():
        picture = png(figure)
        replace_file(folder / name, lambda path, picture=picture: path.write_bytes(picture))  # type: ignore[misc]


def png(figure: Figure) -> bytes:
    """A figure as a PNG, without the software's version in it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90, metadata={"Software": None})
    return picture.getvalue()


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib; pip install 'hf_adaptive_lr[bench]'", name="matplotlib"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def methods(found: Comparison) -> Figure:
    """Log-regret of every method on every task, a dot each; a cross where half of the runs or more are ruined.

    Replays are left out: they stand in a table, beside what they replay.
    """
    lines = [line for line in found.lines() if not line.method.startswith(REPLAY)][::-1]
    figure = _figure(10, 2 + 0.28 * len(lines))
    axes = figure.subplots()
    for place, line in enumerate(lines):
        cells = found.cells[line.method]
        for kind, colour in _COLOURS.items():
            at = {name: cell for name, cell in cells.items() if found.rows[name].task.kind == kind}
            for marker, bad in (("o", False), ("x", True)):
                values = [cell.regret.mean() for cell in at.values() if (cell.ruin.any.mean() >= 0.5) == bad]
                axes.plot(values, [place] * len(values), marker, color=colour, alpha=0.7, markersize=6)
        ends = [line.regret.value if math.isnan(end) else end for end in (line.regret.low, line.regret.high)]
        axes.plot(ends, [place] * 2, color="black", linewidth=1)
        axes.plot([line.regret.value], [place], "|", color="black", markersize=14, markeredgewidth=2)
    axes.axvline(0.0, color="grey", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlabel("log-regret to tuned linear; linear up to 0.1, logarithmic beyond")
    axes.set_ylim(-0.7, max(0, len(lines) - 1) + 0.7)
    axes.set_yticks(range(len(lines)), [line.method for line in lines])
    for kind, colour in _COLOURS.items():
        axes.plot([], [], "o", color=colour, label=kind)
    axes.plot([], [], "x", color="grey", label="ruined")
    axes.plot([], [], "|-", color="black", label="mean, 95 %")
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    return figure


def tuning(suites: Mapping[str, Comparison]) -> Figure:
    """Validation loss over the learning rate, a panel for each task."""
    figure, panels = _sheet([(found, task.name) for found in suites.values() for task in found.tasks])
    figure.supxlabel("learning rate", fontsize=9)
    figure.supylabel("validation loss", fontsize=9)
    for axes, found, name in panels:
        _tuning_panel(axes, found, name)
    for axes, _, _ in panels[:1]:
        for schedule, colour in _SCHEDULES.items():
            axes.plot([], [], color=colour, label=schedule)
        axes.plot([], [], color="black", label="tuned linear's rate")
        axes.plot([], [], color="black", linestyle=":", label=f"{RULE}'s rate")
        axes.fill_between([], [], [], color="red", alpha=0.15, label="half of the runs ruined")
        figure.legend(loc="outside upper center", ncols=7, fontsize=9)
    return figure


def rates(suites: Mapping[str, Comparison], subject: str) -> Figure:
    """Learning rates of a method over the run, a panel for each task, beside tuned linear's."""
    cells = [(found, task) for found in suites.values() for task in found.cells.get(subject, {})]
    figure, panels = _sheet(cells)
    figure.supxlabel("share of the run", fontsize=9)
    figure.supylabel("learning rate", fontsize=9)
    for axes, found, name in panels:
        axes.set(yscale="log", xlim=(0, 1))
        for method, colour in ((TUNED, "grey"), (subject, "C0")):
            curves = [np.array(row["lr_curve"]) for row in found.rows[name].counted[method] if row.get("lr_curve")]
            for curve in curves[: 1 if method == TUNED else None]:  # a schedule is the same for all seeds
                axes.plot(*curve[curve[:, 1] > 0].T, color=colour, linewidth=1, alpha=0.8)
    for axes, _, _ in panels[:1]:
        axes.plot([], [], color="C0", label=f"{subject}, a line for each seed")
        axes.plot([], [], color="grey", label=TUNED)
        figure.legend(loc="outside upper center", ncols=2, fontsize=9)
    return figure


def _sheet(tasks: Sequence[tuple[Comparison, str]]) -> tuple[Figure, list[tuple[Any, Comparison, str]]]:
    """A figure with a small panel for each task, titled."""
    rows = max(1, math.ceil(len(tasks) / _COLUMNS))
    figure = _figure(3 * _COLUMNS, 2.4 * rows + 0.6)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in grid[len(tasks) :]:
        axes.set_axis_off()
    for axes, (found, name) in zip(grid, tasks, strict=False):
        axes.set_title(f"{name} ({found.suite})", fontsize=8)
        axes.tick_params(labelsize=7)
    return figure, [(axes, *task) for axes, task in zip(grid, tasks, strict=False)]


def _tuning_panel(axes: Any, found: Comparison, task: str) -> None:
    of = found.rows[task]
    curves = {schedule: curve for schedule in _SCHEDULES if (curve := found.tuning(task, schedule)) is not None}
    axes.set_xscale("log")
    # Beyond the loss before the first update there is nothing to be read.
    top = float(np.nanmax(measured(of.counted[TUNED], "first_loss")))
    for schedule, curve in curves.items():
        shown = np.where(np.isfinite(curve.losses), curve.losses, np.nan)
        whole = np.isfinite(curve.losses).all(1)
        lrs, colour = np.array(curve.lrs), _SCHEDULES[schedule]
        axes.plot(lrs[whole], shown[whole].mean(1), color=colour, linewidth=1.2, marker=".", markersize=3)
        axes.fill_between(lrs[whole], shown[whole].min(1), shown[whole].max(1), color=colour, alpha=0.15, linewidth=0)
    reference = found.tuning(task)
    if reference is not None:
        axes.axvline(reference.best, color="black", linewidth=0.8)
        low = float(np.nanmin([np.min(curve.losses) for curve in curves.values()]))
        axes.set_ylim(low - 0.05 * abs(top - low), top + 0.1 * abs(top - low))
        ruin = found.ruin_from(task)
        if math.isfinite(ruin):
            axes.axvspan(ruin, max(2 * ruin, *(curve.lrs[-1] for curve in curves.values())), color="red", alpha=0.12)
    axes.axvline(of.counted[RULE][0]["lr"], color="black", linewidth=0.8, linestyle=":")
