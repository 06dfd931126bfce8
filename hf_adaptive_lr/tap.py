"""Seeing a model's forward passes from outside, and repeating one of them exactly.

[`ForwardTap`] is a pair of forward hooks that report each training micro-batch's loss. [`ReplayPoint`] keeps what is
needed to compute the same loss again after the update: inputs, random number generators, autocast, so that dropout
draws the same mask; buffers and generators are put back afterwards, so that training goes on as if nothing had
happened.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class ForwardListener(Protocol):
    """Who is told about forward passes of the tapped model."""

    def pass_begins(self, replay: Callable[[], Tensor] | None) -> None:
        """A training micro-batch is about to be computed; `replay` computes its loss again."""

    def pass_ended(self, loss: Tensor | None, kwargs: Mapping[str, Any], output: Any) -> None:
        """The model returned this output for the micro-batch, and in it this loss, if any."""


class ForwardTap:
    """Forward hooks on `model` that tell a listener about training passes; evaluation and no-grad passes are ignored.

    Both ends are weak references: the tap keeps neither the model nor the listener alive. A copy of the model, or a
    model saved whole, carries an inert stand-in from the standard library, so it neither reports nor needs this
    library.

    Args:
        model: the module whose outputs carry `loss`, not its DDP or compiled wrapper.
        listener: told about each pass.
    """

    def __init__(self, model: nn.Module, listener: ForwardListener) -> None:
        self._model, self._listener = weakref.ref(model), weakref.ref(listener)
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._before), with_kwargs=True),
            model.register_forward_hook(_Hook(self._after), with_kwargs=True),
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _active(self, module: nn.Module) -> ForwardListener | None:
        if module is not self._model() or not module.training or not torch.is_grad_enabled():
            return None
        return self._listener()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        listener = self._active(module)
        if listener is not None:
            listener.pass_begins(lambda: _loss_of(module(*args, **kwargs)))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        listener = self._active(module)
        if listener is not None:
            listener.pass_ended(_find_loss(output), kwargs, output)


class _Hook:
    """A hook that copies and pickles as a standard-library callable which does nothing."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (contextlib.nullcontext(), "__exit__"))


def _find_loss(output: Any) -> Tensor | None:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None and isinstance(output, tuple) and output:
        loss = output[0]
    return loss if isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad else None


def _loss_of(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    chosen: Tensor = loss if loss is not None else output[0]
    return chosen


class ReplayPoint:
    """The moment before a forward pass: generators and autocast, to run that pass again on the updated weights.

    Args:
        devices: CUDA devices whose generators are kept besides the CPU's.

    Taking one copies about 5 kB per generator and syncs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generators = _generator_states(device)
        self._autocast = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type)

    @torch.no_grad()
    def run(self, closure: Callable[[], Tensor], model: nn.Module) -> Tensor:
        """The loss of `closure()` at the weights as they are now, with the generators as they were then.

        Args:
            closure: recomputes the micro-batch's loss; 0-d tensor.
            model: the unwrapped module; its buffers (batch statistics) are put back.

        Returns:
            0-d tensor on the model's device; no host sync.
        """
        with self.again(model):
            return closure().detach()

    @contextlib.contextmanager
    def again(self, model: nn.Module) -> Iterator[None]:
        """Inside, generators and autocast are as they were at this point; afterwards all is as it was before.

        A backward pass belongs inside too: putting buffers back would invalidate what it has saved.
        """
        with undisturbed(self._device, model):
            _restore_generators(self._device, self._generators)
            with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._autocast, cache_enabled=False):
                yield


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _restore_generators(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextlib.contextmanager
def undisturbed(device: torch.device, model: nn.Module) -> Iterator[None]:
    """Put the generators and the model's buffers (batch statistics) back as they were, whatever is computed inside."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        with frozen_generators(device):
            yield
    finally:
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)


@contextlib.contextmanager
def frozen_generators(device: torch.device) -> Iterator[None]:
    """Put the random number generators back as they were, whatever is drawn inside."""
    states = _generator_states(device)
    try:
        yield
    finally:
        _restore_generators(device, states)
