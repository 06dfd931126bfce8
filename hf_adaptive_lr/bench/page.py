"""The benchmark's page, rendered from rows alone: the same rows give the same page, byte for byte."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..artifacts import replace_file
from . import tables
from .comparison import GROUPS, Comparison, origin
from .pictures import METHODS_PICTURE, RATES_PICTURE, TUNING_PICTURE, write_pictures
from .plan import PRIMARY_ENDPOINT
from .rows import Row
from .scores import DEFAULT, FLOOR, HARM, RUIN, RULE, TARGET, TUNED
from .stats import Difference
from .targets import targets
from .tasks import Task

PAGE = "BENCHMARK.md"
SUBJECT = "universal"
Suites = Mapping[str, Comparison]
"""Comparisons by suite; what is claimed rests on "test" alone."""

_ASKED = """\
Somebody fine-tunes a model once and has no runs to spare for finding a learning rate. How often does a method that
needs none ruin the model, how often does it do harm, and how far is it from a learning rate that was tuned?
"""
_TABLE = f"""\
*Ruin* is the share of runs that end with a loss above that before the first update (on validation rows), or at
chance where tuned linear is not, or with a loss more than {RUIN:.0%} above `{RULE}`'s (on test rows, as all else).
*Harm* is the share with a loss more than {HARM:.0%} above that of `{RULE}` (2e-5 for whole pretrained models, 2e-4
for adapters, 1e-3 from scratch; linear after 6 % warm-up), or of `{DEFAULT}` (`Trainer` as it comes), with the same
seed. The learning rate of `{DEFAULT}` is meant for Adam, so it is not run on tasks with SGD. *Log-regret* is
ln(test loss / *{TUNED}*'s mean): 0.01 is 1 % worse; a mean over tasks and seeds with a 95 % interval for tasks of
origins not yet seen, since tasks whose data have one origin are alike. A loss below {FLOOR:.0%} of the best
constant answer's counts as that: once a task is solved, ratios say nothing. Losses of densities may be negative;
they are compared by differences in nats. *Minus rule* is the mean log-regret minus `{RULE}`'s on the method's own
tasks, which are not all tasks. *Points* are hundredths of the accuracy above *{TUNED}*'s, where the metric is a
share of right answers; of macro-F1 on tasks whose classes were made of different size. *Seconds* are CPU seconds
over those of *{TUNED}*, the median task's, of the training loop alone, without its first two updates. *Tuning* is
what finding the learning rate took, mean over tasks. The least ruinous come first.
"""
_PICTURE = """\
A dot is a task, a cross one on which at least half of the runs were ruined; the bar is the mean with its interval.
"""
_TUNING = f"""\
Validation loss over the learning rate: means, and all seeds in the band. Red begins where half of the linear runs are
ruined; the dotted line is `{RULE}`'s rate. Panels end at the loss before the first update.
"""
_TASKS = """\
The best rate is that of the better of linear with and without 6 % warm-up; a star: it is the largest or smallest that
was tried. "Within 2%" are the rates around it that were tried and are as good; ruin begins at the lowest rate above it
at which half of the linear runs, with or without warm-up, are ruined: up to three times the best rate a task is
*fragile*. *Flat until*: the share of tuned linear's run in which its training loss makes the first tenth of its way;
from a third on a task is a *slow starter*.
"""
_ENDPOINT = "Written down before the test tasks were first run, and quoted below.\n"
_TARGETS = """\
Set before it was made. Intervals are of 95 %, for tasks of origins not yet seen.
"""
_RATES = """\
The learning rate over the run, of every task that can be scored.
"""
_PARTS = f"""\
The three ways in which a run is ruined; one may be ruined in several. *On target*: the share of runs whose validation
loss came within {TARGET:.0%} of *{TUNED}*'s last one; *after* this share of the run (the median, misses counted as
never).
"""
_BREAKDOWN = "Mean log-regret, in brackets the share of ruined runs where there are any.\n"
_FEEDBACK = """\
A replay follows the mean schedule that a controller chose with the other seeds, and looks at nothing: what it does not
lose, feedback did not bring. Below zero the controller is better.
"""
_PARTS_WORTH = """\
Above zero the part is worth having, or the length worth knowing; on the development tasks, on which all of it was
chosen.
"""
_DEVELOPMENT = """\
These tasks could be looked at as often as one liked; nothing is claimed from them.
"""
_LEFT_OUT = """\
Methods that some of these data sets had a part in making, by training or by choice: their log-regret with data of
these origins and of others, and how far the mean over all tasks moves when any one origin is left out.
"""
_HOW = f"""\
All runs are `Trainer`'s, on one thread of a CPU, with small models: nothing here says anything about larger ones.
Weights and heads are as transformers gives them, the settings `Trainer`'s defaults but for what a task names. Test
rows are read once, after the last update. Schedules are tuned on seeds of their own by validation loss, in steps of
at most 2; {TUNED} is the better of `linear` and `linear_warmup` by that loss. All other methods have one
configuration for all tasks: that of their paper or package, but for `relative` and `universal`, whose settings
were chosen on the development tasks, which have other data and kindred models. Optimizers that need no rate take
the place of the task's own, so on tasks with SGD or Adafactor their regret is of both. The controller's rows are
clean and beside the training rows; only methods that ask for them read them. Runs of a seed start from the same
weights and see the same batches; the bodies of byte models are pretrained by the machine that runs, so that rows of
different machines begin with weights of different rounding there. A run that ended in an error or in a loss that is
not finite counts as ln 100, where log-regret ends on both sides.
"""


def write_page(suites: Suites, folder: Path, *, command: str, subject: str = SUBJECT) -> Path:
    """Write page and pictures, and return the page; `command` is what makes these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(suites, _shown(suites), folder, subject)
    replace_file(folder / PAGE, render(suites, command=command, subject=subject))
    return folder / PAGE


def render(suites: Suites, *, command: str, subject: str = SUBJECT) -> str:
    """The page."""
    found, name = _shown(suites), _shown(suites).suite
    development = {suite: other for suite, other in suites.items() if suite not in ("test", name)}
    parts = [
        "# Benchmark: how good is a learning rate that nobody tuned?\n",
        _ASKED,
        _asked_of(found),
        _wrapped(summary(suites, subject)),
        *_lacking(suites),
        f"## All methods on the {name} tasks\n",
        *([] if name == "test" else [_DEVELOPMENT]),
        _TABLE,
        tables.main(found),
        _chance_harm(found),
        f"![Log-regret of every method on every task]({METHODS_PICTURE})\n",
        _PICTURE,
        f"## Where `{subject}` loses\n",
        _losses(found, subject),
        *(["## Primary endpoint\n", _ENDPOINT, tables.endpoint(found)] if name == "test" else []),
        f"## What `{subject}` was to reach\n",
        _TARGETS,
        targets(found, subject),
        f"![Learning rates of {subject} over the run]({RATES_PICTURE})\n",
        _RATES,
        "## Ruin in its parts, and steps to a target\n",
        _PARTS,
        tables.parts(found),
        *(text for by in GROUPS for text in (f"## By {by}\n", _BREAKDOWN, tables.breakdown(found, by))),
        "## What feedback is worth\n",
        _FEEDBACK,
        tables.feedback(found),
        *(text for other in suites.values() if other.suite == "development" for text in _parts_worth(other)),
        "## Tuning\n",
        _TUNING,
        f"![Validation loss over the learning rate]({TUNING_PICTURE})\n",
        "## The tasks\n",
        _TASKS,
        tables.tasks(suites),
        *(text for suite, other in development.items() for text in _other_suite(suite, other)),
        "## How it was done\n",
        _HOW,
        _same_against_same(found),
        "The primary endpoint:\n",
        "\n".join(f"> {line}" for line in PRIMARY_ENDPOINT.splitlines()) + "\n",
        "The methods:\n",
        "\n".join(f"- `{method.name}`: {method.text}" for method in found.methods.values() if not method.replay_of),
        "",
        "## Reproduce\n",
        f"```bash\n{command}\n```\n",
        _versions(suites),
    ]
    return "\n".join(parts)


def _shown(suites: Suites) -> Comparison:
    """The suite that the page is about: `test` once all its tasks can be scored, as it is looked at once and whole."""
    scored = [found for found in suites.values() if found.rows] or list(suites.values())
    return next((found for found in scored if found.suite != "test" or not found.waiting), scored[0])


def _asked_of(found: Comparison) -> str:
    tasks = found.tasks
    if not tasks:
        return "No task has been run to its end yet.\n"
    models = {task.model for task in tasks}
    updates, batch = (tables.spread(getattr(task, what) for task in tasks) for what in ("updates", "batch_size"))
    return _wrapped(
        f"Asked of {_where(found, tasks)}, with {tables.counted(len(models), 'model')}, {updates} updates, batches of "
        f"{batch} rows, and {tables.counted(found.regret(TUNED).shape[1], 'seed')} each."
    )


def _where(found: Comparison, tasks: Sequence[Task]) -> str:
    places = tables.counted(len({origin(task.data) for task in tasks}), "origin")
    return f"{tables.counted(len(tasks), f'{found.suite} task')} with data of {places}"


def _lacking(suites: Suites) -> list[str]:
    found = [f"{name}: {text}" for name, other in suites.items() if (text := other.lacking())]
    return [_wrapped(f"**Not complete.** {'. '.join(found)}.")] if found else []


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False) + "\n"


def _losses(found: Comparison, subject: str) -> str:
    """How often the subject loses, in words, and the table of losses."""
    regrets = {
        name: {task: float(cell.regret.mean()) for task, cell in cells.items()} for name, cells in found.cells.items()
    }
    mine = regrets.get(subject)
    if not mine:
        return f"`{subject}` has not been run to its end on any task.\n"
    lost = []
    for other in (RULE, DEFAULT, TUNED, "prodigy"):
        common = mine.keys() & regrets.get(other, {}).keys()
        if common and other != subject:
            count = sum(mine[task] > regrets[other][task] for task in common)
            lost.append(f"{tables.named(other)}'s on {count} of {len(common)} tasks")
    rivals = [(task, rival) for task in mine if (rival := tables.best_rival(found, task, subject)) is not None]
    behind = sum(mine[task] > regrets[rival][task] for task, rival in rivals)
    text = f"Its mean test loss is above {', '.join(lost)}, and above the best untuned method's on {behind}."
    return f"{_wrapped(f'{text} Mean test losses, its worst task first:')}\n{tables.losses(found, subject)}"


def _other_suite(suite: str, found: Comparison) -> Iterable[str]:
    yield f"## All methods on the {suite} tasks\n"
    yield _DEVELOPMENT
    yield tables.main(found)
    yield _chance_harm(found)
    if made := tables.left_out(found):
        yield _LEFT_OUT
        yield made


def _parts_worth(found: Comparison) -> list[str]:
    there = any(found.methods[name].part_of for name in found.cells if name in found.methods)
    return (
        [f"## What the parts of `{SUBJECT}` are worth, and the length\n", _PARTS_WORTH, tables.parts_worth(found)]
        if there
        else []
    )


def _chance_harm(found: Comparison) -> str:
    chance = found.chance_harm()
    if not math.isfinite(chance):
        return ""
    return _wrapped(
        f"Of two runs of `{RULE}` with different seeds the first has a loss more than {HARM:.0%} above the second's "
        f"in {chance:.0%} of all pairs: so much harm would be found where nothing is different but the seed."
    )


def _same_against_same(found: Comparison) -> str:
    times, tests = found.same_against_same()
    return _wrapped(
        f"A/A: two seeds of one method, compared over tasks as the endpoint compares methods, differ at the 5 % level "
        f"in {times} of {tests} such comparisons."
    )


def _versions(suites: Suites) -> str:
    rows: list[Row] = [row for found in suites.values() for of in found.rows.values() for row in of.all()]
    versions = sorted({f"{name} {number}" for row in rows for name, number in row.get("versions", {}).items()})
    commits = sorted({row["commit"] for row in rows if row.get("commit")})
    errors, hours = sum("error" in row for row in rows), sum(row.get("cpu_seconds") or 0.0 for row in rows) / 3600
    line = (
        f"{len(rows):,} runs, {hours:.1f} core-hours of training; {errors} ended in an error. {', '.join(versions)}."
    )
    return line + (f" Commits: {', '.join(commits)}.\n" if commits else "\n")


# --- one controller -----------------------------------------------------------------------------------------------


def summary(suites: Suites, controller: str) -> str:
    """Three sentences that say what the result means for one controller."""
    found = next((s for s in (_shown(suites), *suites.values()) if s.line(controller) and s.line(RULE)), None)
    if found is None:
        return f"`{controller}` has not been run to its end on any task, so nothing can be said yet."
    mine, tasks = found.line(controller), list(found.cells[controller])
    rule, default = found.line(RULE, tasks), found.line(DEFAULT, tasks)
    difference = found.against(controller, RULE)
    assert mine is not None and rule is not None and difference is not None  # noqa: S101 - narrowed for mypy
    some = f" of those on {default.tasks} tasks" if default and default.tasks < len(tasks) else ""
    beside = f", `{DEFAULT}`: {default.ruin:.0%}{some}" if default else ""
    where = _where(found, [found.rows[task].task for task in tasks])
    return " ".join(
        [
            f"On {where}, `{controller}` ruined {mine.ruin:.0%} of its runs (`{RULE}`: {rule.ruin:.0%}{beside}).",
            f"Its test loss is {_times(mine.regret.value)} tuned linear's and {_times(difference.value)} `{RULE}`'s "
            f"in the mean over tasks, and lower than `{RULE}`'s on {mine.better:.0%} of them.",
            _verdict(mine.ruin > rule.ruin, difference, len(tasks)),
        ]
    )


def _times(regret: float) -> str:
    return f"{math.exp(regret):.3g} times"


def _verdict(more_ruin: bool, difference: Difference, tasks: int) -> str:
    """By the p-value, as the interval of a few origins is too narrow."""
    if more_ruin:
        return f"It ruins more than the rule of thumb: use `{RULE}` where a run cannot be repeated."
    if not difference.found():
        return f"{tables.counted(tasks, 'task')} cannot tell it from the rule of thumb."
    if difference.value < 0:
        return "Where nothing is tuned it is the better choice on tasks like these."
    return "The rule of thumb is the better choice on tasks like these."
