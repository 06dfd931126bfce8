"""Many trainings, one row each, resumable: task x method x seed x learning rate.

Each run is claimed by a lock before it is executed, so any number of processes may work on one plan: the workers of
`--jobs`, the ranks of `torchrun` or `accelerate launch`, other commands, other machines on the same disk.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, Self

import torch
from tqdm import tqdm

from ..artifacts import locked
from .rows import Identity, Row, RunKey, append_row, digest, read_rows, row_identity

_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


class WorkerError(RuntimeError):
    """A worker process was killed."""


class Run(Protocol):
    """One training to be done; it is sent to worker processes, so it must be picklable."""

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


def identity(run: Run) -> Identity:
    """What tells a run from all others."""
    return run.key, run.task_digest, run.method_digest


def command_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Parser of a study's command, described by the first line of its module."""
    return argparse.ArgumentParser(
        prog=f"python -m hf_adaptive_lr.bench.{module}", description=(doc or "").split("\n")[0]
    )


def leave_launcher() -> tuple[int, int]:
    """Rank and number of processes under `torchrun` or `accelerate launch`; (0, 1) without a launcher.

    Each process then trains runs of its own, so what would make them train one together is taken out of the
    environment.
    """
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    return rank, ranks


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

    def rows(self, todo: Sequence[Run], path: Path) -> Iterator[Row | None]:
        """Do runs and append their rows; yields them as they end, None for a run that another process is at.

        Raises [`WorkerError`] when a worker process was killed.
        """
        if self._jobs == 1 or not todo:
            yield from _here(todo, path)
            return
        if self._executor is None:
            self._others = set(multiprocessing.active_children())
            spawn = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._jobs, mp_context=spawn, initializer=_start_worker)
        try:
            for future in as_completed([self._executor.submit(do, run, path) for run in todo]):
                yield future.result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process was killed, perhaps for want of memory; finished rows are kept, so the same command "
                "goes on; give it fewer jobs"
            ) from error


def run_all(plan: Iterable[Run], path: Path, *, jobs: int | Workers = 1, bar: bool = True) -> list[Row]:
    """Do the runs of a plan that the file does not have yet, and append a row for each as it ends.

    A run that raises becomes a row with `error`, which counts as done ([`rows.forget_errors`]). Ctrl-C ends the runs
    under way and keeps the rows of those that had ended; the same call goes on from there. Waits for runs that other
    processes are at. Returns the rows of the plan, in its order, each once.
    """
    if isinstance(jobs, int):
        with Workers(jobs) as workers:
            return run_all(plan, path, jobs=workers, bar=bar)
    wanted = {identity(run): run for run in plan}
    known = _known(path)
    todo = [run for i, run in wanted.items() if i not in known]
    with tqdm(total=len(todo), desc=path.stem, unit="run", disable=not bar or not todo) as progress:
        while todo:
            done = 0
            for row in jobs.rows(todo, path):
                done += row is not None
                progress.update(row is not None)
            known = _known(path)
            if todo := [run for i, run in wanted.items() if i not in known]:
                progress.update(progress.total - len(todo) - progress.n)
                time.sleep(0 if done else 1)  # what is left is others' work
    return [known[i] for i in wanted]


def do(run: Run, path: Path) -> Row | None:
    """Execute a run and append its row; None where another process is at it, or has done it meanwhile."""
    from filelock import Timeout

    claim = path.with_name(f".{path.name}.{digest([asdict(run.key), run.task_digest, run.method_digest])}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(claim, timeout=0):
            if identity(run) in _known(path):
                return None
            row = attempt(run)
            append_row(path, row)
            return row
    except Timeout:
        return None


def attempt(run: Run) -> Row:
    """Execute a run; the row says what was measured, or what went wrong."""
    key, task_digest, method_digest = identity(run)
    head = {"row": "run", **asdict(key), "task_digest": task_digest, "method_digest": method_digest}
    try:
        return head | run.execute()
    except Exception as error:  # whatever it was, the other runs continue and the failure is counted
        return head | {"error": f"{type(error).__name__}: {_without_folders(str(error))}"}


def _known(path: Path) -> dict[Identity, Row]:
    return {row_identity(row): row for row in read_rows(path)}


def _without_folders(text: str) -> str:
    """The text in one line, with every absolute path cut to its last part: rows are published."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\":,]+/)+", "", " ".join(text.split()))


def _here(todo: Sequence[Run], path: Path) -> Iterator[Row | None]:
    if not todo:
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Trainer and Accelerate collect garbage at every start, which takes longer than a small run when all modules are
    # searched.
    gc.collect()
    gc.freeze()
    try:
        for run in todo:
            yield do(run, path)
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
