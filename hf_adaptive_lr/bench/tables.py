"""The tables of the benchmark's page: each a function of a suite's comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..hub import markdown
from .comparison import Comparison, Line, origin
from .method import REPLAY
from .scores import DEFAULT, RULE, TUNED, TaskRows, measured


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, or a sentence when it would be empty."""
    return markdown.table(head, rows) if rows else "No rows yet.\n"


def named(method: str) -> str:
    """A method's name; tuned linear is no method's, but the better of two for each task."""
    return f"*{method}*" if method == TUNED else f"`{method}`"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{value:.0%}" if math.isfinite(value) else "-"


def _signed(value: float, digits: int = 3) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}" if math.isfinite(value) else "-"


def main(found: Comparison) -> str:
    """The one table: all methods, the least ruinous first, then those that are farthest below `rule`."""
    head = [
        "method",
        "tasks",
        "ruin",
        "harm: rule",
        "harm: default",
        "log-regret",
        "minus rule",
        "worst task",
        "beats rule",
    ]
    rows = [_main_row(found, line) for line in found.lines()]
    return table([*head, "points", "seconds", "tuning"], rows)


def _main_row(found: Comparison, line: Line) -> list[str]:
    cost = found.tuning_cost(line.method)
    return [
        named(line.method),
        str(line.tasks),
        share(line.ruin),
        "-" if line.method == RULE else share(line.harm_rule),
        "-" if line.method == DEFAULT else share(line.harm_default),
        line.regret.signed(),
        "-" if line.method == RULE else _signed(line.over_rule),
        f"{line.worst[0]} {_signed(line.worst[1], 2)}",
        "-" if line.method == RULE else share(line.better),
        _signed(line.points, 1),
        f"{line.seconds:.2f}" if math.isfinite(line.seconds) else "-",
        "-" if cost is None else f"{cost[0]:,.0f} s, {cost[1]:.0f} runs",
    ]


def losses(found: Comparison, subject: str) -> str:
    """Test losses task by task, where the subject is worst first; beside it what a user would otherwise have."""
    others = [name for name in (RULE, DEFAULT, TUNED, "prodigy") if name in found.cells and name != subject]
    head = ["task", *(named(name) for name in (subject, *others)), "best rival"]
    rows = []
    mine = found.cells.get(subject, {})
    for task in sorted(mine, key=lambda name: -float(mine[name].regret.mean())):
        cells = [_loss(found, name, task) for name in (subject, *others)]
        rival = best_rival(found, task, subject)
        rows.append([task, *cells, f"{_loss(found, rival, task)} `{rival}`" if rival else "-"])
    return table(head, rows)


def _loss(found: Comparison, method: str, task: str) -> str:
    cell = found.cells.get(method, {}).get(task)
    if cell is None:
        return "-"
    ruined, loss = int(cell.ruin.any.sum()), found.rows[task].centre(method)
    shown = f"{loss:.4f}" if math.isfinite(loss) else "not finite"
    return f"{shown} ({ruined} of {len(cell.loss)} ruined)" if ruined else shown


def best_rival(found: Comparison, task: str, subject: str) -> str | None:
    """The method with the least regret on a task of those that are not tuned on it, replays left out."""
    regrets = {
        name: float(found.cells[name][task].regret.mean())
        for name in found.whole
        if task in found.cells[name] and name != subject and not name.startswith(REPLAY) and not found.tuned(name)
    }
    return min(regrets, key=lambda name: regrets[name], default=None)


def breakdown(found: Comparison, by: str) -> str:
    """Mean log-regret by a property of tasks, with the share of ruined runs in brackets where there are any."""
    groups = found.groups(by)
    rows = [
        [named(line.method), *(_part(found.line(line.method, tasks)) for tasks in groups.values())]
        for line in found.lines()
    ]
    return table(["method", *(f"{name} ({len(tasks)})" for name, tasks in groups.items())], rows)


def _part(line: Line | None) -> str:
    if line is None:
        return "-"
    return _signed(line.regret.value) + (f" ({line.ruin:.0%})" if line.ruin else "")


def parts(found: Comparison) -> str:
    """The three parts of ruin, and steps to the target."""
    rows = [
        [
            named(line.method),
            *(share(value) for value in (line.ended_worse, line.at_chance, line.above_rule, line.met)),
            share(line.steps),
        ]
        for line in found.lines()
    ]
    head = ["method", "worse than it began", "at chance", "10% above `rule`", "on target", "after"]
    return table(head, rows)


def feedback(found: Comparison) -> str:
    """Every controller beside its replay."""
    rows = []
    for name, method in found.methods.items():
        worth = found.against(method.replay_of, name) if method.replay_of else None
        mine = found.line(method.replay_of or "")
        replay = found.line(name)
        if worth is not None and mine is not None and replay is not None:
            cells = [_part(mine), _part(replay), worth.signed(), f"{worth.p:.2g}"]
            rows.append([named(mine.method), str(worth.n), *cells])
    return table(["method", "tasks", "log-regret", "its replay's", "difference", "p"], rows)


def parts_worth(found: Comparison) -> str:
    """Methods that lack a part of another one, beside it on the same tasks."""
    rows = []
    for name, method in found.methods.items():
        whole = method.part_of or ""
        worse = found.against(name, whole)
        if worse is not None:
            lines = [found.line(one, list(found.cells[name])) for one in (name, whole)]
            ruin = [share(line.ruin) for line in lines if line is not None]
            rows.append([named(name), method.text, str(worse.n), *ruin, worse.signed()])
    return table(["method", "that is", "tasks", "ruin", "of the whole", "log-regret more than the whole's"], rows)


def left_out(found: Comparison) -> str:
    """Methods that data had a part in making: their regret on its origins, on others, and without any one origin."""
    groups, rows = found.groups("origin"), []
    for name, method in found.methods.items():
        if not method.chosen_on or name not in found.cells:
            continue
        known = {origin(data) for data in method.chosen_on}
        seen, unseen = ([t for one in groups for t in groups[one] if (one in known) == part] for part in (True, False))
        lines = [found.line(name, [t for t in found.cells[name] if t not in tasks]) for tasks in groups.values()]
        means = [line.regret.value for line in lines if line is not None]
        span = f"{_signed(min(means))} to {_signed(max(means))}" if means else "-"
        rows.append([named(name), _part(found.line(name, seen)), _part(found.line(name, unseen)), span])
    return table(["method", "origins it was made with", "others", "without any one origin"], rows) if rows else ""


def endpoint(found: Comparison, level: float = 0.05) -> str:
    """The primary endpoint: what was named in advance, tested once all of it has been run."""
    if not found.decided:
        return "It is tested once, when all its runs are there.\n"
    tested, rows = found.primary(), []
    for name, difference in tested.items():
        possible = difference.least_p * len(tested) <= level
        word = ("better" if difference.value < 0 else "worse") if difference.found(level) else "no difference found"
        finding = word if possible else "too few origins"
        places = f"{difference.n} from {counted(len(set(found.origins(found.cells[name]))), 'origin')}"
        rows.append([named(name), places, difference.signed(), f"{difference.p_adjusted:.3g}", finding])
    return table(["method", "tasks", "minus tuned linear", "p (Holm)", "finding"], rows)


def tasks(suites: Mapping[str, Comparison]) -> str:
    """What the tasks are, and how narrow the learning rates that suit them."""
    head = ["task", "suite", "data", "model", "optimizer", "updates", "batch", "best rate", "within 2%", "ruin from"]
    head += ["flat until", "reached (constant answer)"]
    rows = []
    for found in suites.values():
        for task in found.tasks:
            about = (task.name, found.suite, task.data, f"{task.model}, {task.kind}", task.optimizer)
            rows.append([*about, f"{task.updates:,}", str(task.batch_size), *_rates(found, task.name)])
            rows[-1] += [share(found.flat_until(task.name)), _reached(found.rows[task.name])]
    return table(head, rows)


def _reached(of: TaskRows) -> str:
    """Tuned linear's metric, and that of the best constant answer."""
    metric = float(np.nanmean(measured(of.counted[TUNED], "test_metric")))
    return f"{metric:.3g} ({of.constant('chance_metric'):.3g})"


def _rates(found: Comparison, task: str) -> tuple[str, str, str]:
    tuned, reference = found.tuning(task), found.rows[task].reference
    if tuned is None or reference is None:
        return "-", "-", "-"
    edge = "\\*" if tuned.best in (tuned.lrs[0], tuned.lrs[-1]) else ""
    shape = ", warm-up" if reference[0] == "linear_warmup" else ""
    ruin = found.ruin_from(task)
    return (
        f"{tuned.best:.2g}{edge}{shape}",
        " to ".join(f"{lr:.2g}" for lr in dict.fromkeys(tuned.good)),
        f"{ruin:.2g} ({ruin / tuned.best:.3g}x)" if math.isfinite(ruin) else "-",
    )


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def spread(values: Iterable[float]) -> str:
    """Lowest and highest of some whole numbers."""
    found = np.array(list(values))
    return f"{found.min():,} to {found.max():,}" if len(set(found.tolist())) > 1 else f"{found.min():,}"
