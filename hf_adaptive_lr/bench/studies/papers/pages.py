"""The paper study's pages: verdict, claims, setting, results. Every number comes out of a row."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from ...markdown import QUICK_RUN, filled, table
from ...method import Method
from ...plan import Book
from ...results import failed, paired, values
from ...rows import packed_path
from ...stats import Estimate, mean_interval
from . import adapted_steps, saddle, survival, teaching
from .claims import MARGINS, Claim, Comparison
from .judge import Cell, Found, Word, judged, methods_of, verdict, word_of
from .methods import BASELINES
from .plan import QUICK
from .tasks import TUNED_ON

TEMPLATE = Path(__file__).with_name("page.md")
COMMAND = "python -m hf_adaptive_lr.bench.studies.papers"
STUDIES: Mapping[str, Callable[[Path], str]] = {
    "actor_critic": survival.section,
    "dsa": adapted_steps.section,
    "plrs": saddle.section,
    "ppo_schedule": teaching.section,
}
"""Sections of papers that have a study of their own, from the folder of the rows."""
_MEASURES = {"test_loss": "test loss", "test_metric": "test accuracy", "train_loss": "training loss"}
_ORDER: tuple[Word, ...] = ("holds", "partly", "fails", "untestable")


def render(found: Found, book: Book, notes: str | None = None) -> str:
    """The page, with notes that a person may have written instead of the first ones."""
    paper, quick = found.paper, found.setup.tasks is QUICK.tasks
    names = dict.fromkeys(name for task in paper.tasks for name in (TUNED_ON.get(task), task) if name is not None)
    return filled(
        TEMPLATE,
        name=paper.name,
        title=paper.title,
        link=paper.link,
        claim=paper.claim,
        use=textwrap.fill(paper.use, 119),
        quick=QUICK_RUN * quick,
        verdict=_verdict(found),
        claims=_claims(paper.claims, found),
        controls=f"## Controls\n\n{_claims(paper.controls, found)}\n" if paper.controls else "",
        power=_power(found),
        setting=_setting(found),
        results="\n".join(f"### {task}\n\n{_results(task, found)}\n" for task in paper.tasks),
        extra_passes=_extra_passes(methods_of(paper)),
        study=STUDIES[paper.name](book.folder) if paper.name in STUDIES else "",
        notes=paper.notes if notes is None else notes,
        command=f"{COMMAND} {paper.name}{' --quick' if quick else ''}",
        rows=", ".join(f"`{book.folder.name}/{packed_path(book.path(name)).name}`" for name in names),
    )


def _verdict(found: Found) -> str:
    words = [(word_of(claim, found), claim) for claim in found.paper.claims]
    reasons = [
        f"- {word}: {claim.text.rstrip('.')}{f' ({claim.why})' if claim.why else ''}."
        for word, claim in sorted(words, key=lambda of: _ORDER.index(of[0]))
    ]
    return "\n".join([f"**Verdict: {verdict(found)}.**\n", *reasons])


def _claims(claims: Sequence[Claim], found: Found) -> str:
    head = ["claim", "word", "task", "comparison", "measure", "difference", "pairs", "first seeds alone", "met"]
    lines = []
    for claim in claims:
        cells = [_comparison(comparison, found) for comparison in claim.comparisons]
        first = [claim.text, f"**{word_of(claim, found)}**"]
        for row in cells or [["-", claim.why or "-", *["-"] * 5]]:
            lines.append([*first, *row])
            first = ["", ""]
    return f"{table(head, lines)}\n"


def _comparison(asked: Comparison, found: Found) -> list[str]:
    answer = judged(asked, found)
    met = {True: "yes", False: "no", None: "-"}[answer.met]
    return [
        asked.task,
        f"{asked.method} {asked.relation} than {asked.against}",
        _MEASURES[asked.measure],
        _shown(answer.difference, "+"),
        "-" if answer.difference is None else str(answer.difference.n),
        _first_alone(asked, found),
        f"{met} ({answer.reason})" if answer.reason else met,
    ]


def _first_alone(asked: Comparison, found: Found) -> str:
    gap = early(found, asked.task, asked.method, asked.against, asked.measure)
    return "-" if gap is None else f"± {gap.half:.4f} ({gap.n})"


def early(found: Found, task: str, method: str, against: str, measure: str) -> Estimate | None:
    """The difference over the seeds that the page began with, if both have more now."""
    first = found.setup.first_seeds(found.setup.tasks[task])
    sides = [found.cells[task, name].runs for name in (method, against)]
    if min(map(len, sides)) <= first:
        return None
    mine, other = ({seed: row for seed, row in runs.items() if seed < first} for runs in sides)
    return paired(mine, other, measure)


def _power(found: Found) -> str:
    """How many comparisons are sharp enough for effects that matter, by task."""
    asked = dict.fromkeys(c for claim in (*found.paper.claims, *found.paper.controls) for c in claim.comparisons)
    sharp: dict[str, list[bool]] = {}
    for each in asked:
        gap = judged(each, found).difference
        if gap is not None and not math.isnan(gap.half):
            sharp.setdefault(each.task, []).append(gap.half <= MARGINS[each.measure] / 2)
    counts = [f"{sum(each)} of {len(each)} on {task}" for task, each in sharp.items()]
    start = "Comparisons whose half width is at most half of that margin"
    return f"{start}: {', '.join(counts)}.\n\n" if counts else ""


def _setting(found: Found) -> str:
    head = ["task", "data", "rows: train / valid / controller / test", "model", "parameters, trained"]
    head += ["optimizer", "batch", "updates", "wrong labels", "seeds"]
    lines = []
    for task in (found.setup.tasks[name] for name in found.paper.tasks):
        runs = next((runs for method in BASELINES if (runs := found.cells[task.name, method].runs)), {})
        counts = next((row["setting"] for row in runs.values() if "setting" in row), None)
        cells = ["not run", *["-"] * (len(head) - 2)]
        if counts is not None:
            rows = (task.train_rows, task.valid_rows, task.controller_rows, task.test_rows)
            cells = [task.data, " / ".join(f"{n:,}" for n in rows), task.model]
            cells += [f"{counts['parameters']:,}, {counts['trained_parameters']:,}", task.optimizer]
            cells += [str(task.batch_size), str(task.updates)]
            cells += [f"{100 * task.label_noise:.0f} %" if task.label_noise else "-", _seeds(task.name, found)]
        lines.append([task.name, *cells])
    return table(head, lines)


def _seeds(task: str, found: Found) -> str:
    counts = sorted({len(of.runs) for (name, _), of in found.cells.items() if name == task and of.runs})
    return " or ".join(map(str, counts))


def _results(task: str, found: Found) -> str:
    head = ["method", "learning rate", "tuning runs", "accuracy", "test loss", "training loss"]
    head += ["minus constant", "minus linear", "failed", "seconds", "passes forward / backward"]
    lines = []
    for method in methods_of(found.paper):
        cell = found.cells[task, method.name]
        cells = ["not run", *["-"] * (len(head) - 2)]
        if cell.runs:
            cells = [*_tuning(method, cell), *(_mean(cell, m) for m in ("test_metric", "test_loss", "train_loss"))]
            for other in ("constant", "linear"):
                gap = paired(cell.runs, found.cells[task, other].runs, "test_loss") if method.name != other else None
                cells.append(_shown(gap, "+"))
            cells += [f"{sum(map(failed, cell.runs.values()))} of {len(cell.runs)}", *_cost(cell)]
        lines.append([method.name, *cells])
    return table(head, lines)


def _tuning(method: Method, cell: Cell) -> tuple[str, str]:
    """The learning rates, and how many runs it took to find them."""
    star = "*" if cell.tuning.at_edge else ""
    lrs = " / ".join(f"{lr:g}{star}" for lr in sorted({row["lr"] for row in cell.runs.values()}))
    if method.lr != "tuned":
        return lrs, f"as {str(method.lr).partition(':')[2]}"
    return lrs, str(sum(map(len, cell.tuning.tried.values())) * len(method.variants()))


def _mean(cell: Cell, measure: str) -> str:
    found = list(values(cell.runs, measure).values())
    return _shown(mean_interval(found) if found else None)


def _cost(cell: Cell) -> tuple[str, str]:
    rows = [row for row in cell.runs.values() if "error" not in row]
    if not rows:
        return "-", "- / -"
    forward, backward = (fmean(row["passes"][way] for row in rows) for way in ("forward", "backward"))
    return f"{fmean(row['cpu_seconds'] for row in rows):.1f}", f"{forward:.2f} / {backward:.2f}"


def _extra_passes(methods: Sequence[Method]) -> str:
    extra = [f"- {method.name}: {method.extra_passes}" for method in methods if method.extra_passes != "none"]
    return "\n".join(["Beside the update:\n", *extra, "\n"]) if extra else ""


def _shown(interval: Estimate | None, sign: str = "") -> str:
    if interval is None:
        return "-"
    half = "" if math.isnan(interval.half) else f" ± {interval.half:.4f}"
    return f"{interval.value:{sign}.4f}{half}"
