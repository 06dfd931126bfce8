"""Files of runs and controllers: their names, atomic writes, reads of JSON that may be damaged; free of torch."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PROGRAM = "hf-adaptive-lr"

CONFIG_NAME = "config.json"
"""A controller's type and configuration."""

WEIGHTS_NAME = "model.safetensors"
"""A controller's learned weights."""

TRAINING_NAME = "training.json"
"""How a controller was trained."""

EVAL_NAME = "eval_results.json"
"""A controller's scores on tasks that it was not trained on."""

CHECKPOINT_NAME = "checkpoint.pt"
"""From which the training of a controller resumes."""

TRACE_NAME = "lr_trace.jsonl"
"""The learning rate of every update and why, one JSON object per line."""

CONTROLLER_NAME = "controller.json"
"""The controller of a run: its type, config and origin."""

EVENTS_NAME = "events.jsonl"
"""What a divergence guard did, one JSON object per line; no file where it did nothing."""

RESULTS_NAME = "results.json"
"""Result of one run of `hf-adaptive-lr finetune`."""

CURVES_NAME = "curves.png"
"""Plot of the loss and the learning rate of such a run."""

MODEL_NAME = "model"
"""Folder of its trained model."""

SETTINGS_NAME = "finetune_config.json"
"""Settings of `hf-adaptive-lr finetune` in this folder; a resumed run must have the same."""

STATE_NAME = "trainer_state.json"
"""The file that Trainer writes last into a checkpoint."""

_CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_TORCH_CANNOT_WRITE = ("inline_container", "Parent directory", "PytorchStreamWriter", "cannot be opened")

LOCK_NAME = ".lock"
"""Held by the process that writes into an output folder."""

CARD_NAME = "README.md"
"""Card of a controller or of a trained model."""

PICTURE_NAME = "schedules.png"
"""Picture on a controller's card."""


_WRITTEN = frozenset(  # by `replace_file` into the folder of a run; drafts of other names are the user's
    (
        CONFIG_NAME, WEIGHTS_NAME, TRAINING_NAME, EVAL_NAME, CHECKPOINT_NAME, TRACE_NAME, CONTROLLER_NAME,
        RESULTS_NAME, CURVES_NAME, MODEL_NAME, SETTINGS_NAME, CARD_NAME,
    )
)  # fmt: skip


def library_version() -> str:
    """Installed version of hf_adaptive_lr, "unknown" when it runs from a tree that was never installed."""
    try:
        return version("hf_adaptive_lr")
    except PackageNotFoundError:
        return "unknown"


def replace_file(path: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file beside `path` and move it into place, so that a crash leaves the old file or the new one.

    A link of that name is replaced, not followed.

    Args:
        path: file to write; its folder exists.
        content: the text, written as UTF-8; or a function that writes the file whose path it gets.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.unlink(missing_ok=True)
        draft.touch()
        usual = draft.stat().st_mode
        if isinstance(content, str):
            draft.write_bytes(content.encode("utf-8"))
        else:
            content(draft)
        draft.chmod(usual)  # some writers make files that nobody else may read
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, onto the disk, as far as the file system can.

    Network and FUSE mounts often cannot for folders, and another process may have removed a file. Raises OSError only
    for what is lost: the disk is full or broken.
    """
    if os.name == "nt":
        return  # a folder cannot be opened there, and a file only for writing
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise


class FolderInUseError(RuntimeError):
    """Another process writes into a folder; the message names it."""


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock file, which goes with the lock; one that a killed process left is free.

    Mounts that know no locks get a warning instead. Raises `filelock.Timeout` after so many seconds, never below 0.
    """
    from filelock import FileLock

    lock = FileLock(path.absolute())  # the working folder may change
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:  # Timeout is one, without a number
        if error.errno not in _CANNOT_LOCK:
            raise
        logger.warning("'%s' cannot be locked (%s); let no other process write there", path.parent, error)
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: who waits for it notices that it is gone, and makes a new one
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes out of an output folder, and remove the drafts that a killed one left in it.

    The folder is made; if nothing is in it at the end, it goes again. Processes that do not ask for the lock do not
    notice it. Raises [`FolderInUseError`] at once where another process has it.
    """
    from filelock import Timeout

    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        held.callback(_remove_empty, made)  # after the lock, which lies in it
        try:
            held.enter_context(locked(folder / LOCK_NAME, timeout=0))
        except Timeout as error:
            raise FolderInUseError(
                f"another process writes into '{folder}'; wait until it has ended, or name another folder"
            ) from error
        for path in drafts(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # not empty
        for path in folders:
            path.rmdir()


def write_failed(error: BaseException) -> bool:
    """Whether an error is of the disk or the file system, as when it is full or a folder was deleted in mid-run.

    torch and safetensors raise such errors as other types than OSError.
    """
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_CANNOT_WRITE)


def drafts(folder: Path) -> list[Path]:
    """Files and folders that a process was writing; those of a process that was killed stay behind."""
    named = ((re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", path.name), path) for path in folder.glob(".*"))
    return [path for match, path in named if match and match[1] in _WRITTEN]


def numbered_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoint folders of Trainer in an output folder, newest first, whole or not, with numbers of updates."""
    named = ((re.fullmatch(r"checkpoint-(\d{1,15})", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted(((int(match[1]), path) for match, path in named if match and path.is_dir()), reverse=True)


def parse_json(data: bytes) -> Any:
    """The JSON value in some bytes, or None for anything else: a line cut short, another encoding, endless nesting."""
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbers, from 1, and values of the lines of a JSON-lines file, without blank ones; None for a damaged line."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            yield number, parse_json(line)


def printable(value: object, longest: int = 2000) -> str:
    r"""Text from an untrusted file or server as one line, without characters that a terminal obeys or nobody sees.

    Args:
        value: its `str` is taken.
        longest: characters to keep; a longer text is cut and ends in " ...".

    Example:
        >>> printable("a\x1b[31m  b\u202e"), printable("abcdef", longest=3)
        ('a[31m b', 'abc ...')
    """
    line = " ".join(str(value).split())
    line = line if line.isprintable() else "".join(c for c in line if c.isprintable())
    return line if len(line) <= longest else f"{line[:longest]} ..."


def shell_word(value: object) -> str:
    r"""A text as one word of a command to copy; without control characters, but with every blank.

    Example:
        >>> shell_word("my  runs\x1b[31m")
        "'my  runs[31m'"
    """
    return shlex.quote("".join(c for c in str(value) if c.isprintable()))
