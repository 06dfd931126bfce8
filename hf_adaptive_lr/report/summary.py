"""A run in three plain sentences: the course of its learning rate, what went wrong, and how the loss ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev

from .run import Run

_TINY = 1000.0  # times below the highest rate are updates that measure or warm up
_SAME = 1.02  # rates closer than this are one
_FEWEST = 12  # losses from which a trend is told
_CLEAR = 3.0  # standard errors between two quarters of a run that are a trend
_DIP = 0.5  # of both ends of the run is a dip
_MOST = 4  # kinds of events that are named
_HUGE = 1e100  # losses beyond it say nothing, and their squares are no numbers
_OVERFITS = 1.02  # all evaluation losses after the best one so far above it have risen


def summary(run: Run) -> str:
    """Three sentences in plain words; texts of the run's files are in them as they stand."""
    return " ".join([_rate(run), _trouble(run), _end(run)])


def _rate(run: Run) -> str:
    applied = [(row.step, row.lr) for row in run.rows if row.lr is not None]
    at, peak = max(applied, key=lambda point: point[1])
    if peak <= 0:
        return "The learning rate was 0 all along."
    tiny = next(i for i, (_, lr) in enumerate(applied) if lr > peak / _TINY)
    first_ones = "a first update" if tiny == 1 else f"{tiny:,} updates"
    before = f"After {first_ones} at {max(lr for _, lr in applied[:tiny]):.2g} or less the" if tiny else "The"
    applied = applied[tiny:]
    (start, first), (end, last) = applied[0], applied[-1]
    dip, low = min(applied, key=lambda point: point[1])
    if low > 0 and peak / low < _SAME:
        return f"{before} learning rate stayed at {peak:.2g}."
    rose = at > start and peak > _SAME * first
    fell = end > at and peak > _SAME * last
    parts = [f"began at {first:.2g}"]
    if rose:
        parts.append(f"was raised to {peak:.2g} at update {at:,}")
    if low < _DIP * min(first, last):
        parts.append(f"lay at {low:.2g} at update {dip:,}")
    if fell:
        parts.append(f"fell to {last:.2g} at the end")
    return f"{before} learning rate {', '.join(parts[:-1])}{' and ' if len(parts) > 1 else ''}{parts[-1]}."


def _trouble(run: Run) -> str:
    reasons = Counter(row.reason for row in run.rows)
    found = []
    if run.events:
        common = Counter(event.action for event in run.events).most_common(_MOST)
        acts = ", ".join(f"{action} {_times(count)}" for action, count in common)
        found.append(f"the guard acted ({acts})")
    lost = [step for step, loss in run.losses or run.seen if not abs(loss) < _HUGE]
    if lost:
        found.append(f"the training loss was no finite number {_times(len(lost))}, first at update {lost[0]:,}")
    if reasons["held"]:
        found.append(f"a number that was not finite kept the rate as it was {_times(reasons['held'])}")
    if reasons["bounded"]:
        found.append(f"an answer outside the bounds was cut {_times(reasons['bounded'])}")
    fallen = next((row for row in run.rows if row.reason == "handed_over"), None)
    if fallen is not None:
        why = f" ({fallen.detail})" if fallen.detail else ""
        found.append(f"from update {fallen.step:,} on the controller was not asked any more{why}")
    text = "; ".join(found) or "nothing went wrong"
    return f"{text[0].upper()}{text[1:]}."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _end(run: Run) -> str:
    """The evaluation loss where it has risen again, else the training loss."""
    every = [loss for _, loss in run.losses or run.seen]
    if every and not abs(every[-1]) < _HUGE:
        return "At the end the training loss was no finite number: the run is lost from there on."
    evals = [(step, loss) for step, loss in run.evals if abs(loss) < _HUGE]
    if evals:
        at, best = min(evals, key=lambda point: point[1])
        after = [loss for step, loss in evals if step > at]
        if len(after) > 1 and best > 0 and min(after) > _OVERFITS * best:
            return (
                f"The evaluation loss was lowest after update {at:,} ({best:.3g}) and rose to {after[-1]:.3g}: the "
                "model of that moment, or a shorter run, is the better one."
            )
    losses = [loss for loss in every if abs(loss) < _HUGE]
    if len(losses) < _FEWEST:
        return "There are too few losses to say how it ended."
    return _trend(losses)


def _trend(losses: Sequence[float]) -> str:
    quarter = len(losses) // 4
    start, before, after = losses[:quarter], losses[-2 * quarter : -quarter], losses[-quarter:]
    change, end = fmean(after) - fmean(before), f"{fmean(after):.3g}"
    if fmean(after) - fmean(start) > _CLEAR * _error(start, after):
        return f"The training loss ended above where it began ({end}): look at the rate before it rose."
    if abs(change) <= _CLEAR * _error(before, after):
        return f"The training loss shows no clear trend at the end ({end})."
    if change < 0:
        return f"The training loss was still falling at the end ({end}): a longer run may help."
    return f"The training loss was rising at the end ({end}): look at the rate before it rose."


def _error(*parts: Sequence[float]) -> float:
    """Standard error of the difference of two means."""
    return math.sqrt(sum(stdev(part) ** 2 / len(part) for part in parts))
