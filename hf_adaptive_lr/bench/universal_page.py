"""The page of `universal`: what it reached of what was aimed at, from the benchmark's rows alone.

    python -m hf_adaptive_lr.bench.universal_page

Writes `model_cards/universal.md` and `model_cards/universal_lr.png`. Nothing is run; what a person wrote on the page
between the notes markers stays.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import replace_file
from ..hub.card import NOTES, NOTES_END, notes_of
from .rows import read_rows
from .runner import command_parser
from .universal_ablations import COMMANDS, TRAINING_COMMANDS, ablations, trainings
from .universal_figures import (
    MINE,
    SHOWN,
    Curve,
    curve,
    harm,
    improved_by,
    improvement,
    log_ratio,
    pairs,
    real_tasks,
    summary,
)
from .yardstick_methods import METHODS
from .yardstick_plan import PROFILES, Book, Profile
from .yardstick_plots import png
from .yardstick_tables import table
from .yardstick_tasks import TASKS

MEASURES = ("test_accuracy", "test_loss")
PAGE, PICTURE, ROWS = "universal.md", "universal_lr.png", Path("model_cards/rows")
RIVALS = (
    "cosine",
    "linear",
    "prodigy",
    "schedule_free",
    "dadapt_adam",
    "greedy_repaired",
    "finder_cosine",
    "relative",
)
_COMMANDS = f"""\
```bash
hf-adaptive-lr train universal --minutes 60 --output-dir my-universal
hf-adaptive-lr bench --full --jobs 2 --output-dir model_cards
python -m hf_adaptive_lr.bench.decision_cost
python -m hf_adaptive_lr.bench.universal_page
```

Those that lack something:

```bash
{COMMANDS}\
```

Trained again:

```bash
{TRAINING_COMMANDS}\
```
"""
_INTRO = """\
A GRU of 32 units that steers how far an update moves the weights, relative to their size. It takes no learning rate
from the user: the first update is made at 1e-7 and measured. So the eight initial learning rates below are one run for
it, and eight for the others. The tasks were not in its training; what it is and which of its weights are bundled was
chosen on other draws of these tasks' training rows, and never by test rows.

**Experimental on pretrained encoders.** The figures below are from tasks like those it was chosen on. On other data
sets it was worse than a tuned linear schedule on average and ruined pretrained encoders: two-class sentences ended at
the majority class. So `hf-adaptive-lr finetune` without `--controller` takes `relative`, with a size by kind of task
(`python -m hf_adaptive_lr.bench.relative_sizes`). A new benchmark and a new version are on the way.
"""


def curves_of(profile: Profile, book: Book) -> dict[str, dict[str, Curve]]:
    """Curves by method and task, of the tasks for which all shown methods have theirs."""
    found = {
        name: {t.name: c for t in real_tasks(profile) if (c := curve(t, name, profile, book)) is not None}
        for name in SHOWN
    }
    there = {name: tasks for name, tasks in found.items() if tasks}
    common = set.intersection(*(set(tasks) for tasks in there.values())) if there else set()
    return {name: {task: tasks[task] for task in tasks if task in common} for name, tasks in there.items() if common}


def sensitivity(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """The table of initial learning rates."""
    rows = [[f"`{name}`", str(len(tasks)), *(f"{v:.3f}" for v in summary(tasks))] for name, tasks in curves.items()]
    return table(["method", "tasks", "mean over eight decades", "at its best one", "at its worst one"], rows)


def left_out(profile: Profile, curves: Mapping[str, Mapping[str, Curve]]) -> str:
    """A sentence about the real tasks that the table of initial learning rates lacks; empty if it has all."""
    there = next(iter(curves.values()), {})
    names = [task.name for task in real_tasks(profile) if task.name not in there]
    return f"Left out, as others have not been run on them at every decade: {', '.join(names)}.\n" if names else ""


def against(profile: Profile, book: Book) -> str:
    """Beside each rival with published defaults, and beside the tuned linear schedule, on the real tasks."""
    rows, tasks = [], real_tasks(profile)
    for name in (None, *RIVALS):
        accuracy, loss = (pairs(tasks, name, what, profile, book) for what in MEASURES)
        if not accuracy.tasks:
            continue
        rows.append(
            [
                "linear, tuned" if name is None else f"`{name}`",
                str(len(accuracy.tasks)),
                f"{accuracy.mine.mean():.3f}",
                f"{accuracy.other.mean():.3f}",
                accuracy.difference_text(),
                f"{improvement(loss):.2f}",
                f"{np.exp(log_ratio(loss).mean()):.2f}",
            ]
        )
    head = ["beside", "tasks", "accuracy", "the other's", "difference", "wins by loss", "loss over the other's"]
    return table(head, rows)


def by_task(profile: Profile, book: Book) -> str:
    """Accuracy and loss on each real task, beside the tuned linear schedule."""
    rows = []
    for task in real_tasks(profile):
        accuracy, loss = (pairs([task], None, what, profile, book) for what in MEASURES)
        if accuracy.tasks:
            cells = [accuracy.mine, accuracy.other, accuracy.mine - accuracy.other, loss.mine, loss.other]
            rows.append([task.name, str(task.updates), *(f"{values.mean():.3f}" for values in cells)])
    head = ["task", "updates", "accuracy", "tuned linear", "difference", "loss", "tuned linear"]
    return table(head, rows)


def targets(profile: Profile, book: Book) -> str:
    """What was aimed at, and what was reached."""
    tasks = real_tasks(profile)
    accuracy, loss = (pairs(tasks, None, what, profile, book) for what in MEASURES)
    if not accuracy.tasks:
        return "No rows yet.\n"
    gaps = (accuracy.mine - accuracy.other).mean(1)
    worst = accuracy.tasks[int(gaps.argmin())]
    every = [TASKS[name] for name in profile.tasks]
    (share, count), lower = harm(every, profile, book), improved_by(loss)
    rows = [
        ["accuracy minus tuned linear's, no learning rate given", "at least -0.005", accuracy.difference_text()],
        ["the same on the worst task", "at least -0.02", f"{gaps.min():+.3f} ({worst})"],
        ["wins against tuned linear, by loss", "at least 0.50", f"{improvement(loss):.2f}"],
        ["tasks with a loss lower by 5 %", f"at least {-(-len(loss.tasks) // 2)}", f"{lower} of {len(loss.tasks)}"],
        ["runs more than 2 % worse than default cosine", "at most 0.05", f"{share:.3f} of {count}"],
        *_costs(book.folder),
    ]
    return table(["what", "aim", "reached"], rows)


def in_words(profile: Profile, book: Book) -> str:
    """One sentence for the README: beside the tuned linear schedule, wins and losses; empty without rows."""
    found = pairs(real_tasks(profile), None, "test_accuracy", profile, book)
    if not found.tasks:
        return ""
    gaps = (found.mine - found.other).mean(1)
    best, worst = int(gaps.argmax()), int(gaps.argmin())
    return (
        f"On all {len(gaps)} real tasks, without a learning rate, its mean accuracy is {found.mine.mean():.3f}; a "
        f"linear schedule tuned for each has {found.other.mean():.3f}. "
        f"The difference is {found.difference_text()}, a 95 % interval for tasks not yet seen; by task it runs "
        f"from {gaps[best]:+.3f} ({found.tasks[best]}) down to {gaps[worst]:+.3f} ({found.tasks[worst]}).\n"
    )


def _costs(rows: Path) -> list[list[str]]:
    found = {row["controller"]: row for row in read_rows(rows / "decision_cost.jsonl")}
    if "universal" not in found:
        return []
    row = found["universal"]
    return [
        ["size of the weights' file", "below 50,000 bytes", f"{row['bytes']:,} bytes"],
        ["policy net", "below 100 us", f"{1e6 * row['net_seconds']:.0f} us"],
        ["a decision without the sensors", "below 1 ms", f"{1e3 * row['decision_seconds']:.2f} ms"],
    ]


def render(profile: Profile, book: Book, notes: str | None) -> str:
    """The page."""
    curves = curves_of(profile, book)
    parts = [
        "# `universal`: no learning rate to choose\n",
        _INTRO,
        "## Initial learning rate\n",
        "Test accuracy on real fine-tunes, mean over tasks and seeds; learning rates of 1e-7 ... 1, one per decade.\n",
        sensitivity(curves),
        *([left_out(profile, curves)] if curves else []),
        *([f"![Test accuracy by initial learning rate]({PICTURE})\n"] if curves else []),
        "## What was aimed at\n",
        "Intervals are of 95 %, over tasks and seeds, for tasks not yet seen.\n",
        targets(profile, book),
        "## Beside others, at their published defaults\n",
        against(profile, book),
        "## Task by task, beside the linear schedule at its best learning rate of nine\n",
        by_task(profile, book),
        "## What each part is worth\n",
        ablations(profile, book) or "No rows yet.\n",
        "## Trained again\n",
        trainings(book) or "No rows yet.\n",
        "Mean log-regret on the quick tasks: ln of the final test loss over the tuned linear schedule's; below 0 is "
        "better.\n",
        "## What was tried\n",
        f"{NOTES}\n{notes or ''}\n{NOTES_END}\n",
        "## Reproduce\n",
        _COMMANDS,
    ]
    return "\n".join(parts)


def picture(curves: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """The curves, a panel for each task, as a PNG."""
    from matplotlib.figure import Figure

    tasks = list(next(iter(curves.values())))
    figure = Figure(figsize=(3.2 * len(tasks), 3.2), layout="constrained")
    panels: Any = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for number, (name, found) in enumerate(curves.items()):
            width = 2.5 if name == MINE else 1.2
            label = METHODS[name].controller or name
            axes.plot(found[task].lrs, found[task].accuracy, color=f"C{number}", linewidth=width, label=label)
        axes.set(title=task, xscale="log", ylim=(0, 1), xlabel="learning rate given")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="test accuracy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
    return png(figure)


def write(folder: Path, rows: Path) -> Path:
    """Write page and picture; returns the page."""
    profile, book, page = PROFILES["full"], Book(rows), folder / PAGE
    notes = notes_of(page.read_text(encoding="utf-8")) if page.is_file() else None
    text, curves = render(profile, book, notes), curves_of(profile, book)
    replace_file(page, text)
    if curves:
        replace_file(folder / PICTURE, lambda path: path.write_bytes(picture(curves)))
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; 0 when done, 2 when there are no rows."""
    parser = command_parser("universal_page", __doc__)
    parser.add_argument("--rows-dir", type=Path, default=ROWS, metavar="DIR", help=f"rows (default: {ROWS})")
    options = parser.parse_args(argv)
    if not options.rows_dir.is_dir():
        print(f"{parser.prog}: error: no folder '{options.rows_dir}'; run it in the project's folder", file=sys.stderr)
        return 2
    print(f"wrote {write(options.rows_dir.parent, options.rows_dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
