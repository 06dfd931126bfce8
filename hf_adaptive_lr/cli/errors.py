"""What all verbs share: the program's name and the error that ends as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A request that cannot be carried out; its message is what the user reads, in one line."""


def keep_strangers_files(path: Path, mark: str) -> None:
    """Refuse to write over a file that the same verb did not write.

    Args:
        path: what is about to be written.
        mark: text that every file of this verb holds in its first 4,096 characters.

    Raises:
        UserError: there is a file without it, or one that cannot be read.
    """
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            ours = mark in file.read(4096)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if not ours:
        raise UserError(f"'{path}' is there and was not written by this command; move it, or name another file")


def did_you_mean(word: str, known: Iterable[str], *, or_all: bool = True) -> str:
    """`; did you mean X?` for the nearest name; where none is near, a list of all, or nothing."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if or_all else ""
