"""The relative update of low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685), measured on their product.

An adapter trains B and A in place of W, and the model computes with W + s B A. B starts at zero, so the norm of what
is trained does not tell the size of an update; the product does. To first order

    d(s B A) = s (dB A + B dA)        |dB A|^2 = tr(dB^T dB A A^T)        |s B A|^2 = s^2 tr(B^T B A A^T)

which takes rank x rank matrices only. The base's norm is that of W, which is frozen and measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import Shards, local, whole
from .grad_norm import square_sum


@dataclass(frozen=True)
class Adapter:
    """One adapted layer: A (rank, inputs), B (outputs, rank), and the factor of their product.

    `base_sq` is the squared norm of the weight that they are added to, 0-d float64.
    """

    a: Tensor
    b: Tensor
    scale: float
    base_sq: Tensor

    def weight_sq(self) -> Tensor:
        """Squared norm of the weight that the model computes with, but for the product of its two parts."""
        return self.base_sq + product_sq(whole(self.a), whole(self.b), self.scale)

    def moved_sq(self, da: Tensor | None, db: Tensor | None) -> Tensor:
        """Squared norm of the change of that weight by an update of the factors; None for a factor that stayed."""
        da, db = (None if change is None else whole(change) for change in (da, db))
        return moved_sq(whole(self.a), whole(self.b), da, db, self.scale)


def product_sq(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """|scale B A|^2 of (..., rank, inputs) and (..., outputs, rank); float64 of the leading shape."""
    return scale**2 * _trace(_gram(b.mT), _gram(a))


def moved_sq(a: Tensor, b: Tensor, da: Tensor | None, db: Tensor | None, scale: float) -> Tensor:
    """|scale (dB A + B dA)|^2, shapes as for [`product_sq`]; never below 0."""
    total = torch.zeros(a.shape[:-2], dtype=torch.float64, device=a.device)
    if db is not None:
        total = total + _trace(_gram(db.mT), _gram(a))
    if da is not None:
        total = total + _trace(_gram(b.mT), _gram(da))
    if da is not None and db is not None:
        crossed = _trace((db.mT.float() @ b.float()).double(), (a.float() @ da.float().mT).double())
        total = total + 2 * crossed
    return scale**2 * total.clamp_min(0.0)


def _gram(rows: Tensor) -> Tensor:
    return (rows.float() @ rows.float().mT).double()


def _trace(left: Tensor, right: Tensor) -> Tensor:
    """tr(left^T right): sum over all products, as dB^T B and A dA^T are of (rank, rank)."""
    return (left * right).sum((-2, -1))


def movement(
    optimizer: Optimizer,
    moved_sq: Tensor,
    moved: Mapping[int, Callable[[], Tensor]],
    adapters: Sequence[Adapter],
    shards: Shards | None,
) -> Tensor:
    """Squared norms of an update and of all trained weights, (2,) float64; of sharded ones to be averaged over ranks.

    `moved_sq` is that of all parameters but the factors of `adapters`, and `moved` gives the change of a factor, by
    id, unless that stayed. No host sync; sharded factors are gathered, as their product needs all of them.
    """
    factors = {id(factor) for adapter in adapters for factor in (adapter.a, adapter.b)}
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    weights = [p for p in weights if id(p) not in factors]
    weight_sq = torch.zeros_like(moved_sq)
    if weights and shards is None:
        weight_sq = torch.nn.utils.get_total_norm(weights).double().square()
    elif weights and shards is not None:
        weight_sq = torch.stack([square_sum(local(p)) * shards.parts(p) for p in weights]).sum()
    for adapter in adapters:
        da, db = (moved[id(factor)]() if id(factor) in moved else None for factor in (adapter.a, adapter.b))
        moved_sq = moved_sq + adapter.moved_sq(da, db)
        weight_sq = weight_sq + adapter.weight_sq()
    return torch.stack((moved_sq.to(weight_sq.device, non_blocking=True), weight_sq))


@torch.no_grad()
def find_adapters(model: nn.Module | None) -> tuple[Adapter, ...]:
    """The trained LoRA adapters of linear layers in a model, as PEFT keeps them; empty where there are none.

    Left out, so that they count by their own norm: adapters of convolutions and embeddings, of layers whose weight is
    no floating-point matrix (quantised), and those that are not trained.
    """
    return () if model is None else tuple(_adapters(model))


def _adapters(model: nn.Module) -> Iterator[Adapter]:
    for module in model.modules():
        factors_a, factors_b = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        base = getattr(module, "get_base_layer", None)
        if not isinstance(factors_a, nn.ModuleDict) or not isinstance(factors_b, nn.ModuleDict) or base is None:
            continue
        weight = getattr(base(), "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
            continue
        base_sq = whole(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32)).double().square()
        for name in factors_a:
            a, b = getattr(factors_a[name], "weight", None), getattr(factors_b[name], "weight", None)
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim == 2 and b.requires_grad:
                scale = module.scaling[name]  # type: ignore[index]
                yield Adapter(a, b, float(scale), base_sq)
