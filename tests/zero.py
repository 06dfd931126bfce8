"""Runs of tests/sharded.py under DeepSpeed's ZeRO, on CPUs with gloo."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_adaptive_lr import ControlledLR
from hf_adaptive_lr.distributed import PARTITIONS
from tests.sharded import Run, controller_of, data

STAGES = ("zero1", "zero2", "zero3")


def start() -> Any:
    """DeepSpeed, in a process that a launcher of ours has forked."""
    rank = str(dist.get_rank())
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": rank, "RANK": rank, "WORLD_SIZE": str(dist.get_world_size())}
    import deepspeed

    # It compiles an operator for shared memory, which takes minutes; a run that was killed leaves a lock on that.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    return deepspeed


def config(run: Run, *, bf16: bool = False, **zero: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": run.accumulation,
        "gradient_clipping": run.clip,
        "zero_optimization": {"stage": int(run.sharding[-1]), **zero},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**9,
    }


def build(run: Run, given: dict[str, Any] | None = None) -> tuple[Any, Any, nn.Module]:
    """Engine, ZeRO optimizer and model."""
    model = run.make()
    optimizer = run.optimizer([p for p in model.parameters() if p.requires_grad])
    settings = config(run, bf16=run.bf16) if given is None else given
    engine, zero, *_ = start().initialize(model=model, optimizer=optimizer, config=settings)
    return engine, zero, model


def train(run: Run) -> tuple[nn.Module, ControlledLR]:
    engine, zero, model = build(run)
    scheduler = ControlledLR(zero, controller_of(run), model=model, total_steps=run.steps, **run.settings)
    engine.train()
    for parts in data(run, dist.get_rank()):
        for batch in parts:
            engine.backward(engine(**_cast(batch, run))["loss"])
            engine.step()
    return model, scheduler


def _cast(batch: dict[str, Tensor], run: Run) -> dict[str, Tensor]:
    return {
        name: value.bfloat16() if run.bf16 and value.is_floating_point() else value for name, value in batch.items()
    }


def weights(scheduler: ControlledLR) -> Tensor:
    """All trained weights in one vector, whole."""
    shards = getattr(scheduler.optimizer, PARTITIONS)
    return torch.cat([p.detach().flatten().float().clone() for p in shards.whole([])])
