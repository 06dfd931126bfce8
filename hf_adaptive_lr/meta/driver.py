"""Runs any trainer to its end: by time or by iterations, with progress, checkpoints, exact resume, many processes.

It writes `config.json` and `model.safetensors` (a controller folder), `training.json` (command, versions, suite,
curves) and `checkpoint.pt` to resume from.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from tqdm import tqdm

from .._checks import did_you_mean
from ..artifacts import (
    CHECKPOINT_NAME,
    LOCK_NAME,
    TRAINING_NAME,
    drafts,
    library_version,
    only_writer,
    replace_file,
)
from ..controller import Controller
from ..distributed import rank, world_size
from .problem import Problem
from .suites import SUITES


class Trainer(Protocol):
    """A way of training a controller."""

    method: str

    def iterate(self, problems: Sequence[Problem], iteration: int, progress: float = 0.0) -> dict[str, float]:
        """Learn from one batch of problems.

        Args:
            problems: each is a batch of runs; every process has as many.
            iteration: its number, which decides the random draws.
            progress: share of the training that is done, in [0, 1], for decays.

        Returns:
            Figures of this process, among them `return` (mean improvement of the log loss), `diverged` (share of lost
            runs) and `inner_steps` (updates played).
        """

    def controller(self) -> Controller:
        """The controller with its current weights."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""


@dataclass(frozen=True, kw_only=True)
class DriverConfig:
    """Length, suite and output folder of a training.

    Args:
        suite: name of a suite.
        runs: runs per family and iteration, at least 1; evolution needs pairs, and PPO's advantages at least 2.
        minutes: time to train for, above 0; None for no limit.
        iterations: iterations to train for, at least 1; None for no limit. One of the two must be given; a training
            that ends by iterations is the same on every machine.
        seed: of problems and exploration, at least 0.
        output_dir: folder for everything.
        checkpoint_seconds: time between checkpoints.
        report_to: trackers that get the figures of every iteration, as Accelerate knows them.
    """

    suite: str
    output_dir: Path
    runs: int = 64
    minutes: float | None = None
    iterations: int | None = None
    seed: int = 0
    checkpoint_seconds: float = 30.0
    report_to: tuple[str, ...] = ()

    def check(self) -> None:
        """Fails fast for settings out of range; the ValueError names the value, the range and the way out."""
        if self.suite not in SUITES:
            raise ValueError(f"no suite '{self.suite}'{did_you_mean(self.suite, SUITES)}")
        if self.minutes is None and self.iterations is None:
            raise ValueError("the training has no end; give minutes or iterations")
        installed = [str(name) for name in get_available_trackers()]
        for name in self.report_to:
            if name not in installed:
                raise ValueError(f"no tracker '{name}' is installed; installed: {', '.join(installed) or 'none'}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes={self.minutes:g} must be above 0")
        for name, low in (("iterations", 1), ("runs", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name}={value} must be at least {low}")


def check_folder(config: DriverConfig, method: str, *, resume: bool) -> None:
    """Fails fast, before anything is written, for an output folder that holds something else.

    ValueErrors: another method's or suite's checkpoint, an unfinished training without `resume`, other files.
    """
    path = config.output_dir / CHECKPOINT_NAME
    if not path.is_file():
        if resume:
            raise ValueError(f"'{config.output_dir}' has no {CHECKPOINT_NAME} to resume from; start without --resume")
        if os.path.lexists(config.output_dir) and not config.output_dir.is_dir():
            raise ValueError(f"'{config.output_dir}' is a file, or a link to nothing; name a folder")
        if _holds_something(config.output_dir):
            raise ValueError(f"'{config.output_dir}' is not empty; name another folder")
        return
    saved = load_checkpoint(config.output_dir)["identity"]
    for key, mine in _identity(config, method).items():
        if saved[key] != mine:
            raise ValueError(
                f"'{config.output_dir}' holds a training with {key}={saved[key]}, not {mine}; name another folder"
            )
    if not resume:
        raise ValueError(f"'{config.output_dir}' holds a training of {method}; pass --resume, or name another folder")


def _holds_something(folder: Path) -> bool:
    """Whether there is more in a folder than a training leaves that is killed before its first checkpoint."""
    return folder.is_dir() and bool({*folder.iterdir()} - {folder / LOCK_NAME, *drafts(folder)})


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """The checkpoint of the training in a folder; ValueError in one line where it cannot be read."""
    path = folder / CHECKPOINT_NAME
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # of many kinds: torch, pickle, zip, the file system
        raise ValueError(
            f"'{path}' cannot be read ({type(error).__name__}): it is cut short or damaged; begin again in another "
            "folder"
        ) from error
    return saved


def run(
    trainer: Trainer, config: DriverConfig, *, resume: bool = False, command: str = "", bar: bool = True
) -> Controller:
    """Train, and write the controller's folder.

    Args:
        trainer: with the controller to train.
        config: length, suite and output folder.
        resume: continue from the checkpoint in the folder.
        command: the command line, for training.json.
        bar: show progress on stderr.

    Returns:
        The trained controller.

    Raises:
        ValueError: settings out of range, or a folder that holds something else; nothing was written then.
        FolderInUseError: another process trains in the folder.
    """
    config.check()
    check_folder(config, trainer.method, resume=resume)
    if world_size(None) > 1:
        dist.barrier()  # nobody writes before everybody has looked at the folder
    if rank() > 0:
        return _run(trainer, config, resume, command, bar)
    with only_writer(config.output_dir):
        check_folder(config, trainer.method, resume=resume)  # again: another process may just have ended
        return _run(trainer, config, resume, command, bar)


def _run(trainer: Trainer, config: DriverConfig, resume: bool, command: str, bar: bool) -> Controller:
    suite, curves, spent, iteration = SUITES[config.suite], [], 0.0, 0
    if resume:
        saved = load_checkpoint(config.output_dir)
        trainer.load_state_dict(saved["trainer"])
        curves, spent, iteration = saved["curves"], saved["seconds"], saved["iteration"]
    else:  # so that a training that is killed can always be resumed
        _save_checkpoint(config, _checkpoint(trainer, config, 0, [], 0.0))
    started, last_saved = time.monotonic() - spent, time.monotonic()
    trackers = _trackers(config, trainer.method)
    shown = tqdm(total=config.iterations, initial=iteration, unit="it", disable=not bar or rank() > 0)
    whole: dict[str, Any] = {}  # checkpoint of the last whole iteration
    try:
        with shown:
            while not _finished(config, iteration, time.monotonic() - started):
                progress = _progress(config, iteration, time.monotonic() - started)
                # Every process has problems of its own.
                index = iteration * world_size(None) + rank()
                problems = suite.problems("train", index, config.runs, config.seed)
                figures = trainer.iterate(problems, iteration, progress)
                iteration += 1
                curves.append({name: round(value, 6) for name, value in figures.items()})
                seconds = time.monotonic() - started
                if config.minutes is not None and (share := seconds / (60 * config.minutes)) > 0:
                    by_time = max(iteration, round(iteration / share))
                    shown.total = by_time if config.iterations is None else min(config.iterations, by_time)
                shown.update()
                told = {k: f"{v:.3g}" for k, v in figures.items() if k in ("return", "diverged")}
                shown.set_postfix(told, refresh=False)
                for tracker in trackers:
                    tracker.log({f"train/{name}": value for name, value in figures.items()}, step=iteration)
                whole = _checkpoint(trainer, config, iteration, curves, seconds)
                if time.monotonic() - last_saved > config.checkpoint_seconds:
                    _save_checkpoint(config, whole)
                    last_saved = time.monotonic()
    except KeyboardInterrupt:
        if whole:  # half of an iteration would not resume exactly
            _save_checkpoint(config, whole)
        raise
    for tracker in trackers:
        tracker.finish()
    whole = _checkpoint(trainer, config, iteration, curves, time.monotonic() - started)
    _save_checkpoint(config, whole)
    controller = trainer.controller()
    if rank() == 0:
        controller.save_pretrained(config.output_dir)
        _save_training(config, controller, whole, command)
    return controller


def _trackers(config: DriverConfig, method: str) -> list[GeneralTracker]:
    """Trackers of the first process. Accelerator.init_trackers would come with an Accelerator, which sets threads."""
    found = []
    for name in config.report_to if rank() == 0 else ():
        PartialState()  # Accelerate's loggers ask it for the process
        cls = LOGGER_TYPE_TO_CLASS[name]
        places = {"logging_dir": str(config.output_dir / "logs")} if cls.requires_logging_directory else {}
        tracker = cls("hf_adaptive_lr", **places)
        tracker.main_process_only = False  # this is the first process
        tracker.start()
        tracker.store_init_configuration(_identity(config, method))
        found.append(tracker)
    return found


def _finished(config: DriverConfig, iteration: int, seconds: float) -> bool:
    done = config.iterations is not None and iteration >= config.iterations
    late = config.minutes is not None and seconds >= 60 * config.minutes
    if world_size(None) == 1 or config.minutes is None:
        return done or late
    answer = torch.tensor(float(done or late))
    dist.broadcast(answer, src=0)  # clocks differ; all processes must stop together
    return bool(answer.item())


def _progress(config: DriverConfig, iteration: int, seconds: float) -> float:
    if config.iterations is not None:
        return iteration / config.iterations
    assert config.minutes is not None  # by `check`
    share = torch.tensor(min(1.0, seconds / (60 * config.minutes)))
    if world_size(None) > 1:
        dist.broadcast(share, src=0)
    return float(share)


def _identity(config: DriverConfig, method: str) -> dict[str, Any]:
    return {"method": method, "suite": config.suite, "runs": config.runs, "seed": config.seed}


def _checkpoint(
    trainer: Trainer, config: DriverConfig, iteration: int, curves: list[dict[str, float]], seconds: float
) -> dict[str, Any]:
    return {
        "identity": _identity(config, trainer.method),
        "trainer": copy.deepcopy(trainer.state_dict()),
        "iteration": iteration,
        "curves": list(curves),
        "seconds": seconds,
    }


def _save_checkpoint(config: DriverConfig, checkpoint: dict[str, Any]) -> None:
    if rank() == 0:
        replace_file(config.output_dir / CHECKPOINT_NAME, lambda path: torch.save(checkpoint, path))


def _save_training(config: DriverConfig, controller: Controller, checkpoint: dict[str, Any], command: str) -> None:
    curves = checkpoint["curves"]
    record = {
        "command": command,
        "method": checkpoint["identity"]["method"],
        "controller": {"controller_type": controller.controller_type, **controller.config()},
        "suite": config.suite,
        "suite_digest": SUITES[config.suite].digest(),
        "runs": config.runs,
        "seed": config.seed,
        "iterations": checkpoint["iteration"],
        "seconds": round(checkpoint["seconds"], 1),
        "processes": world_size(None),
        "inner_steps": sum(row.get("inner_steps", 0.0) for row in curves) * world_size(None),
        "versions": {"hf_adaptive_lr": library_version(), "torch": torch.__version__},
        "curves": curves,
    }
    text = json.dumps(record, indent=1) + "\n"
    replace_file(config.output_dir / TRAINING_NAME, text)
