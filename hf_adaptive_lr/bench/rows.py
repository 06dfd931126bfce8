"""The files of rows: one JSON object a line, appended whole while a command runs, packed when it has ended.

A run is known by its key and by digests of what its task and its method are, so nothing that is there is computed
again, and nothing that has changed since is taken for it.

A file `NAME.jsonl` is append-only: a line is written whole and synced when its run has ended, and a last line that a
kill tore off is dropped. `pack` moves its rows into `NAME.jsonl.gz`, where texts and settings that rows have in common
stand once. Whoever reads `NAME.jsonl` gets the rows of both.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts import locked, replace_file

Row = dict[str, Any]


@dataclass(frozen=True, order=True)
class RunKey:
    """Names a run."""

    task: str
    method: str
    seed: int  # of everything that is drawn
    lr: float  # base learning rate


Identity = tuple[RunKey, str, str]
"""Key, task digest, method digest."""


class RowsError(ValueError):
    """A file of rows that cannot be used as it stands; the message says what to do about it."""


def digest(spec: Any) -> str:
    """Sixteen hexadecimal digits that change whenever a JSON-able value does, but not with the order of keys."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Specified:
    """A part of a run that is known by all that the run depends on."""

    def spec(self) -> Any:
        """All that a run depends on, as JSON values."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """[`digest`] of the spec."""
        return digest(self.spec())


def row_identity(row: Mapping[str, Any]) -> Identity:
    """The identity of the run that a row is of."""
    key = RunKey(row["task"], row["method"], row["seed"], row["lr"])
    return key, row["task_digest"], row["method_digest"]


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file, packed ones first, in the order they were written; none when there is no file."""
    return _unpacked(packed_path(path)) + _plain(path)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write one line and sync it to the disk; what was torn off before is cut away first.

    Several processes may append to one file: each waits for the others. A number that is not finite becomes null.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(row), allow_nan=False) + "\n"
    with _only_writer(path):
        whole = len(_whole(path))
        with path.open("ab") as file:
            file.truncate(whole)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file by these rows, packed; it appears whole or not, and the same rows give the same bytes."""
    lines = list(_shared(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = gzip.compress("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode(), mtime=0)
    replace_file(packed_path(path), lambda draft: draft.write_bytes(content))
    path.unlink(missing_ok=True)


def pack(path: Path) -> None:
    """Move the rows of a file to its packed form."""
    if path.is_file():
        with _only_writer(path):
            write_rows(path, read_rows(path))


def forget_errors(path: Path) -> int:
    """Take the rows of runs that raised out of a file, so that they are done again; returns how many there were."""
    rows = read_rows(path)
    if all("error" not in row for row in rows):
        return 0
    with _only_writer(path):
        rows = read_rows(path)
        kept = [row for row in rows if "error" not in row]
        write_rows(path, kept)
    return len(rows) - len(kept)


def packed_path(path: Path) -> Path:
    """Where the packed rows of a file are."""
    return path.with_name(f"{path.name}.gz")


# --- lines ----------------------------------------------------------------------------------------------------------


def _only_writer(path: Path) -> AbstractContextManager[None]:
    """A lock beside a file of rows; it frees itself when its process ends, however that is."""
    return locked(path.with_name(f".{path.name}.lock"))


def _whole(path: Path) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    return content[: content.rfind(b"\n") + 1]


def _plain(path: Path) -> list[Row]:
    return [_parsed(path, number, line) for number, line in enumerate(_whole(path).decode("utf-8").splitlines(), 1)]


def _parsed(path: Path, number: int, line: str) -> Row:
    try:
        row: Row = json.loads(line)
    except ValueError as error:  # not the last line, so a kill cannot have done that
        raise RowsError(f"{path}, line {number} is not JSON ({error}); repair it or delete the line") from error
    return row


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


# --- packed rows ----------------------------------------------------------------------------------------------------


def _shared(rows: Iterable[Mapping[str, Any]]) -> Iterable[Row]:
    """Rows without their texts and settings, each group of which stands once, before the first row that has it."""
    numbers: dict[str, int] = {}
    for row in rows:
        common = {key: value for key, value in row.items() if isinstance(value, str | dict)}
        text = json.dumps(common, sort_keys=True)
        if text not in numbers:
            numbers[text] = len(numbers)
            yield {"row": "shared", "values": common}
        yield {"shared": numbers[text], **{key: value for key, value in row.items() if key not in common}}


def _unpacked(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    try:
        lines: Sequence[str] = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise RowsError(
            f"{path} is no file of packed rows ({error}); delete it, or put back the one before"
        ) from error
    commons: list[Row] = []
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parsed(path, number, line)
        if row.get("row") == "shared":
            commons.append(row["values"])
        else:
            rows.append({**commons[row.pop("shared")], **row})
    return rows
