"""What all verbs share: the program's name and the error that ends as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

PROGRAM = "hf-adaptive-lr"


class UserError(Exception):
    """A request that cannot be carried out; its message is what the user reads, in one line."""


def did_you_mean(word: str, known: Iterable[str], *, or_all: bool = True) -> str:
    """`; did you mean X?` for the nearest name; where none is near, a list of all, or nothing."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(names)}" if or_all else ""
