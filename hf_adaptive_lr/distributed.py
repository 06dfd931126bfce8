"""Many processes: means over ranks, agreement between them, and weights that are sharded over them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

PARTITIONS = "_adaptive_lr_partitions"
"""Attribute of an optimizer that knows its own [`Shards`]: the one that stands for a ZeRO optimizer."""


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of processes that must agree; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Number of this process among those that must agree; 0 without torch.distributed."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def average_over_ranks(values: Tensor, agreed: Tensor, group: dist.ProcessGroup | None) -> list[float]:
    """Mean of every value over all ranks, after a check that the ranks still agree; one collective, one host read.

    All ranks gather all values and add them up in rank order, so every rank gets the same bits. Both tensors are 1-d;
    `agreed` are numbers that must be equal on all ranks (update count, learning rates in force), or a RuntimeError
    says that they have drifted apart.
    """
    if world_size(group) == 1:
        return [float(v) for v in values.tolist()]
    packed = torch.cat((values, agreed.to(values.device, values.dtype)))
    rows = [torch.empty_like(packed) for _ in range(world_size(group))]
    dist.all_gather(rows, packed, group=group)
    table: list[list[float]] = torch.stack(rows).tolist()
    check_agreement([row[len(values) :] for row in table])
    return mean_of_rows([row[: len(values)] for row in table])


def average_values(
    values: Sequence[Tensor | float], agreed: Sequence[float], device: torch.device, group: dist.ProcessGroup | None
) -> list[float]:
    """Mean of every value over all ranks, as [`average_over_ranks`]; NaN or infinity on any rank is seen by all.

    Values are numbers and tensors of any shape, which are flattened. Ranks exchange them on `device`; one process
    alone moves them to that of a value instead.
    """
    if not values:
        return []
    # The norm of a model that `fully_shard` has sharded is a DTensor.
    tensors = [whole(torch.as_tensor(v)).detach() for v in values]
    if world_size(group) == 1:
        device = next((value.device for value in tensors if value.device.type != "cpu"), torch.device("cpu"))
    dtype = torch.float32 if device.type == "mps" else torch.float64
    packed = torch.cat([value.reshape(-1).to(device, dtype, non_blocking=True) for value in tensors])
    return average_over_ranks(packed, torch.tensor(agreed, dtype=dtype), group)


def average_tensors(tensors: list[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replace every tensor by its mean over all ranks, in place; one collective for all of them.

    All ranks have the same shapes in the same order.
    """
    if world_size(group) == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    flat /= world_size(group)
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def mean_of_rows(rows: list[list[float]]) -> list[float]:
    """Column means, added in rank order."""
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def check_agreement(rows: list[list[float]]) -> None:
    """Fails fast when ranks differ in update counts or learning rates; the RuntimeError names both."""
    for rank, row in enumerate(rows):
        if row != rows[0]:
            raise RuntimeError(
                f"ranks have drifted apart: (updates, learning rates) are {rows[0]} on rank 0 and {row} on rank "
                f"{rank}; every rank must step the same optimizer updates under the same controller and seed"
            )


def check_unsharded(optimizer: Optimizer, fields: Iterable[str]) -> None:
    """Fails fast when fields are to be read from tensors of which this rank has only a part, and parts do not do.

    ValueError: parameters are sharded by FSDP, `fully_shard`, tensor parallelism or DeepSpeed, and there are `fields`.
    """
    names = sorted(fields)
    if not names:
        return
    by = sharder(optimizer)
    if by is not None:
        raise ValueError(
            f"the controller needs {' and '.join(names)}, and {by} leaves each rank only a part of the weights and "
            "gradients, from which they cannot be told. Use a controller that does not need them, or train under DDP"
        )


def sharder(optimizer: Optimizer) -> str | None:
    """Name of the library that shards this optimizer's weights over the ranks; None when every rank has them whole."""
    if getattr(optimizer, PARTITIONS, None) is not None:
        return "DeepSpeed"
    params: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    if any(hasattr(p, "ds_id") for p in params):  # ZeRO-3's own weights, not seen through its optimizer
        return "DeepSpeed"
    if any(hasattr(p, "placements") for p in params):
        return "fully_shard or tensor parallelism (DTensor parameters)"
    if any(getattr(p, "_is_flat_param", False) for p in params):
        return "FSDP (flat parameters)"
    if any(getattr(p, "_fsdp_flattened", False) for p in params):  # they look whole, and are views of a shard
        return "FSDP (use_orig_params=True)"
    return None


class Shards:
    """The weights of an optimizer that are sharded over the ranks: how sums over parts become sums over the whole.

    The mean over ranks of `parts(p)` times a sum over this rank's part of p is the sum over all of p, also where
    several ranks have the same part; of what every rank has whole there is one part. So sharded sums go through the
    same exchange as everything else.
    """

    def __init__(self, model: nn.Module | None, group: dist.ProcessGroup | None) -> None:
        self._model, self._group = model, group

    @classmethod
    def of(cls, optimizer: Optimizer, model: nn.Module | None, group: dist.ProcessGroup | None) -> Shards | None:
        """Those of this optimizer, where `model` is the module that computes; None where every rank has all weights.

        ValueError: weights that are sharded over other ranks than those of `group`, or as partial sums, by the first
        FSDP without being in `model`, or by DeepSpeed under an optimizer that is not its own.
        """
        own = getattr(optimizer, PARTITIONS, None)
        if isinstance(own, Shards):
            return own
        by = sharder(optimizer)
        if by is None:
            return None
        if by == "DeepSpeed":
            raise ValueError(
                "DeepSpeed leaves each rank only a part of these weights, and this optimizer does not know the parts; "
                "pass the one that accelerator.prepare or deepspeed.initialize returned"
            )
        shards = cls(model, group)
        for p in (p for each in optimizer.param_groups for p in each["params"]):
            shards._check(p, by)
        return shards

    def _check(self, p: Tensor, by: str) -> None:
        if hasattr(p, "placements"):
            for tensor, kind in ((p, "weight"), (p.grad, "gradient")):
                if tensor is not None and any(place.is_partial() for place in _placements(tensor)):
                    raise ValueError(
                        f"a {kind} of shape {tuple(p.shape)} is kept as partial sums ({_placements(tensor)}), of "
                        "which no norm can be taken; redistribute it to Shard or Replicate before optimizer.step()"
                    )
            if p.grad is not None and _placements(p.grad) != _placements(p):
                raise ValueError(
                    f"a weight of shape {tuple(p.shape)} is placed as {_placements(p)} and its gradient as "
                    f"{_placements(p.grad)}; redistribute the gradient before optimizer.step()"
                )
            mesh: Any = p.device_mesh  # type: ignore[attr-defined]
            if mesh.size() != world_size(self._group):
                raise ValueError(
                    f"a weight of shape {tuple(p.shape)} lies on a mesh of {mesh.size()} ranks, and "
                    f"{world_size(self._group)} ranks decide together, as under pipeline parallelism; pass "
                    "process_group= of exactly the ranks of the mesh, or place it on the mesh of all"
                )
        elif by.startswith("FSDP") and _flattened(p) and id(p) not in self._flat:
            raise ValueError(
                f"weights are sharded by {by}, and model= does not have them as FSDP modules; pass the module "
                "that FullyShardedDataParallel(...) returned, not the one inside"
            )

    @cached_property
    def _flat(self) -> dict[int, tuple[int, int]]:
        """(parts, elements in all) of every parameter of FSDP's first version, which carries no mark of it, by id."""
        found: dict[int, tuple[int, int]] = {}
        for module in _first_fsdp(self._model):
            handle = module._handle
            flat, parts = handle.flat_param, handle.world_size if handle.uses_sharded_strategy else 1
            found[id(flat)] = parts, sum(flat._numels)
            found |= {id(p): (parts, n) for p, n in zip(flat._params or (), flat._numels, strict=False)}
        return found

    @property
    def flat(self) -> bool:
        """Whether weights are in the flat parameters of FSDP's first version."""
        return bool(self._flat)

    def parts(self, p: Tensor) -> int:
        """Number of parts that a parameter is split into; 1 where this rank has it whole."""
        if hasattr(p, "placements"):
            mesh: Any = p.device_mesh  # type: ignore[attr-defined]
            parts = 1
            for dimension, place in enumerate(_placements(p)):
                parts *= 1 if place.is_replicate() else mesh.size(dimension)
            return parts
        return self._flat.get(id(p), (1, 0))[0]

    def numel(self, p: Tensor) -> int:
        """Number of elements of a parameter, of all parts together and without padding."""
        return self._flat[id(p)][1] if id(p) in self._flat else p.numel()

    def computed_with(self, params: list[Tensor]) -> list[Tensor]:
        """What the model computes with, of parameters that may be a finer copy of it."""
        return params

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all ranks of a tensor of any shape, the same bits on all; one collective, no host read."""
        rows = [torch.empty_like(value) for _ in range(world_size(self._group))]
        dist.all_gather(rows, value.contiguous(), group=self._group)
        return torch.stack(rows).mean(0)

    def whole(self, params: Iterable[Tensor]) -> Iterator[Tensor]:
        """These parameters, each gathered when its turn comes; all ranks must ask for all of them.

        Of FSDP's first version all that are trained, as a flat parameter is many.
        """
        flat = False
        for p in params:
            if _flattened(p):
                flat = True
            else:
                yield whole(p.detach()).requires_grad_(p.requires_grad)
        if flat:
            for module in _first_fsdp(self._model):
                with type(module).summon_full_params(module, recurse=False, writeback=False):
                    for name, owner, _ in module._handle.flat_param._param_infos:
                        yield getattr(owner, name)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded, without a copy."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be a DTensor; then a collective."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def reshard(model: nn.Module) -> None:
    """Shard again what a forward pass without a backward pass has left gathered: it would be stale after an update."""
    for module in model.modules():
        if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
            module.reshard()  # type: ignore[operator]
    for module in _first_fsdp(model):
        if module._handle.uses_sharded_strategy:
            module._handle.reshard(True)


def _placements(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(getattr(tensor, "placements", ()))


def _flattened(p: Tensor) -> bool:
    return getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False)


def _first_fsdp(model: nn.Module | None) -> list[Any]:
    """The modules of FSDP's first version that have parameters of their own."""
    modules = () if model is None else model.modules()
    return [m for m in modules if hasattr(getattr(m, "_handle", None), "flat_param")]


def generator(*key: int | str) -> torch.Generator:
    """A random generator of this process for one purpose, from nothing but its key (seed, purpose, ...) and the rank.

    Nothing has to be checkpointed: whoever resumes at an iteration draws what the first run would have drawn there.
    """
    text = "/".join(map(str, (*key, rank())))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
