"""Checks of settings and weights, with errors that name the value, the allowed range and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .artifacts import printable

if TYPE_CHECKING:
    from torch import Tensor


def check_range(
    owner: object, name: str, value: float, low: float, high: float, *, hint: str, whole: bool = False
) -> None:
    """Fails fast on a setting outside `[low, high]`.

    Args:
        owner: the object that the value belongs to, whose class is named, or a function's name.
        name: name of the field.
        value: its value; NaN is outside every range.
        low: smallest allowed value.
        high: largest allowed value.
        hint: the way out, a half sentence.
        whole: whether it must be an int.

    Raises:
        TypeError: `value` is not a number, or not whole.
        ValueError: `value` is NaN or outside the range.
    """
    owner = owner if isinstance(owner, str) else type(owner).__name__
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise TypeError(f"{owner}: {name} must be a {'whole ' if whole else ''}number, got {value!r}; {hint}")
    if not low <= value <= high:
        raise ValueError(f"{owner}: {name}={value} is outside [{low}, {high}]; {hint}")


class MissingTensorError(ValueError):
    """A tensor that the config asks for is not there."""


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Fail unless learned weights are exactly the expected tensors, without a batch dimension.

    Raises:
        ValueError: names the tensor that is missing, unknown or of the wrong shape.
    """
    for name in expected:
        if name not in found:
            raise MissingTensorError(f"{where}: tensor '{name}' is missing; expected: {', '.join(expected)}")
    for name, tensor in found.items():
        if name not in expected:
            raise ValueError(
                f"{where}: unknown tensor {printable(repr(name), 120)}; expected: {', '.join(expected) or 'none'}"
            )
        if tuple(tensor.shape) != tuple(expected[name]):
            raise ValueError(
                f"{where}: tensor '{name}' has shape {tuple(tensor.shape)}, expected {tuple(expected[name])}"
            )


def did_you_mean(word: str, known: Iterable[str], *, or_all: bool = True) -> str:
    """The end of an error about an unknown name: the nearest known one, or else a list of all.

    Args:
        word: the unknown name.
        known: names that exist.
        or_all: False for an empty text, instead of the list, where no name is near.

    Example:
        >>> did_you_mean("plataeu", ["linear", "plateau"])
        '; did you mean plateau?'
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if or_all else ""
