"""DeepSpeed's ZeRO seen as one torch optimizer, whose step hooks run once an update and find the gradients there.

ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) keeps a rank's part of all weights in flat float32 partitions, and
steps the optimizer inside once for each of them, in the last backward pass of an update. Gradients are in buffers of
its own. [`zero_partitions`] wraps that step, so that a decision is taken when the reduced gradients are there, and
reads them at the updates that are measured alone. The buffers have no public name: versions that nobody has tested
are refused.
"""

from __future__ import annotations

import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..distributed import PARTITIONS, Shards, rank, world_size

TESTED = ("0.19.8",)
"""Versions of DeepSpeed whose buffers are known."""
_WITHOUT_ZERO = (
    "DeepSpeed steps {}, and a controller needs ZeRO of stage 1, 2 or 3 (zero_optimization.stage; with bf16 stage 1 "
    "needs data_types.grad_accum_dtype='bf16', its default); stage 0 is DDP, so train under that"
)
_STAGES = ("DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3")


class ZeroPartitions(Shards):
    """The flat partitions of a ZeRO optimizer as [`Shards`]: every rank has another part of each parameter."""

    def __init__(self, zero: Any) -> None:
        super().__init__(None, None)
        self._zero = zero
        self._stage3 = type(zero).__name__.endswith("Stage3")
        self.clip_grad = float(zero.clip_grad)
        """Norm that the engine clips to; 0 for none."""

    @property
    def params(self) -> list[Tensor]:
        """This rank's partitions, of all groups in order."""
        found = self._zero.fp32_partitioned_groups_flat if self._stage3 else self._zero.single_partition_of_fp32_groups
        return list(found)

    def groups(self) -> list[Any]:
        """The parameter groups of the optimizer inside, each with its partitions; what is written goes there."""
        inside = self._zero.optimizer.param_groups
        if not self._stage3:
            return list(inside)
        own: list[list[Tensor]] = [[] for _ in inside]  # ZeRO puts them there one by one, and for the step alone
        for number, p in enumerate(self.params):
            own[self._zero.sub_group_to_group_id[number]].append(p)
        return [_Group({"params": params}, group) for params, group in zip(own, inside, strict=True)]

    def _weights(self) -> list[list[Any]]:
        """The model's parameters in each partition."""
        return list(self._zero.fp16_groups if self._stage3 else self._zero.bit16_groups)

    # --- gradients ----------------------------------------------------------------------------------------------

    def expect_gradients(self) -> None:
        """Show that there are gradients, at no cost: most updates look at none."""
        for p in self.params:
            p.grad = p.detach().new_zeros(()).expand_as(p)

    @torch.no_grad()
    def read_gradients(self) -> None:
        """Put the reduced gradients, not clipped yet, into `grad`: a copy of this rank's part."""
        for number, p in enumerate(self.params):
            parts = [part.reshape(-1).to(p.dtype) for part in self._zero.averaged_gradients[number]]
            p.grad = torch.cat([*parts, p.new_zeros(p.numel() - sum(part.numel() for part in parts))])
            for padding in self._padding(number):
                p[padding], p.grad[padding] = 0.0, 0.0

    def _padding(self, number: int) -> Iterator[slice]:
        """What is beyond the weights in a partition of stage 3, which keeps whatever was in the memory."""
        start = 0
        for weight in self._weights()[number] if self._stage3 else ():
            size = weight.partition_numel()
            yield slice(start + min(size, max(0, weight.ds_numel - rank() * size)), start + size)
            start += size

    @torch.no_grad()
    def clip(self, square: Tensor) -> None:
        """Clip `grad` as ZeRO is going to clip; `square` is this rank's term of the squared norm. One collective."""
        if self.clip_grad:
            factor = self.clip_grad / (self.mean(square).sqrt() + 1e-6)
            for p in self.params:
                assert p.grad is not None  # they were just read
                p.grad.mul_(factor.clamp(max=1.0))

    def forget_gradients(self) -> None:
        """Free them: ZeRO makes its own."""
        for p in self.params:
            p.grad = None

    # --- as Shards ----------------------------------------------------------------------------------------------

    flat = True

    def parts(self, p: Tensor) -> int:
        """Number of ranks, each of which has another partition."""
        return world_size()

    def numel(self, p: Tensor) -> int:
        """Number of elements of all partitions of a group together, or of a parameter of the model."""
        for own, weights in zip(self.params, self._weights(), strict=True):
            if own is p:
                return sum(_numel(weight) for weight in weights)
        return _numel(p)

    def computed_with(self, params: list[Tensor]) -> list[Tensor]:
        """The trained parameters of the model, which bf16 makes coarser than the partitions."""
        return [weight for group in self._weights() for weight in group]

    def whole(self, params: Iterable[Tensor]) -> Iterator[Tensor]:
        """The trained parameters of the model, each gathered when its turn comes; all ranks must ask for all."""
        weights = self.computed_with([])
        if not self._stage3:
            yield from weights
            return
        import deepspeed

        for weight in weights:
            with deepspeed.zero.GatheredParameters([weight]):
                yield weight


class _Group(ChainMap[str, Any]):
    """A parameter group with partitions of its own, that writes to the group of the optimizer inside."""

    def __setitem__(self, key: str, value: Any) -> None:
        self.maps[1][key] = value


def _numel(weight: Any) -> int:
    return int(getattr(weight, "ds_numel", weight.numel()))


# --- the optimizer ------------------------------------------------------------------------------------------------


def zero_partitions(zero: Any) -> Optimizer:
    """The optimizer inside a ZeRO optimizer as a torch optimizer of partitions, whose hooks run around `zero.step`.

    It is of a subclass of the inner one's, shares its state, and its groups are the inner one's; the same object for
    the same `zero`. After `zero.step`, `step_was_skipped` says whether that found infinities.

    Raises:
        ValueError: DeepSpeed without ZeRO, with offload, float16 or a mixture of experts, or of an unknown version.
    """
    known = getattr(zero, PARTITIONS, None)
    if isinstance(known, Optimizer):
        return known
    _check(zero)
    parts, base = ZeroPartitions(zero), type(zero.optimizer)
    members = {
        "__module__": base.__module__,
        "param_groups": property(lambda _: parts.groups()),
        "state": property(lambda _: zero.optimizer.state),
        "step_was_skipped": property(lambda _: bool(zero.overflow)),
        PARTITIONS: parts,
    }
    kind: Any = type(base.__name__, (base,), members)
    seen: Optimizer = kind.__new__(kind)
    Optimizer.__setstate__(seen, {"defaults": zero.optimizer.defaults})  # its hooks, and no groups of its own
    zero.step = _hooked(zero.step, seen, parts)
    zero.optimizer.register_load_state_dict_post_hook(partial(_loaded, seen))
    setattr(zero, PARTITIONS, seen)
    return seen


def _loaded(seen: Optimizer, inside: Optimizer) -> None:
    for hook in seen._optimizer_load_state_dict_post_hooks.values():
        hook(seen)


def _hooked(step: Callable[[], None], seen: Optimizer, parts: ZeroPartitions) -> Callable[..., None]:
    def inside(_: Optimizer) -> None:
        parts.forget_gradients()
        step()

    hooked: Callable[..., None] = Optimizer.profile_hook_step(inside)

    def around(closure: None = None) -> None:
        parts.expect_gradients()
        hooked(seen)

    return around


def is_zero(optimizer: Any) -> bool:
    """Whether this is a wrapper of DeepSpeed's around an optimizer; its FusedAdam and others are torch optimizers."""
    return type(optimizer).__module__.split(".")[0] == "deepspeed" and not isinstance(optimizer, Optimizer)


def check_config(config: dict[str, Any]) -> None:
    """ValueError for a DeepSpeed config under which no controller can steer, and the way out."""
    if "scheduler" in config:
        raise ValueError(
            "the DeepSpeed config has 'scheduler', which would write the learning rates beside the controller; take "
            "it out"
        )
    zero = config.get("zero_optimization") or {}
    for key in ("offload_optimizer", "offload_param"):
        if (zero.get(key) or {}).get("device", "none") not in ("none", None):
            raise ValueError(
                f"the DeepSpeed config has zero_optimization.{key}, which keeps gradients and weights where no sensor "
                "looks; take it out, or train under FSDP"
            )


def _check(zero: Any) -> None:
    state = sys.modules.get("accelerate.state")
    if state is not None and state.AcceleratorState._shared_state:
        check_config(getattr(state.AcceleratorState().deepspeed_plugin, "deepspeed_config", {}))
    name = type(zero).__name__
    if name not in _STAGES:
        raise ValueError(_WITHOUT_ZERO.format(name))
    found = version("deepspeed").partition("+")[0]  # a build from source carries its commit
    if found not in TESTED:
        raise ValueError(
            f"DeepSpeed {found} is installed, and {' and '.join(TESTED)} alone is known here: gradients are in "
            f"buffers whose names may change from version to version. pip install deepspeed=={TESTED[-1]}, or train "
            "under FSDP or DDP"
        )
    offload = any(getattr(zero, key, False) for key in ("cpu_offload", "offload_optimizer", "offload_param"))
    refused = {
        "offload of optimizer or weights": offload,
        "a mixture of experts": bool(getattr(zero, "has_moe_layers", False)),
        "ZenFlow": bool(getattr(zero, "zenflow", False)),
        "a float16 loss scale": zero.dtype == torch.float16 or zero.torch_autocast_gradscaler is not None,
        "tensor or pipeline parallelism": torch.distributed.get_world_size(zero.dp_process_group) != world_size(),
    }
    for what, there in refused.items():
        if there:
            raise ValueError(
                f"DeepSpeed with {what} is not supported, as its gradients cannot be read from here or nobody has "
                "tested it; leave it out (bf16 works), or train under FSDP or DDP"
            )


def check_not_inside(optimizer: Optimizer) -> None:
    """ValueError where DeepSpeed steps an optimizer that stands for no ZeRO optimizer: ZeRO 0, or made too early."""
    if hasattr(optimizer, PARTITIONS):
        return
    frame, inside = sys._getframe(1), False
    while frame.f_back is not None:
        frame = frame.f_back
        name = frame.f_globals.get("__name__", "")
        if name.startswith("deepspeed.runtime.zero"):
            raise ValueError(
                "DeepSpeed steps this optimizer once for every partition of the weights; make the ControlledLR after "
                "accelerator.prepare(model, optimizer), of the optimizer that it returned, and do not prepare it"
            )
        inside |= name.startswith("deepspeed.runtime")
    if inside:
        raise ValueError(_WITHOUT_ZERO.format(type(optimizer).__name__))
