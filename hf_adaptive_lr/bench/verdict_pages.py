"""The paper study's pages: verdict, claims, setting, results. Every number comes out of a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..hub.card import NOTES, NOTES_END
from .markdown import rewrite, table
from .stats import Estimate, mean_interval
from .verdict_judge import Cell, Cells, Judged, Word, cells, judged, paired, paper_word, values, word_of
from .verdict_methods import BASELINES, METHODS
from .verdict_papers import REQUIRED_SEEDS, Claim, Paper
from .verdict_plan import Book, failed
from .verdict_tasks import QUICK_TASKS, TASKS

_MEASURES = {"test_loss": "test loss", "test_accuracy": "test accuracy", "train_loss": "training loss"}
_ORDER: tuple[Word, ...] = ("holds", "partly", "fails", "untestable")
_QUICK = (
    "**A quick run on shortened tasks.** It shows that the command works; what it says about the paper is worth "
    "nothing.\n"
)
_RULES = """\
Written down before the runs. *Better*: the interval of the paired difference lies on the good side of zero. *Not
worse*: it lies on the good side of a margin of two hundredths of a nat, or of one point of accuracy. A claim holds
when all its comparisons are met, partly when some are, and fails when none is."""
_HOW = """\
Learning rates are tuned on a seed that does not count, by the loss on validation rows; where the best is the largest
or smallest tried, further ones follow, and a star marks a choice that is still the outermost. Methods with fields of
their own to tune try each value at every learning rate. Test rows are read once, after the last update. What a
controller is shown or learns from is a fourth part of the data. Runs of one seed start from the same weights and see
the same batches."""
_COLUMNS = """\
± is half a ninety-five percent t interval over seeds. Differences are in test loss, paired by seed; below zero the
method is better than the baseline. Failed runs (an error, a loss that is not finite, a final one a tenth above that
of the first batch) are left out of the means. Passes are rows that went through the model per row trained on. Seconds
are processor time of the training on one thread."""


def write_page(paper: Paper, book: Book, folder: Path, *, quick: bool = False) -> Path:
    """Render a paper's page, with the notes of the one that is there, and put it in place."""
    path = folder / f"{paper.name}.md"
    rewrite(path, lambda notes: render(paper, book, notes, quick=quick))
    return path


def render(paper: Paper, book: Book, notes: str | None = None, *, quick: bool = False) -> str:
    """The page."""
    tasks = QUICK_TASKS if quick else TASKS
    found = cells(paper, book, tasks)
    required = 2 if quick else REQUIRED_SEEDS
    named = [name for task in paper.tasks for name in (tasks[task].tuned_on, task) if name is not None]
    files = list(dict.fromkeys(named))
    parts = [
        f"# {paper.name}: verdict\n",
        f"[{paper.title}]({paper.link})\n",
        f"> {paper.claim}\n",
        *([_QUICK] if quick else []),
        _verdict(paper, found, required),
        "## Claims\n",
        _RULES + "\n",
        _claims(paper.claims, found, required),
        *(["## Controls\n", _claims(paper.controls, found, required)] if paper.controls else []),
        "## Setting\n",
        _HOW + "\n",
        _setting(paper, found),
        "## Results\n",
        _COLUMNS + "\n",
        *(part for task in paper.tasks for part in (f"### {task}\n", _results(paper, task, found))),
        _extra_passes(paper),
        "## Notes\n",
        f"{NOTES}\n{paper.notes if notes is None else notes}\n{NOTES_END}\n",
        "## Reproduce\n",
        f"```bash\npython -m hf_adaptive_lr.bench.verdict {paper.name}{' --quick' if quick else ''}\n```\n",
        "Rows: " + ", ".join(f"`{book.folder.name}/{book.path(tasks[task]).name}`" for task in files) + ".\n",
    ]
    return "\n".join(part for part in parts if part)


def summary(paper: Paper, book: Book, *, quick: bool = False) -> str:
    """The verdict and the words of all claims, as aligned text."""
    found = cells(paper, book, QUICK_TASKS if quick else TASKS)
    required = 2 if quick else REQUIRED_SEEDS
    lines = [f"{paper.name}: {paper_word([word_of(claim, found, required) for claim in paper.claims])}"]
    for kind, claims in (("claim", paper.claims), ("control", paper.controls)):
        lines += [f"  {kind:8} {word_of(claim, found, required):11} {claim.text}" for claim in claims]
    return "\n".join(lines)


def _verdict(paper: Paper, found: Cells, required: int) -> str:
    words = {claim: word_of(claim, found, required) for claim in paper.claims}
    reasons = [
        f"- {word}: {claim.text.rstrip('.')}{f' ({claim.why})' if claim.why else ''}."
        for word in _ORDER
        for claim, its in words.items()
        if its == word
    ]
    return "\n".join([f"**Verdict: {paper_word(list(words.values()))}.**\n", *reasons, ""])


def _claims(claims: Sequence[Claim], found: Cells, required: int) -> str:
    lines = []
    for claim in claims:
        first = [claim.text, f"**{word_of(claim, found, required)}**"]
        if not claim.comparisons:
            lines.append([*first, "-", claim.why or "-", "-", "-", "-", "-"])
        for comparison in claim.comparisons:
            lines.append([*first, *_comparison(judged(comparison, found, required))])
            first = ["", ""]
    head = ["claim", "word", "task", "comparison", "measure", "difference", "pairs", "met"]
    return table(head, lines) + "\n"


def _comparison(found: Judged) -> list[str]:
    asked = found.comparison
    met = {True: "yes", False: "no", None: "-"}[found.met]
    return [
        asked.task,
        f"{asked.method} {asked.relation} than {asked.against}",
        _MEASURES[asked.measure],
        _shown(found.difference, "+"),
        "-" if found.difference is None else str(found.difference.n),
        f"{met} ({found.reason})" if found.reason else met,
    ]


def _setting(paper: Paper, found: Cells) -> str:
    head = ["task", "data", "rows: train / valid / controller / test", "model", "parameters, trained"]
    head += ["optimizer", "batch", "updates", "wrong labels", "seeds"]
    lines = []
    for task in paper.tasks:
        runs = next((cell.runs for name in BASELINES if (cell := found[task, name]).runs), {})
        setting: Mapping[str, Any] | None = next((row["setting"] for row in runs.values() if "setting" in row), None)
        if setting is None:
            lines.append([task, "not run", *["-"] * (len(head) - 2)])
            continue
        rows = " / ".join(f"{setting[f'{part}_rows']:,}" for part in ("train", "valid", "controller", "test"))
        lines.append(
            [
                task,
                setting["data"],
                rows,
                setting["model"],
                f"{setting['parameters']:,}, {setting['trained_parameters']:,}",
                setting["optimizer"],
                str(setting["batch_size"]),
                str(setting["updates"]),
                f"{100 * setting['label_noise']:.0f} %" if setting["label_noise"] else "-",
                str(len(runs)),
            ]
        )
    return table(head, lines) + "\n"


def _results(paper: Paper, task: str, found: Cells) -> str:
    head = ["method", "learning rate", "tuning runs", "accuracy", "test loss", "training loss"]
    head += ["minus constant", "minus linear", "failed", "seconds", "passes forward / backward"]
    lines = []
    for name in (*BASELINES, *paper.methods):
        cell = found[task, name]
        if not cell.runs:
            lines.append([name, "not run", *["-"] * (len(head) - 2)])
            continue
        lines.append(
            [
                name,
                _lr(cell),
                str(cell.tuning.runs) if cell.tuning.runs else f"as {METHODS[name].lr}",
                *(_shown(_mean(cell, m)) for m in ("test_accuracy", "test_loss", "train_loss")),
                *(
                    "-" if name == other else _shown(paired(cell.runs, found[task, other].runs, "test_loss"), "+")
                    for other in ("constant", "linear")
                ),
                f"{sum(map(failed, cell.runs.values()))} of {len(cell.runs)}",
                _average(cell, "cpu_seconds", ".1f"),
                f"{_average(cell, 'forward', '.2f')} / {_average(cell, 'backward', '.2f')}",
            ]
        )
    return table(head, lines) + "\n"


def _extra_passes(paper: Paper) -> str:
    extra = [(name, METHODS[name].extra_passes) for name in paper.methods if METHODS[name].extra_passes != "none"]
    return "\n".join(["Beside the update:\n", *(f"- {name}: {what}" for name, what in extra), ""]) if extra else ""


def _lr(cell: Cell) -> str:
    lrs = {row["lr"] for row in cell.runs.values()}
    star = "*" if cell.tuning.at_edge else ""
    return " / ".join(f"{lr:g}{star}" for lr in sorted(lrs))


def _mean(cell: Cell, measure: str) -> Estimate | None:
    found = list(values(cell.runs, measure).values())
    return mean_interval(found) if found else None


def _average(cell: Cell, what: str, form: str) -> str:
    rows = [row for row in cell.runs.values() if "error" not in row]
    found = [row["passes"][what] if what in row["passes"] else row[what] for row in rows]
    return format(sum(found) / len(found), form) if found else "-"


def _shown(interval: Estimate | None, sign: str = "") -> str:
    return "-" if interval is None else f"{interval.value:{sign}.4f}{_half(interval)}"


def _half(interval: Estimate) -> str:
    return "" if math.isnan(interval.half) else f" ± {interval.half:.4f}"
