"""Controllers as files: strict save and load of `config.json` and `model.safetensors`.

Strict means: a key that is missing, unknown or of the wrong type, a tensor that is missing, unknown or of the wrong
shape is an error that names it. A controller that loads half-way would steer somebody's training with random weights.

A folder may come from a stranger, so reading one runs nothing that it says: it opens two plain files of these very
names, of bounded size, and looks at what they declare before it makes room for it. Whatever they hold, what comes out
is a controller, or a ValueError, a FileNotFoundError or another OSError that names the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import Tensor

from ..artifacts import CHECKPOINT_NAME, CONFIG_NAME, WEIGHTS_NAME, library_version, printable, replace_file

if TYPE_CHECKING:
    from ..controller import Controller

FORMAT_VERSION = 1
"""Version of the file format; a newer one is refused, with the library version that wrote it."""

BUNDLED = Path(__file__).parents[1] / "pretrained"
"""Bundled controllers: one folder each."""

MAX_CONFIG_BYTES = 1_000_000
MAX_SIDECAR_BYTES = 20_000_000
"""Of training.json, eval_results.json and README.md, which nothing needs to load a controller."""
MAX_WEIGHTS_BYTES = 100_000_000
MAX_WEIGHTS = 50_000_000
MAX_DEPTH = 32

NOT_CONFIG = frozenset({"params", "provenance"})
"""Dataclass fields of a controller that are not in its config."""

_HEAD = ("controller_type", "format_version", "library_version")
_CONTRACT = "contract"
_MAX_HEADER_BYTES = 1_000_000
_DTYPES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2}
_TORCH_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))  # torch's zip, and bare ones
_RELEASE = re.compile(r"(\d{1,6}(?:\.\d{1,6}){0,3})(?:(?:a|b|rc|\.dev|\.post)\d{1,6}){0,3}")

C = TypeVar("C", bound="Controller")


# --- writing ----------------------------------------------------------------------------------------------------


def save(controller: Controller, folder: Path) -> Path:
    """Write a controller's files into `folder`; see [`Controller.save_pretrained`].

    Raises:
        ValueError: a config value that JSON does not have (NaN), or weights that are not floating-point numbers.
    """
    head = {
        "controller_type": controller.controller_type,
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        _CONTRACT: contract(controller),
    }
    config = controller.config()
    text = to_json({**head, **config}, f"config of {type(controller).__name__}")
    if head.keys() & config.keys():
        raise ValueError(f"{type(controller).__name__}: no config field may be named {sorted(head.keys() & config)}")
    for name, tensor in controller.params.items():
        if tensor.dtype not in _TORCH_DTYPES:
            raise ValueError(f"{type(controller).__name__}: tensor '{name}' is {tensor.dtype}; weights must be floats")
    folder.mkdir(parents=True, exist_ok=True)
    if controller.params:
        tensors = {name: t.detach().cpu().contiguous() for name, t in controller.params.items()}
        replace_file(folder / WEIGHTS_NAME, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    else:
        (folder / WEIGHTS_NAME).unlink(missing_ok=True)
    replace_file(folder / CONFIG_NAME, text)
    return folder


def to_json(value: Any, where: str) -> str:
    """The text of a JSON file, as others can read it: no NaN, no infinity.

    Raises:
        ValueError: a value that is not JSON.
    """
    try:
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} cannot be written as JSON: {error}") from error


def contract(controller: Controller) -> dict[str, Any]:
    """What config.json says about a controller to whoever reads it without this library; loading only compares it."""
    return {
        "observation": sorted(controller.needs),
        "answers": controller.answers,
        "decisions": controller.decisions,
        "needs_horizon": controller.needs_horizon,
        "weights": sum(t.numel() for t in controller.params.values()),
    }


# --- reading ----------------------------------------------------------------------------------------------------


def load(folder: Path, classes: Mapping[str, type[C]], provenance: Mapping[str, str] | None = None) -> C:
    """Load the controller in `folder`, whose `controller_type` must be one of `classes`.

    Args:
        folder: where `config.json` and, for learned weights, `model.safetensors` are. Links are followed: the cache
            of the Hub is made of them.
        classes: the classes that may come out, by `controller_type`; the file cannot name any other.
        provenance: what the controller is to know about its origin; by default that it is from this folder.

    Returns:
        The controller, its weights in float32.

    Raises:
        FileNotFoundError: no such folder, or no config.json in it.
        OSError: a file that cannot be read.
        ValueError: anything that is not exactly a controller of these classes: not JSON, a key or a tensor missing,
            unknown, of the wrong type, shape or range, numbers that are not finite, a file that is too large, weights
            that are not safetensors, an unknown type or a newer format. The message names file and key.
    """
    path = folder / CONFIG_NAME
    config, found_contract, written_by = _read_config(folder)
    kind = config.pop("controller_type")
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(
            f"{path}: controller_type is {_short(kind)}, expected one of: {', '.join(classes)}; a class of your own "
            f"loads with ThatClass.from_pretrained(...) or as FILE.py:CLASS{_upgrade(written_by)}"
        )
    cls = classes[kind]
    _check_config(config, cls, path)
    fields = {key: _as_tuple(value) for key, value in config.items()}  # JSON has no tuples
    if provenance is None:
        provenance = {"source": str(folder), "folder": str(folder.absolute()), "commit": "", "revision": ""}
    weights = folder / WEIGHTS_NAME
    has_weights = weights.is_file()
    if not has_weights and os.path.lexists(weights):
        raise ValueError(f"{weights} is not a file; delete it or fetch the controller again")

    def build(params: Mapping[str, Tensor]) -> C:
        try:
            return cls(**fields, params=params, provenance=dict(provenance))
        except MissingTensorError as error:
            without = "" if has_weights else f"; there is no {WEIGHTS_NAME} in this folder, fetch or train the weights"
            raise ValueError(f"{folder}: {error}{without}") from error
        except ValueError as error:
            text = str(error)  # a table that does not ascend is quoted whole
            raise ValueError(f"{folder}: {text if len(text) < 600 else text[:600] + '...'}") from error

    controller = build(_read_weights(weights, build)) if has_weights else build({})
    _check_contract(found_contract, controller, path)
    return controller


def read_config(folder: Path) -> dict[str, Any]:
    """`controller_type` and config fields of a controller folder, unchecked but for their being safe JSON.

    Raises:
        FileNotFoundError: no folder, or no config.json.
        OSError: it cannot be read.
        ValueError: too large, not JSON, no `controller_type`, or a newer format.
    """
    return _read_config(folder)[0]


def _read_config(folder: Path) -> tuple[dict[str, Any], Any, Any]:
    """Type and fields, the contract (None in files of before), and the version of the library that wrote it."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        way = "a controller folder is written by controller.save_pretrained(...)"
        if (folder / CHECKPOINT_NAME).is_file():
            what, way = "holds a training that was not finished", "go on with `hf-adaptive-lr train ... --resume`"
        raise FileNotFoundError(f"folder '{folder}' {what}; {way}")
    config = read_json(path, MAX_CONFIG_BYTES)
    missing = [key for key in _HEAD if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{path}: key '{missing[0]}' is missing; this is not a controller of hf_adaptive_lr")
    written_by, found = config.pop("library_version"), config.pop("format_version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{path}: key 'format_version' must be a whole number, got {_short(found)}")
    if found > FORMAT_VERSION:
        how = _upgrade(written_by) or "; pip install --upgrade hf_adaptive_lr"
        raise ValueError(f"{path}: format {found} is newer than this library reads ({FORMAT_VERSION}){how}")
    return config, config.pop(_CONTRACT, None), written_by


def _upgrade(written_by: Any) -> str:
    """How to install the version that wrote a file; nothing if it is not newer or not a plain version."""
    theirs = _RELEASE.fullmatch(written_by) if isinstance(written_by, str) else None
    ours = _RELEASE.fullmatch(library_version())
    if theirs is None or (ours is not None and _numbers(theirs) <= _numbers(ours)):
        return ""
    return f"; pip install 'hf_adaptive_lr>={written_by}'"


def _numbers(release: re.Match[str]) -> list[int]:
    return [int(part) for part in release[1].split(".")]


def read_json(path: Path, limit: int = MAX_SIDECAR_BYTES) -> Any:
    """A JSON file of a stranger: bounded in size and depth, finite numbers, every key once.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: it is too large, or not such JSON.
    """
    return _parse(_read(path, limit), path)


def read_text(path: Path, limit: int = MAX_SIDECAR_BYTES) -> str:
    """A text file of a stranger, UTF-8 and bounded in size.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: it is too large, or not UTF-8.
    """
    try:
        return _read(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _read(path: Path, limit: int) -> bytes:
    if not path.is_file():  # a pipe or a device would never end
        raise FileNotFoundError(f"no file '{path}'")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes; no controller's file is as large")
    return data


def _parse(data: bytes, path: Path) -> Any:
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        value = None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    else:
        if not _deeper(value, MAX_DEPTH):
            return value
    raise ValueError(f"{path} is not valid JSON: nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {_short(double)} stands there twice")
    return out


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_short(text)} is not a finite number")
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 20 else None
    if value is None or not -(2**63) <= value < 2**63:
        raise ValueError(f"{_short(text)} is too large for a whole number")
    return value


def _deeper(value: Any, depth: int) -> bool:
    level: list[Any] = [value]
    for _ in range(depth):
        nested: Iterable[Any] = (v for v in level if isinstance(v, dict | list))
        level = [inner for v in nested for inner in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return False
    return any(isinstance(v, dict | list) for v in level)


def _short(value: Any) -> str:
    """`repr`, cut: a message shows nothing that a terminal obeys, and no megabytes."""
    return printable(repr(value[:200] if isinstance(value, str | list) else value), longest=120)


# --- the config -------------------------------------------------------------------------------------------------


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
    hints, names = type_hints(cls), list(controller.config())
    for key, value in changes.items():
        _check_value(key, value, names, hints, cls.__name__)
    return controller.replace(**{key: _as_tuple(value) for key, value in changes.items()})


def config_names(cls: type[Controller]) -> list[str]:
    """Names of the config fields of a controller class."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in NOT_CONFIG]


_HINTS: dict[type, Mapping[str, Any]] = {}


def type_hints(cls: type) -> Mapping[str, Any]:
    """Declared types of the fields of a controller class."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _check_config(config: Mapping[str, Any], cls: type[Controller], path: Path) -> None:
    hints, names = type_hints(cls), config_names(cls)
    for key in names:
        if key not in config:
            raise ValueError(f"{path}: key '{key}' is missing; {cls.__name__} has: {', '.join(names)}")
    for key, value in config.items():
        _check_value(key, value, names, hints, f"{path}: {cls.__name__}")


def _check_value(key: str, value: Any, names: list[str], hints: Mapping[str, Any], where: str) -> None:
    if key not in names:
        raise ValueError(f"{where}: unknown key {_short(key)}; known keys: {', '.join(names) or 'none'}")
    if not fits(value, hints[key]):
        raise ValueError(f"{where}: key '{key}' must be {_type_name(hints[key])}, got {_short(value)}")


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


def _check_contract(found: Any, controller: Controller, path: Path) -> None:
    if found is None:
        return
    expected = contract(controller)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: key '{_CONTRACT}' must be an object, got {_short(found)}")
    for key in [*expected, *found]:
        if key not in expected:
            raise ValueError(f"{path}: unknown key {_short(key)} in '{_CONTRACT}'; known: {', '.join(expected)}")
        if json.dumps(found.get(key)) != json.dumps(expected[key]):
            raise ValueError(
                f"{path}: '{_CONTRACT}' says {key} is {_short(found.get(key))}, but a {type(controller).__name__} of "
                f"this config has {_short(expected[key])}; the file was edited, or written by another version"
            )


# --- the weights ------------------------------------------------------------------------------------------------


class MissingTensorError(ValueError):
    """A tensor that the config asks for is not there."""


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse learned weights that are not exactly the expected tensors; a leading batch dimension is not allowed here.

    Raises:
        ValueError: names the tensor that is missing, unknown or of the wrong shape.
    """
    for name in expected:
        if name not in found:
            raise MissingTensorError(f"{where}: tensor '{name}' is missing; expected: {', '.join(expected)}")
    for name, tensor in found.items():
        if name not in expected:
            raise ValueError(f"{where}: unknown tensor {_short(name)}; expected: {', '.join(expected) or 'none'}")
        if tuple(tensor.shape) != tuple(expected[name]):
            raise ValueError(
                f"{where}: tensor '{name}' has shape {tuple(tensor.shape)}, expected {tuple(expected[name])}"
            )


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ValueError: names the tensor.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where}: tensor '{name}' holds NaN or infinite numbers; train the weights again")


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    begin: int
    end: int


def _read_weights(path: Path, build: typing.Callable[[Mapping[str, Tensor]], object]) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `build` gets stand-ins of the declared shapes before any is read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_WEIGHTS_BYTES:
            raise ValueError(f"{path} has {size:,} bytes; no controller has more than {MAX_WEIGHTS_BYTES:,}")
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > size - 8:
            what = (
                "a pickle, and pickles are never loaded"
                if head.startswith(_PICKLES)
                else "a pointer of Git LFS, for which `git lfs pull` gets the file"
                if head == b"version "
                else "cut off, or another file"
            )
            raise ValueError(
                f"{path} is not a safetensors file: it is {what} ({size:,} bytes, of which a header of {length:,} is "
                f"declared); save weights with controller.save_pretrained(...)"
            )
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path}: the header has {length:,} bytes, more than {_MAX_HEADER_BYTES:,}")
        header = file.read(length)
        entries = _entries(_parse(header.rstrip(b" "), path), size - 8 - length, path)
        build({name: torch.zeros(()).expand(entry.shape) for name, entry in entries.items()})
        body = file.read(size - 8 - length)
    try:
        tensors = load_bytes(head + header + body)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    floats = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    check_finite(floats, str(path))
    return floats


def _entries(header: Any, size: int, path: Path) -> dict[str, _Entry]:
    """The tensors that a header declares, which must fill the file's `size` bytes of data without gap or overlap."""
    if not isinstance(header, dict):
        raise ValueError(f"{path} is not a safetensors file: its header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path}: '__metadata__' of the header must map names to texts")
    entries = {name: _entry(name, declared, path) for name, declared in header.items()}
    if sum(math.prod(entry.shape) for entry in entries.values()) > MAX_WEIGHTS:
        raise ValueError(f"{path} declares more than {MAX_WEIGHTS:,} weights; no controller has as many")
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][1:]):
        if entry.begin != end:
            raise ValueError(f"{path}: tensor {_short(name)} begins at byte {entry.begin:,}, expected {end:,}")
        end = entry.end
    if end != size:
        raise ValueError(f"{path}: the header declares {end:,} bytes of data, the file has {size:,}")
    return entries


def _entry(name: str, declared: Any, path: Path) -> _Entry:
    where = f"{path}: tensor {_short(name)}"
    if not isinstance(declared, dict) or declared.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where} must have dtype, shape and data_offsets, got {_short(declared)}")
    dtype, shape, offsets = declared["dtype"], declared["shape"], declared["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{where} has dtype {_short(dtype)}, expected one of: {', '.join(_DTYPES)}")
    if not _naturals(shape) or len(shape) > 8 or max(shape, default=0) > MAX_WEIGHTS:
        raise ValueError(f"{where} has shape {_short(shape)}; expected up to 8 sizes of at most {MAX_WEIGHTS:,}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype]:
        raise ValueError(f"{where} has data_offsets {_short(offsets)}, which do not fit shape {shape} of {dtype}")
    return _Entry(tuple(shape), offsets[0], offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
