"""Directions, angles and sizes of updates: the arithmetic behind the gradient fields of an [`Observation`].

Two kinds of functions. The *formulas* (`adam_direction`, `sgd_direction`, `inner`, `cosine`) work on any tensors with
an optional leading batch dimension; vectorised meta-training calls them. The *readers* (`measure_alignment`, ...)
apply them to one live optimizer, through its own state, without a copy of the gradients where the optimizer keeps one
already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from ..distributed import Shards, local
from .grad_norm import dense, loss_scale
from .lora import Adapter, movement
from .readable import PREVIOUS_DIRECTION, steps_like_torch

_CHUNK = 1 << 16
"""Elements per pass on the CPU: the temporaries stay in the cache, so each state tensor is read from memory once."""


# --- formulas: any leading batch dimension -----------------------------------------------------------------------


def adam_direction(
    exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor | float, *, betas: tuple[float, float], eps: float
) -> Tensor:
    """Descent direction d of Adam and AdamW (Kingma & Ba 2015, Algorithm 1): without weight decay, `w -= lr * d`.

    `exp_avg` (m) and `exp_avg_sq` (v) have one shape, also d's; `step`, broadcastable to it, counts the updates in
    them, at least 1.
    """
    corrected = (exp_avg_sq / (1 - betas[1] ** step)).sqrt() + eps
    return exp_avg / (1 - betas[0] ** step) / corrected


def sgd_direction(
    grad: Tensor, momentum_buffer: Tensor | None, *, momentum: float = 0.0, nesterov: bool = False
) -> Tensor:
    """Descent direction d of torch's SGD, `w -= lr * d`: the gradient, the buffer, or gradient + momentum * buffer.

    `grad` includes coupled weight decay, the buffer is that *after* this update, or None when momentum is 0.
    """
    if momentum_buffer is None or momentum == 0.0:
        return grad
    return grad + momentum * momentum_buffer if nesterov else momentum_buffer


def inner(left: Iterable[Tensor], right: Iterable[Tensor], batch_ndim: int = 0) -> Tensor:
    """Inner product over all tensors of two lists, in float64, one value per run: a tensor of the batch shape.

    All have `batch_ndim` leading batch dimensions, which are kept. ValueError for empty lists.
    """
    parts = [(a * b).flatten(batch_ndim).sum(-1, dtype=torch.float64) for a, b in zip(left, right, strict=True)]
    if not parts:
        raise ValueError("no tensors to measure: no parameter has a gradient")
    return torch.stack(parts).sum(0)


def cosine(dot: Tensor, left_sq: Tensor, right_sq: Tensor) -> Tensor:
    """Cosine from an inner product and two squared norms, in [-1, 1]; 0 where a norm is 0, NaN where one is NaN."""
    norms = (left_sq * right_sq).sqrt()
    angle = dot / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return torch.where(norms == 0, torch.zeros_like(dot), angle).clamp(-1, 1)


# --- readers: one live optimizer ---------------------------------------------------------------------------------


class _Term(NamedTuple):
    """One parameter's previous direction, still as state: direction = scale * numerator / (sqrt(square) + shift)."""

    group: int
    param: Tensor
    numerator: Tensor
    square: Tensor | None
    scale: Any
    shift: Any


def _terms(optimizer: Optimizer, lrs: Sequence[float], still: Collection[int]) -> Iterator[_Term]:
    place, known = -1, steps_like_torch(optimizer)
    for index, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            place += 1
            state = optimizer.state.get(p)
            if not state or place in still:
                continue
            if not known:  # what is kept is the change of the weights itself
                if state.get(PREVIOUS_DIRECTION) is not None and lrs[index]:
                    yield _Term(index, p, state[PREVIOUS_DIRECTION], None, 1.0 / lrs[index], 0.0)
                continue
            if isinstance(optimizer, Adam):
                if "exp_avg" in state:
                    yield _adam_term(index, p, state, group)
                continue
            key = PREVIOUS_DIRECTION if needs_copy(group) else "momentum_buffer"
            if state.get(key) is not None:
                yield _Term(index, p, state[key], None, -1.0 if group["maximize"] else 1.0, 0.0)


def _adam_term(index: int, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> _Term:
    beta1, beta2 = (float(b) for b in group["betas"])
    step = state["step"]
    # A step counter on the GPU stays a tensor: reading it would be a host sync.
    step = step.item() if step.device.type == "cpu" else step
    root2 = (1 - beta2**step) ** 0.5
    square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    scale = (-1.0 if group["maximize"] else 1.0) * root2 / (1 - beta1**step)
    return _Term(index, p, state["exp_avg"], square, scale, group["eps"] * root2)


def needs_copy(group: dict[str, Any]) -> bool:
    """Whether this SGD group's state lacks the direction of its last update (no momentum, or Nesterov)."""
    return bool(group["momentum"] == 0.0 or group["nesterov"])


@torch.no_grad()
def remember_direction(optimizer: Optimizer) -> list[int]:
    """Keep the direction of the update that is about to be made, where SGD's own state will not contain it.

    Before and not after, because some steps (foreach with Nesterov momentum) change the gradients in place. Returns
    the places, over all groups in order, of the parameters that this update will not move as they have no gradient.
    ValueError for a sparse gradient.
    """
    copied = isinstance(optimizer, SGD) and steps_like_torch(optimizer)
    for group in optimizer.param_groups if copied else ():
        for p in (p for p in group["params"] if p.grad is not None and needs_copy(group)):
            state = optimizer.state[p]
            direction = _sgd_next_direction(p, dense(p.grad), state.get("momentum_buffer"), group)
            if PREVIOUS_DIRECTION in state:
                state[PREVIOUS_DIRECTION].copy_(direction)
            else:
                state[PREVIOUS_DIRECTION] = direction.clone(memory_format=torch.preserve_format)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    # The first FSDP leaves a rank without a gradient of what it has no part of, and a checkpoint has rank 0's places.
    return [place for place, p in enumerate(params) if p.grad is None and p.numel()]


def forget_direction(optimizer: Optimizer) -> None:
    """Drop directions that `remember_direction` kept; the next measurement is neutral where they are needed."""
    for state in optimizer.state.values():
        state.pop(PREVIOUS_DIRECTION, None)


def _sgd_next_direction(p: Tensor, grad: Tensor, buffer: Tensor | None, group: dict[str, Any]) -> Tensor:
    momentum = group["momentum"]
    if group["maximize"]:
        grad = -grad
    if group["weight_decay"]:
        grad = grad.add(p, alpha=group["weight_decay"])
    if momentum:
        buffer = grad if buffer is None else buffer * momentum + grad * (1 - group["dampening"])
    return sgd_direction(grad, buffer, momentum=momentum, nesterov=group["nesterov"])


def chunks(tensors: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Flat float32 pieces of equally shaped tensors; whole tensors where flat views do not exist or do not pay."""
    if tensors[0].device.type == "cpu" and all(t.is_contiguous() for t in tensors):
        pieces = [torch.split(t.view(-1), _CHUNK) for t in tensors]
    else:
        pieces = [(t.reshape(-1),) for t in tensors]
    for parts in zip(*pieces, strict=True):
        yield tuple(x if x.dtype == torch.float32 else x.float() for x in parts)


def _term_sums(term: _Term, scratch: Tensor) -> Tensor:
    """(g . d, d . d, g . g) of this rank's part of one parameter, float64; g is zero where there is no gradient."""
    grad = None if term.param.grad is None else dense(local(term.param.grad))
    tensors = [local(term.numerator)] if term.square is None else [local(term.numerator), local(term.square)]
    sums: list[Tensor] = []
    for parts in chunks(tensors if grad is None else [*tensors, grad]):
        d = parts[0] if term.square is None else _adam_chunk(parts[0], parts[1], term.shift, scratch)
        sums.append(torch.dot(d, d))
        if grad is not None:
            sums += (torch.dot(parts[-1], d), torch.dot(parts[-1], parts[-1]))
    by_kind = torch.stack(sums).view(-1, 1 if grad is None else 3).double().sum(0)
    d_sq = by_kind[0] * term.scale**2
    if grad is None:
        return torch.stack((torch.zeros_like(d_sq), d_sq, torch.zeros_like(d_sq)))
    return torch.stack((by_kind[1] * term.scale, d_sq, by_kind[2]))


def _adam_chunk(numerator: Tensor, square: Tensor, shift: Any, scratch: Tensor) -> Tensor:
    # On the CPU one buffer serves every chunk: fresh memory for each would cost more than the arithmetic.
    out = scratch[: numerator.numel()] if numerator.device == scratch.device else torch.empty_like(numerator)
    if out.numel() < numerator.numel():
        out = torch.empty_like(numerator)
    return torch.div(numerator, torch.sqrt(square, out=out).add_(shift), out=out)


def measure_previous_update(
    optimizer: Optimizer,
    lrs: Sequence[float],
    needs: frozenset[str],
    adapters: Sequence[Adapter] = (),
    still: Collection[int] = (),
) -> dict[str, Tensor]:
    """The [`DIRECTION_FIELDS`] in `needs`, of the gradients now in `param.grad` and the previous update, in one pass.

    Of weights that this rank has whole; see [`direction_sums`] for the arguments. Float64 tensors, 0-d or (n_groups,),
    neutral before the first update. No host sync.
    """
    return read_directions(direction_sums(optimizer, lrs, needs, adapters, still), needs)


@torch.no_grad()
def direction_sums(
    optimizer: Optimizer,
    lrs: Sequence[float],
    needs: frozenset[str],
    adapters: Sequence[Adapter] = (),
    still: Collection[int] = (),
    shards: Shards | None = None,
) -> dict[str, Tensor]:
    """The sums that [`read_directions`] needs; of sharded weights to be averaged over the ranks.

    The optimizer is SGD, Adam or AdamW (foreach and fused keep the same state), or another one whose directions
    [`DifferenceSensor`] keeps; `lrs` are those of the previous update, one per group; the `update_ratio` of LoRA's
    adapters is that of the weights they are added to. `still` are the places of the parameters that had no gradient
    then (from `remember_direction`) and did not move. Float64; no host sync, and no collective but for sharded
    adapters, which are gathered.

    Clipping, loss scaling and accumulation multiply the whole gradient, so the alignment does not see them; the slope
    is that of the gradient as the optimizer uses it, clipped where it was clipped.
    """
    terms, groups = list(_terms(optimizer, lrs, still)), len(optimizer.param_groups)
    scratch = torch.empty(_CHUNK, dtype=torch.float32)
    rows = [_term_sums(term, scratch) for term in terms]
    if shards is not None:
        rows = [row * shards.parts(term.param) for row, term in zip(rows, terms, strict=True)]
    sums = torch.stack(rows) if rows else torch.zeros(0, 3, dtype=torch.float64)
    out: dict[str, Tensor] = {}
    scale = sums.new_ones(()) * loss_scale(optimizer)
    if needs & {"alignment", "slope"}:
        out["direction"] = torch.stack((*sums.sum(0), scale))
    if needs & {"group_alignment", "group_slope"}:
        out["group_direction"] = torch.cat((_by_group(sums, terms, groups).flatten(), scale.reshape(1)))
    if "update_ratio" in needs:
        factors = {id(factor) for adapter in adapters for factor in (adapter.a, adapter.b)}
        lr_sq = torch.tensor(
            [0.0 if id(t.param) in factors else lrs[t.group] ** 2 for t in terms], dtype=torch.float64
        )
        moved_sq = (lr_sq.to(sums.device, non_blocking=True) * sums[:, 1]).sum()
        moved = {id(t.param): partial(_moved, t, lrs) for t in terms if id(t.param) in factors}
        out["movement"] = movement(optimizer, moved_sq, moved, adapters, shards)
    return out


def read_directions(sums: Mapping[str, Tensor], needs: frozenset[str]) -> dict[str, Tensor]:
    """The fields in `needs` from the sums over all weights, which may be of other entries as well; float64."""
    out: dict[str, Tensor] = {}
    for scope in ("", "group_"):
        if f"{scope}direction" in sums:
            values = sums[f"{scope}direction"]
            dot, d_sq, g_sq = (values[:-1].view(-1, 3) if scope else values[:-1]).unbind(-1)
            out |= {f"{scope}alignment": cosine(dot, d_sq, g_sq), f"{scope}slope": dot / values[-1]}
    if "movement" in sums:
        moved_sq, weight_sq = sums["movement"].unbind()
        out["update_ratio"] = moved_sq.sqrt() / weight_sq.sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return {name: value for name, value in out.items() if name in needs}


def _moved(term: _Term, lrs: Sequence[float]) -> Tensor:
    """The change of one parameter in the previous update, with its sign reversed."""
    direction = term.numerator if term.square is None else term.numerator / (term.square.sqrt() + term.shift)
    moved: Tensor = direction * (term.scale * lrs[term.group])
    return moved


def _by_group(sums: Tensor, terms: Sequence[_Term], groups: int) -> Tensor:
    """Sums of every parameter group, of shape (n_groups, 3)."""
    places = torch.tensor([term.group for term in terms], dtype=torch.long, device=sums.device)
    return sums.new_zeros(groups, 3).index_add_(0, places, sums)
