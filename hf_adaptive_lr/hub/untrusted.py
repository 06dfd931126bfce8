"""Reads untrusted JSON and text: bounded size and depth, errors that are safe to print.

Of any file; `serialization.py` checks that the values make a controller.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from ..artifacts import printable

MAX_SIDECAR_BYTES = 20_000_000
"""Of training.json, eval_results.json and README.md, which nothing needs to load a controller."""
MAX_DEPTH = 32


def read_json(path: Path, limit: int = MAX_SIDECAR_BYTES) -> Any:
    """Read a JSON file: bounded in size and depth, finite numbers, every key once; see [`read_bytes`] for errors."""
    data = read_bytes(path, limit)
    try:
        value = json.loads(
            data.decode("utf-8"),
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


def read_text(path: Path, limit: int = MAX_SIDECAR_BYTES) -> str:
    """Read a text file: bounded in size, and UTF-8 (else ValueError); see [`read_bytes`] for other errors."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """The bytes of a file: FileNotFoundError without one, other OSError, ValueError for more than `limit` bytes."""
    if not path.is_file():  # a pipe or a device would never end
        raise FileNotFoundError(f"no file '{path}'")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path} has {size:,} bytes, more than {limit:,}; no controller's file is as large")
        return file.read(size)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    (key, times), *_ = [*Counter(key for key, _ in pairs).most_common(1), ("", 0)]
    if times > 1:
        raise ValueError(f"key {shown(key)} stands there twice")
    return dict(pairs)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is not a finite number")
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 20 else None
    if value is None or not -(2**63) <= value < 2**63:
        raise ValueError(f"{shown(text)} is too large for a whole number")
    return value


def _deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_deeper(v, depth - 1) for v in inner)


def shown(value: Any) -> str:
    """`repr` of an untrusted value for a message: printable, at most 120 characters."""
    return printable(repr(value[:200] if isinstance(value, str | list) else value), longest=120)
