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


SETS_ITS_OWN_STEP = ("Prodigy", "DAdapt", "ScheduleFree")
"""In names of classes that choose their own step size and take the learning rate as a multiplier."""

_NOT_STEERED = {
    **dict.fromkeys((*SETS_ITS_OWN_STEP, "COCOB", "DoG", "DoWG", "Mechanic"), "sets its own step size"),
    "LBFGS": "makes several steps of its own in one, of which the learning rate is at most the first length",
    "Rprop": "takes its learning rate for the first update alone, and then sets its own step sizes",
    "Lomo": "updates each weight within the backward pass, before the update's gradient is known",
    "DSA": "sets a learning rate of its own for every weight, in two steps of which the second undoes the first",
}
"""Why an optimizer is not steered by the size of its updates, by what the name of a class of it contains."""


def check_readable(optimizer: Optimizer, needs: frozenset[str]) -> None:
    """ValueError when the controller needs the last update, and the learning rate does not make that.

    So with optimizers that set their own rate, and with Adam on float16 weights, where its eps is 0 and its first
    update NaN. SGD, Adam and AdamW, and subclasses whose step is theirs, are read from their state; all others are
    measured by the difference of the weights.
    """
    wanted = sorted(needs & DIRECTION_FIELDS)
    if not wanted:
        return
    names = [cls.__name__ for cls in type(optimizer).__mro__]
    why = next((why for mark, why in _NOT_STEERED.items() if any(mark in name for name in names)), None)
    if why is not None:
        kind = type(optimizer)
        raise ValueError(
            f"the controller needs {' and '.join(wanted)}, to steer the size of updates by the learning rate, and "
            f"{kind.__module__}.{kind.__qualname__} {why}; use an optimizer that takes the learning rate as it is, "
            "such as AdamW, or a controller that does not need it, such as 'plateau' or 'cosine'"
        )
    if steps_like_torch(optimizer):
        _check_half(optimizer)


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
