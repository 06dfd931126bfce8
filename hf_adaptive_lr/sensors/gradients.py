"""Directions, angles and sizes of updates: the arithmetic behind the gradient fields of an [`Observation`].

Two kinds of functions. The *formulas* (`adam_direction`, `sgd_direction`, `inner`, `cosine`) work on any tensors with
an optional leading batch dimension; vectorised meta-training calls them. The *readers* (`measure_alignment`, ...)
apply them to one live optimizer, through its own state, without a copy of the gradients where the optimizer keeps one
already.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ..observation import PER_GROUP
from .grad_norm import dense, loss_scale
from .lora import Adapter

PREVIOUS_DIRECTION = "adaptive_lr_direction"
"""Key in `optimizer.state[p]` of the previous direction, for SGD without a buffer that contains it. It lives there so
that it is checkpointed and moved between devices with the rest of the optimizer's state."""

DIRECTION_FIELDS = frozenset({"alignment", "slope", "group_alignment", "group_slope", "update_ratio"})
"""Fields that are computed from the direction of the previous update."""

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


def check_readable(optimizer: Optimizer, needs: frozenset[str]) -> None:
    """ValueError when the controller needs the optimizer's state and the optimizer is not torch's SGD, Adam or AdamW.

    A subclass will do where the step is theirs: one that moves the weights in another way would be misread. So does
    Adam on float16 weights, where its eps is 0 and its first update NaN.
    """
    wanted = sorted(needs & DIRECTION_FIELDS)
    if not wanted:
        return
    if _steps_like_torch(optimizer):
        _check_half(optimizer)
        return
    kind, known = type(optimizer), isinstance(optimizer, SGD | Adam)
    why = "has a step of its own, so the state does not tell its update" if known else "keeps a state of its own"
    raise ValueError(
        f"the controller needs {' and '.join(wanted)}, read from the state of torch's SGD, Adam or AdamW, and "
        f"{kind.__module__}.{kind.__qualname__} {why}; use one of these three, or a controller that does not need it, "
        "such as 'plateau' or 'cosine'"
    )


def _check_half(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups if isinstance(optimizer, Adam) else ():
        half = any(p.dtype == torch.float16 for p in group["params"])
        if half and not torch.tensor(group["eps"], dtype=torch.float16):
            raise ValueError(
                f"{type(optimizer).__name__} with eps={group['eps']:g} cannot train float16 weights: the squares of "
                "the gradients and eps are 0 there, and the first update makes them NaN. Keep the weights in float32 "
                "and train with fp16=True or bf16=True (autocast)"
            )


def _steps_like_torch(optimizer: Optimizer) -> bool:
    """Whether the class is SGD, Adam or AdamW, or inherits the step and the layout of the state unchanged."""
    if type(optimizer) in (SGD, Adam, AdamW):
        return True
    base: Any = next((cls for cls in (SGD, Adam) if isinstance(optimizer, cls)), None)
    kind: Any = type(optimizer)
    # torch wraps the step of every class once, for its hooks.
    return base is not None and all(
        inspect.unwrap(getattr(kind, name)) is inspect.unwrap(getattr(base, name)) for name in ("step", "_init_group")
    )


class _Term(NamedTuple):
    """One parameter's previous direction, still as state: direction = scale * numerator / (sqrt(square) + shift)."""

    group: int
    param: Tensor
    numerator: Tensor
    square: Tensor | None
    scale: Any
    shift: Any


def _terms(optimizer: Optimizer, still: Collection[int]) -> Iterator[_Term]:
    place = -1
    for index, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            place += 1
            state = optimizer.state.get(p)
            if not state or place in still:
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
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        for p in (p for p in group["params"] if p.grad is not None and needs_copy(group)):
            state = optimizer.state[p]
            direction = _sgd_next_direction(p, dense(p.grad), state.get("momentum_buffer"), group)
            if PREVIOUS_DIRECTION in state:
                state[PREVIOUS_DIRECTION].copy_(direction)
            else:
                state[PREVIOUS_DIRECTION] = direction.clone(memory_format=torch.preserve_format)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [place for place, p in enumerate(params) if p.grad is None]


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
    """(g . d, d . d, g . g) of one parameter, float64; g is taken as zero where there is no gradient."""
    grad = None if term.param.grad is None else dense(term.param.grad)
    tensors = [term.numerator] if term.square is None else [term.numerator, term.square]
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


@torch.no_grad()
def measure_previous_update(
    optimizer: Optimizer,
    lrs: Sequence[float],
    needs: frozenset[str],
    adapters: Sequence[Adapter] = (),
    still: Collection[int] = (),
) -> dict[str, Tensor]:
    """The [`DIRECTION_FIELDS`] in `needs`, of the gradients now in `param.grad` and the previous update, in one pass.

    The optimizer is SGD, Adam or AdamW (foreach and fused keep the same state); `lrs` are those of the previous
    update, one per group; the `update_ratio` of LoRA's adapters is that of the weights they are added to. `still` are
    the places of the parameters that had no gradient then (from `remember_direction`) and did not move. Returns
    float64 tensors, 0-d or (n_groups,), neutral before the first update. No host sync.

    Clipping, loss scaling and accumulation multiply the whole gradient, so the alignment does not see them; the slope
    is that of the gradient as the optimizer uses it, clipped where it was clipped.
    """
    terms = list(_terms(optimizer, still))
    out: dict[str, Tensor] = {}
    if not terms:
        groups = len(optimizer.param_groups)
        shapes = {name: (groups,) if name in PER_GROUP else () for name in needs & DIRECTION_FIELDS}
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    scratch = torch.empty(_CHUNK, dtype=torch.float32)
    sums = torch.stack([_term_sums(term, scratch) for term in terms])
    for scope in ("", "group_"):
        if needs & {f"{scope}alignment", f"{scope}slope"}:
            dot, d_sq, g_sq = (_by_group(sums, terms, optimizer) if scope else sums.sum(0)).unbind(-1)
            measured = {f"{scope}alignment": cosine(dot, d_sq, g_sq), f"{scope}slope": dot / loss_scale(optimizer)}
            out |= {name: value for name, value in measured.items() if name in needs}
    if "update_ratio" in needs:
        out["update_ratio"] = _update_ratio(optimizer, lrs, terms, sums, adapters)
    return out


def _update_ratio(
    optimizer: Optimizer, lrs: Sequence[float], terms: Sequence[_Term], sums: Tensor, adapters: Sequence[Adapter]
) -> Tensor:
    factors = {id(factor) for adapter in adapters for factor in (adapter.a, adapter.b)}
    lr_sq = torch.tensor([0.0 if id(t.param) in factors else lrs[t.group] ** 2 for t in terms], dtype=torch.float64)
    moved_sq = (lr_sq.to(sums.device, non_blocking=True) * sums[:, 1]).sum()
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    weights = [p for p in weights if id(p) not in factors]
    weight_sq = torch.nn.utils.get_total_norm(weights).double().square() if weights else torch.zeros_like(moved_sq)
    by_param = {id(term.param): term for term in terms}
    for adapter in adapters:
        da, db = (_moved(by_param.get(id(factor)), lrs) for factor in (adapter.a, adapter.b))
        moved_sq = moved_sq + adapter.moved_sq(da, db)
        weight_sq = weight_sq + adapter.weight_sq()
    return moved_sq.sqrt() / weight_sq.sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def _moved(term: _Term | None, lrs: Sequence[float]) -> Tensor | None:
    """The change of one parameter in the previous update, with its sign reversed."""
    if term is None:
        return None
    direction = term.numerator if term.square is None else term.numerator / (term.square.sqrt() + term.shift)
    moved: Tensor = direction * (term.scale * lrs[term.group])
    return moved


def _by_group(sums: Tensor, terms: Sequence[_Term], optimizer: Optimizer) -> Tensor:
    """Sums of every parameter group, of shape (n_groups, 3)."""
    groups = torch.tensor([term.group for term in terms], device=sums.device)
    return sums.new_zeros(len(optimizer.param_groups), 3).index_add_(0, groups, sums)
