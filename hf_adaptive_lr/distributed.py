"""Many processes: means over ranks, agreement between them, and which library shards the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


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
    whole = [torch.as_tensor(v.full_tensor() if hasattr(v, "full_tensor") else v).detach() for v in values]
    if world_size(group) == 1:
        device = next((value.device for value in whole if value.device.type != "cpu"), torch.device("cpu"))
    dtype = torch.float32 if device.type == "mps" else torch.float64
    packed = torch.cat([value.reshape(-1).to(device, dtype, non_blocking=True) for value in whole])
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
    """Fails fast when fields are to be read from gradients, or state, of which this rank has only a part.

    ValueError: parameters are sharded by FSDP, `fully_shard` or DeepSpeed and `fields` is not empty.
    """
    names = sorted(fields)
    if not names:
        return
    by = sharder(optimizer)
    if by is not None:
        raise ValueError(
            f"the controller needs {' and '.join(names)}, and {by} leaves each rank only a part of the gradients: the "
            "number would be wrong. Use a controller that needs only the loss, or train under DDP"
        )


def sharder(optimizer: Optimizer) -> str | None:
    """Name of the library that shards this optimizer's weights over the ranks; None when every rank has them whole."""
    if type(optimizer).__module__.split(".")[0] == "deepspeed":
        return "DeepSpeed"
    params: list[Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    if any(hasattr(p, "ds_id") for p in params):
        return "DeepSpeed"
    if any(hasattr(p, "placements") for p in params):
        return "fully_shard or tensor parallelism (DTensor parameters)"
    if any(getattr(p, "_is_flat_param", False) for p in params):
        return "FSDP (flat parameters)"
    if any(getattr(p, "_fsdp_flattened", False) for p in params):  # they look whole, and are views of a shard
        return "FSDP (use_orig_params=True)"
    return None


def generator(*key: int | str) -> torch.Generator:
    """A random generator of this process for one purpose, from nothing but its key (seed, purpose, ...) and the rank.

    Nothing has to be checkpointed: whoever resumes at an iteration draws what the first run would have drawn there.
    """
    text = "/".join(map(str, (*key, rank())))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))
