"""Runs of one tiny model on several processes, sharded in all ways that work on a CPU, and on one process alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hf_adaptive_lr import AutoController, ControlledLR, Controller
from tests.tiny import Tokens, bert

ROWS = 8  # of a micro-batch, on all ranks together


class Net(nn.Module):
    """A perceptron with odd sizes, whose output carries its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(9, 22), nn.Linear(22, 13), nn.Linear(13, 3)
        with torch.no_grad():  # rows of very different length, as training makes them
            self.second.weight.mul_(torch.linspace(0.1, 3, 13)[:, None])

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@dataclass
class Run:
    """How to train; `sharding` names a function below, "alone" is one process with the global batch."""

    sharding: str = "alone"
    controller: str | Controller = "universal"
    steps: int = 20
    clip: float = 0.0
    accumulation: int = 1
    tell: bool = True  # the clipping, and the norm before it
    make: Callable[[], nn.Module] = Net
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda params: torch.optim.AdamW(params, lr=1e-3)
    data_ranks: int = 1  # of the processes, those that have data of their own
    bf16: bool = False  # under ZeRO
    settings: dict[str, Any] = field(default_factory=dict)


def launch(function: Callable[..., None], *args: object, processes: int = 2) -> None:
    debug_launcher(_fresh, args=(function, *args), num_processes=processes)


def _fresh(function: Callable[..., None], *args: object) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(1)
    function(*args)


# --- ways to shard: from the module to the one that computes --------------------------------------------------------


def alone(model: nn.Module) -> nn.Module:
    return model


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def _each(model: nn.Module, shard: Callable[[nn.Module], Any]) -> None:
    for module in (m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)):
        shard(module)
    shard(model)


def fsdp2(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    _each(model, lambda module: fully_shard(module, mesh=mesh))
    return model


def hsdp(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("copies", "parts"))
    _each(model, lambda module: fully_shard(module, mesh=mesh))
    return model


_PLAN = {"first": ColwiseParallel(), "second": RowwiseParallel()}


def tp(model: nn.Module) -> nn.Module:
    parallelize_module(model, init_device_mesh("cpu", (dist.get_world_size(),)), _PLAN)
    return model


def fsdp2_tp(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {**_PLAN, "head": ColwiseParallel(output_layouts=_replicate())})
    _each(model, lambda module: fully_shard(module, mesh=mesh["data"]))
    return model


def _replicate() -> Any:
    from torch.distributed.tensor import Replicate

    return Replicate()


def _first(model: nn.Module, strategy: ShardingStrategy, *, original: bool) -> nn.Module:
    options = {"sharding_strategy": strategy, "use_orig_params": original, "device_id": torch.device("cpu")}
    for name, child in list(model.named_children()):
        setattr(model, name, FullyShardedDataParallel(child, **options))
    return FullyShardedDataParallel(model, **options)


def fsdp1(model: nn.Module) -> nn.Module:
    return _first(model, ShardingStrategy.FULL_SHARD, original=True)


def fsdp1_flat(model: nn.Module) -> nn.Module:
    return _first(model, ShardingStrategy.FULL_SHARD, original=False)


def fsdp1_whole(model: nn.Module) -> nn.Module:
    return _first(model, ShardingStrategy.NO_SHARD, original=True)


# --- training -------------------------------------------------------------------------------------------------------


def data(run: Run, rank: int) -> Iterator[list[dict[str, Tensor]]]:
    """The micro-batches of every update, of a rank's rows."""
    generator = torch.Generator().manual_seed(1)
    mine = slice(rank * ROWS // run.data_ranks, (rank + 1) * ROWS // run.data_ranks)
    tokens = Tokens(ROWS * run.steps * run.accumulation)
    for step in range(run.steps):
        parts = []
        for part in range(run.accumulation):
            if run.make is Net:
                x = torch.randn(ROWS, 9, generator=generator)
                batch = {"x": x, "labels": x[:, :3].argmax(-1)}
            else:
                first = ROWS * (step * run.accumulation + part)
                rows = [tokens[row] for row in range(first, first + ROWS)]
                batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            parts.append({name: value[mine] for name, value in batch.items()})
        yield parts


def controller_of(run: Run) -> Controller:
    return AutoController.from_pretrained(run.controller) if isinstance(run.controller, str) else run.controller


def build(run: Run) -> tuple[nn.Module, torch.optim.Optimizer, ControlledLR]:
    model = globals()[run.sharding](run.make())
    optimizer = run.optimizer(p for p in model.parameters() if p.requires_grad)
    inner = model.module if run.sharding == "ddp" else model
    told = {"max_grad_norm": run.clip} if run.tell else {}
    scheduler = ControlledLR(optimizer, controller_of(run), model=inner, total_steps=run.steps, **told, **run.settings)
    return model, optimizer, scheduler


def train(
    run: Run, first: int = 0, last: int | None = None, built: Any = None
) -> tuple[nn.Module, torch.optim.Optimizer, ControlledLR]:
    model, optimizer, scheduler = built or build(run)
    model.train()
    rank = dist.get_rank() if dist.is_initialized() else 0
    group_of = {"fsdp2_tp": rank // 2, "tp": 0}.get(run.sharding, rank if run.data_ranks > 1 else 0)
    for step, parts in enumerate(data(run, group_of)):
        if not first <= step < (run.steps if last is None else last):
            continue
        for number, batch in enumerate(parts):
            ends = number == len(parts) - 1
            with _unsynced(model, run) if not ends else contextlib.nullcontext():
                if run.sharding in ("fsdp2", "hsdp"):
                    model.set_requires_gradient_sync(ends)
                (model(**batch)["loss"] / len(parts)).backward()
        if run.clip:
            norm = _clip(model, run)
            if run.tell:
                scheduler.observe(grad_norm=norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model, optimizer, scheduler


def _unsynced(model: nn.Module, run: Run) -> Any:
    return model.no_sync() if run.sharding == "ddp" or run.sharding.startswith("fsdp1") else contextlib.nullcontext()


def _clip(model: nn.Module, run: Run) -> Tensor:
    if run.sharding.startswith("fsdp1"):
        return model.clip_grad_norm_(run.clip)
    if run.sharding == "tp":  # torch cannot clip DTensors and Tensors together
        square = sum(
            (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).square().sum()
            for p in model.parameters()
        )
        factor = (run.clip / (square.sqrt() + 1e-6)).clamp(max=1.0)
        for p in model.parameters():
            p.grad.mul_(float(factor))
        return square.sqrt()
    return nn.utils.clip_grad_norm_(model.parameters(), run.clip)


def weights(model: nn.Module, run: Run) -> Tensor:
    """All weights in one vector, whole."""
    whole = (
        FullyShardedDataParallel.summon_full_params(model)
        if run.sharding.startswith("fsdp1")
        else contextlib.nullcontext()
    )
    with whole:
        return torch.cat(
            [
                (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().flatten().float().clone()
                for p in model.parameters()
            ]
        )


def seen(scheduler: ControlledLR) -> dict[str, list[Any]]:
    rows = [row.observation for row in scheduler.trace if row.observation]
    return {name: [row[name] for row in rows] for name in rows[0]}


def on_a_rank(run: Run, folder: Path) -> None:
    if run.sharding.startswith("zero"):
        from tests import zero  # which imports this file

        _, scheduler = zero.train(run)
        end = zero.weights(scheduler)
    else:
        model, _, scheduler = train(run)
        end = weights(model, run)
    result = {"lr": scheduler.lr_history(), "seen": seen(scheduler), "weights": end}
    torch.save(result, folder / f"{dist.get_rank()}.pt")


def results(run: Run, folder: Path, processes: int = 2) -> list[dict[str, Any]]:
    """What every rank has seen and done."""
    folder.mkdir(parents=True, exist_ok=True)
    launch(on_a_rank, run, folder, processes=processes)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def lora() -> nn.Module:
    """A BERT with adapters; the head is trained as well."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.0)
    return get_peft_model(plain_bert(), config)


def plain_bert() -> nn.Module:
    return bert(dropout=0.0)
