"""Checks of settings, with errors that name the value, the allowed range and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_range(owner: object, name: str, value: float, low: float, high: float, *, hint: str) -> None:
    """Fails fast for a config value outside `[low, high]`.

    Args:
        owner: the controller or scheduler the value belongs to; its class is named.
        name: name of the field.
        value: its value; NaN is outside of every range.
        low: smallest allowed value.
        high: largest allowed value.
        hint: the way out, a half sentence.

    Raises:
        TypeError: `value` is not a number.
        ValueError: `value` is NaN or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(owner).__name__}: {name} must be a number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{type(owner).__name__}: {name}={value} is outside [{low}, {high}]; {hint}")


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
