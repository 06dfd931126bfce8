"""Which optimizers a controller can steer: where their last update can be told, by their state or by the weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

PREVIOUS_DIRECTION = "adaptive_lr_direction"
"""Key in `optimizer.state[p]` of the previous direction, for SGD without a buffer that contains it, and of the
previous change of the weights, with its sign reversed, for optimizers whose state nobody can read. It lives there so
that it is checkpointed, sharded and moved between devices with the rest of the optimizer's state."""

DIRECTION_FIELDS = frozenset({"alignment", "slope", "group_alignment", "group_slope", "update_ratio"})
"""Fields that are computed from the previous update."""


def check_readable(optimizer: Optimizer, needs: frozenset[str]) -> None:
    """ValueError when the controller needs the optimizer's state and the optimizer is not torch's SGD, Adam or AdamW.

    A subclass will do where the step is theirs: one that moves the weights in another way would be misread. So does
    Adam on float16 weights, where its eps is 0 and its first update NaN.
    """
    wanted = sorted(needs & DIRECTION_FIELDS)
    if not wanted:
        return
    if steps_like_torch(optimizer):
        _check_half(optimizer)
        return
    kind, known = type(optimizer), isinstance(optimizer, SGD | Adam)
    why = "has a step of its own, so the state does not tell its update" if known else "keeps a state of its own"
    raise ValueError(
        f"the controller needs {' and '.join(wanted)}, read from the state of torch's SGD, Adam or AdamW, and "
        f"{kind.__module__}.{kind.__qualname__} {why}; use one of these three, or a controller that does not need it, "
        "such as 'plateau' or 'cosine'"
    )


def _check_half(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups if isinstance(optimizer, Adam) else ():
        half = any(p.dtype == torch.float16 for p in group["params"])
        if half and not torch.tensor(group["eps"], dtype=torch.float16):
            raise ValueError(
                f"{type(optimizer).__name__} with eps={group['eps']:g} cannot train float16 weights: the squares of "
                "the gradients and eps are 0 there, and the first update makes them NaN. Keep the weights in float32 "
                "and train with fp16=True or bf16=True (autocast)"
            )


def steps_like_torch(optimizer: Optimizer) -> bool:
    """Whether the class is SGD, Adam or AdamW, or inherits the step and the layout of the state unchanged."""
    if type(optimizer) in (SGD, Adam, AdamW):
        return True
    base: Any = next((cls for cls in (SGD, Adam) if isinstance(optimizer, cls)), None)
    kind: Any = type(optimizer)
    # torch wraps the step of every class once, for its hooks.
    return base is not None and all(
        inspect.unwrap(getattr(kind, name)) is inspect.unwrap(getattr(base, name)) for name in ("step", "_init_group")
    )
