"""What a guard did, as JSON values, and each of these events in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
_KEPT = 1000


class EventLog:
    """The last 1000 events, oldest first; each is handed to `listener` as well."""

    def __init__(self, listener: Callable[[Event], object] | None) -> None:
        self.events: list[Event] = []
        self._listener = listener

    def add(self, event: Event) -> None:
        """Add an event; numbers that are not finite become text, as JSON has none."""
        event = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
        self.events = [*self.events[1 - _KEPT :], event]
        if self._listener is not None:
            self._listener(event)


def sentence(event: Event) -> str:
    """What happened, for the log."""
    here = f"update {event['update']} (loss {event['loss']})"
    rate = f"learning rate {event['lr_before']:.3g} -> {event['lr_after']:.3g}"
    if event["action"] == "recover":
        return f"no more trouble up to {here}: the cut of the learning rate is taken back, {rate}"
    trouble = f"{event['reason']} at {here}"
    if event["action"] == "skip":
        return f"{trouble}: the update is skipped"
    if event["action"] == "accept":
        return f"{trouble}: the data has changed, training continues with losses like this one"
    back = event.get("restored_update")
    where = "there is nothing to go back to" if back is None else f"back to update {back}"
    return f"{trouble}: {where}, {rate}"
