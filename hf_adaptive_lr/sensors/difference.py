"""Measures an update by the difference of the weights, for optimizers whose state does not tell it.

The weights are copied before the step and subtracted after it, at the updates before decisions alone. What is measured
is what happened, decoupled weight decay included, and rounding as well: of a weight in bfloat16 most small changes are
lost, so that a small update shows as none, or as a part of itself. Such updates are not measured.

Where the copy would be larger than a budget, a stratified sample of the coordinates is copied: one at random of every
few in succession, with a seed, so that each matrix and each row of it has its share; small tensors are copied whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..distributed import Shards, generator, local
from .grad_norm import dense
from .gradients import chunks
from .lora import Adapter, movement
from .readable import DIRECTION_FIELDS, PREVIOUS_DIRECTION, steps_like_torch

_MOVED = 0.5  # share of the coordinates with a gradient that must have moved
_LEAST = 20  # of so many coordinates one is copied at least
_SMALL = 1 << 14  # elements of a tensor that is copied whole
_ABOVE_ROUNDING = 2.0  # or the deviation of an update, in units in the last place of the weights


class DifferenceSensor:
    """Measures the updates before decisions of an optimizer that [`direction_sums`] cannot read.

    Costs one copy of the weights that have a gradient, from the pre-step to the post-step hook; where the controller
    looks at angles it is kept, as the change of the weights, until the update after the next one. Where it looks at
    the size of updates alone and the copy on this rank would be larger than `budget` bytes, at least 5 % of the
    coordinates are copied, drawn anew with `seed` for each update and rank, and no more than `budget` where these fit.
    Factors of adapters are copied whole, as their product needs all of them.
    """

    def __init__(self, optimizer: Optimizer, needs: frozenset[str], *, budget: int, seed: int) -> None:
        self._optimizer, self._budget, self._seed = optimizer, budget, seed
        self.wanted = bool(needs & DIRECTION_FIELDS) and not steps_like_torch(optimizer)
        """Whether this sensor is needed for this optimizer."""
        self._ratio, self._angles = "update_ratio" in needs, bool(needs & DIRECTION_FIELDS - {"update_ratio"})
        self.ratio = 0.0
        """Norm of the last update that was measured over that of the weights; 0 stands for none."""
        self.share = 1.0
        """Share of the coordinates that it was measured with."""
        self.clear()

    def clear(self) -> None:
        """Forget the weights from before the update."""
        self.before: dict[int, Tensor] = {}
        """Copies of the weights that the update may move, by the id of the parameter; not of sampled ones."""
        self._samples: dict[int, tuple[Tensor, int]] = {}  # copies of some coordinates, and the seed of their places
        self._stride = 1

    @torch.no_grad()
    def before_step(self, update: int, adapters: Callable[[], Sequence[Adapter]]) -> None:
        """Keep the weights: the update that is about to be made is one to be measured. ValueError: sparse gradient."""
        if not self.wanted:
            return
        given = [p for p in self._trained() if p.grad is not None and dense(p.grad) is not None]
        given = given or self._trained()  # a closure computes gradients later
        large = self._to_be_sampled(given, adapters)
        for place, p in enumerate(given):
            if id(p) in large:
                seed = generator(self._seed, "difference", update, place).initial_seed()
                self._samples[id(p)] = self._sample(p, seed), seed
            else:
                self.before[id(p)] = p.detach().clone()

    def _to_be_sampled(self, params: list[Tensor], adapters: Callable[[], Sequence[Adapter]]) -> set[int]:
        """Ids of the parameters to be sampled, one of every `_stride` coordinates; none within the budget."""
        size = {id(p): local(p).numel() * p.element_size() for p in params}
        if self._angles or sum(size.values()) <= self._budget:
            return set()
        whole = {id(factor) for adapter in adapters() for factor in (adapter.a, adapter.b)}
        large = {id(p) for p in params if local(p).numel() > _SMALL and id(p) not in whole}
        bytes_of_large = sum(size[one] for one in large)
        left = self._budget - (sum(size.values()) - bytes_of_large)
        self._stride = _LEAST if left <= 0 else min(_LEAST, math.ceil(bytes_of_large / left))
        return large

    def _sample(self, tensor: Tensor, seed: int) -> Tensor:
        """The coordinates of this rank's part at places that only the seed and the shape tell: (n // stride,)."""
        flat = local(tensor).detach().reshape(-1)
        draws = torch.Generator(flat.device).manual_seed(seed)
        places = torch.arange(flat.numel() // self._stride, device=flat.device).mul_(self._stride)
        places += torch.randint(self._stride, places.shape, generator=draws, device=flat.device)
        return flat[places]

    def _trained(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]

    @torch.no_grad()
    def after_step(
        self,
        adapters: Callable[[], Sequence[Adapter]],
        shards: Callable[[], Shards | None],
        exchange: Callable[[list[Tensor]], list[float]],
    ) -> None:
        """Measure the update, if it was one to be measured; `exchange` averages numbers over ranks."""
        if not self.before and not self._samples:
            return
        moved = [p for p in self._trained() if id(p) in self.before or id(p) in self._samples]
        if self._ratio:
            copied = sum(len(sample) for sample, _ in self._samples.values())
            copied += sum(local(copy).numel() for copy in self.before.values())
            self.share = copied / max(1, sum(local(p).numel() for p in moved))
            self.ratio = update_ratio(*exchange(list(self._sums(moved, adapters(), shards()))))
        if self._angles:
            for p in self._trained():
                self._optimizer.state[p].pop(PREVIOUS_DIRECTION, None)
            for p in moved:
                self._optimizer.state[p][PREVIOUS_DIRECTION] = self.before[id(p)].sub_(p)

    def _sums(self, moved: list[Tensor], adapters: Sequence[Adapter], shards: Shards | None) -> Tensor:
        """What [`update_ratio`] takes, (6,) float64; of sharded weights to be averaged over ranks. No host sync."""
        factors = {id(factor) for adapter in adapters for factor in (adapter.a, adapter.b)}
        total = torch.zeros(4, dtype=torch.float64, device=moved[0].device)
        moved_sq = total.new_zeros(())
        for p in moved:
            sums = self._of(p) * (1 if shards is None else shards.parts(p))
            total = total + sums
            if id(p) not in factors:
                moved_sq = moved_sq + sums[0]
        changes = {id(p): lambda p=p: self.before[id(p)] - p for p in moved if id(p) in factors}
        sizes = movement(self._optimizer, moved_sq, changes, adapters, shards)
        return torch.cat((sizes, total))

    def _of(self, p: Tensor) -> Tensor:
        """Of this rank's part: squared change and rounding, number of coordinates moved, and with a gradient."""
        eps = torch.finfo(p.dtype).eps
        sums = torch.zeros(4, dtype=torch.float64, device=p.device)
        tensors = [local(p.detach())] + ([] if p.grad is None else [dense(local(p.grad))])
        sample, seed = self._samples.get(id(p), (None, 0))
        if sample is None:
            then_now_grad, scale = [local(self.before[id(p)]), *tensors], 1.0
        else:
            then_now_grad = [sample, *(self._sample(tensor, seed) for tensor in tensors)]
            scale = tensors[0].numel() / len(sample)
        for then, now, *rest in chunks(then_now_grad):
            change = then - now
            with_gradient = rest[0] != 0 if rest else torch.ones_like(change, dtype=torch.bool)
            counts = ((change != 0) & with_gradient).sum(), with_gradient.sum()
            squares = torch.dot(change, change), torch.dot(now, now) * eps**2
            sums += torch.stack([value.double() for value in (*squares, *counts)])
        return sums * scale


def update_ratio(
    moved_sq: float, weight_sq: float, change_sq: float, rounding_sq: float, moved: float, with_gradient: float
) -> float:
    """Norm of an update over the norm of the weights; 0 where it cannot be told from their rounding.

    Args:
        moved_sq: squared norm of the change, of adapters that of their product.
        weight_sq: squared norm of the weights, likewise.
        change_sq: squared norm of the change of all parameters.
        rounding_sq: squared norm of their units in the last place.
        moved: number of coordinates with a gradient that changed.
        with_gradient: number of coordinates with a gradient.

    Example:
        >>> update_ratio(1e-6, 1.0, 1e-6, 1e-14, 90, 100), update_ratio(1e-14, 1.0, 1e-14, 1e-14, 20, 100)
        (0.001, 0.0)
    """
    if moved < _MOVED * with_gradient and change_sq < _ABOVE_ROUNDING**2 * rounding_sq:
        return 0.0
    return math.sqrt(moved_sq / weight_sq) if weight_sq > 0 else 0.0
