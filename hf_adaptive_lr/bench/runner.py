"""Many trainings, one JSON line each, resumable: task x method x seed x learning rate.

The file is append-only. A line is written whole, flushed and synced when its run has ended; a last line that a kill
tore off is dropped. A run is known by its key and by digests of what its task and its method are, so nothing that is
there is computed again, and nothing that has changed since is taken for it.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from tqdm import tqdm

from ..artifacts import locked, replace_file

Row = dict[str, Any]


@dataclass(frozen=True, order=True)
class RunKey:
    """Names a run."""

    task: str
    method: str
    seed: int  # of everything that is drawn
    lr: float  # base learning rate


class RowsError(ValueError):
    """A file of rows that cannot be used as it stands; the message says what to do about it."""


class WorkerError(RuntimeError):
    """A worker process was killed."""


Identity = tuple[RunKey, str, str]
"""Key, task digest, method digest."""


class Run(Protocol):
    """One training to be done; it is sent to worker processes, so it must be picklable.

    Runs with an attribute `group` that is equal and not None are given to one worker, one after the other.
    """

    @property
    def key(self) -> RunKey:
        """Its key."""

    @property
    def task_digest(self) -> str:
        """[`digest`] of all that the task is."""

    @property
    def method_digest(self) -> str:
        """[`digest`] of all that the method is."""

    def execute(self) -> Row:
        """Do it and return what was measured, as JSON values; a number that is not finite is written as null."""


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


def identity(run: Run) -> Identity:
    """What tells a run from all others."""
    return run.key, run.task_digest, run.method_digest


def row_identity(row: Mapping[str, Any]) -> Identity:
    """The identity of the run that a row is of."""
    key = RunKey(row["task"], row["method"], row["seed"], row["lr"])
    return key, row["task_digest"], row["method_digest"]


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Parser of a study's command, described by the first line of its module."""
    return argparse.ArgumentParser(
        prog=f"python -m hf_adaptive_lr.bench.{module}", description=(doc or "").split("\n")[0]
    )


# --- the file -----------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file, in the order they were written; none when there is no file."""
    rows = []
    for number, line in enumerate(_whole(path).decode("utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:  # not the last line, so a kill cannot have done that
            raise RowsError(f"{path}, line {number} is not JSON ({error}); repair it or delete the line") from error
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write one line and sync it to the disk; what was torn off before is cut away first.

    Several processes may append to one file: each waits for the others.
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


def forget_errors(path: Path) -> int:
    """Take the rows of runs that raised out of a file, so that they are done again; returns how many there were."""
    if not path.is_file():
        return 0
    with _only_writer(path):
        rows = read_rows(path)
        kept = [row for row in rows if "error" not in row]
        if len(kept) < len(rows):
            replace_file(path, "".join(json.dumps(row) + "\n" for row in kept))
    return len(rows) - len(kept)


def _only_writer(path: Path) -> AbstractContextManager[None]:
    """A lock beside a file of rows; it frees itself when its process ends, however that is."""
    return locked(path.with_name(f".{path.name}.lock"))


def _whole(path: Path) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    return content[: content.rfind(b"\n") + 1]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


# --- running ------------------------------------------------------------------------------------------------------


class Workers:
    """Processes that execute runs, with one torch thread each; a context manager, so that they end with it.

    With one job there is none: runs are executed in this process, also with one thread, so that both give the same
    bits.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise ValueError(f"jobs={jobs} must be at least 1; 1 runs everything in this process")
        self._jobs = jobs
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is None:
            return
        if kind is not None:  # Ctrl-C, for instance: nobody waits for the runs under way
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self._executor.shutdown(cancel_futures=True)

    def rows(self, todo: Sequence[Run]) -> Iterator[Row]:
        """The row of each run, as they end; raises [`WorkerError`] when a worker process was killed."""
        if self._jobs == 1 or not todo:
            yield from _here(todo)
            return
        if self._executor is None:
            self._others = set(multiprocessing.active_children())
            spawn = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._jobs, mp_context=spawn, initializer=_start_worker)
        try:
            for future in as_completed([self._executor.submit(_attempt_all, part) for part in _together(todo)]):
                yield from future.result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process was killed, perhaps for want of memory; finished rows are kept, so the same command "
                "goes on; give it fewer jobs"
            ) from error


def run_all(plan: Iterable[Run], path: Path, *, jobs: int | Workers = 1, bar: bool = True) -> list[Row]:
    """Do the runs of a plan that the file does not have yet, and append a row for each as it ends.

    A run that raises becomes a row with `error`, which counts as done ([`forget_errors`]). Ctrl-C ends the runs under
    way and keeps the rows of those that had ended; the same call goes on from there. Returns the rows of the plan, in
    its order, each once.
    """
    if isinstance(jobs, int):
        with Workers(jobs) as workers:
            return run_all(plan, path, jobs=workers, bar=bar)
    wanted = {identity(run): run for run in plan}
    known = {row_identity(row): row for row in read_rows(path)}
    todo = [run for i, run in wanted.items() if i not in known]
    with tqdm(total=len(todo), desc=path.stem, unit="run", disable=not bar or not todo) as progress:
        for row in jobs.rows(todo):
            append_row(path, row)
            known[row_identity(row)] = row
            progress.update()
    return [known[i] for i in wanted]


def attempt(run: Run) -> Row:
    """Execute a run; the row says what was measured, or what went wrong."""
    key, task_digest, method_digest = identity(run)
    head = {"row": "run", **asdict(key), "task_digest": task_digest, "method_digest": method_digest}
    try:
        return head | run.execute()
    except Exception as error:  # whatever it was, the other runs continue and the failure is counted
        return head | {"error": f"{type(error).__name__}: {_without_folders(str(error))}"}


def _attempt_all(runs: Sequence[Run]) -> list[Row]:
    return [attempt(run) for run in runs]


def _together(todo: Sequence[Run]) -> list[list[Run]]:
    """Runs by their `group`, in the order of the first of each; a run without one is alone."""
    parts: dict[Any, list[Run]] = {}
    for number, run in enumerate(todo):
        group = getattr(run, "group", None)
        parts.setdefault(number if group is None else ("group", group), []).append(run)
    return list(parts.values())


def _without_folders(text: str) -> str:
    """The text in one line, with every absolute path cut to its last part: rows are published."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\":,]+/)+", "", " ".join(text.split()))


def _here(todo: Sequence[Run]) -> Iterator[Row]:
    if not todo:
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Trainer and Accelerate collect garbage at every start, which takes longer than a small run when all modules are
    # searched.
    gc.collect()
    gc.freeze()
    try:
        yield from map(attempt, todo)
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the workers too; they end without a traceback
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot say goodbye, and a worker would wait for its next run for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
