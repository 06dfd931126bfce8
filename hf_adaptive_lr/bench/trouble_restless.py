"""The guard study's healthy but restless streams, as values: nothing is wrong, and the loss moves all the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .trouble_injections import Injection, Inputs, Moment


@dataclass(frozen=True, kw_only=True)
class Sources(Injection):
    """Blocks of an easy source and a hard one, in turn; in the hard one a share of the labels is drawn at random."""

    block: int = 10  # updates; the first block is easy
    wrong: float = 0.5

    def disturb_batch(self, inputs: Inputs, now: Moment) -> Inputs:
        """The batch, with its labels in part at random in every second block."""
        return _hard(inputs, now, self.wrong) if now.update // self.block % 2 else inputs


@dataclass(frozen=True, kw_only=True)
class Change(Injection):
    """The hard source for good, from some update on."""

    wrong: float = 0.5

    def disturb_batch(self, inputs: Inputs, now: Moment) -> Inputs:
        """The batch, with its labels in part at random."""
        return _hard(inputs, now, self.wrong)


@dataclass(frozen=True, kw_only=True)
class Season(Injection):
    """The loss, and with it every gradient, is multiplied by a wave."""

    height: float = 0.6
    pace: float = 1 / 3  # radians per update

    def disturb_loss(self, loss: Tensor, now: Moment) -> Tensor:
        """The product."""
        return loss * (1.0 + self.height * math.sin(self.pace * now.update))


@dataclass(frozen=True, kw_only=True)
class AroundZero(Injection):
    """The loss reads as noise around zero, and its gradients are what they were: a policy gradient's loss does so."""

    scale: float = 0.05

    def disturb_loss(self, loss: Tensor, now: Moment) -> Tensor:
        """Another value with the same gradient."""
        return loss - loss.detach() + self.scale * torch.randn((), generator=now.draw)


@dataclass(frozen=True, kw_only=True)
class SameBatch(Injection):
    """Every update trains on the batch of the first one, until it is known by heart."""

    def disturb_batch(self, inputs: Inputs, now: Moment) -> Inputs:
        """The first batch."""
        return {name: now.kept.setdefault(name, value) for name, value in inputs.items()}


def _hard(inputs: Inputs, now: Moment, wrong: float) -> Inputs:
    labels = inputs["labels"]
    drawn = torch.randint(now.classes, labels.shape, generator=now.draw)
    return {**inputs, "labels": torch.where(torch.rand(labels.shape, generator=now.draw) < wrong, drawn, labels)}


_ALL = (
    Sources(
        name="alternating",
        text="ten batches of an easy source and ten of a hard one, half of whose labels are at random, in turn",
        from_start=True,
    ),
    Season(name="seasonal", text="the loss is multiplied by 1 + 0.6 sin(t / 3)", from_start=True),
    AroundZero(
        name="around_zero", text="the loss reads as normal noise around zero, its gradients unchanged", from_start=True
    ),
    Change(name="change", text="from two fifths of the run on, half of the labels are at random for good", share=1.0),
    SameBatch(name="same_batch", text="the first batch at every update", from_start=True),
)

STREAMS: Mapping[str, Injection] = {stream.name: stream for stream in _ALL}
"""Every restless stream by its name."""
