"""A run as the report shows it: the learning rate of every update, the guard's events, losses and facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Points = list[tuple[int, float]]


class ReportError(Exception):
    """A folder that no report can be made of; the message names it."""


@dataclass(frozen=True)
class Row:
    """One line of the trace, or, with no learning rate, the place of an event whose update was never applied.

    Args:
        step: 0-based index of the update.
        lr: learning rate of the charted group as applied, None where no update was.
        reason: code as in the trace; `event` where no update was applied.
        ramp: warm-up or cooldown multiplier.
        proposed: the controller's answer as it stands in the trace, a factor or a learning rate, or a text like "nan".
        bounded: the answer after bounds, as a learning rate of group 0.
        detail: which field or bound it was.
        lrs: learning rates of all groups where they differ.
        observation: measured fields: numbers, lists of numbers, or texts where they are not finite.
    """

    step: int
    lr: float | None
    reason: str
    ramp: float = 1.0
    proposed: float | str | None = None
    bounded: float | str | None = None
    detail: str = ""
    lrs: tuple[float, ...] = ()
    observation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """An action of the divergence guard.

    Args:
        step: 0-based index of the update, or None when the event does not say.
        action: the action or its reason, as the file has it.
        facts: all other keys, as texts and numbers.
        row: index of the row that it belongs to.
    """

    step: int | None
    action: str
    facts: Mapping[str, Any]
    row: int = 0


@dataclass(frozen=True)
class Run:
    """Everything that a run folder tells.

    Args:
        name: folder as it was given.
        rows: the trace in the order of the file; steps go back where a run was rolled back.
        events: actions of the guard.
        losses: (update, mean training loss since the point before), from Trainer's log.
        evals: (update, loss on the evaluation set).
        seen: (update, loss that the controller observed).
        base_lr: base LR of group 0 if the answers are factors of it and it could be inferred, else None.
        group: index of the parameter group whose learning rate is charted.
        facts: (name, value) pairs, for people.
        notes: files and lines that were missing or damaged.
    """

    name: str
    rows: Sequence[Row]
    events: Sequence[Event] = ()
    losses: Points = field(default_factory=list)
    evals: Points = field(default_factory=list)
    seen: Points = field(default_factory=list)
    base_lr: float | None = None
    group: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def proposals_unclear(self) -> bool:
        """Whether there are answers that cannot be shown as learning rates."""
        return self.base_lr is None and any(isinstance(row.proposed, float) for row in self.rows)

    @property
    def last_step(self) -> int:
        """The largest update on any chart of this run."""
        ends = [points[-1][0] for points in (self.losses, self.evals) if points]
        return max(1, *ends, *(row.step for row in self.rows))
