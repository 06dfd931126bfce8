"""LR range test (Smith 2017, arXiv:1506.01186, section 3.3): the bounds that PLRS asks for, before training.

Train for a few dozen updates while the learning rate rises, and see where the loss turns up. Smith lets it rise
linearly and reads the point off a plot of the accuracy; here it rises geometrically, and the rule is written down, in
`_turn`. Afterwards everything is put back as it was.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._checks import check_range
from ..distributed import world_size
from ..optimizers.groups import base_lrs, raw

# The turn is seen late: a direction that a learning rate makes unstable needs some updates to grow into the loss. On
# quadratics with noisy gradients the turn lies at 0.2 to 2 times the stability limit 2 / curvature (100 steps, six
# decades); without noise it is seen late by a factor of several, whatever the rule.
_MARGIN = 0.5
_SAME, _HIGHER = 2.0, 5.0  # standard errors: within which the loss is still at its lowest, beyond which it turned up


@dataclass(frozen=True)
class RangeTest:
    """The result of an LR range test. Learning rates are those of the first group with a positive one.

    Args:
        lrs: the learning rates that were tried, rising; fewer than asked for if the loss diverged.
        raw_losses: loss of the next batch right after the update at each of them, all finite.
        losses: the same, smoothed by a running median over neighbours on both sides.
        turn: the largest learning rate at which the loss was still at its lowest (the smoothed one within two standard
            errors, the raw one within three standard deviations) before it turned up; None if it never did.
    """

    lrs: tuple[float, ...]
    raw_losses: tuple[float, ...]
    losses: tuple[float, ...]
    turn: float | None

    @property
    def turned_up(self) -> bool:
        """Whether the loss turned up (by five standard errors, or it diverged) within the range."""
        return self.turn is not None

    @property
    def l_max(self) -> float:
        """Proposal for L_max: half of `turn`; the largest learning rate tried if the loss never turned up."""
        return self.lrs[-1] if self.turn is None else _MARGIN * self.turn

    @property
    def l_min(self) -> float:
        """Proposal for L_min: 0.7 L_max, the ratio of VGG-16, WRN-28-10 and ResNet-110 in the PLRS paper."""
        return 0.7 * self.l_max


def lr_range_test(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    smooth: float = 0.9,
    stop_factor: float = 4.0,
    max_grad_norm: float | None = None,
) -> RangeTest:
    """Raise the learning rate from `low` to `high`, watch the training loss, and put everything back.

    Run it in one process, before a [`ControlledLR`] is made. It costs `steps` + 1 forward and `steps` backward passes,
    and memory for one more copy of trained weights, buffers, optimizer state and any gradients. All of these, the
    optimizer's settings, train/eval modes and torch's random generators (CPU, and CUDA where the model is) come back
    bit for bit, after an exception or Ctrl-C as well; other generators and batches taken from an iterator do not.

    Args:
        model: the module to train, not a DDP or compiled wrapper; put in train mode for the test if it is not.
        optimizer: optimizer of its weights, with whatever state it has. Groups keep the ratios of their learning
            rates.
        batches: training batches. What can be iterated again (list, DataLoader) is, when it runs out; an iterator
            needs `steps` + 1 batches.
        loss: mean loss of (model, batch), a 0-d tensor; by default `model(**batch).loss` for batches that are
            mappings, with their tensors moved to the model's device.
        low: first learning rate, above 0; so low that it does no harm.
        high: last one, above `low`.
        steps: number of updates, 20 ... 100,000. More find the turn more exactly; below 100 it is seen late.
        smooth: in [0, 0.99]; weight of the past in the running average that is watched for divergence, while the
            running median is over smooth / (1 - smooth) losses on either side.
        stop_factor: stop early when the running average of the loss exceeds its best by (stop_factor - 1) times the
            larger of best and first loss, in size: by a factor `stop_factor`, if it never fell. In [1.1, 1e6].
        max_grad_norm: clip gradients to this norm, if training does; None or 0 for no clipping.

    Returns:
        Learning rates, losses and the proposed bounds.

    Raises:
        TypeError: the optimizer is not one, or batches are no mappings and there is no `loss`.
        ValueError: a value out of range; too few batches; no usable loss, one that is not finite from the start or
            that only rises; an optimizer that a ControlledLR steers; several processes.

    Example:
        >>> import torch
        >>> from hf_adaptive_lr.controllers import PLRS
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> data = [(x, x.sum(-1, keepdim=True) + torch.randn(16, 1)) for x in torch.randn(20, 16, 4)]
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> found = lr_range_test(model, optimizer, data, loss=loss, low=1e-4, high=10.0)
        >>> found.turned_up, 0.05 < found.l_max < 0.5
        (True, True)
        >>> plrs = PLRS.from_bounds(0.1, found.l_min, found.l_max)
    """
    name = "lr_range_test"
    check_range(name, "low", low, 1e-20, 1e6, hint="1e-6 is harmless for most models")
    check_range(name, "high", high, low * (1 + 1e-6), 1e6, hint=f"it must be above low={low}")
    check_range(name, "steps", steps, 20, 100_000, hint="100 are enough for six decades", whole=True)
    check_range(name, "smooth", smooth, 0.0, 0.99, hint="0.9 is a median over 19 losses")
    check_range(name, "stop_factor", stop_factor, 1.1, 1e6, hint="4 is usual")
    check_range(name, "max_grad_norm", max_grad_norm or 0.0, 0.0, math.inf, hint="None for no clipping")
    optimizer = raw(optimizer)
    _check_alone(optimizer)
    lrs = [low * (high / low) ** (k / (steps - 1)) for k in range(steps)]
    with _put_back(model, optimizer), torch.enable_grad():
        sweep = _Sweep(model, optimizer, _endless(batches), loss or _own_loss, max_grad_norm)
        losses, diverged = sweep.run(lrs, smooth, stop_factor)
    smoothed, turn = _turn(losses, smooth, diverged)
    if turn == 0:
        raise ValueError(f"lr_range_test: the loss rises from the first learning rate on; lower low={low}")
    return RangeTest(tuple(lrs[: len(losses)]), tuple(losses), tuple(smoothed), None if turn is None else lrs[turn])


@dataclass(frozen=True)
class _Sweep:
    model: nn.Module
    optimizer: Optimizer
    batches: Iterator[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    max_grad_norm: float | None

    def run(self, lrs: list[float], smooth: float, stop_factor: float) -> tuple[list[float], bool]:
        """Losses after the updates at `lrs`, and whether they diverged, which ends the sweep."""
        pending = self._next_loss()
        first = loss = pending.item()
        if not math.isfinite(first):
            raise ValueError(f"lr_range_test: the first loss is {first}, before any update; look at model and data")
        bases = base_lrs(self.optimizer)
        reference = next((base for base in bases if base > 0), None)
        if reference is None:
            raise ValueError(f"lr_range_test: learning rates {bases} of the groups; set one above 0, for the ratios")
        losses: list[float] = []
        average, weight, best = 0.0, 0.0, math.inf
        for lr in lrs:
            self._update(pending, [lr * base / reference for base in bases])
            pending = self._next_loss()
            loss = pending.item()
            if not math.isfinite(loss):
                break
            losses.append(loss)
            average, weight = smooth * average + (1 - smooth) * loss, smooth * weight + (1 - smooth)
            best = min(best, average / weight)
            if average / weight > best + (stop_factor - 1) * max(abs(first), abs(best)):
                break
        else:
            return losses, False
        if not losses:
            raise ValueError(f"lr_range_test: the loss is {loss} after the first update; lower low={lrs[0]}")
        return losses, True

    def _next_loss(self) -> Tensor:
        loss = self.loss(self.model, next(self.batches))
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
            raise ValueError(f"lr_range_test: the loss must be a 0-d tensor that depends on the weights, got {loss!r}")
        return loss

    def _update(self, loss: Tensor, lrs: list[float]) -> None:
        groups = self.optimizer.param_groups
        loss.backward()  # type: ignore[no-untyped-call]
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], self.max_grad_norm)
        for group, lr in zip(groups, lrs, strict=True):
            group["lr"] = torch.full_like(group["lr"], lr) if isinstance(group["lr"], Tensor) else lr
        self.optimizer.step()
        self.optimizer.zero_grad()


def _turn(losses: list[float], smooth: float, diverged: bool) -> tuple[list[float], int | None]:
    """The running median, and the last place where the loss is at its lowest before it turns up, if it does."""
    # A median and not an average: it has no lag, keeps the edge where losses explode, and does not care how far.
    y = torch.tensor(losses, dtype=torch.float64)
    in_logs = bool((y > 0).all())  # noise is in proportion to a loss that falls by orders of magnitude
    y = y.log() if in_logs else y
    half = round(smooth / (1 - smooth))
    median = torch.stack([y[max(0, i - half) : i + half + 1].quantile(0.5) for i in range(len(losses))])
    moves = y.diff()
    # Robust (median absolute deviation), so that neither the fall nor the rise of the loss counts as noise.
    noise = 1.4826 * (moves - moves.median()).abs().median() / math.sqrt(2) if len(losses) > 2 else torch.zeros(())
    error = 1.25 * noise / math.sqrt(half + 1)
    last = int(torch.nonzero(median <= median.min() + _SAME * error)[-1])
    # A lucky batch is within three deviations; a loss without noise turns at one update, and is found exactly there.
    last_raw = int(torch.nonzero(y <= y.min() + 3 * noise)[-1])
    turned = diverged or bool(median[last:].max() > median.min() + _HIGHER * error)
    return (median.exp() if in_logs else median).tolist(), min(last, last_raw) if turned else None


@contextlib.contextmanager
def _put_back(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Work on copies of optimizer state and settings; on leaving, weights and buffers get their old values."""
    attributes, state = dict(optimizer.__dict__), optimizer.state
    groups = [(group, dict(group)) for group in optimizer.param_groups]
    everything = {p: p.grad for p in (*model.parameters(), *(p for group, _ in groups for p in group["params"]))}
    weights = [(p, p.detach().clone()) for p in everything if p.requires_grad]
    modules = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    buffers = [(b, b.detach().clone()) for _, _, own in modules for b in own.values() if b is not None]
    cuda = sorted({p.device.index for p in everything if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        try:
            optimizer.state = defaultdict(dict, {p: copy.deepcopy(own) for p, own in state.items()})
            for group, own in groups:
                group.update({key: copy.deepcopy(value) for key, value in own.items() if key != "params"})
            for p in everything:
                p.grad = None
            if not model.training:  # where it is, single modules may be in eval mode on purpose
                model.train()
            yield
        finally:
            for group, own in groups:
                group.clear()
                group.update(own)
            for name in optimizer.__dict__.keys() - attributes.keys():
                delattr(optimizer, name)
            optimizer.__dict__.update(attributes)
            with torch.no_grad():
                for tensor, saved in (*weights, *buffers):
                    tensor.copy_(saved)
            for p, grad in everything.items():
                p.grad = grad
            for module, training, own in modules:
                module.training = training
                module._buffers.clear()
                module._buffers.update(own)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches from the beginning again when they run out, where that is possible."""
    seen = 0
    while True:
        before = seen
        for batch in batches:
            seen += 1
            yield batch
        if seen == before:
            raise ValueError(f"lr_range_test: no batch is left after {seen}; pass a list, a DataLoader or steps + 1")


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        raise TypeError(f"lr_range_test: batches are {type(batch).__name__}, not mappings; pass loss=")
    device = next(model.parameters()).device
    output = model(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.items()})
    loss: Tensor | None = getattr(output, "loss", None)
    if loss is None:
        raise ValueError(f"lr_range_test: no loss in the model's output for {sorted(batch)}; add labels or pass loss=")
    return loss


def _check_alone(optimizer: Optimizer) -> None:
    scheduler = getattr(optimizer, "_adaptive_lr", lambda: None)()
    hooks = map(inspect.unwrap, optimizer._optimizer_step_pre_hooks.values())
    if scheduler is not None and any(getattr(hook, "__self__", None) is scheduler for hook in hooks):
        raise ValueError("lr_range_test: a ControlledLR writes this optimizer's learning rates; close() it first")
    if world_size(None) > 1:  # each would stop at a loss of its own, and the others wait forever
        raise ValueError(f"lr_range_test: {world_size(None)} processes are running; run it in one, beforehand")
