"""Repeating a forward pass exactly, without side effects.

[`ReplayPoint`] keeps random number generators and autocast, so that dropout draws the same mask when the loss is
computed again after the update; buffers and generators are put back afterwards, so that training is not disturbed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..distributed import reshard


class ReplayPoint:
    """The moment before a forward pass: generators and autocast, to run it again on updated weights.

    The generators are torch's (CPU, `device`), Python's and NumPy's (SpecAugment draws its masks there). Taking one
    copies about 5 kB per generator and syncs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generators = _generator_states(device)
        self._autocast = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type)

    @torch.no_grad()
    def run(self, closure: Callable[[], Tensor], model: nn.Module) -> Tensor:
        """`closure()`, a 0-d loss, at the weights as they are now, with the generators as they were; no host sync."""
        with self.again(model):
            return closure().detach()

    @contextlib.contextmanager
    def again(self, model: nn.Module) -> Iterator[None]:
        """Inside, generators and autocast are as they were at this point; afterwards all is as it was before.

        A backward pass belongs inside too: putting buffers back would invalidate the tensors that it has saved.
        """
        with undisturbed(self._device, model):
            _restore_generators(self._device, self._generators)
            with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._autocast, cache_enabled=False):
                yield


class _Generators(NamedTuple):
    cpu: Tensor
    device: Tensor | None
    python: Any
    numpy: Any


def _generator_states(device: torch.device) -> _Generators:
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return _Generators(torch.get_rng_state(), there, random.getstate(), np.random.get_state())


def _restore_generators(device: torch.device, states: _Generators) -> None:
    torch.set_rng_state(states.cpu)
    if states.device is not None:
        torch.cuda.set_rng_state(states.device, device)
    random.setstate(states.python)
    np.random.set_state(states.numpy)


@contextlib.contextmanager
def undisturbed(device: torch.device, model: nn.Module) -> Iterator[None]:
    """Put the generators and the model's buffers (batch statistics) back as they were, whatever is computed inside.

    Sharded weights are sharded again.
    """
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        with frozen_generators(device):
            yield
    finally:
        reshard(model)
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


def surrogate() -> Tensor:
    """Stands for the replay of a loss whose value does not follow the weights, so that it is not computed again.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("this loss does not follow the weights, so that computing it again tells nothing")


class RecordedPasses:
    """The forward passes of one update's micro-batches, kept so that their losses can be computed again after it."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self.clear()

    def clear(self) -> None:
        """Forget the passes of this update."""
        self._passes: list[tuple[Callable[[], Tensor] | None, ReplayPoint]] = []
        self._announced = self._repeatable = self._surrogate = False

    def __len__(self) -> int:
        return len(self._passes)

    @property
    def replayable(self) -> bool:
        """Whether the micro-batches were announced ahead of their passes, with functions that compute them again."""
        return self._announced and self._repeatable and all(replay is not None for replay, _ in self._passes)

    @property
    def surrogate(self) -> bool:
        """Whether one of the losses does not follow the weights."""
        return self._surrogate

    def begin(self, replay: Callable[[], Tensor] | None, device: torch.device | None) -> None:
        """A forward pass begins, whose loss `replay` (or what `set_replay` gets later) computes again.

        `device` is where the weights are; None keeps nothing, as the pass will not be repeated.
        """
        self._announced, self._repeatable = True, replay is not None
        self._surrogate |= replay is surrogate
        if device is not None:
            self._passes.append((replay, ReplayPoint(device)))

    def set_replay(self, replay: Callable[[], Tensor] | None) -> None:
        """The function that computes the last micro-batch's loss again; None where there is none after all."""
        self._repeatable = replay is not None
        if self._passes:
            self._passes[-1] = (replay, self._passes[-1][1])

    def forget(self, places: Iterable[int]) -> None:
        """Drop the passes at these places, counted from the end, as they turned out to be no micro-batches."""
        gone = {len(self._passes) + place for place in places}
        self._passes = [one for number, one in enumerate(self._passes) if number not in gone]

    def loss_again(self, micro_batch: int = -1) -> Tensor:
        """Loss of a micro-batch at the weights as they are now; 0-d, no host sync. RuntimeError if not recorded."""
        replay, point = self._passes[micro_batch] if self._passes else (None, None)
        if replay is None or point is None or self._model is None:
            raise RuntimeError(
                "a forward pass has to be repeated and none was recorded; call before_forward() ahead of each one"
            )
        return point.run(replay, self._model)
