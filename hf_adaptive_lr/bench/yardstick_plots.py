"""The benchmark's plots, from rows alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import replace_file
from .yardstick_scores import Results

PLOTS: Mapping[str, str] = {
    "bench_sensitivity.png": "Test loss against the initial learning rate",
    "bench_profile.png": "Share of runs with at most this log-regret",
    "bench_steps.png": "Share of runs that have reached the target by this share of the run",
    "bench_schedules.png": "Mean learning rates in the course of the run",
}
"""File names and what they show."""
_SHOWN = 10  # lines in a plot of schedules, no more can be told apart


def write_plots(results: Results, folder: Path) -> None:
    """Draw all plots into a folder."""
    from matplotlib.figure import Figure

    for name, draw in zip(PLOTS, (_sensitivity, _profile, _steps, _schedules), strict=True):
        figure = Figure(
            figsize=(9, 6) if name in ("bench_profile.png", "bench_steps.png") else (12, 8), layout="constrained"
        )
        draw(figure, results)
        picture = png(figure)
        replace_file(folder / name, lambda path, picture=picture: path.write_bytes(picture))  # type: ignore[misc]


def png(figure: Any) -> bytes:
    """A figure as a PNG; without the software's version in it, equal rows give equal files."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90, metadata={"Software": None})
    return picture.getvalue()


def _axes(figure: Any, count: int) -> list[Any]:
    columns = min(6, max(1, count))
    rows = -(-max(1, count) // columns)
    every = [axes for line in figure.subplots(rows, columns, squeeze=False) for axes in line]
    for axes in every[max(1, count) :]:
        axes.set_axis_off()
    return every


def _sensitivity(figure: Any, results: Results) -> None:
    swept = [t for t in results.tasks if any(results.sweep(t, method) is not None for method in results.methods)]
    grid = _axes(figure, len(swept))
    seen: dict[str, Any] = {}
    for axes, task in zip(grid, swept, strict=False):
        axes.set(title=task.name, xscale="log", yscale="log")
        axes.axhline(results.references[task.name].test_loss, color="black", linewidth=0.8, linestyle=":")
        for number, method in enumerate(results.methods):
            sweep = results.sweep(task, method)
            if sweep is not None:
                middle = np.median(np.nan_to_num(sweep[1], nan=np.inf), axis=1)
                shown = np.where(np.isfinite(middle) & (middle < 1e3 * max(sweep[2], 1e-9)), middle, np.nan)
                (seen[method.name],) = axes.plot(sweep[0], shown, **_style(number, strong=method.weights))
    if seen:
        figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=5, fontsize=8)


def _profile(figure: Any, results: Results) -> None:
    _shares(figure, results, "regret", np.linspace(-1.0, 3.0, 401), "log-regret to the tuned linear schedule")


def _steps(figure: Any, results: Results) -> None:
    _shares(figure, results, "steps", np.linspace(0.0, 1.0, 201), "share of the run")


def _shares(figure: Any, results: Results, figure_of: str, levels: Any, label: str) -> None:
    axes = figure.subplots()
    axes.set(xlabel=label, ylabel="share of runs", xlim=(levels[0], levels[-1]))
    for number, (name, scores) in enumerate(results.scores.items()):
        runs = getattr(scores, figure_of)
        axes.plot(levels, [float((runs <= level).mean()) for level in levels], label=name, **_style(number))
    if results.scores:
        figure.legend(loc="outside right upper", fontsize=8)


def _schedules(figure: Any, results: Results) -> None:
    grid = _axes(figure, len(results.tasks))
    chosen = [m for m in results.methods if m.controller and not m.replay_of]
    chosen = sorted(chosen, key=lambda method: not method.weights)[:_SHOWN]  # learned ones first
    seen: dict[str, Any] = {}
    for axes, task in zip(grid, results.tasks, strict=False):
        axes.set(title=task.name, yscale="log")
        for number, method in enumerate(chosen):
            rows = results.own_rows(task, method)
            there = [row for row in rows or [] if "factor_curve" in row]
            if there:
                share = [point[0] for point in there[0]["factor_curve"]]
                bases = [row.get("found_lr", row["lr"]) for row in there]
                factors = [[max(factor, 1e-4) for _, factor in row["factor_curve"]] for row in there]
                lrs = np.mean(np.array(bases)[:, None] * factors, axis=0)
                (seen[method.name],) = axes.plot(share, lrs, **_style(number, strong=method.weights))
    if seen:
        figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=5, fontsize=8)


def _style(number: int, *, strong: bool = False) -> dict[str, Any]:
    line = ("-", "--", ":")[number // 10 % 3]
    return {"color": f"C{number % 10}", "linestyle": line, "linewidth": 2.5 if strong else 1.2}
