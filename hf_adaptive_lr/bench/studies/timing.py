"""CPU time of real `Trainer.train()` calls that take turns in one process, update by update.

Two runs one after the other differ by more than a percent on a busy machine, whatever the code; neighbours in time
differ by much less. So each trainer runs in a thread of its own, at most one of them at any moment, and lets the next
go on at the end of every update. Nothing in the trainers is replaced: a callback does the waiting.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import platform
import random
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

import torch
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl

from ...scheduler.controlled_lr import ControlledLR

WARM_UP = 3
"""Untimed updates of every trainer: start-up, the optimizer's state, the allocator."""

_OWN = ("before_forward", "observe", "_pre_step", "_post_step", "step", "get_last_lr", "log_values")
"""Where a Trainer enters [`ControlledLR`] during an update; none of them calls another."""

Name = TypeVar("Name", bound=Hashable)


@dataclass
class Seconds:
    """CPU seconds of a trainer's updates, and those of them spent in our own code; by round."""

    whole: dict[int, float] = field(default_factory=dict)
    own: dict[int, float] = field(default_factory=dict)


def take_turns(
    trainers: Mapping[Name, Trainer],
    rounds: int,
    seed: int,
    *,
    rarely: Name | None = None,  # takes part in every fourth round only
    warm_up: int = WARM_UP,  # updates of every trainer before these, untimed
    bar: str = "",
) -> dict[Name, Seconds]:
    """One timed update of every trainer a round, in an order that is drawn anew each round.

    The trainers must be made for `rounds + warm_up + 1` updates or more.
    """
    order, times = random.Random(seed), {name: Seconds() for name in trainers}
    _share_one_heap()
    with contextlib.ExitStack() as stack:
        take = stack.enter_context(own_time())
        lanes = {name: Lane(trainer) for name, trainer in trainers.items()}
        for lane in lanes.values():
            stack.callback(lane.close)
        for lane in [*lanes.values()] * warm_up:
            lane.advance()
        # What is alive now stays alive: the collector need not search it in whichever trainer's turn it wakes up.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        for index in tqdm(range(rounds), desc=bar, unit="round", disable=not bar):
            turn = [name for name in lanes if index % 4 == 0 or name != rarely]
            for name in order.sample(turn, len(turn)):
                take()
                times[name].whole[index], times[name].own[index] = lanes[name].advance(), take()
    return times


def block_ratios(mine: Mapping[int, float], other: Mapping[int, float], block: int) -> list[float]:
    """Seconds of blocks of so many updates over those of another trainer in the same rounds."""
    turns = sorted(mine)
    blocks = [turns[first : first + block] for first in range(0, len(turns), block)]
    return [sum(mine[i] for i in rounds) / sum(other[i] for i in rounds) for rounds in blocks]


class Lane(TrainerCallback):
    """One trainer that stops at the end of every update until it is told to continue.

    Its span of an update reaches from one `on_step_end` to the next: fetching the batch, forward, backward, clipping,
    the optimizer's step, the scheduler and logging are all inside; the first one holds the start of the run as well.
    Make a lane before `train()` is called: it becomes one of the trainer's callbacks.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._began = self._spent = 0.0
        self._closing = False
        self._error: BaseException | None = None
        trainer.add_callback(self)
        # A daemon, so that an interrupt of the main thread does not wait for a lane that waits for its turn.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self) -> float:
        """Run one update; returns its CPU seconds."""
        self._hand_over()
        return self._spent

    def close(self) -> None:
        """Let `train()` end; the update that it is in comes to its end untimed."""
        self._closing = True
        if self._error is None:
            self._hand_over()
            self._thread.join()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Take the time, wait for the next turn."""
        self._spent = time.process_time() - self._began
        self._back.release()
        self._go.acquire()
        control.should_training_stop |= self._closing
        self._began = time.process_time()
        return control

    def _hand_over(self) -> None:
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        self._go.acquire()
        torch.set_num_threads(1)  # the setting belongs to the thread
        self._began = time.process_time()
        try:
            self.trainer.train()
        except BaseException as error:  # shown by the main thread, which is waiting
            self._error = error
        finally:
            self._back.release()


def _share_one_heap() -> None:
    """Let all threads allocate from the heap that a run in the main thread has; call it before they start.

    By default glibc gives each thread a heap of its own, whose luck with page faults and caches stays with it: two
    equal trainers then differ by some percent for as long as they live.
    """
    if platform.libc_ver()[0] == "glibc":
        m_arena_max = -8
        ctypes.CDLL(None).mallopt(m_arena_max, 1)


@contextlib.contextmanager
def own_time() -> Iterator[Callable[[], float]]:
    """Answers with the CPU seconds inside this library's scheduler since it was last asked.

    Schedulers must be made within this context. The paired times say what a whole update costs, as exactly as the
    machine is quiet; this says which part of it was spent in our code, exactly on any machine, but not what that code
    does to the caches of the others.
    """
    spent = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            began = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent += time.process_time() - began

        return call

    def take() -> float:
        nonlocal spent
        seconds, spent = spent, 0.0
        return seconds

    methods: Any = {name: timed(getattr(ControlledLR, name)) for name in _OWN}
    with mock.patch.multiple(ControlledLR, **methods):
        yield take
