"""Kills `finetune` and `train` at random moments, resumes them, and compares with a run that was left alone.

    python -m tests.kills --times 100 --seed 0

Every run is the command line itself in a forked process, which a new interpreter's imports do not delay. Half of the
kills (SIGKILL) come by the clock, half in the middle of a file operation in the output folder: opening, renaming,
removing. A run that was killed is resumed as its messages say, a third of the resumed are killed again, and in the end
all outputs must be those of the run that was left alone, byte by byte but for times, and no other file may be there.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests import conftest  # noqa: F401  one thread, no network
from tests.job import texts, write_csv, write_text_model

COMMANDS = {
    "finetune": "finetune --data ../good.csv --model ../model --controller hypergradient --learning-rate 0.02 "
    "--max-steps 9 --save-steps 3 --batch-size 8 --output-dir out",
    "train": "train ppo --suite quadratic --runs 4 --hidden-size 4 --iterations 12 --checkpoint-seconds 0 "
    "--output-dir out",
}
_FOLDER_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
_TIMES = ("wall_seconds", "seconds")


@dataclass(frozen=True)
class Moment:
    """When a process is killed: after so many seconds, or at the n-th operation on a file in its output folder."""

    seconds: float | None = None
    event: int | None = None


@dataclass
class Outcome:
    """What came of the kills of one command."""

    kills: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def _child(words: list[str], cwd: Path, at: int | None, seen: Any) -> None:
    """The command in this process, which is a fork: it counts its file operations, and dies at number `at`."""
    os.chdir(cwd)
    sys.stdout = sys.stderr = log = (cwd / "log.txt").open("a", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in _FOLDER_EVENTS and isinstance(args[0], str | os.PathLike) and "out" in Path(args[0]).parts:
            seen.value += 1
            if seen.value == at:
                os.kill(os.getpid(), signal.SIGKILL)

    import torch

    from hf_adaptive_lr.cli import main

    torch.set_num_threads(1)
    sys.argv = ["hf-adaptive-lr", *words]
    sys.addaudithook(watch)
    code = main(words)
    log.flush()
    os._exit(code)


def run(words: list[str], cwd: Path, moment: Moment | None = None) -> tuple[int, int]:
    """Exit code of a command (-9 where it was killed) and its operations on files in the output folder."""
    fork = multiprocessing.get_context("fork")
    seen = fork.Value("i", 0, lock=False)
    process = fork.Process(target=_child, args=(words, cwd, moment and moment.event, seen))
    process.start()
    process.join(moment and moment.seconds)
    if process.is_alive():
        process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, seen.value


def _warm(words: list[str], cwd: Path) -> None:
    """The command once in this process: what it has imported and cached, its forks have, too."""
    from tqdm import tqdm

    from hf_adaptive_lr.cli import main

    tqdm.monitor_interval = 0  # a thread of this process would not be in its forks
    before = Path.cwd()
    os.chdir(cwd)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            assert main(words) == 0
    finally:
        os.chdir(before)
    shutil.rmtree(cwd / "out")
    gc.collect()
    gc.freeze()  # Trainer collects garbage at every start


def kill_and_resume(
    command: str,
    folder: Path,
    times: int,
    seed: int,
    say: Callable[[str], object] = lambda line: None,
    *,
    by_clock: float = 0.5,
) -> Outcome:
    """Kill a command `times` times in all, in runs of its own folders below `folder`; `say` hears of each.

    Args:
        by_clock: share of the kills that come by the clock, which no seed repeats.
    """
    words, draw, outcome = COMMANDS[command].split(), random.Random(f"{command} {seed}"), Outcome()
    whole = folder / "whole"
    whole.mkdir()
    _warm(words, whole)
    started = time.monotonic()
    code, events = run(words, whole)
    seconds = time.monotonic() - started
    if code != 0:
        raise RuntimeError(f"{command} alone ended with {code}: {(whole / 'log.txt').read_text()}")
    trial = 0
    while len(outcome.kills) < times:
        cwd = folder / f"trial-{trial}"
        cwd.mkdir()
        trial += 1
        given, killed = words, 0
        while killed == 0 or draw.random() < 1 / 3:
            timed = draw.random() < by_clock
            moment = Moment(seconds=draw.uniform(0, seconds)) if timed else Moment(event=draw.randint(1, events))
            code, at = run(given, cwd, moment)
            if code != -signal.SIGKILL:
                break
            killed += 1
            place = {"trial": trial, "after": moment.seconds and round(moment.seconds, 2), "operation": at}
            outcome.kills.append({**place, "there": _there(cwd / "out"), "resumed": given != words})
            say(json.dumps({"command": command, **outcome.kills[-1]}))
            given = [*words, "--resume"]
        if killed and code == -signal.SIGKILL:
            code = run(given, cwd)[0]
        if code == 2:  # killed before there was anything to resume: the message says so
            said = (cwd / "log.txt").read_text().strip().splitlines()[-1]
            code = run(words, cwd)[0] if "start without --resume" in said else code
        wrong = _differences(whole / "out", cwd / "out") if code == 0 else [f"ended with {code}"]
        if wrong:
            log = (cwd / "log.txt").read_text().strip().splitlines()[-3:]
            outcome.failures.append(f"{command}, trial {trial}, {outcome.kills[-1:]}: {'; '.join(wrong)}; log: {log}")
            say(f"FAILED {outcome.failures[-1]}")
    return outcome


def _there(out: Path) -> str:
    """The newest thing in an output folder at the time of a kill."""
    found = [path for path in out.rglob("*")] if out.is_dir() else []
    return str(max(found, key=lambda path: path.stat().st_mtime_ns).relative_to(out)) if found else "nothing"


def _differences(whole: Path, mine: Path) -> list[str]:
    names = [{str(path.relative_to(out)) for path in out.rglob("*")} for out in (whole, mine)]
    wrong = [f"only in one: {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        if (
            not (whole / name).is_dir()
            and "checkpoint" not in name
            and _content(whole / name) != _content(mine / name)
        ):
            wrong.append(f"{name} differs")
    return wrong


def _content(path: Path) -> Any:
    if path.suffix != ".json":
        return path.read_bytes()
    found = json.loads(path.read_text())
    return {key: value for key, value in found.items() if key not in _TIMES} if isinstance(found, dict) else found


def prepare(folder: Path) -> None:
    """Data and a model for the commands."""
    write_csv(folder / "good.csv", texts(48))
    write_text_model(folder / "model")


def main() -> int:
    """Print every kill and every failure; 1 where there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=100, help="kills of each command (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="default: both")
    options = parser.parse_args()
    say, failed = partial(print, flush=True), False
    for command in options.commands:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(folder)
            outcome = kill_and_resume(command, folder, options.times, options.seed, say)
        places = Counter(kill["there"].split("/")[0] for kill in outcome.kills)
        again, clock = (sum(bool(kill[key]) for kill in outcome.kills) for key in ("resumed", "after"))
        say(
            f"{command}, seed {options.seed}: {len(outcome.kills)} kills ({clock} by the clock, {again} of runs that "
            f"had been resumed), {len(outcome.failures)} failures; newest there: {dict(places.most_common())}"
        )
        failed |= bool(outcome.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
