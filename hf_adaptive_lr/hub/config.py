"""Config of a controller as JSON: its keys, which values fit, and the description beside them."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .untrusted import shown

if TYPE_CHECKING:
    from ..controller import Controller

    C = TypeVar("C", bound=Controller)

NOT_CONFIG = frozenset({"params", "provenance"})
"""Dataclass fields of a controller that are not in its config."""
CONTRACT = "contract"
"""Key of config.json; see [`contract`]."""


def configure(controller: C, changes: Mapping[str, Any]) -> C:
    """A copy of a controller with some fields changed to JSON values (lists for tuples), as strictly as from a file.

    ValueError names the unknown field, or the value of the wrong type or out of range.
    """
    cls = type(controller)
    hints, names = type_hints(cls), list(controller.config())  # type: ignore[arg-type]
    for key, value in changes.items():
        _check_value(key, value, names, hints, cls.__name__)
    return controller.replace(**{key: as_tuple(value) for key, value in changes.items()})


def config_names(cls: type[Controller]) -> list[str]:
    """Names of the config fields of a controller class."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in NOT_CONFIG]


@functools.cache
def type_hints(cls: type) -> Mapping[str, Any]:
    """Declared types of the fields of a controller class."""
    return typing.get_type_hints(cls)


def check_config(config: Mapping[str, Any], cls: type[Controller], path: Path) -> None:
    """ValueError (with `path` and the key) unless `config` has exactly the fields of `cls`, each of its type."""
    hints, names = type_hints(cls), config_names(cls)  # type: ignore[arg-type]
    for key in names:
        if key not in config:
            raise ValueError(f"{path}: key '{key}' is missing; {cls.__name__} has: {', '.join(names)}")
    for key, value in config.items():
        _check_value(key, value, names, hints, f"{path}: {cls.__name__}")


def _check_value(key: str, value: Any, names: list[str], hints: Mapping[str, Any], where: str) -> None:
    if key not in names:
        raise ValueError(f"{where}: unknown key {shown(key)}; known keys: {', '.join(names) or 'none'}")
    if not fits(value, hints[key]):
        raise ValueError(f"{where}: key '{key}' must be {_type_name(hints[key])}, got {shown(value)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the declared type of a config field; an int passes for a float, a bool for neither."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return len(inner) == len(value) and all(fits(v, a) for v, a in zip(value, inner, strict=True))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def as_tuple(value: Any) -> Any:
    """A JSON value with lists as tuples, which JSON does not have."""
    return tuple(as_tuple(v) for v in value) if isinstance(value, list) else value


def check_contract(found: Any, controller: Controller, path: Path) -> None:
    """ValueError where a file describes another contract than its controller has; None, in old files, passes."""
    if found is None:
        return
    expected = contract(controller)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: key '{CONTRACT}' must be an object, got {shown(found)}")
    for key in [*expected, *found]:
        if key not in expected:
            raise ValueError(f"{path}: unknown key {shown(key)} in '{CONTRACT}'; known: {', '.join(expected)}")
        if json.dumps(found.get(key)) != json.dumps(expected[key]):
            raise ValueError(
                f"{path}: '{CONTRACT}' says {key} is {shown(found.get(key))}, but a {type(controller).__name__} of "
                f"this config has {shown(expected[key])}; the file was edited, or written by another version"
            )


def contract(controller: Controller) -> dict[str, Any]:
    """Description of a controller for readers of config.json without this library; loading only compares it."""
    return {
        "observation": sorted(controller.needs),
        "answers": controller.answers,
        "decisions": controller.decisions,
        "needs_horizon": controller.needs_horizon,
        "weights": sum(t.numel() for t in controller.params.values()),
    }
