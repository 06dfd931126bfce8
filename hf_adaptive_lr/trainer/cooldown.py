"""Runs without a fixed length under Trainer: a cooldown ends the training where the learning rate reaches zero."""

from __future__ import annotations

from typing import Any

from ..scheduler.controlled_lr import ControlledLR


def shorten(scheduler: ControlledLR | None, state: Any, steps: int) -> None:
    """Cool down within `steps` updates, and let Trainer stop there; its state's `max_steps` becomes that.

    ValueError, with nothing changed, unless a run is under way and `steps` is a whole number from 1 to those left.
    """
    if not isinstance(scheduler, ControlledLR) or state is None:
        raise ValueError(f"cooldown({steps}): no run is under way; call it from a callback while train() runs")
    left = state.max_steps - state.global_step
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= left:
        raise ValueError(
            f"cooldown({steps!r}): pass a whole number of updates, at least 1 and at most {left}, the rest"
        )
    scheduler.cooldown(steps)
    stop_after_cooldown(scheduler, state)


def stop_after_cooldown(scheduler: ControlledLR, state: Any) -> None:
    """Where a cooldown is under way, also after a resume, let Trainer stop at its end."""
    left = scheduler.cooldown_left
    if left is not None:
        state.max_steps = min(state.max_steps, state.global_step + left)
