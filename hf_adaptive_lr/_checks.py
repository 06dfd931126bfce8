"""Range checks of settings, with errors that name the value, the allowed range and the way out."""

from __future__ import annotations


def check_range(owner: object, name: str, value: float, low: float, high: float, *, hint: str) -> None:
    """Refuse a config value outside `[low, high]`.

    Args:
        owner: the controller or scheduler the value belongs to; its class is named.
        name: name of the field.
        value: its value; NaN is refused.
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
