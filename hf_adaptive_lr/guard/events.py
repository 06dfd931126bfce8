"""What a guard did, as dicts of JSON values, and as sentences for the log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Event = dict[str, Any]


def json_values(event: Event) -> Event:
    """The event with NaN and infinity, which JSON does not have, as strings."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}


def sentence(event: Mapping[str, Any]) -> str:
    """The event in words: reason, update, loss, where the run went back to, learning rate before and after."""
    back = event.get("restored_update")
    where = "there is nothing to go back to" if back is None else f"back to update {back}"
    return (
        f"{event['reason']} at update {event['update']} (loss {event['loss']}): {where}, "
        f"learning rate {event['lr_before']:.3g} -> {event['lr_after']:.3g}"
    )
