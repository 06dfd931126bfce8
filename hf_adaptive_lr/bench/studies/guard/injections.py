"""The guard study's disturbances, as values: one entry is one kind of trouble, or one healthy but restless stream.

An [`Injection`] says what happens, [`strikes`] when. Draws come from a generator of their own, so that a disturbed run
sees the same batches and dropout as the clean one, and is the same up to the strike, bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...rows import Specified

STRIKE, JITTER = 0.4, 0.1
"""Where in the run trouble begins, and how far off this a seed may put it, as shares of the run."""

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """An update at which an injection is at work."""

    update: int  # counted from 0 where the injection begins
    classes: int
    draw: Generator
    kept: Inputs = field(default_factory=dict)  # the first batch, of an injection that repeats it


@dataclass(frozen=True, kw_only=True)
class Injection(Specified):
    """What happens to a run while it is at work; nothing by default."""

    name: str
    text: str  # for the page
    share: float = 0.0  # how long it lasts, as a share of the run; 0 is one update
    from_start: bool = False  # it lasts for the whole run instead
    base_lr_factor: float = 1.0  # of the learning rate that the run is given
    step_lr_factor: float = 1.0  # of the learning rate of one applied update
    lr_growth: float = 1.0  # of this learning rate and all later ones, evenly in its logarithm while it lasts
    weight_noise: float = 0.0  # added to every trained tensor: standard deviation over the root mean square of it
    same_batch: bool = False  # the first batch again
    nan: bool = False  # in every pixel; texts have no numbers to spoil, so that their loss is NaN by itself
    wrong_labels: float = 0.0  # share of the labels that is drawn from all classes
    block: int = 0  # updates with right labels before as many with wrong ones, in turn; 0: all are wrong
    loss_factor: float = 1.0  # of the loss, and with it of every gradient
    loss_wave: float = 0.0  # height of a wave that multiplies the loss
    # The loss reads as noise around zero of this size, with its gradients unchanged: a policy gradient's does so.
    loss_noise: float = 0.0
    infinite: bool = False  # the gradient of one parameter, drawn among all

    def spec(self) -> dict[str, Any]:
        """All that a run depends on and that is not a default, as JSON values."""
        values = {f.name: (f.default, getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {n: value for n, (usual, value) in values.items() if value != usual and n not in ("name", "text")}

    @torch.no_grad()
    def disturb_weights(self, weights: Iterable[nn.Parameter], now: Moment) -> None:
        """Change the trained weights before the forward pass."""
        for weight in weights if self.weight_noise else ():
            noise = torch.randn(weight.shape, generator=now.draw)
            weight.add_(self.weight_noise * weight.square().mean().sqrt() * noise)

    def disturb_batch(self, inputs: Inputs, now: Moment) -> Inputs:
        """The batch that the model is given."""
        if self.same_batch:
            return {name: now.kept.setdefault(name, value) for name, value in inputs.items()}
        if self.nan:
            return {n: torch.full_like(v, torch.nan) if v.is_floating_point() else v for n, v in inputs.items()}
        if not self.wrong_labels or (self.block and not now.update // self.block % 2):
            return inputs
        labels = inputs["labels"]
        drawn = torch.randint(now.classes, labels.shape, generator=now.draw)
        if self.wrong_labels < 1:
            drawn = torch.where(torch.rand(labels.shape, generator=now.draw) < self.wrong_labels, drawn, labels)
        return {**inputs, "labels": drawn}

    def disturb_loss(self, loss: Tensor, now: Moment) -> Tensor:
        """The loss that the model answers with."""
        if self.loss_noise:
            return loss - loss.detach() + self.loss_noise * torch.randn((), generator=now.draw)
        factor = self.loss_factor * (1.0 + self.loss_wave * math.sin(1 / 3 * now.update))
        return loss * (torch.nan if self.nan else factor)

    def disturb_gradients(self, weights: Iterable[nn.Parameter], now: Moment) -> None:
        """Change the gradients after the backward pass, before they are clipped."""
        if self.infinite:
            gradients = [p.grad for p in weights if p.grad is not None]
            gradients[int(torch.randint(len(gradients), (), generator=now.draw))].fill_(torch.inf)


CLEAN = Injection(name="clean", text="nothing happens")
_TROUBLES = (
    Injection(name="nan_batch", text="one batch of NaN pixels; for texts, a loss of NaN", nan=True),
    Injection(name="inf_gradient", text="the gradient of one parameter is infinite at one update", infinite=True),
    Injection(name="loss_spike", text="the loss of one update is multiplied by 100", loss_factor=100.0),
    Injection(name="lr_spike", text="one update is applied at 100 times the learning rate", step_lr_factor=100.0),
    Injection(
        name="high_lr", text="the run is given 30 times the learning rate", from_start=True, base_lr_factor=30.0
    ),
    Injection(
        name="growing_lr",
        text="over a fifth of the run the learning rate grows to 30 times what it was",
        share=0.2,
        lr_growth=30.0,
    ),
    Injection(
        name="label_burst",
        text="the labels of a tenth of the run, in succession, are drawn at random",
        share=0.1,
        wrong_labels=1.0,
    ),
    Injection(
        name="weight_noise",
        text="noise as large as the weights themselves is added to all that are trained",
        weight_noise=1.0,
    ),
)
_STREAMS = (
    Injection(
        name="alternating",
        text="ten batches of an easy source and ten of a hard one, half of whose labels are at random, in turn",
        from_start=True,
        wrong_labels=0.5,
        block=10,
    ),
    Injection(name="seasonal", text="the loss is multiplied by 1 + 0.6 sin(t / 3)", from_start=True, loss_wave=0.6),
    Injection(
        name="around_zero",
        text="the loss reads as normal noise around zero, its gradients unchanged",
        from_start=True,
        loss_noise=0.05,
    ),
    Injection(
        name="change",
        text="from two fifths of the run on, half of the labels are at random for good",
        share=1.0,
        wrong_labels=0.5,
    ),
    Injection(name="same_batch", text="the first batch at every update", from_start=True, same_batch=True),
)

TROUBLES: Mapping[str, Injection] = {trouble.name: trouble for trouble in _TROUBLES}
"""Every kind of trouble by its name."""
STREAMS: Mapping[str, Injection] = {stream.name: stream for stream in _STREAMS}
"""Every stream that is healthy but restless by its name: nothing is wrong, and the loss moves all the same."""
INJECTIONS: Mapping[str, Injection] = {CLEAN.name: CLEAN, **TROUBLES, **STREAMS}
"""All of these, and `clean`."""


def strikes(injection: Injection, updates: int, seed: int) -> range:
    """The updates, counted from 0, at which an injection is at work."""
    if injection == CLEAN:
        return range(0)
    if injection.from_start:
        return range(updates)
    share = STRIKE + JITTER * (2.0 * float(torch.rand((), generator=generator(injection, seed))) - 1.0)
    first = min(round(share * updates), updates - 1)
    return range(first, min(first + max(1, round(injection.share * updates)), updates))


def generator(injection: Injection, seed: int) -> Generator:
    """What an injection draws from."""
    return torch.Generator().manual_seed(zlib.crc32(f"{injection.name} {seed}".encode()))
