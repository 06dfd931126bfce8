"""A run of the benchmark: task, method, seed and learning rate to one row."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .rows import Row, RunKey
from .training_run import versions
from .yardstick_methods import Method
from .yardstick_tasks import RealTask, Task


@dataclass(frozen=True)
class YardstickRun:
    """One training; its row has curves, final losses, learning rates, seconds, versions and the commit.

    That of the first seed has the method's settings, too; the digests tell whether those of others are the same.
    """

    task: Task
    method: Method
    seed: int  # of everything that is drawn; rows of the seeds that tune have nothing of the test rows
    lr: float  # base learning rate

    @property
    def key(self) -> RunKey:
        """Its key in the rows."""
        return RunKey(self.task.name, self.method.name, self.seed, self.lr)

    @property
    def task_digest(self) -> str:
        """Changes with all that the task is."""
        return self.task.digest

    @property
    def method_digest(self) -> str:
        """Changes with all that the method is."""
        return self.method.digest

    def execute(self) -> Row:
        """Train and measure."""
        from .yardstick_real import train
        from .yardstick_vector import train_lane

        if isinstance(self.task, RealTask):
            measured = train(self.task, self.method, self.seed, self.lr)
        else:
            measured = train_lane(self.task, self.method, self.seed, self.lr)
        package = {self.method.optimizer: _version(self.method.optimizer)} if self.method.optimizer else {}
        return {
            "family": self.task.family,
            **measured,
            **({} if self.seed else {"method_spec": self.method.spec()}),
            "versions": {**versions(), **package},
            "commit": commit(),
        }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


@cache
def commit() -> str:
    """Commit of the source tree that runs, a plus sign behind it where files differ; empty for an installed copy."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""

    def git(*words: str) -> str:
        # Only reading, and without taking the lock that `status` would like to have.
        line = ["git", "--no-optional-locks", *words]
        done = subprocess.run(line, cwd=here, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
