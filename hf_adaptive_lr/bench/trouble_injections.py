"""The guard study's disturbances, as values: one entry of `INJECTIONS` is one kind of trouble.

An [`Injection`] says what happens, a [`Striker`] when: once, at two fifths of the run give or take a tenth, drawn from
the seed. Draws come from a generator of their own, so that a troubled run sees the same batches and dropout as the
clean one, and is the same up to the strike, bit for bit.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

STRIKE, JITTER = 0.4, 0.1
"""Where in the run trouble begins, and how far off this a seed may put it, as shares of the run."""

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """An update at which an injection is at work."""

    update: int  # counted from 0 where the trouble begins
    classes: int
    draw: Generator
    kept: dict[str, Any]  # what an injection keeps over the run


@dataclass(frozen=True, kw_only=True)
class Injection:
    """A kind of trouble; this one is none, the others override what they disturb."""

    name: str
    text: str  # for the page
    share: float = 0.0  # how long it lasts, as a share of the run; 0 is one update
    from_start: bool = False  # it lasts for the whole run instead
    base_lr_factor: float = 1.0  # of the learning rate that the run is given
    step_lr_factor: float = 1.0  # of the learning rate of one applied update

    def spec(self) -> dict[str, Any]:
        """All that a run depends on, as JSON values; not its name or text."""
        values = dataclasses.asdict(self)
        return {"kind": type(self).__name__, **{k: v for k, v in values.items() if k not in ("name", "text")}}

    def disturb_batch(self, inputs: Inputs, now: Moment) -> Inputs:
        """The batch that the model is given."""
        return inputs

    def disturb_weights(self, weights: list[nn.Parameter], draw: Generator) -> None:
        """Change the trained weights before the forward pass."""

    def disturb_loss(self, loss: Tensor, now: Moment) -> Tensor:
        """The loss that the model answers with."""
        return loss

    def disturb_gradients(self, weights: list[nn.Parameter], draw: Generator) -> None:
        """Change the gradients after the backward pass, before they are clipped."""

    def rate_factor(self, updates: int) -> float:
        """By what the learning rate, and all later ones, are multiplied at each of so many updates."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class NanBatch(Injection):
    """Every pixel of a batch is NaN; texts have no numbers to spoil, so their loss is NaN by itself."""

    def disturb_batch(self, inputs: Inputs, now: Moment) -> Inputs:
        """The batch with NaN for every number that is not whole."""
        return {n: torch.full_like(v, torch.nan) if v.is_floating_point() else v for n, v in inputs.items()}

    def disturb_loss(self, loss: Tensor, now: Moment) -> Tensor:
        """NaN, and so are all gradients."""
        return loss * torch.nan


@dataclass(frozen=True, kw_only=True)
class InfGradient(Injection):
    """The gradient of one parameter, drawn among all, is infinite."""

    def disturb_gradients(self, weights: list[nn.Parameter], draw: Generator) -> None:
        """Fill one gradient."""
        gradients = [p.grad for p in weights if p.grad is not None]
        gradients[int(torch.randint(len(gradients), (), generator=draw))].fill_(torch.inf)


@dataclass(frozen=True, kw_only=True)
class LossSpike(Injection):
    """The loss, and with it every gradient, is multiplied."""

    factor: float = 100.0

    def disturb_loss(self, loss: Tensor, now: Moment) -> Tensor:
        """The product."""
        return loss * self.factor


@dataclass(frozen=True, kw_only=True)
class LabelBurst(Injection):
    """The labels of some updates in succession are drawn from all classes."""

    def disturb_batch(self, inputs: Inputs, now: Moment) -> Inputs:
        """The batch with other labels."""
        labels = inputs["labels"]
        return {**inputs, "labels": torch.randint(now.classes, labels.shape, generator=now.draw)}


@dataclass(frozen=True, kw_only=True)
class WeightNoise(Injection):
    """Normal noise is added to every trained tensor."""

    scale: float = 1.0  # standard deviation of the noise over the tensor's root mean square

    @torch.no_grad()
    def disturb_weights(self, weights: list[nn.Parameter], draw: Generator) -> None:
        """Add it."""
        for weight in weights:
            noise = torch.randn(weight.shape, generator=draw)
            weight.add_(self.scale * weight.square().mean().sqrt() * noise)


@dataclass(frozen=True, kw_only=True)
class GrowingRate(Injection):
    """The learning rate grows, evenly in its logarithm, and stays as high as that."""

    growth: float = 30.0

    def rate_factor(self, updates: int) -> float:
        """The factor between one of so many updates and the next."""
        return float(self.growth ** (1 / updates))


_ALL = (
    Injection(name="clean", text="nothing happens"),
    NanBatch(name="nan_batch", text="one batch of NaN pixels; for texts, a loss of NaN"),
    InfGradient(name="inf_gradient", text="the gradient of one parameter is infinite at one update"),
    LossSpike(name="loss_spike", text="the loss of one update is multiplied by 100"),
    Injection(name="lr_spike", text="one update is applied at 100 times the learning rate", step_lr_factor=100.0),
    Injection(
        name="high_lr", text="the run is given 30 times the learning rate", from_start=True, base_lr_factor=30.0
    ),
    GrowingRate(
        name="growing_lr", text="over a fifth of the run the learning rate grows to 30 times what it was", share=0.2
    ),
    LabelBurst(
        name="label_burst", text="the labels of a tenth of the run, in succession, are drawn at random", share=0.1
    ),
    WeightNoise(name="weight_noise", text="noise as large as the weights themselves is added to all that are trained"),
)

INJECTIONS: Mapping[str, Injection] = {injection.name: injection for injection in _ALL}
"""Every kind of trouble by its name, and `clean`."""


def strikes(injection: Injection, updates: int, seed: int) -> range:
    """The updates, counted from 0, at which an injection is at work."""
    if injection.name == "clean":
        return range(0)
    if injection.from_start:
        return range(updates)
    share = STRIKE + JITTER * (2.0 * float(torch.rand((), generator=_draw(injection, seed))) - 1.0)
    first = min(round(share * updates), updates - 1)
    return range(first, min(first + max(1, round(injection.share * updates)), updates))


def _draw(injection: Injection, seed: int) -> Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{injection.name} {seed}".encode()))


class Striker:
    """Lets an injection loose on a model at the right updates; whoever trains it calls the three methods.

    Make it before training begins: its hook on the loss then comes before those of whoever watches the loss.
    """

    def __init__(self, injection: Injection, model: nn.Module, updates: int, seed: int) -> None:
        self.injection, self.updates = injection, strikes(injection, updates, seed)
        self._classes = int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._draw, self._kept = _draw(injection, seed), dict[str, Any]()
        self._update = -1
        self._spiked = False
        self._lrs: list[float] = []
        model.register_forward_hook(self._on_loss)

    @property
    def _at_work(self) -> bool:
        return self._update in self.updates

    def before_forward(self, update: int, inputs: Inputs) -> Inputs:
        """The batch to be used at an update, counted from 0; spoils weights if that is what happens."""
        self._update = update
        if not self._at_work:
            return inputs
        self.injection.disturb_weights(self._weights, self._draw)
        return self.injection.disturb_batch(inputs, self._now())

    @property
    def rate_factor(self) -> float:
        """By what the learning rate is to be multiplied before this update, for good."""
        return self.injection.rate_factor(len(self.updates)) if self._at_work else 1.0

    def after_backward(self) -> None:
        """Spoils gradients if that is what happens."""
        if self._at_work:
            self.injection.disturb_gradients(self._weights, self._draw)

    def watch(self, optimizer: Optimizer) -> None:
        """Hooks on the optimizer itself: they act after every scheduler has written, and only for real updates."""
        if self.injection.step_lr_factor != 1.0:
            optimizer.register_step_pre_hook(self._raise_lr)
            optimizer.register_step_post_hook(self._put_lr_back)

    def _on_loss(self, model: nn.Module, args: Any, output: Any) -> None:
        if self._at_work and model.training:
            output.loss = self.injection.disturb_loss(output.loss, self._now())

    def _now(self) -> Moment:
        return Moment(self._update - self.updates.start, self._classes, self._draw, self._kept)

    def _raise_lr(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        due = not self._spiked and len(self.updates) > 0 and self._update >= self.updates.start
        # A step without gradients is one that a guard has taken out: the spike is for the next that is applied.
        if due and any(p.grad is not None for p in self._weights):
            self._spiked = True
            self._lrs = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * self.injection.step_lr_factor

    def _put_lr_back(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, lr in zip(optimizer.param_groups, self._lrs, strict=False):
            group["lr"] = lr
        self._lrs = []
