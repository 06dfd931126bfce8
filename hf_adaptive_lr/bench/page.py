"""The benchmark's page, rendered from rows alone: the same rows give the same page, byte for byte."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..artifacts import replace_file
from . import tables
from .comparison import GROUPS, Comparison, origin
from .markdown import filled
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

_TEMPLATE = Path(__file__).with_suffix(".md")
_ENDPOINT = "Written down before the test tasks were first run, and quoted below.\n"
_BREAKDOWN = "Mean log-regret, in brackets the share of ruined runs where there are any.\n"
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


def write_page(suites: Suites, folder: Path, *, command: str, subject: str = SUBJECT) -> Path:
    """Write page and pictures, and return the page; `command` is what makes these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(suites, _shown(suites), folder, subject)
    replace_file(folder / PAGE, render(suites, command=command, subject=subject))
    return folder / PAGE


def render(suites: Suites, *, command: str, subject: str = SUBJECT) -> str:
    """The page."""
    found, name = _shown(suites), _shown(suites).suite
    others = {suite: other for suite, other in suites.items() if suite not in ("test", name)}
    development = [other for other in suites.values() if other.suite == "development"]
    breakdowns = (text for by in GROUPS for text in (f"## By {by}\n", _BREAKDOWN, tables.breakdown(found, by)))
    texts = (method for method in found.methods.values() if not method.replay_of)
    return filled(
        _TEMPLATE,
        subject=subject,
        suite=name,
        **{"ruin": f"{RUIN:.0%}", "harm": f"{HARM:.0%}", "floor": f"{FLOOR:.0%}", "target": f"{TARGET:.0%}"},
        **{"methods_picture": METHODS_PICTURE, "rates_picture": RATES_PICTURE, "tuning_picture": TUNING_PICTURE},
        asked_of=_asked_of(found),
        summary=_wrapped(summary(suites, subject)),
        lacking=_lines(_lacking(suites)),
        test_so_far=_lines(_test_so_far(suites["test"]) if name != "test" and "test" in suites else ()),
        development=_lines([_DEVELOPMENT] * (name != "test")),
        main=tables.main(found),
        chance_harm=_chance_harm(found),
        losses=_losses(found, subject),
        endpoint=_lines(["## Primary endpoint\n", _ENDPOINT, tables.endpoint(found)] if name == "test" else []),
        targets=targets(found, subject),
        parts=tables.parts(found),
        breakdowns=_lines(breakdowns),
        feedback=tables.feedback(found),
        parts_worth=_lines(text for other in development for text in _parts_worth(other)),
        tasks=tables.tasks(suites),
        other_suites=_lines(text for suite, other in others.items() for text in _other_suite(suite, other)),
        same_against_same=_same_against_same(found),
        primary_endpoint="\n".join(f"> {line}" for line in PRIMARY_ENDPOINT.splitlines()),
        methods="\n".join(f"- `{method.name}`: {method.text}" for method in texts),
        command=command,
        versions=_versions(suites).rstrip("\n"),
    )


def _lines(parts: Iterable[str]) -> str:
    return "".join(f"{part}\n" for part in parts)


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


def _test_so_far(found: Comparison) -> Iterable[str]:
    """What is known while some of its tasks cannot be scored; nothing is tested with it."""
    if found.rows:
        yield f"## The test tasks so far: {len(found.rows)} of {len(found.rows) + len(found.waiting)}\n"
        yield "The cheapest first, not all by every method; the columns are explained below.\n"
        yield tables.main(found)
        yield tables.losses(found, SUBJECT) if SUBJECT in found.cells else ""


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
            "It was chosen on these: no verdict."
            if found.suite == "development" and controller == SUBJECT
            else _verdict(mine.ruin > rule.ruin, difference, len(tasks)),
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
