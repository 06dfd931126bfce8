"""Controllers as files: strict save and load of `config.json` and `model.safetensors`.

Strict means: a key that is missing, unknown or of the wrong type, a tensor that is missing, unknown or of the wrong
shape is an error that names it. A controller that loads half-way would steer somebody's training with random weights.

A folder is untrusted input, so loading runs nothing: it opens `config.json` and `model.safetensors` alone, of bounded
size, and makes no room for sizes that they only declare (`training.json` and `eval_results.json` are read later, by
`mixin.py`). Whatever they hold, the outcome is a controller, or a
ValueError, a FileNotFoundError or another OSError that names the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import Tensor

from .._checks import MissingTensorError
from ..artifacts import CHECKPOINT_NAME, CONFIG_NAME, WEIGHTS_NAME, library_version, printable, replace_file
from .config import CONTRACT, as_tuple, check_config, check_contract, contract
from .untrusted import read_bytes, read_json, shown

if TYPE_CHECKING:
    from ..controller import Controller
    from .config import C

FORMAT_VERSION = 1
"""Version of the file format; a newer one fails, with the library version that wrote it."""

BUNDLED = Path(__file__).parents[1] / "pretrained"
"""Bundled controllers: one folder each."""

MAX_CONFIG_BYTES = 1_000_000
MAX_WEIGHTS_BYTES = 100_000_000

_HEAD = ("controller_type", "format_version", "library_version")
_MAX_HEADER_BYTES = 1_000_000
_MAX_DIMS = 8
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_PICKLES = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6)))  # torch's zip, and bare ones
_RELEASE = re.compile(r"(\d{1,6}(?:\.\d{1,6}){0,3})(?:(?:a|b|rc|\.dev|\.post)\d{1,6}){0,3}")


# --- writing ----------------------------------------------------------------------------------------------------


def save(controller: Controller, folder: Path) -> Path:
    """Write a controller's files into `folder`; see [`Controller.save_pretrained`], also for its errors."""
    head = {
        "controller_type": controller.controller_type,
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        CONTRACT: contract(controller),
    }
    config = controller.config()
    text = to_json({**head, **config}, f"config of {type(controller).__name__}")
    if head.keys() & config.keys():
        raise ValueError(f"{type(controller).__name__}: no config field may be named {sorted(head.keys() & config)}")
    for name, tensor in controller.params.items():
        if tensor.dtype not in _DTYPES:
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
    """The text of a JSON file, as others can read it: no NaN, no infinity (ValueError for what is not JSON)."""
    try:
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} cannot be written as JSON: {error}") from error


# --- reading ----------------------------------------------------------------------------------------------------


def load(folder: Path, classes: Mapping[str, type[C]], provenance: Mapping[str, str] | None = None) -> C:
    """Load the controller in `folder`, its weights in float32; its `controller_type` must be one of `classes`.

    Links in the folder are followed: the cache of the Hub is made of them. The file can name no other class.
    `provenance` is the controller's origin; by default this folder.

    Raises:
        FileNotFoundError: no such folder, or no config.json in it.
        OSError: a file that cannot be read.
        ValueError: anything that is not exactly a controller of these classes: not JSON, a key or a tensor missing,
            unknown, of the wrong type, shape or range, numbers that are not finite, a file that is too large, weights
            that are not safetensors, an unknown type or a newer format. The message names file and key.
    """
    path = folder / CONFIG_NAME
    config, found_contract, written_by = read_config(folder)
    kind = config.pop("controller_type")
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(
            f"{path}: controller_type is {shown(kind)}, expected one of: {', '.join(classes)}; a class of your own "
            f"loads as FILE.py:CLASS:FOLDER, or after AutoController.register(its name, the class)"
            f"{_upgrade(written_by)}"
        )
    cls = classes[kind]
    check_config(config, cls, path)
    fields = {key: as_tuple(value) for key, value in config.items()}  # JSON has no tuples
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

    stored = _read_weights(weights) if has_weights else {}
    build(stored)  # names and shapes, before there is room for them in float32
    controller = build(_as_floats(weights, stored))
    check_contract(found_contract, controller, path)
    return controller


def read_config(folder: Path) -> tuple[dict[str, Any], Any, Any]:
    """Type and fields of a controller folder, the contract (None in old files), and the library version that wrote it.

    Unchecked but for their being safe JSON. FileNotFoundError: no folder, or no config.json; OSError: it cannot be
    read; ValueError: too large, not JSON, no `controller_type`, or a newer format.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        way = "a controller folder is written by controller.save_pretrained(...)"
        if (folder / CHECKPOINT_NAME).is_file():
            what, way = "holds a training that was not finished", "continue with `hf-adaptive-lr train ... --resume`"
        raise FileNotFoundError(f"folder '{folder}' {what}; {way}")
    config = read_json(path, MAX_CONFIG_BYTES)
    missing = [key for key in _HEAD if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{path}: key '{missing[0]}' is missing; this is not a controller of hf_adaptive_lr")
    written_by, found = config.pop("library_version"), config.pop("format_version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{path}: key 'format_version' must be a whole number, got {shown(found)}")
    if found > FORMAT_VERSION:
        how = _upgrade(written_by) or "; pip install --upgrade hf_adaptive_lr"
        raise ValueError(f"{path}: format {found} is newer than this library reads ({FORMAT_VERSION}){how}")
    return config, config.pop(CONTRACT, None), written_by


def _upgrade(written_by: Any) -> str:
    """How to install the version that wrote a file; nothing if it is not newer or not a printable version."""
    theirs = _RELEASE.fullmatch(written_by) if isinstance(written_by, str) else None
    ours = _RELEASE.fullmatch(library_version())
    if theirs is None or (ours is not None and _numbers(theirs) <= _numbers(ours)):
        return ""
    return f"; pip install 'hf_adaptive_lr>={written_by}'"


def _numbers(release: re.Match[str]) -> list[int]:
    return [int(part) for part in release[1].split(".")]


# --- the weights ------------------------------------------------------------------------------------------------


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, of few dimensions and in one of `_DTYPES`.

    safetensors itself checks that the header describes the bytes of the file exactly, so that no tensor is larger than
    the file, which is bounded.
    """
    data = read_bytes(path, MAX_WEIGHTS_BYTES)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        what = (
            "a pickle, and pickles are never loaded"
            if data.startswith(_PICKLES)
            else "a pointer of Git LFS, for which `git lfs pull` gets the file"
            if data.startswith(b"version ")
            else "cut off, or another file"
        )
        raise ValueError(
            f"{path} is not a safetensors file: it is {what} ({len(data):,} bytes, of which a header of {length:,} is "
            f"declared); save weights with controller.save_pretrained(...)"
        )
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"{path}: the header has {length:,} bytes, more than {_MAX_HEADER_BYTES:,}")
    try:
        tensors = load_bytes(data)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:  # the last three: sizes, dtypes
        raise ValueError(f"{path} is not a safetensors file: {printable(error, 300)}") from error
    for name, tensor in tensors.items():
        if tensor.dim() > _MAX_DIMS:  # torch cannot even copy one of more than 64
            raise ValueError(f"{path}: tensor {shown(name)} has {tensor.dim()} dimensions, more than {_MAX_DIMS}")
        if tensor.dtype not in _DTYPES:
            known = ", ".join(str(dtype) for dtype in _DTYPES)
            raise ValueError(f"{path}: tensor {shown(name)} has dtype {tensor.dtype}, expected one of: {known}")
    return tensors


def _as_floats(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32; ValueError where one has a number that is not finite."""
    floats = {}
    for name, tensor in tensors.items():
        floats[name] = tensor.to(torch.float32)
        if not bool(torch.isfinite(floats[name]).all()):
            raise ValueError(f"{path}: tensor {shown(name)} holds NaN or infinite numbers; train the weights again")
    return floats
