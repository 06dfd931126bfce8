"""Range checks of settings, with errors that name the value, the allowed range and the way out."""

from __future__ import annotations


def check_range(
    owner: object, name: str, value: float, low: float, high: float, *, hint: str, whole: bool = False
) -> None:
    """Fails fast on a setting outside `[low, high]`.

    Args:
        owner: the object that the value belongs to, whose class is named, or a function's name.
        name: name of the field.
        value: its value.
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
        raise TypeError(f"{owner}: {name} must be a {'whole ' if whole else ''}number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{owner}: {name}={value} is outside [{low}, {high}]; {hint}")
