"""The paper study, from rows to words: was a comparison met, does a claim hold, what is the verdict on a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .rows import Row, RowsError
from .stats import Estimate, gain, paired_difference
from .verdict_methods import BASELINES, METHODS
from .verdict_papers import LOWER_IS_BETTER, MARGINS, REQUIRED_SEEDS, Claim, Comparison, Paper
from .verdict_plan import Book, Tuning, counted, failed, tuned
from .verdict_tasks import Task

Word = Literal["holds", "partly", "fails", "untestable"]

Runs = Mapping[int, Row]
"""Rows by seed."""


@dataclass(frozen=True)
class Cell:
    """A method on a task: the rows that count, and how its learning rate was found."""

    runs: Runs
    tuning: Tuning


Cells = Mapping[tuple[str, str], Cell]
"""By names of task and method."""


@dataclass(frozen=True)
class Judged:
    """A comparison, and whether it is met."""

    comparison: Comparison
    difference: Estimate | None  # paired by seed, over the pairs in which neither run failed
    met: bool | None  # None: not enough runs to say
    reason: str = ""  # why not, where the difference does not show it


def cells(paper: Paper, book: Book, tasks: Mapping[str, Task]) -> dict[tuple[str, str], Cell]:
    """All that a paper's page shows."""
    return {
        (task, name): Cell(
            counted(tasks[task], METHODS[name], book, tasks), tuned(tasks[task], METHODS[name], book, tasks)
        )
        for task in paper.tasks
        for name in (*BASELINES, *paper.methods)
    }


def values(runs: Runs, measure: str) -> dict[int, float]:
    """A measure by seed, of the runs that did not fail."""
    return {seed: row[measure] for seed, row in runs.items() if not failed(row)}


def paired(mine: Runs, other: Runs, measure: str) -> Estimate | None:
    """Mine minus the other's, over the seeds on which neither failed; None when there are none."""
    both = values(mine, measure).keys() & values(other, measure).keys()
    for seed in both:
        if mine[seed]["pairing"] != other[seed]["pairing"]:
            names = f"{mine[seed]['method']} and {other[seed]['method']}"
            raise RowsError(f"{mine[seed]['task']}, seed {seed}: {names} are not a pair; delete the older's rows")
    return paired_difference(values(mine, measure), values(other, measure)) if both else None


def judged(comparison: Comparison, cells: Cells, required: int = REQUIRED_SEEDS) -> Judged:
    """Whether a comparison is met.

    A run that failed where the other did not decides it: what comes apart is not better. Where the other failed, the
    pair is left out.
    """
    mine, other = (cells[comparison.task, name].runs for name in (comparison.method, comparison.against))
    seeds = mine.keys() & other.keys()
    difference = paired(mine, other, comparison.measure)
    if len(seeds) < required:
        return Judged(comparison, difference, None, "not run" if not seeds else "too few seeds")
    if any(failed(mine[seed]) and not failed(other[seed]) for seed in seeds):
        return Judged(comparison, difference, False, "failed runs")
    if difference is None or difference.n < 2:
        return Judged(comparison, difference, None, "too few seeds")
    low, _ = gain(difference, lower_is_better=LOWER_IS_BETTER[comparison.measure])
    threshold = 0.0 if comparison.relation == "better" else -MARGINS[comparison.measure]
    return Judged(comparison, difference, low > threshold)


def claim_word(met: Sequence[bool | None]) -> Word:
    """The word of a claim. A comparison that was not run counts as not met, unless none was."""
    if all(m is None for m in met):
        return "untestable"
    if all(met):
        return "holds"
    return "partly" if any(met) else "fails"


def paper_word(words: Sequence[Word]) -> Word:
    """The verdict on a paper, from the words of its claims; untestable ones are left out."""
    tested = {word for word in words if word != "untestable"}
    if not tested:
        return "untestable"
    return tested.pop() if len(tested) == 1 else "partly"


def word_of(claim: Claim, cells: Cells, required: int = REQUIRED_SEEDS) -> Word:
    """The word of a claim, from rows."""
    return claim_word([judged(comparison, cells, required).met for comparison in claim.comparisons])
