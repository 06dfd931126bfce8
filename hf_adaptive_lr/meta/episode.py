"""One episode: a few moves of the learning rate, spread over a run, scored by the loss on other data."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..cadence import decision_updates
from ..controller import Controller, State
from ..observation import Observation
from .tasks.base import Split
from .vector_run import VectorRun

MIN_LR, MAX_LR = 1e-8, 10.0
"""Learning rates are kept between these."""

RISE, FALL = 3.0, 20.0
"""A log loss counts as at most `RISE` above and at most `FALL` below its start, so a lost run has a price."""


def stretches(total_steps: int, decisions: int) -> list[int]:
    """Number of updates after each decision: `decisions` numbers, as equal as possible, that add up to the run.

    Both arguments are at least 1. With fewer updates than decisions some stretches are 0; (10, 4) gives [2, 3, 2, 3].
    """
    if total_steps < 1 or decisions < 1:
        raise ValueError(f"total_steps={total_steps} and decisions={decisions} must be at least 1")
    moments = [*decision_updates(total_steps, decisions), total_steps]
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def stretches_of(controller: Controller, total_steps: int, decisions: int, *, hidden: bool = False) -> list[int]:
    """Number of updates after each decision by the controller's own `due`, or else as in [`stretches`].

    The first must be at update 0. `hidden`: the controller does not know the length. ValueError for one whose rate
    falls between decisions, or that warms up: vectorised runs hold a rate.
    """
    if controller.linear_between or controller.warmup:
        raise ValueError(
            f"vectorised runs cannot play '{controller.controller_type}': its rate moves between decisions"
        )
    known = None if hidden else total_steps
    if controller.due(0, known) is None:
        return stretches(total_steps, decisions)
    moments = [*(t for t in range(total_steps) if controller.due(t, known)), total_steps]
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


class Episode:
    """One episode in every run of a batch, whose runs are before their first update.

    There are as many `decisions` for every horizon, so that episodes of different tasks can be stacked; a `controller`
    with a `due` of its own is followed instead. The loss on `split` scores the run.
    """

    def __init__(
        self, run: VectorRun, decisions: int, split: Split = "outer_valid", controller: Controller | None = None
    ) -> None:
        self.run, self.split = run, split
        total = run.total_steps
        self.stretches = stretches(total, decisions)
        if controller is not None:
            self.stretches = stretches_of(controller, total, decisions, hidden=run.hidden)
        self.taken = 0
        self.lr = run.base_lr
        self.start = run.log_loss(split)
        self.value = self.start

    @property
    def done(self) -> bool:
        """Whether the last decision was played."""
        return self.taken == len(self.stretches)

    @property
    def lost(self) -> Tensor:
        """Which runs have blown up, boolean of shape (runs,)."""
        return ~self.run.alive | (self.value >= self.start + RISE)

    def observe(self, needs: frozenset[str] | None = None) -> Observation:
        """The observation before the next decision; see [`VectorRun.observe`] for `needs`."""
        return self.run.observe(self.lr, needs)

    def play(self, lr: Tensor) -> Tensor:
        """Train up to the next decision at learning rates of shape (runs,), clamped to [MIN_LR, MAX_LR].

        Returns the fall of the log held-out loss, (runs,); over an episode these add up to `start - value`.
        """
        self.lr = lr.clamp(MIN_LR, MAX_LR)
        self.run.advance(self.lr, self.stretches[self.taken])
        self.taken += 1
        before, now = self.value, self.run.log_loss(self.split)
        self.value = torch.minimum(torch.maximum(now, self.start - FALL), self.start + RISE)
        return before - self.value


def as_lr(controller: Controller, answer: Tensor, base_lr: Tensor) -> Tensor:
    """Learning rates of shape (runs,) from an answer of a controller; the first group's if there are several."""
    answer = answer if answer.ndim == base_lr.ndim else answer[..., 0]
    return base_lr * answer if controller.answers == "factor" else answer


@torch.no_grad()
def play_through(
    controller: Controller, episode: Episode, params: dict[str, Tensor] | None = None, *, seed: int = 0
) -> Tensor:
    """Play a whole episode, before its first decision, with a controller; the log final held-out losses, (runs,).

    `params` are weights instead of the controller's, with a leading run dimension where each run has its own; `seed`
    is of the controller's own random draws.
    """
    state: State = controller.init((episode.run.task.runs,), seed=seed)
    while not episode.done:
        answer, state = controller.decide(episode.observe(controller.needs), state, params)
        episode.play(as_lr(controller, answer, episode.run.base_lr))
    return episode.value
