"""One page about all five papers: what held, how each does beside tuned linear, and the schedules that they make."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ....artifacts import replace_file
from ...markdown import QUICK_RUN, table
from ...pictures import png
from ...results import failed, paired
from ...rows import Row
from ...stats import Estimate
from .judge import Found, verdict
from .pages import COMMAND, early

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, PICTURE = "PAPERS.md", "papers_schedules.png"
_REFERENCE = "linear"
_TEXT = """\
# Five papers, tried again

What their claims came to on small real tasks, beside baselines with tuned learning rates. The verdict is on the
claims of the paper's page, written down before the runs. *Minus linear* is the test loss minus that of linear decay
with a tuned learning rate, paired by seed, with half a ninety-five percent interval over seeds; below zero the method
is better. In brackets, where there are more pairs than at first: their number, and the half width of the first ones
alone. Lost runs (a final loss a tenth above that of the first batch, or none) are left out of it; runs that stay
near chance are in it. *Cost* is processor time over linear's on the same tasks.
"""
_BELOW = """\
The learning rate over the run, each over its own tuned base rate: mean of the seeds, with all of them in the band, on
the first task of each paper. The factors of `dsa` multiply it weight by weight and are not in it.
"""


def write(found: Mapping[str, Found], folder: Path, *, quick: bool) -> Path:
    """Write page and picture, and return the page."""
    picture = png(_schedules(found))
    replace_file(folder / PICTURE, lambda path: path.write_bytes(picture))
    replace_file(folder / PAGE, render(found, quick=quick))
    return folder / PAGE


def render(found: Mapping[str, Found], *, quick: bool = False) -> str:
    """The page."""
    head = ["method", "paper", "verdict", "minus linear", "lost runs", "cost", "good for"]
    lines = [_line(name, each) for name, each in found.items()]
    command = f"{COMMAND} all{' --quick' * quick}"
    picture = f"![Mean schedule of each paper's method, beside tuned linear]({PICTURE})"
    parts = [_TEXT, QUICK_RUN.rstrip() + "\n"] if quick else [_TEXT]
    return "\n".join([*parts, table(head, lines), "", picture, "", _BELOW, f"```bash\n{command}\n```\n"])


def _line(name: str, of: Found) -> list[str]:
    runs = {task: _pair(of, task, name) for task in of.paper.tasks}
    gaps = [
        f"{task} {_gap(paired(*pair, 'test_loss'), early(of, task, name, _REFERENCE, 'test_loss'))}"
        for task, pair in runs.items()
        if all(pair)
    ]
    lost = [failed(row) for mine, _ in runs.values() for row in mine.values()]
    authors = re.split(r"(?<=\d{4}), ", of.paper.title)[0]  # and the year
    costs = [cost for pair in runs.values() if (cost := _cost(*pair)) is not None]
    return [
        f"[`{name}`]({name}.md)",
        f"[{authors}]({of.paper.link})",
        f"**{verdict(of)}**",
        "<br>".join(gaps) or "-",
        f"{sum(lost)} of {len(lost)}" if lost else "-",
        f"{fmean(costs):.2f}" if costs else "-",
        of.paper.use.partition(". ")[0].removeprefix("Good for "),
    ]


def _pair(of: Found, task: str, name: str) -> tuple[Mapping[int, Row], Mapping[int, Row]]:
    return of.cells[task, name].runs, of.cells[task, _REFERENCE].runs


def _gap(gap: Estimate | None, first: Estimate | None) -> str:
    if gap is None:
        return "-"
    before = "" if first is None else f" ({gap.n}; {first.n}: ± {first.half:.3f})"
    return f"{gap.value:+.3f} ± {gap.half:.3f}{before}"


def _cost(mine: Mapping[int, Row], other: Mapping[int, Row]) -> float | None:
    both = mine.keys() & other.keys()  # seeds that were run at about the same time
    seconds = [[runs[seed]["cpu_seconds"] for seed in both if "cpu_seconds" in runs[seed]] for runs in (mine, other)]
    return fmean(seconds[0]) / fmean(seconds[1]) if all(seconds) else None


def _schedules(found: Mapping[str, Found]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(found), 3), layout="constrained")
    for axes, (name, of) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        task = of.paper.tasks[0]
        for runs, colour in zip(_pair(of, task, name)[::-1], ("grey", "C0"), strict=True):
            curves = _curves(list(runs.values()))
            if len(curves):
                shares, factors = curves[0, :, 0], curves[:, :, 1]
                axes.plot(shares, factors.mean(0), color=colour, linewidth=1.5)
                axes.fill_between(shares, factors.min(0), factors.max(0), color=colour, alpha=0.2, linewidth=0)
        axes.set(xlim=(0, 1), ylim=(0, None))
        axes.set_title(f"{name} ({task})", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.supxlabel("share of the run", fontsize=9)
    figure.supylabel("learning rate / base rate", fontsize=9)
    return figure


def _curves(rows: Sequence[Row]) -> np.ndarray:
    """Learning rates over the base rate, of shape (runs, points, 2); runs that were cut short are left out."""
    curves = [[(share, lr / row["lr"]) for share, lr in row["lr_curve"]] for row in rows if "lr_curve" in row]
    longest = max(map(len, curves), default=0)
    return np.array([curve for curve in curves if len(curve) == longest])
