"""Errors that end as one line and exit code 2, and the checks that raise them for several verbs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..artifacts import printable, write_failed

_HTTP = ("huggingface_hub", "httpx2", "httpx")


class UserError(Exception):
    """A request that cannot be carried out; its message is one line for the user.

    The exit code is 2; 1 for something that had begun and left files.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors of the Hub, the network, files and values into [`UserError`], without control characters."""
    try:
        yield
    except Exception as error:
        from_http = type(error).__module__.partition(".")[0] in _HTTP
        if not from_http and not isinstance(error, ValueError | OSError):
            raise
        raise UserError(printable(error) or type(error).__name__) from error


@contextmanager
def begun(what: str, way_out: str) -> Iterator[None]:
    """Turns errors of the disk into [`UserError`] with exit code 1, for work that may have left files."""
    try:
        yield
    except Exception as error:
        if not write_failed(error):
            raise
        raise UserError(f"{what} stopped, as a file cannot be written or read: {error}; {way_out}", 1) from error


def check_own_file(path: Path, mark: str) -> None:
    """Fails fast when a file of somebody else would be overwritten."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            own = mark in file.read(4096)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if not own:
        raise UserError(f"'{path}' is there and was not written by this command; move it, or name another file")


def check_new_folder(path: Path) -> None:
    """Fails fast when an output folder is a file or not empty."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"'{path}' is not empty; name another folder")
