"""Checks that the losses which a forward hook found are the ones that training differentiates.

A model's output may carry one loss while a trainer computes another: from the logits with class weights, or the
output's plus a regulariser. The gradient that reaches the found loss shows whether it is trained, and by which factor;
the tensor on which `backward` was called, read from that call while it runs, shows whether anything was added.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-3  # relative; of a loss in 16 bits 4 units in the last place


@dataclass
class _Found:
    """A loss that the hook found, and whether a backward pass has reached it."""

    loss: Tensor
    reached: bool = False


@dataclass
class _Pass:
    """One backward pass: its root, the root's value if known, and what found losses contribute to that value."""

    root: weakref.ref[Tensor] | None
    trained: Tensor | None
    heard: Tensor
    factor: Tensor


class TrainedLoss:
    """Compares the found losses of one update with what its backward passes differentiate; no host sync of its own.

    Give `listen` every loss when it is found, and ask for the `deviation` when the optimizer is about to step.
    """

    def __init__(self) -> None:
        self._most_passes = 1  # of one update so far: the last window of an epoch may have fewer
        self.clear()

    def clear(self) -> None:
        """Forget the losses of this update."""
        self._found: list[_Found] = []
        self._passes: list[_Pass] = []
        self._eps = 0.0  # of the coarsest number format of a loss

    def listen(self, loss: Tensor) -> None:
        """Follow this loss, 0-d with a graph."""
        found = _Found(loss.detach().clone())  # `loss /= n` would change what a detached view shows
        self._found.append(found)
        self._eps = max(self._eps, torch.finfo(loss.dtype).eps)
        loss.register_hook(partial(self._reached, found))  # type: ignore[no-untyped-call]

    def forget_last(self) -> None:
        """The last loss does not count: a caller has reported a better one for its micro-batch."""
        if self._found:
            self._found.pop()

    @torch.no_grad()
    def _reached(self, found: _Found, gradient: Tensor | None) -> None:
        if gradient is None:  # an output of a compiled graph that nobody uses
            return
        found.reached = True
        factor = gradient.detach().float()
        heard = factor * found.loss.float()
        root, trained = _root_of_backward()
        if root is not None:
            self._eps = max(self._eps, torch.finfo(root.dtype).eps)
        last = self._passes[-1] if self._passes else None
        if root is not None and last is not None and last.root is not None and last.root() is root:
            last.heard, last.factor = last.heard + heard, last.factor + factor
        else:
            self._passes.append(_Pass(None if root is None else weakref.ref(root), trained, heard, factor))

    @torch.no_grad()
    def deviation(self, device: torch.device) -> Tensor:
        """Largest relative difference between heard and trained loss: 0-d, in [0, 2], 0 where nothing is known.

        A pass may differentiate the loss, or 1 / n of it under accumulation of n micro-batches, times the factor of
        a `GradScaler`. A found loss that no pass reached counts as 1, and one that is not finite as 0.
        """
        parts = [found.loss.isfinite().float() for found in self._found if not found.reached]
        self._most_passes = max(self._most_passes, len(self._passes))
        scale, counts = _loss_scale(), {1, len(self._passes), self._most_passes, _accumulation_of_accelerate()}
        for one in self._passes:
            if one.trained is not None:
                parts.append(_difference(one.trained, one.heard))
            factor = one.factor / scale.to(one.factor.device)
            parts.append(torch.stack([_difference(factor * n, torch.ones_like(factor)) for n in counts]).amin())
        worst = torch.stack([part.to(device) for part in parts]).amax() if parts else torch.zeros((), device=device)
        return torch.nan_to_num(worst, nan=0.0, posinf=0.0)

    def tolerance(self) -> float:
        """The deviation that rounding explains."""
        return max(_TOLERANCE, 4 * self._eps)

    def explain(self) -> str:
        """The losses of this update in words; reads them from the device."""
        heard = ", ".join(f"{float(found.loss):.4g}" for found in self._found)
        if not all(found.reached for found in self._found):
            return f"the output has the loss {heard}, and no backward pass came through it"
        began = [f"{float(one.trained):.4g}" for one in self._passes if one.trained is not None]
        factors = ", ".join(f"{float(one.factor):.4g}" for one in self._passes)
        return (
            f"the output has the loss {heard}, and backward() began at {', '.join(began) or 'an unknown value'}, "
            f"in which that loss has the factor {factors}"
        )


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Relative difference, in [0, 2]; 0 where both are 0."""
    larger = torch.maximum(a.abs(), b.abs())
    return torch.where(larger > 0, (a - b).abs() / larger, torch.zeros_like(a))


# --- reading running calls, where torch has no other way to ask ---------------------------------------------------


def _root_of_backward() -> tuple[Tensor | None, Tensor | None]:
    """The first tensor that the `backward` under way was called on, and the value that it differentiates."""
    frame = _running(torch.autograd.backward.__code__)
    names: dict[str, Any] = {} if frame is None else frame.f_locals
    roots, gradients = names.get("tensors"), names.get("grad_tensors_")
    if not isinstance(roots, tuple) or not isinstance(gradients, tuple) or not roots:
        return None, None
    if not all(isinstance(value, Tensor) for value in (*roots, *gradients)):
        return None, None
    pairs = zip(roots, gradients, strict=True)
    return roots[0], torch.stack([(root.detach().float() * gradient.float()).sum() for root, gradient in pairs]).sum()


def _loss_scale() -> Tensor:
    """Factor of the `GradScaler` that is stepping the optimizer; 1 without one."""
    frame = _in_stack(sys._getframe(1), torch.amp.GradScaler.step.__code__)
    scale = None if frame is None else getattr(frame.f_locals.get("self"), "_scale", None)
    return scale if isinstance(scale, Tensor) else torch.ones(())


def _accumulation_of_accelerate() -> int:
    state = sys.modules.get("accelerate.state")
    plugin = state.GradientState._shared_state.get("plugin_kwargs", {}) if state is not None else {}
    return int(plugin.get("num_steps") or 1)


def _running(code: CodeType) -> FrameType | None:
    """The frame of a function that is running in this thread, or, as autograd has threads of its own, in one other."""
    frame = _in_stack(sys._getframe(1), code)
    if frame is not None:
        return frame
    others = [_in_stack(top, code) for top in sys._current_frames().values()]
    found = [frame for frame in others if frame is not None]
    return found[0] if len(found) == 1 else None


def _in_stack(frame: FrameType | None, code: CodeType) -> FrameType | None:
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame
