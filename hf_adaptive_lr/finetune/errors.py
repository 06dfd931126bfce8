"""The error of a request that cannot be carried out, and what makes its one line."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence

from ..artifacts import printable


class FinetuneError(ValueError):
    """The request cannot be carried out as it stands; the message is one line for the person who asked."""


def one_line(error: BaseException) -> str:
    """First line of an exception's message, or its type."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0], longest=300)


def some(words: Sequence[str], most: int = 10) -> str:
    """The first of many words, and how many more there are."""
    more = f", and {len(words) - most} more" if len(words) > most else ""
    return printable(", ".join(words[:most]) + more)


def need_package(module: str, why: str) -> None:
    """Fail fast, with the command to get it, where an optional package is missing."""
    if importlib.util.find_spec(module) is None:
        raise FinetuneError(f"{why} needs the package that has '{module}'; pip install 'hf_adaptive_lr[demo]'")


@contextlib.contextmanager
def quiet_logger(name: str, level: int = logging.ERROR) -> Iterator[None]:
    """Keep what a logger has to say below a level off the screen, as something else says it or it concerns nobody."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
