"""The benchmark's page, rendered from rows alone: the same rows give the same page, byte for byte."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..artifacts import replace_file
from .rows import Row
from .stat_compare import hierarchical_bootstrap, probability_of_improvement
from .stat_runs import Array, failure_rate, harm_rate, iqm, lr_sensitivity, mean
from .yardstick_plan import DEFAULT, PRIMARY, PRIMARY_ENDPOINT, Book
from .yardstick_plots import PLOTS, write_plots
from .yardstick_scores import TARGET, Results, Scores
from .yardstick_tables import (
    budget_table,
    cost_table,
    misled_table,
    table,
    troubled_table,
    variants_table,
)
from .yardstick_tasks import changed

PAGE = "BENCHMARK.md"
_QUICK = "**The quick profile: fewer tasks and learning rates. Its figures are a first look, not the endpoint.**\n"
_INTRO = f"""\
Log-regret is ln(test loss / that of a linear schedule whose learning rate was tuned on the task): 0 is as good, 0.01
is 1 % worse. `{DEFAULT.name}` at its default learning rate is what all methods are compared with. Real tasks go
through `Trainer` with AdamW; its default of 5e-5 is made for fine-tuning, and models from scratch hardly learn with it
in so few updates: a method that finds its learning rate by itself is far ahead there. Read the tasks one by one, too.
On vectorised tasks the default is torch's 1e-3, and optimizers from packages replace the task's own by their Adam.
All of this is about small models on one CPU, trained for 60 to 150 updates, and about nothing larger.
"""
_HEADLINE = f"""\
Mean and interquartile mean (IQM) are of clipped log-regret over tasks and seeds, lower is better, with 95 % intervals
for tasks not yet seen. *Harm* is the share of pairs of runs with a test loss more than 2 % above `{DEFAULT.name}`'s;
*failed* ended non-finite or above their first validation loss; *beats* is the probability of a lower test loss.
*Target* is a validation loss within {TARGET - 1:.0%} of the tuned schedule's: the share of runs that meet it, and the
median speed-up over the tuned schedule's whole run in steps and in seconds, 0 when most runs miss. *Envelope* is the
mean share of the run after which the best of all the linear schedules that were swept, chosen anew at every point of
the curve, is as good as the run at its end; 1 when it never is. *Cost* is the seconds of a run over the tuned
schedule's. Methods that cannot run everywhere have fewer tasks, so compare with care.
"""


def write_page(results: Results, folder: Path, *, command: str) -> Path:
    """Write page and plots, and return the page; `command` is what makes these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    write_plots(results, folder)
    replace_file(folder / PAGE, render(results, command=command))
    return folder / PAGE


def render(results: Results, *, command: str) -> str:
    """The page."""
    stale = changed()
    parts = [
        "# Benchmark: learning-rate control, measured\n",
        *([_QUICK] if results.profile.name == "quick" else []),
        *([f"**Tasks that are not as they were frozen: {', '.join(stale)}.**\n"] if stale else []),
        _INTRO,
        "## Primary endpoint\n",
        "Written down before the frozen tasks were first run; the six methods were named after looks at other draws\n"
        "and at some real tasks:\n",
        "\n".join(f"> {line}" for line in PRIMARY_ENDPOINT.splitlines()) + "\n",
        _primary(results),
        "## Self-tuning: one configuration, published default learning rates\n",
        _HEADLINE,
        _headline(results, list(results.scores)),
        "## Task by task: mean log-regret\n",
        *_by_task(results),
        "## Robustness: initial learning rate\n",
        _sensitivity(results),
        "## Robustness: told a wrong length\n",
        misled_table(results),
        "## Robustness: trouble half-way\n",
        troubled_table(results),
        "## Equal budget: five learning rates each\n",
        budget_table(results),
        "## Variants of two tasks\n",
        variants_table(results),
        "## What learning cost\n",
        cost_table(results),
        "## Plots\n",
        "\n".join(f"![{text}]({name})\n" for name, text in PLOTS.items()),
        "## The reference\n",
        _references(results),
        "## Methods\n",
        *(
            f"- `{m.name}`: {m.text}. Learning rate {m.lr:g}, vectorised {m.vector_lr:g} ({m.lr_source})."
            for m in results.methods
            if m.name in results.scores
        ),
        "",
        "## Reproduce\n",
        f"```bash\n{command}\n```\n",
        _versions(results),
    ]
    return "\n".join(parts)


def failures(book: Book, tasks: Iterable[str]) -> list[Row]:
    """Rows of runs that ended in an error, of code that is in force: of one method and run the newest counts."""
    newest = {
        (row["task"], row["method"], row["seed"], row["lr"]): row for task in tasks for row in book.rows(task).values()
    }
    return [row for row in newest.values() if "error" in row]


def summary(results: Results) -> str:
    """The endpoint in a few lines of text."""
    found = results.primary()
    lines = [f"{name}: {d.signed()}, p {d.p_adjusted:.3g} after Holm" for name, d in found.items()]
    if lines:
        return "\n".join([f"mean log-regret against {DEFAULT.name}, below 0 is better:", *lines])
    if not results.scores:
        return "no rows yet"
    regrets = sorted((float(mean(scores.regret)), name) for name, scores in results.scores.items())
    return "\n".join(
        ["too few tasks to compare; mean log-regret against the tuned linear schedule, below 0 is better:"]
        + [f"{name}: {regret:+.3f}" for regret, name in regrets]
    )


# --- tables -------------------------------------------------------------------------------------------------------


def _primary(results: Results) -> str:
    found, absent = results.primary(), [name for name in PRIMARY if name not in results.scores]
    rows = []
    for name, d in found.items():
        pair = results.pair(name)
        tasks = len(pair[0].tasks) if pair else 0
        possible = d.least_p * len(found) <= 0.05
        verdict = ("better" if d.value < 0 else "worse") if d.found() else "no difference found"
        rows.append(
            [f"`{name}`", str(tasks), d.signed(), f"{d.p_adjusted:.3g}", verdict if possible else "too few tasks"]
        )
    shown = table(["method", "tasks", f"minus `{DEFAULT.name}`", "p (Holm)", "finding"], rows)
    missing = f"Not there, so not tested: {', '.join(f'`{name}`' for name in absent)}.\n" if absent else ""
    return "\n".join(part for part in (shown, missing) if part)


def _headline(results: Results, names: Iterable[str]) -> str:
    ordered = sorted(names, key=lambda name: (float(mean(results.scores[name].regret)), name))
    head = ["method", "tasks", "mean", "IQM", "worst task", "harm", "failed", "beats", "target", "steps", "seconds"]
    return table([*head, "envelope", "cost"], [_headline_row(results, name) for name in ordered])


def _headline_row(results: Results, name: str) -> list[str]:
    scores, pair = results.scores[name], results.pair(name)
    harm = beats = "-"
    if pair is not None:
        mine, base = pair
        harm = f"{harm_rate(mine.test_loss, base.test_loss, lower_is_better=True):.0%}"
        new = len(mine.tasks) > 1
        if new or mine.test_loss.shape[1] > 1:
            chance = probability_of_improvement(mine.regret, base.regret, lower_is_better=True, new_tasks=new)
            beats = f"{chance.value:.2f} [{chance.low:.2f}, {chance.high:.2f}]"
    worst = int(scores.regret.mean(1).argmax())
    met = np.isfinite(scores.steps)
    base_seconds = np.array([[results.references[task].seconds] for task in scores.tasks])
    return [
        f"`{name}`",
        str(len(scores.tasks)),
        _interval(scores),
        f"{float(iqm(scores.regret)):+.3f}",
        f"{scores.tasks[worst]} {scores.regret[worst].mean():+.2f}",
        harm,
        f"{failure_rate(scores.valid_loss, np.nan_to_num(scores.first_loss, nan=math.inf)):.0%}",
        beats,
        f"{met.mean():.0%}",
        f"{_speed_up(scores.steps):.2f}",
        f"{_speed_up(scores.seconds / base_seconds):.2f}",
        f"{np.minimum(scores.envelope, 1.0).mean():.2f}",
        f"{np.nanmedian(scores.cost):.2f}" if np.isfinite(scores.cost).any() else "-",
    ]


def _speed_up(shares: Array) -> float:
    middle = float(np.median(shares))
    return 1 / middle if math.isfinite(middle) and middle > 0 else 0.0


def _interval(scores: Scores) -> str:
    value = float(mean(scores.regret))
    if len(scores.tasks) < 2:
        return f"{value:+.3f}"
    found = hierarchical_bootstrap(scores.regret)
    return f"{value:+.3f} [{found.low:+.2f}, {found.high:+.2f}]"


def _by_task(results: Results) -> list[str]:
    """A table for each family."""
    parts = []
    for family in dict.fromkeys(task.family for task in results.tasks):
        tasks = [task.name for task in results.tasks if task.family == family]
        rows = []
        for name, scores in results.scores.items():
            cells = [f"{scores.part([t]).regret.mean():+.3f}" if t in scores.tasks else "-" for t in tasks]
            rows.append([f"`{name}`", *cells])
        parts += [f"### {family}\n", table(["method", *tasks], rows)]
    return parts


def _sensitivity(results: Results) -> str:
    """Mean over tasks of each method's sensitivities, relative to the reference's loss."""
    rows = []
    for method in results.methods:
        found = []
        for task in results.tasks:
            sweep = results.sweep(task, method)
            if sweep is None or not math.isfinite(sweep[2]):
                continue
            reference = results.references[task.name].test_loss
            start = max(sweep[2], reference) / reference
            losses = sweep[1].T / reference
            found.append(lr_sensitivity(sweep[0], losses, initial=start, reference=1.0))
        if found:
            excess = [float(np.where(np.isfinite(s.mean_excess), s.mean_excess, math.nan).mean()) for s in found]
            whole = [value for value in excess if math.isfinite(value)]
            own = float(np.mean([s.own_width.mean() for s in found]))
            width = float(np.mean([s.reference_width.mean() for s in found]))
            middle = f"{np.median(whole):.3f}" if whole else "-"
            rows.append([f"`{method.name}`", str(len(found)), f"{own:.2f}", f"{width:.2f}", middle])
    text = (
        "Initial learning rates: eight decades up to 1 on real tasks; on vectorised ones nine points over four "
        "decades around the default. For methods that do not use it (`relative`, `universal`) they are one run. "
        "Widths are decades within 5 % of the method's own best and of the tuned schedule, mean over tasks; excess "
        "is over the own best, in units of the tuned schedule's loss, median over tasks.\n"
    )
    return text + "\n" + table(["method", "tasks", "own width", "width at reference", "excess"], rows)


def _references(results: Results) -> str:
    rows = [
        [name, f"{ref.lr:g}{'*' if ref.at_edge else ''}", f"{ref.test_loss:.4f}", str(ref.tuning_runs)]
        for name, ref in results.references.items()
    ]
    text = "\\* at the edge of what was tried, so the reference may be worse than it could be.\n"
    return table(["task", "learning rate", "test loss", "runs to tune"], rows) + "\n" + text


def _versions(results: Results) -> str:
    tasks = [*results.tasks, *results.variants]
    rows = [row for task in tasks for row in results.book.rows(task.name).values() if "versions" in row]
    found = sorted({f"{name} {number}" for row in rows for name, number in row["versions"].items()})
    commits = sorted({row["commit"] for row in rows if row.get("commit")})
    errors = len(failures(results.book, [task.name for task in tasks]))
    line = f"{len(rows)} runs, {errors} more ended in an error. {', '.join(found)}."
    return line + (f" Commits: {', '.join(commits)}.\n" if commits else "\n")
