"""Reads and writes the parameter groups of any optimizer: unwraps it, its base learning rates, its skipped steps."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..distributed import local
from ..sensors.deepspeed import is_zero, zero_partitions
from ..sensors.readable import SETS_ITS_OWN_STEP

_STAND_IN = "LayerWiseDummyOptimizer"


def raw(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Accelerate's wrapper, or the optimizer itself; of DeepSpeed's ZeRO what stands for it.

    TypeError where it is no torch optimizer; ValueError where DeepSpeed steps it in a way in which no controller can
    steer, or every layer has its own.
    """
    inner = getattr(optimizer, "optimizer", None)
    if is_zero(optimizer):
        return zero_partitions(optimizer)
    if type(optimizer).__name__ == "DeepSpeedOptimizerWrapper":
        return zero_partitions(inner)
    # Accelerate's wrapper has no step hooks and replaces step; the optimizer inside has both.
    while isinstance(inner, Optimizer):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if type(optimizer).__name__ == _STAND_IN:
        raise ValueError(
            "a layer-wise optimizer (GaLore, APOLLO) updates each weight within the backward pass, before the "
            "update's gradient is known, so nothing can decide; use its form that is not layer-wise"
        )
    return optimizer


def base_lrs(optimizer: Optimizer) -> list[float]:
    """Learning rate of every group as the user set it, kept in `initial_lr` as torch's schedulers do.

    ValueError: an optimizer without one, such as Adafactor with `relative_step=True`.
    """
    for group in optimizer.param_groups:
        lr = group["lr"]
        if lr is None:
            more = ", relative_step=False and warmup_init=False" if "relative_step" in group else ""
            raise ValueError(
                f"{type(optimizer).__name__} was made with lr=None and sets its own learning rate, so nothing is left "
                f"to control; give it lr=...{more}"
            )
        group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
    return [float(group["initial_lr"]) for group in optimizer.param_groups]


def set_lrs(optimizer: Optimizer, lrs: Sequence[float]) -> None:
    """Write the learning rate of every group; into its tensor where it is one, so that a compiled step sees it."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def no_update(optimizer: Optimizer, given: Sequence[Any]) -> bool:
    """Whether the step that is beginning will change no weight: no gradient, or a gradient scaler found infinities.

    A closure among the arguments `given` to the step computes gradients. torch's distributed checkpoints make a step
    with zeros for gradients and learning rates, so that an optimizer has a state to load into.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    idle = all(p.grad is None for p in params)
    # A rank may have no part of any weight, and cannot tell then.
    if idle and any(p.numel() for p in params) and not any(callable(argument) for argument in given):
        return True
    if not optimizer.state and all(float(group["lr"]) == 0 for group in optimizer.param_groups) and _loads():
        return not any(bool(local(p.grad).any()) for p in params if p.grad is not None)
    # A fused optimizer under a gradient scaler is called even when the update will be skipped inside the kernel.
    # Reading the flag is the one host sync that plain scaler.step() pays as well.
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and math.isfinite(found.item()) and bool(found.item() > 0)


def _loads() -> bool:
    """Whether torch's distributed checkpoint is about to load an optimizer's state."""
    return any(code.co_name == "_init_optim_state" for code in _callers())


def _callers() -> Iterator[CodeType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


_HOOKED = Optimizer.profile_hook_step(lambda: None).__code__


def is_nested(optimizer: Optimizer) -> bool:
    """Whether this hook is of a step within a step: a class that calls its parent's `step` runs the hooks twice."""
    steps = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and steps < 2:
        steps += frame.f_code is _HOOKED and frame.f_locals["args"][0] is optimizer
        frame = frame.f_back
    return steps > 1


def warn_if_free_of_lr(optimizer: Optimizer) -> None:
    """Warn once when the optimizer chooses its own step size (Prodigy, D-Adaptation, Schedule-Free)."""
    names = [cls.__name__ for cls in type(optimizer).__mro__]
    if any(mark in name for name in names for mark in SETS_ITS_OWN_STEP):
        warnings.warn(
            f"{type(optimizer).__name__} sets its own step size and takes lr as a multiplier only; a controller on "
            "top of it steers that multiplier. Its authors advise a constant schedule.",
            UserWarning,
            stacklevel=4,
        )
