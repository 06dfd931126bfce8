"""Computes a trainer's loss again, or on other batches, as if it had never been computed.

What is repeated is the call that training made: `compute_loss` with the inputs that it got. What is before it may not
be repeatable (GRPO generates while it prepares a batch), and its inputs may be of any kind. Many trainers log inside
`compute_loss` (TRL counts tokens, rewards and margins there), so their books are put back.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_CONTAINERS = (dict, list, set, deque, defaultdict, OrderedDict, Counter)
_DATA = frozenset({"train_dataset", "eval_dataset", "controller_dataset"})
_LONGEST = 100_000  # a longer container is data, not a log
_LARGEST = 1024  # a larger tensor is data, not a running sum


@contextlib.contextmanager
def recorded(trainer: Any, begins: Callable[[Callable[..., Any], Any], None]) -> Iterator[None]:
    """Inside, `begins` is called ahead of each `trainer.compute_loss`, with a function that makes the same call.

    That function takes a `compute_loss` without the model, and calls it with copies of the inputs, as some take the
    labels out of theirs. The second argument is the inputs.
    """
    mine, compute = vars(trainer).get("compute_loss"), trainer.compute_loss

    def recording(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        kept = copy.copy(inputs)
        begins(lambda call: call(copy.copy(kept), *args, **kwargs), inputs)
        return compute(model, inputs, *args, **kwargs)

    vars(trainer)["compute_loss"] = recording  # on the instance, so that no override of a class is missed
    try:
        yield
    finally:
        if mine is None:
            vars(trainer).pop("compute_loss", None)
        else:
            vars(trainer)["compute_loss"] = mine


@contextlib.contextmanager
def unlogged(trainer: Any) -> Iterator[None]:
    """Put the trainer's books back, whatever is computed inside: its attributes, and what it logs goes nowhere.

    Attributes are numbers, strings, small tensors, and lists, dicts and the like of these at any depth; what an object
    of another class counts in itself stays.
    """
    attributes = dict(vars(trainer))
    containers, tensors = _contents(value for name, value in attributes.items() if name not in _DATA)
    vars(trainer)["log"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        for name in vars(trainer).keys() - attributes.keys():
            del vars(trainer)[name]
        vars(trainer).update(attributes)
        for container, saved in containers:
            _refill(container, saved)
        with torch.no_grad():
            for tensor, number, value in tensors:
                if tensor._version != number:  # changed in place
                    tensor.copy_(value)


def _contents(values: Iterator[Any]) -> tuple[list[tuple[Any, Any]], list[tuple[Tensor, int, Tensor]]]:
    """Copies of all containers and small tensors that can be reached through containers."""
    containers: list[tuple[Any, Any]] = []
    tensors: list[tuple[Tensor, int, Tensor]] = []
    seen, waiting = set(), list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.is_leaf and not value.requires_grad and not value.is_inference() and value.numel() <= _LARGEST:
                tensors.append((value, value._version, value.clone()))
        elif type(value) in _CONTAINERS and id(value) not in seen and len(value) <= _LONGEST:
            seen.add(id(value))
            containers.append((value, dict(value) if isinstance(value, dict) else list(value)))
            waiting += value.values() if isinstance(value, dict) else value
    return containers, tensors


def _refill(container: Any, saved: Any) -> None:
    if isinstance(container, list):
        container[:] = saved
        return
    container.clear()
    container.extend(saved) if isinstance(container, deque) else container.update(saved)


def has_tensors(batch: Any) -> bool:
    """Whether a collated batch is ready for a model: it has tensors in it, and not rows that are yet to be prepared.

    Example:
        >>> has_tensors(({"ids": torch.ones(2)}, torch.ones(2))), has_tensors([{"prompt": "to be completed"}])
        (True, False)
    """
    if isinstance(batch, Tensor):
        return True
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return any(has_tensors(part) for part in parts)


def is_surrogate(batch: Any) -> bool:
    """Whether the loss of this batch is a policy gradient whose value does not follow the weights.

    TRL's GRPO compares the policy with the one that sampled; while these are the same it keeps no log-probabilities of
    the old one, and the ratio is 1 at whatever weights it is computed.

    Example:
        >>> is_surrogate({"advantages": 0}), is_surrogate({"advantages": 0, "old_logps": 0})
        (True, False)
    """
    return isinstance(batch, Mapping) and "advantages" in batch and not any(name.startswith("old_") for name in batch)
