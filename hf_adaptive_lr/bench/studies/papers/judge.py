"""The paper study, from rows to words: was a comparison met, does a claim hold, what is the verdict on a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...method import Method
from ...plan import Book, Choice
from ...results import Runs, failed, paired
from ...stats import Estimate, gain
from .claims import LOWER_IS_BETTER, MARGINS, Claim, Comparison, Paper
from .methods import BASELINES, METHODS
from .plan import Setup, counted, tuned

Word = Literal["holds", "partly", "fails", "untestable"]


@dataclass(frozen=True)
class Cell:
    """A method on a task: the rows that count, and how its learning rate was found."""

    runs: Runs
    tuning: Choice


@dataclass(frozen=True)
class Found:
    """All that a paper's page shows."""

    paper: Paper
    setup: Setup
    cells: Mapping[tuple[str, str], Cell]  # by names of task and method


@dataclass(frozen=True)
class Judged:
    """Whether a comparison is met."""

    difference: Estimate | None  # paired by seed, over the pairs in which neither run failed
    met: bool | None  # None: not enough runs to say
    reason: str = ""  # why not, where the difference does not show it


def methods_of(paper: Paper) -> list[Method]:
    """The baselines, and a paper's own."""
    return [METHODS[name] for name in (*BASELINES, *paper.methods)]


def find(paper: Paper, setup: Setup, book: Book) -> Found:
    """A paper's rows."""
    cells = {
        (name, method.name): Cell(counted(task, method, setup, book), tuned(task, method, setup, book))
        for name, task in ((name, setup.tasks[name]) for name in paper.tasks)
        for method in methods_of(paper)
    }
    return Found(paper, setup, cells)


def judged(comparison: Comparison, found: Found) -> Judged:
    """Whether a comparison is met.

    A run that failed where the other did not decides it: what comes apart is not better. Where the other failed, the
    pair is left out.
    """
    mine, other = (found.cells[comparison.task, name].runs for name in (comparison.method, comparison.against))
    seeds = mine.keys() & other.keys()
    difference = paired(mine, other, comparison.measure)
    if len(seeds) < found.setup.required:
        return Judged(difference, None, "not run" if not seeds else "too few seeds")
    if any(failed(mine[seed]) and not failed(other[seed]) for seed in seeds):
        return Judged(difference, False, "failed runs")
    if difference is None or difference.n < 2:
        return Judged(difference, None, "too few seeds")
    low, _ = gain(difference, lower_is_better=LOWER_IS_BETTER[comparison.measure])
    threshold = 0.0 if comparison.relation == "better" else -MARGINS[comparison.measure]
    return Judged(difference, low > threshold)


def claim_word(met: Sequence[bool | None]) -> Word:
    """The word of a claim. A comparison that was not run counts as not met, unless none was."""
    if all(m is None for m in met):
        return "untestable"
    if all(met):
        return "holds"
    return "partly" if any(met) else "fails"


def paper_word(words: Sequence[Word]) -> Word:
    """The verdict on a paper, from the words of its claims; untestable ones are left out."""
    tested = {*words} - {"untestable"} or {"untestable"}
    return tested.pop() if len(tested) == 1 else "partly"


def word_of(claim: Claim, found: Found) -> Word:
    """The word of a claim, from rows."""
    return claim_word([judged(comparison, found).met for comparison in claim.comparisons])


def verdict(found: Found) -> Word:
    """The verdict on a paper, from rows."""
    return paper_word([word_of(claim, found) for claim in found.paper.claims])
