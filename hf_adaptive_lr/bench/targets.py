"""What a controller that needs no learning rate should reach, set before it was made, and how far it came."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .comparison import Comparison, Line
from .scores import DEFAULT, RULE, Cell, Flags, measured
from .stats import task_interval
from .tables import named, share, table

MOST_HARM, MOST_HARM_DEFAULT, MOST_UPPER, MOST_WORST, LEAST_BETTER, END = 0.05, 0.02, 0.05, 0.10, 0.80, 0.01
"""Bounds of the targets; `END` is the rate at the last update over the run's highest."""
LONG = 200
"""Updates of a run whose rate can be asked to end so low."""


def targets(found: Comparison, subject: str) -> str:
    """A table of the targets: the bound, what was measured, with a 95 % interval over origins, and "yes" or "no"."""
    line = found.line(subject)
    entries = [] if line is None else _measured(found, line)
    rows = [[what, bound, value, "yes" if met else "no"] for what, bound, value, met in entries]
    return table(["target", "bound", "measured", "reached"], rows)


def _measured(found: Comparison, line: Line) -> Iterator[tuple[str, str, str, bool]]:
    subject, cells = line.method, found.cells[line.method]
    runs = sum(len(cell.loss) for cell in cells.values())
    ruined = sum(int(cell.ruin.any.sum()) for cell in cells.values())
    yield "ruined runs", "0", f"{ruined} of {runs}", not ruined
    for against, most in ((RULE, MOST_HARM), (DEFAULT, MOST_HARM_DEFAULT)):
        having = {task: cell for task, cell in cells.items() if against in cell.harm}
        if having:
            harm, interval = _share(found, having, against)
            yield f"harm against `{against}`", f"at most {most:.0%}", interval, harm <= most
    regret = line.regret
    yield "mean log-regret to tuned linear", "at most 0", regret.signed(), regret.value <= 0
    yield "upper end of its interval", f"at most +{MOST_UPPER:.2f}", f"{regret.high:+.3f}", regret.high <= MOST_UPPER
    worst = f"{line.worst[1]:+.3f} {line.worst[0]}"
    yield "worst task's", f"at most +{MOST_WORST:.2f}", worst, line.worst[1] <= MOST_WORST
    yield (
        f"tasks with less loss than `{RULE}`",
        f"at least {LEAST_BETTER:.0%}",
        share(line.better),
        (line.better >= LEAST_BETTER),
    )
    ahead = list(_ahead(found, subject))
    those = ", ".join(map(named, ahead)) or "none"
    yield (
        "other libraries' methods at one setting for all tasks that ruin less, or have less regret on the same tasks",
        "none",
        those,
        not ahead,
    )
    # In a run of T updates a straight line ends at 1 / T.
    ends = [_ends(found, subject, task) for task in cells if found.rows[task].task.updates >= LONG]
    if max(ends, default=-1.0) < 0:
        return
    yield (
        f"highest share of its peak that a rate ends at, in {LONG} updates or more",
        f"below {END:.0%}",
        f"{max(ends):.2%}",
        max(ends) < END,
    )


def _share(found: Comparison, cells: dict[str, Cell], against: str) -> tuple[float, str]:
    """Share of runs that do harm, and the same in words."""
    flags: list[Flags] = [cell.harm[against] for cell in cells.values()]
    harm = task_interval(np.array(flags, float), found.origins(cells))
    return harm.value, f"{harm.value:.0%} [{max(0.0, harm.low):.0%}, {min(1.0, harm.high):.0%}]"


def _ahead(found: Comparison, subject: str) -> Iterator[str]:
    """Other libraries' methods, not tuned on a task, that do better than the subject on the tasks that both have."""
    for name, cells in found.cells.items():
        method = found.methods.get(name)  # None for tuned linear
        if (
            method is None
            or name in (RULE, DEFAULT)
            or method.controller
            or method.dsa is not None
            or found.tuned(name)
        ):
            continue
        common = [task for task in cells if task in found.cells[subject]]
        mine, other = found.line(subject, common), found.line(name, common)
        if mine and other and (other.ruin < mine.ruin or other.regret.value < mine.regret.value):
            yield name


def _ends(found: Comparison, subject: str, task: str) -> float:
    """Highest share of its peak at which a run's rate ends; negative where all runs ended in an error."""
    rows = found.rows[task].counted[subject]
    shares = measured(rows, "final_lr") / measured(rows, "peak_lr")
    return float(shares[np.isfinite(shares)].max(initial=-1.0))
