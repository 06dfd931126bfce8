"""Controllers as files: strict save and load of `config.json` and `model.safetensors`.

Strict means: a key that is missing, unknown or of the wrong type, a tensor that is missing, unknown or of the wrong
shape is an error that names it. A controller that loads half-way would steer somebody's training with random weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from .controller import Controller

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 1
"""Version of the file format; a newer one is refused, with the library version that wrote it."""

_META_KEYS = ("controller_type", "format_version", "library_version")

C = TypeVar("C", bound="Controller")


def library_version() -> str:
    """Installed version of hf_adaptive_lr, "unknown" when it runs from a tree that was never installed."""
    try:
        return version("hf_adaptive_lr")
    except PackageNotFoundError:
        return "unknown"


def save(controller: Controller, folder: Path) -> Path:
    """Write a controller's files into `folder`; see [`Controller.save_pretrained`]."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "controller_type": controller.controller_type,
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
    }
    if controller.params:
        tensors = {name: t.detach().cpu().contiguous() for name, t in controller.params.items()}
        replace_file(folder / WEIGHTS_NAME, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    else:
        (folder / WEIGHTS_NAME).unlink(missing_ok=True)
    text = json.dumps({**head, **controller.config()}, indent=2) + "\n"
    replace_file(folder / CONFIG_NAME, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def replace_file(path: Path, write: typing.Callable[[Path], object]) -> None:
    """Write a file beside `path` and move it into place, so that a crash leaves the old file or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def load(folder: Path, classes: Mapping[str, type[C]]) -> C:
    """Load the controller in `folder`, whose `controller_type` must be one of `classes`."""
    config = read_config(folder)
    kind = config.pop("controller_type")
    if kind not in classes:
        raise ValueError(f"{folder / CONFIG_NAME}: controller_type is '{kind}', expected one of: {', '.join(classes)}")
    cls = classes[kind]
    _check_config(config, cls, folder / CONFIG_NAME)
    for field in dataclasses.fields(cls):
        if isinstance(config.get(field.name), list):  # JSON has no tuples
            config[field.name] = _as_tuple(config[field.name])
    weights = folder / WEIGHTS_NAME
    return cls(**config, params=load_file(weights) if weights.exists() else {})


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a controller folder, without format and library version.

    Raises:
        FileNotFoundError: no folder, or no config.json.
        ValueError: not JSON, no `controller_type`, or a newer format.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"folder '{folder}' {what}; a controller folder is written by controller.save_pretrained(...)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    missing = [key for key in _META_KEYS if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{path}: key '{missing[0]}' is missing; this is not a controller of hf_adaptive_lr")
    written_by, found = config.pop("library_version"), config.pop("format_version")
    if not isinstance(found, int) or isinstance(found, bool):
        raise ValueError(f"{path}: key 'format_version' must be a whole number, got {found!r}")
    if found > FORMAT_VERSION:
        raise ValueError(
            f"{path}: format {found} is newer than this library reads ({FORMAT_VERSION}); "
            f"pip install 'hf_adaptive_lr>={written_by}'"
        )
    parsed: dict[str, Any] = config
    return parsed


def configure(controller: C, changes: Mapping[str, Any]) -> C:
    """A copy of `controller` with some config fields changed, as strictly as from a file.

    Args:
        controller: the controller to start from.
        changes: config fields and their new values, as JSON has them (lists for tuples).

    Raises:
        ValueError: an unknown field, a value of the wrong type or out of range; the message names it.

    Example:
        >>> from hf_adaptive_lr import Hypergradient
        >>> configure(Hypergradient(), {"beta": 0.01}).beta
        0.01
    """
    cls = type(controller)
    hints, names = typing.get_type_hints(cls), list(controller.config())
    for key, value in changes.items():
        _check_value(key, value, names, hints, cls.__name__)
    return controller.replace(**{key: _as_tuple(value) for key, value in changes.items()})


def _check_config(config: Mapping[str, Any], cls: type[Controller], path: Path) -> None:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.name != "params"]
    for key in names:
        if key not in config:
            raise ValueError(f"{path}: key '{key}' is missing; {cls.__name__} has: {', '.join(names)}")
    for key, value in config.items():
        _check_value(key, value, names, hints, f"{path}: {cls.__name__}")


def _check_value(key: str, value: Any, names: list[str], hints: Mapping[str, Any], where: str) -> None:
    if key not in names:
        raise ValueError(f"{where}: unknown key '{key}'; known keys: {', '.join(names) or 'none'}")
    if not fits(value, hints[key]):
        raise ValueError(f"{where}: key '{key}' must be {_type_name(hints[key])}, got {value!r}")


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


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(v) for v in value) if isinstance(value, list) else value


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse learned weights that are not exactly the expected tensors; a leading batch dimension is not allowed here.

    Raises:
        ValueError: names the tensor that is missing, unknown or of the wrong shape.
    """
    for name in expected:
        if name not in found:
            raise ValueError(f"{where}: tensor '{name}' is missing; expected: {', '.join(expected)}")
    for name, tensor in found.items():
        if name not in expected:
            raise ValueError(f"{where}: unknown tensor '{name}'; expected: {', '.join(expected) or 'none'}")
        if tuple(tensor.shape) != tuple(expected[name]):
            raise ValueError(
                f"{where}: tensor '{name}' has shape {tuple(tensor.shape)}, expected {tuple(expected[name])}"
            )
