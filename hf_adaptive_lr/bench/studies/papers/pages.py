"""The paper study's pages: verdict, claims, setting, results. Every number comes out of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ....hub.card import NOTES, NOTES_END
from ...markdown import rewrite, table
from ...plan import Book
from ...results import failed, paired, values
from ...rows import Row, packed_path
from ...stats import Estimate, mean_interval
from .claims import Claim
from .judge import Cell, Found, Judged, Word, judged, verdict, word_of
from .methods import BASELINES, METHODS
from .plan import QUICK
from .tasks import TUNED_ON

COMMAND = "python -m hf_adaptive_lr.bench.studies.papers"
_MEASURES = {"test_loss": "test loss", "test_metric": "test accuracy", "train_loss": "training loss"}
_ORDER: tuple[Word, ...] = ("holds", "partly", "fails", "untestable")
_QUICK = (
    "**A quick run on shortened tasks.** It shows that the command works; what it says about the paper is worth "
    "nothing.\n"
)
_RULES = """\
Written down before the runs. *Better*: the interval of the paired difference lies on the good side of zero. *Not
worse*: it lies on the good side of a margin of two hundredths of a nat, or of one point of accuracy. A claim holds
when all its comparisons are met, partly when some are, and fails when none is.
"""
_HOW = """\
Learning rates are tuned on a seed that does not count, by the loss on validation rows; where the best is the largest
or smallest tried, further ones follow, and a star marks a choice that is still the outermost. Methods with fields of
their own to tune try each value at every learning rate. Test rows are read once, after the last update. What a
controller is shown or learns from is a fourth part of the data. Runs of one seed start from the same weights and see
the same batches.
"""
_COLUMNS = """\
± is half a ninety-five percent t interval over seeds. Differences are in test loss, paired by seed; below zero the
method is better than the baseline. Failed runs (an error, a loss that is not finite, a final one a tenth above that
of the first batch) are left out of the means. Passes are rows that went through the model per row trained on. Seconds
are processor time of the training on one thread.
"""


def write_page(found: Found, book: Book, folder: Path) -> Path:
    """Render a paper's page, with the notes of the one that is there, and put it in place."""
    path = folder / f"{found.paper.name}.md"
    rewrite(path, lambda notes: render(found, book, notes))
    return path


def render(found: Found, book: Book, notes: str | None = None) -> str:
    """The page."""
    paper, quick = found.paper, found.setup.tasks is QUICK.tasks
    names = dict.fromkeys(name for task in paper.tasks for name in (TUNED_ON.get(task), task) if name is not None)
    parts = [
        f"# {paper.name}: verdict\n",
        f"[{paper.title}]({paper.link})\n",
        f"> {paper.claim}\n",
        _QUICK if quick else "",
        _verdict(found),
        "## Claims\n",
        _RULES,
        _claims(paper.claims, found),
        "## Controls\n" if paper.controls else "",
        _claims(paper.controls, found) if paper.controls else "",
        "## Setting\n",
        _HOW,
        _setting(found),
        "## Results\n",
        _COLUMNS,
        *(part for task in paper.tasks for part in (f"### {task}\n", _results(task, found))),
        _extra_passes(paper.methods),
        "## Notes\n",
        f"{NOTES}\n{paper.notes if notes is None else notes}\n{NOTES_END}\n",
        "## Reproduce\n",
        f"```bash\n{COMMAND} {paper.name}{' --quick' if quick else ''}\n```\n",
        "Rows: " + ", ".join(f"`{book.folder.name}/{packed_path(book.path(name)).name}`" for name in names) + ".\n",
    ]
    return "\n".join(part for part in parts if part)


def summary(found: Found) -> str:
    """The verdict and the words of all claims, as aligned text."""
    lines = [f"{found.paper.name}: {verdict(found)}"]
    for kind, claims in (("claim", found.paper.claims), ("control", found.paper.controls)):
        lines += [f"  {kind:8} {word_of(claim, found):11} {claim.text}" for claim in claims]
    return "\n".join(lines)


def _verdict(found: Found) -> str:
    words = {claim: word_of(claim, found) for claim in found.paper.claims}
    reasons = [
        f"- {word}: {claim.text.rstrip('.')}{f' ({claim.why})' if claim.why else ''}."
        for word in _ORDER
        for claim, its in words.items()
        if its == word
    ]
    return "\n".join([f"**Verdict: {verdict(found)}.**\n", *reasons, ""])


def _claims(claims: Sequence[Claim], found: Found) -> str:
    lines = []
    for claim in claims:
        first = [claim.text, f"**{word_of(claim, found)}**"]
        if not claim.comparisons:
            lines.append([*first, "-", claim.why or "-", "-", "-", "-", "-"])
        for comparison in claim.comparisons:
            lines.append([*first, *_comparison(judged(comparison, found))])
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


def _setting(found: Found) -> str:
    head = ["task", "data", "rows: train / valid / controller / test", "model", "parameters, trained"]
    head += ["optimizer", "batch", "updates", "wrong labels", "seeds"]
    lines = []
    for name in found.paper.tasks:
        runs = next((cell.runs for method in BASELINES if (cell := found.cells[name, method]).runs), {})
        counts = next((row["setting"] for row in runs.values() if "setting" in row), None)
        if counts is None:
            lines.append([name, "not run", *["-"] * (len(head) - 2)])
            continue
        task = found.setup.tasks[name]
        lines.append(
            [
                name,
                task.data,
                " / ".join(f"{n:,}" for n in (task.train_rows, task.valid_rows, task.controller_rows, task.test_rows)),
                task.model,
                f"{counts['parameters']:,}, {counts['trained_parameters']:,}",
                task.optimizer,
                str(task.batch_size),
                str(task.updates),
                f"{100 * task.label_noise:.0f} %" if task.label_noise else "-",
                str(len(runs)),
            ]
        )
    return table(head, lines) + "\n"


def _results(task: str, found: Found) -> str:
    head = ["method", "learning rate", "tuning runs", "accuracy", "test loss", "training loss"]
    head += ["minus constant", "minus linear", "failed", "seconds", "passes forward / backward"]
    lines = []
    for name in (*BASELINES, *found.paper.methods):
        cell = found.cells[task, name]
        if not cell.runs:
            lines.append([name, "not run", *["-"] * (len(head) - 2)])
            continue
        baselines = {other: found.cells[task, other].runs for other in ("constant", "linear")}
        lines.append(
            [
                name,
                _lr(cell),
                _tuning_runs(name, cell),
                *(_shown(_mean(cell, m)) for m in ("test_metric", "test_loss", "train_loss")),
                *(
                    "-" if name == other else _shown(paired(cell.runs, runs, "test_loss"), "+")
                    for other, runs in baselines.items()
                ),
                f"{sum(map(failed, cell.runs.values()))} of {len(cell.runs)}",
                _average([row["cpu_seconds"] for row in _whole(cell)], ".1f"),
                " / ".join(_average([row["passes"][way] for row in _whole(cell)], ".2f") for way in _WAYS),
            ]
        )
    return table(head, lines) + "\n"


_WAYS = ("forward", "backward")


def _extra_passes(names: Sequence[str]) -> str:
    extra = [f"- {name}: {METHODS[name].extra_passes}" for name in names if METHODS[name].extra_passes != "none"]
    return "\n".join(["Beside the update:\n", *extra, ""]) if extra else ""


def _lr(cell: Cell) -> str:
    lrs = {row["lr"] for row in cell.runs.values()}
    star = "*" if cell.tuning.at_edge else ""
    return " / ".join(f"{lr:g}{star}" for lr in sorted(lrs))


def _tuning_runs(name: str, cell: Cell) -> str:
    method = METHODS[name]
    if method.lr != "tuned":
        return f"as {str(method.lr).partition(':')[2]}"
    return str(sum(map(len, cell.tuning.tried.values())) * len(method.variants()))


def _mean(cell: Cell, measure: str) -> Estimate | None:
    found = list(values(cell.runs, measure).values())
    return mean_interval(found) if found else None


def _whole(cell: Cell) -> list[Row]:
    return [row for row in cell.runs.values() if "error" not in row]


def _average(found: Sequence[float], form: str) -> str:
    return format(sum(found) / len(found), form) if found else "-"


def _shown(interval: Estimate | None, sign: str = "") -> str:
    if interval is None:
        return "-"
    half = "" if math.isnan(interval.half) else f" ± {interval.half:.4f}"
    return f"{interval.value:{sign}.4f}{half}"
