"""Checks that the losses which a forward hook found are the ones that training differentiates.

A model's output may carry one loss while a trainer computes another: from the logits with class weights, or the
output's plus a regulariser. The gradient that reaches the found loss shows whether it is trained, and by which factor;
the tensor on which `backward` was called, read from that call while it runs, shows whether anything was added.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from ..distributed import world_size

_TOLERANCE = 1e-3  # relative; of a loss in 16 bits 4 units in the last place
_SCALED = 256.0  # from here on a factor that is a power of two is a gradient scaler's: nobody weights a loss so


@dataclass
class _Pass:
    """One backward pass: its root, the root's value, and what found losses contribute to that, as far as is known."""

    root: weakref.ref[Tensor] | None
    trained: Tensor | None
    heard: Tensor | None = None
    factor: Tensor | None = None


@dataclass
class _Found:
    """A loss that the hook found, whether a backward pass has reached it, or at least what came with it."""

    loss: Tensor
    reached: bool = False
    touched: _Pass | None = None


class TrainedLoss:
    """Compares the found losses of one update with what its backward passes differentiate; no host sync of its own.

    Give `listen` every loss when it is found, and ask for the `deviation` when the optimizer is about to step.
    """

    def __init__(self) -> None:
        self.said = False
        """Whether a deviation in mid-run has been warned of."""
        self._most_passes = 1  # of one update so far: the last window of an epoch may have fewer
        self.clear()

    def clear(self) -> None:
        """Forget the losses of this update."""
        self._found: list[_Found] = []
        self._passes: list[_Pass] = []
        self._eps = 0.0  # of the coarsest number format of a loss
        self._believed = False

    def listen(self, loss: Tensor, others: Iterable[Tensor] = ()) -> None:
        """Follow this loss, of shape () or (1,), and what else with a graph the model returned, such as logits.

        A trainer may compute the same loss once more from the others: then the root of its pass has the same value.
        """
        found = _Found(loss.detach().reshape(()).clone())  # `loss /= n` would change what a detached view shows
        self._found.append(found)
        self._eps = max(self._eps, torch.finfo(loss.dtype).eps)
        loss.register_hook(partial(self._reached, found))  # type: ignore[no-untyped-call]
        for other in others:
            if other is not loss:
                other.register_hook(partial(self._touched, found))  # type: ignore[no-untyped-call]

    def believe(self) -> None:
        """Compare nothing in this update: a caller has reported a loss of its own."""
        self._believed = True

    @torch.no_grad()
    def _reached(self, found: _Found, gradient: Tensor | None) -> None:
        if gradient is None:  # an output of a compiled graph that nobody uses
            return
        found.reached = True
        factor = gradient.detach().float().reshape(())
        heard = factor * found.loss.float()
        one = self._pass() or _Pass(None, None)
        if one.root is None:
            self._passes.append(one)
        one.heard = heard if one.heard is None else one.heard + heard
        one.factor = factor if one.factor is None else one.factor + factor

    @torch.no_grad()
    def _touched(self, found: _Found, gradient: Tensor | None) -> None:
        if gradient is not None:
            one = self._pass()
            found.touched = found.touched or one

    def _pass(self) -> _Pass | None:
        """The backward pass under way; None where its root is not found."""
        root, trained = _root_of_backward()
        if root is None:
            return None
        self._eps = max(self._eps, torch.finfo(root.dtype).eps)
        last = self._passes[-1] if self._passes else None
        if last is None or last.root is None or last.root() is not root:
            self._passes.append(_Pass(weakref.ref(root), trained))
        return self._passes[-1]

    @torch.no_grad()
    def deviation(self, device: torch.device) -> Tensor:
        """Largest relative difference between heard and trained loss: 0-d, in [0, 2], 0 where nothing is known.

        A pass may differentiate the loss, or 1 / n of it under accumulation of n micro-batches (of which a first short
        epoch may have fewer), times the factor of a `GradScaler` and the number of processes, or a value that is equal
        to it. What cannot be explained counts as 1, not finite ones as 0.
        """
        self._most_passes = max(self._most_passes, len(self._passes))
        counts = sorted({1, len(self._passes), self._most_passes, _accumulation_of_accelerate()})
        # Trainer multiplies a loss that is a share of all processes' by their number, as gradients are averaged.
        expected = [n / processes for n in counts for processes in {1, world_size()}]
        scale = _loss_scale()

        def from_expected(value: Tensor, whole: Tensor) -> Tensor:
            shares = value / scale.to(value.device) * value.new_tensor(expected)
            return _difference(shares, whole.expand_as(shares)).amin()

        @cache
        def shared() -> Tensor:
            return _from_shared_factor(self._passes, counts)

        parts = []
        heard = any(found.reached for found in self._found)
        for found in self._found:
            if not found.reached and not (heard and found.touched is None):  # else it was computed and not trained
                value = None if found.touched is None else found.touched.trained
                one = found.loss.isfinite().float()
                parts.append(one if value is None else from_expected(value, found.loss.float()))
        for each in self._passes:
            if each.factor is not None and each.heard is not None:
                parts.append(torch.minimum(from_expected(each.factor, torch.ones_like(each.factor)), shared()))
                if each.trained is not None:
                    parts.append(_difference(each.trained, each.heard))
            elif not any(found.touched is each and not found.reached for found in self._found):
                parts.append(torch.ones((), device=device))  # a second term has its own backward pass
        if not parts or self._believed:
            return torch.zeros((), device=device)
        worst = torch.stack([part.to(device) for part in parts]).amax()
        return torch.nan_to_num(worst, nan=0.0, posinf=0.0)

    def tolerance(self) -> float:
        """The deviation that rounding explains."""
        return max(_TOLERANCE, 4 * self._eps)

    def explain(self) -> str:
        """The losses of this update in words; reads them from the device."""
        heard = ", ".join(f"{float(found.loss):.4g}" for found in self._found)
        began = ", ".join(f"{float(one.trained):.4g}" for one in self._passes if one.trained is not None)
        text = f"the output has the loss {heard}, and backward() began at {began or 'an unknown value'}"
        if not all(found.reached for found in self._found):
            return f"{text}, without passing through that loss"
        factors = ", ".join("0" if one.factor is None else f"{float(one.factor):.4g}" for one in self._passes)
        return f"{text}, in which that loss has the factor {factors}"


def _from_shared_factor(passes: list[_Pass], counts: list[int]) -> Tensor:
    """How far the passes are from one factor that explains all of them, though no count of passes does; 0-d.

    That is 1 / k of several micro-batches in a first window of fewer than k, or, as after `scaler.unscale_(optimizer)`
    with the loop's own `optimizer.step()`, that of a gradient scaler which nobody can ask. Their values must be known.
    """
    factors = [one.factor for one in passes if one.factor is not None]
    unknown = len(factors) < len(passes) or any(one.trained is None for one in passes)
    first = factors[0]
    if unknown:
        return torch.ones_like(first)
    unequal = torch.stack([_difference(factor.to(first.device), first) for factor in factors]).amax()
    scaled = first * first.new_tensor(counts)
    power = scaled.abs().clamp_min(1e-30).log2().round().exp2()
    from_power = torch.where(power >= _SCALED, _difference(scaled, power), 1.0).amin()
    if len(passes) > 1:
        whole = (1 / first.clamp(1e-9, 1)).round().clamp_min(len(passes))
        from_power = torch.minimum(from_power, _difference(first * whole, torch.ones_like(first)))
    return torch.maximum(unequal, from_power)


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
