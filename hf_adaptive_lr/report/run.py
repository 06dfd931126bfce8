"""A run as the report shows it: the learning rate of every update, the guard's events, losses and facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .values import measured, text

Points = list[tuple[int, float]]


class ReportError(Exception):
    """A folder that no report can be made of; the message names it."""


@dataclass(frozen=True)
class Row:
    """One line of the trace, or, with no learning rate, the place of an event whose update was never applied.

    `lr` is that of the charted group as applied, `lrs` of all groups where they differ; `proposed` is the controller's
    answer as it stands in the trace, a factor or a learning rate, `bounded` a learning rate of group 0; both may be a
    text like "nan", and so may what was observed. `unwritten` updates before it have no line, as
    their rates went straight on.
    """

    step: int
    lr: float | None
    reason: str
    ramp: float = 1.0
    proposed: float | str | None = None
    bounded: float | str | None = None
    detail: str = ""
    lrs: tuple[float, ...] = ()
    unwritten: int = 0
    seen: Mapping[Any, Any] = field(default_factory=dict)
    """What was observed, as it stands in the file."""

    @cached_property
    def observation(self) -> dict[str, Any]:
        """What was observed, as texts and numbers; a page shows that of a few thousand rows only."""
        return {text(k): measured(v) for k, v in self.seen.items()}


@dataclass(frozen=True)
class Event:
    """An action of the divergence guard at an update; `step` is None when the file does not say.

    `action` is the action or its reason, as the file has it; `facts` are all other keys, as texts and numbers; `row`
    is the index of the row that it belongs to.
    """

    step: int | None
    action: str
    facts: Mapping[str, Any]
    row: int = 0


@dataclass(frozen=True)
class Run:
    """A run as read from its folder.

    Rows are in the order of the file; steps go back where a run was rolled back. `losses` are (update, mean training
    loss since the point before) from Trainer's log, `evals` those of the evaluation set, `seen` those that the
    controller observed. `base_lr` is that of group 0 if the answers are factors of it and it could be inferred;
    `group` is the one charted; `facts` are for people; `notes` name files and lines that were missing or damaged.
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
