"""What is known before the first update: whether weights are pretrained, and which learning rate is usual."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..distributed import Shards
from .readable import steps_like_torch

_DRAWN = 2.2
"""Scatter of the rows' squared lengths, in units of independent draws', up to which a matrix looks drawn."""
_MOST = 4096  # rows and columns of a matrix that are looked at, evenly spaced: an embedding would be copied whole


@torch.no_grad()
def pretrained_share(params: Iterable[Tensor]) -> float:
    """Share of the entries of trained matrices whose matrix does not look drawn; 0 where there is no matrix.

    The squared lengths of n independent entries scatter by sqrt(2 / n) of their mean where these are normal, by less
    where they are uniform or rows are orthogonal; training makes some rows and columns far longer than others. A
    constant matrix, such as an adapter's zeros, counts as drawn. So does a small net, however well it is trained:
    training shows against draws of few entries only when it was long (64 wide: not after 4,000 updates; 256 wide:
    after 1,000). Rows of zeros, as an embedding has for padding, are left out. Syncs with the host; called once a
    run, and again where other weights are trained.
    """
    drawn = learned = 0
    for p in params:
        if not p.requires_grad or p.ndim < 2:
            continue
        if max(_scatter(p.detach().flatten(1)), _scatter(p.detach().flatten(1).T)) > _DRAWN:
            learned += p.numel()
        else:
            drawn += p.numel()
    return learned / (drawn + learned) if drawn + learned else 0.0


def _scatter(matrix: Tensor) -> float:
    """Deviation of the rows' mean squares over their mean, times sqrt(n / 2): 1 for normal entries."""
    rows, columns = matrix.shape
    if rows < 2 or columns < 2:
        return 0.0
    seen = matrix[:: max(1, rows // _MOST), :: max(1, columns // _MOST)]
    squares = seen.float().square().mean(1)
    squares = squares[squares > 0]
    if len(squares) < 2:
        return 0.0
    mean = float(squares.mean())
    return float(squares.std()) / mean * math.sqrt(seen.shape[1] / 2)


def usual_lr(optimizer: Optimizer, model: nn.Module | None, shards: Shards | None = None) -> float:
    """Learning rate that is usual for a model from scratch, the defaults of papers and frameworks; 0 where none is.

    0.001 for Adam and AdamW (Kingma & Ba 2015); 0.1 for SGD (He et al. 2016), times 1 - momentum, so that it is of
    plain SGD's effect. None for other optimizers, and none where most of the model is frozen, as for adapters. Where
    groups have rates of their own the mean weight has the usual one, and this is the first group's, as an answer is.
    """
    numel = Tensor.numel if shards is None else shards.numel
    groups = [group for group in optimizer.param_groups if group.get("initial_lr", group["lr"]) > 0]
    sizes = [sum(numel(p) for p in group["params"] if p.requires_grad) for group in groups]
    if not sum(sizes) or (model is not None and 2 * sum(sizes) < sum(numel(p) for p in model.parameters())):
        return 0.0
    rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
    share: float = rates[0] * sum(sizes) / sum(rate * size for rate, size in zip(rates, sizes, strict=True))
    if not steps_like_torch(optimizer):
        return 0.0
    if isinstance(optimizer, SGD):
        return share * 0.1 * (1.0 - float(groups[0]["momentum"]))
    return share * 0.001
