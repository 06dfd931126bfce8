"""When a controller is asked: decision k of n falls on update k * total_steps // n.

Used by live runs, vectorised runs, the episodes of meta-training and the cards.
Plain numbers and functions: nothing here knows a controller or a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

DueRule = Callable[[int, int | None], bool | None]
"""A `Controller.due`: whether a decision is due at (update, total_steps); None leaves it to `every` or `decisions`."""


class Plan(NamedTuple):
    """Whether the next update is a decision, and what must be measured for it and the one after.

    Args:
        decides: whether the controller is asked at this update.
        next_decides: whether it is asked at the one after, so that signals about this update must be measured.
        outcome: whether the controller learns from what this update does.
    """

    decides: bool
    next_decides: bool
    outcome: bool


def decision_updates(total_steps: int, decisions: int) -> list[int]:
    """The updates on which `decisions` evenly spread decisions fall; several on one where there are fewer updates.

    Example:
        >>> decision_updates(10, 4)
        [0, 2, 5, 7]
    """
    return [k * total_steps // decisions for k in range(decisions)]


def evenly(update: int, total_steps: int, decisions: int) -> bool:
    """Whether one of `decisions` evenly spread decisions falls on this update; past the end, at the mean distance."""
    if update >= total_steps:
        return update % max(1, total_steps // decisions) == 0
    return -(-update * decisions // total_steps) * total_steps // decisions == update


@dataclass(frozen=True)
class Cadence:
    """The updates at which a controller is asked.

    Args:
        total_steps: length of the run as planned at its start; None when unknown.
        every: updates from one decision to the next, at least 1; the first is at update 0.
        decisions: number of decisions, spread evenly, where `total_steps` is known; goes before `every`.
        rule: the controller's own `due`, which goes before both; None where the user chose the cadence.

    Example:
        >>> cadence = Cadence(10, decisions=4)
        >>> [update for update in range(14) if cadence.due(update)]
        [0, 2, 5, 7, 10, 12]
    """

    total_steps: int | None
    every: int = 1
    decisions: int | None = None
    rule: DueRule | None = None

    def due(self, update: int, total_steps: int | None = None) -> bool:
        """Whether the controller is asked at this update; `rule` sees `total_steps`, by default that of the plan."""
        known = self.total_steps if total_steps is None else total_steps
        due = self.rule(update, known) if self.rule is not None else None
        if due is not None:
            return due
        if self.decisions is None or self.total_steps is None:
            return update % self.every == 0
        return evenly(update, self.total_steps, self.decisions)

    @property
    def distance(self) -> int:
        """Updates from one decision to the next, on the whole."""
        if self.decisions is None or self.total_steps is None:
            return self.every
        return max(1, self.total_steps // self.decisions)


def simulate(updates: Iterable[int], lr: float, advance: Callable[[int, float], float]) -> list[float]:
    """The learning rate of each update of a simulated run.

    `advance`, called with (update, learning rate in force), returns that of the update; `lr` is that before the first.

    Example:
        >>> simulate(range(4), 8.0, lambda update, lr: lr / 2 if update % 2 == 0 else lr)
        [4.0, 4.0, 2.0, 2.0]
    """
    lrs = []
    for update in updates:
        lr = advance(update, lr)
        lrs.append(lr)
    return lrs
