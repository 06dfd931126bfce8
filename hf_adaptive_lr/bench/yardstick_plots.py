"""The yardstick's plots, from rows alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replace_file
from .yardstick_scores import Results

PLOTS: Mapping[str, str] = {
    "bench_sensitivity.png": "Test loss against the initial learning rate",
    "bench_profile.png": "Share of runs with at most this log-regret",
    "bench_steps.png": "Share of runs that have reached the target by this share of the run",
    "bench_schedules.png": "Mean schedules",
}
"""File names and what they show."""
_SHOWN = 10  # lines in a plot of schedules, no more can be told apart


def write_plots(results: Results, folder: Path) -> None:
    """Draw all plots.

    Args:
        results: from rows.
        folder: where they go; must be there.
    """
    from matplotlib.figure import Figure

    for name, draw in zip(PLOTS, (_sensitivity, _profile, _steps, _schedules), strict=True):
        figure = Figure(
            figsize=(9, 6) if name in ("bench_profile.png", "bench_steps.png") else (12, 8), layout="constrained"
        )
        draw(figure, results)
        # Without the software's version in it, equal rows give equal files.
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=90, metadata={"Software": None})
        replace_file(folder / name, partial(_put, picture.getvalue()))


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _axes(figure: Any, count: int) -> list[Any]:
    columns = min(6, max(1, count))
    rows = -(-max(1, count) // columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    return [axes for line in grid for axes in line]


def _sensitivity(figure: Any, results: Results) -> None:
    grid = _axes(figure, len(results.tasks))
    seen: dict[str, Any] = {}
    for axes, task in zip(grid, results.tasks, strict=False):
        axes.set(title=task.name, xscale="log", yscale="log")
        axes.axhline(results.references[task.name].test_loss, color="black", linewidth=0.8, linestyle=":")
        for number, method in enumerate(results.methods):
            sweep = results.sweep(task, method)
            if sweep is not None:
                middle = np.median(np.nan_to_num(sweep[1], nan=np.inf), axis=1)
                shown = np.where(np.isfinite(middle) & (middle < 1e3 * max(sweep[2], 1e-9)), middle, np.nan)
                (seen[method.name],) = axes.plot(sweep[0], shown, **_style(number))
    if seen:
        figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=5, fontsize=8)


def _profile(figure: Any, results: Results) -> None:
    regrets = {name: scores.regret.ravel() for name, scores in results.scores.items()}
    _shares(figure, regrets, np.linspace(-1.0, 3.0, 401), "log-regret to the tuned linear schedule")


def _steps(figure: Any, results: Results) -> None:
    steps = {name: scores.steps.ravel() for name, scores in results.scores.items()}
    _shares(figure, steps, np.linspace(0.0, 1.0, 201), "share of the run")


def _shares(figure: Any, values: Mapping[str, Any], levels: Any, label: str) -> None:
    axes = figure.subplots()
    axes.set(xlabel=label, ylabel="share of runs", xlim=(levels[0], levels[-1]))
    for number, (name, runs) in enumerate(values.items()):
        axes.plot(levels, [float((runs <= level).mean()) for level in levels], label=name, **_style(number))
    if values:
        figure.legend(loc="outside right upper", fontsize=8)


def _schedules(figure: Any, results: Results) -> None:
    grid = _axes(figure, len(results.tasks))
    chosen = [m for m in results.methods if m.controller and not m.replay_of][:_SHOWN]
    seen: dict[str, Any] = {}
    for axes, task in zip(grid, results.tasks, strict=False):
        axes.set(title=task.name, yscale="log")
        for number, method in enumerate(chosen):
            rows = results.own_rows(task, method)
            curves = [row["factor_curve"] for row in rows or [] if "factor_curve" in row]
            if curves:
                share = [point[0] for point in curves[0]]
                factors = np.mean([[point[1] for point in curve] for curve in curves], axis=0)
                (seen[method.name],) = axes.plot(share, np.maximum(factors, 1e-4), **_style(number))
    if seen:
        figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=5, fontsize=8)


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "linewidth": 1.2}
