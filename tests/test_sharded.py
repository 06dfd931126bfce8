"""Weights sharded over real processes: the signals, rates and weights of unsharded ones, and the same on all ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from hf_adaptive_lr import ControlledLR
from tests.controllers_for_tests import Watcher
from tests.optimizers import Lion
from tests.sharded import Net, Run, build, data, launch, lora, plain_bert, results, seen, train, weights
from tests.tiny import flat

pytestmark = [
    pytest.mark.filterwarnings("ignore:The `NO_SHARD` sharding strategy is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning"),
]
SIGNALS = Watcher(fields=("alignment", "gain_ratio", "grad_norm", "kl", "loss", "pretrained", "slope", "update_ratio"))
OPTIMIZERS = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "lion": lambda params: Lion(params, lr=1e-3),
    "nesterov": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
}
TWO = {"ddp": 2, "fsdp2": 2, "tp": 1, "fsdp1": 2, "fsdp1_flat": 2, "fsdp1_whole": 2}
"""Ways to shard over two processes, and how many of these have data of their own."""
FOUR = {"hsdp": 4, "fsdp2_tp": 2}


def _alone(run: Run) -> dict:
    model, _, scheduler = train(replace(run, sharding="alone", data_ranks=1))
    return {"lr": scheduler.lr_history(), "seen": seen(scheduler), "weights": flat(model)}


def _check(run: Run, found: list[dict], expected: dict) -> None:
    for other in found[1:]:
        assert other["lr"] == found[0]["lr"] and str(other["seen"]) == str(found[0]["seen"])  # of which one is NaN
        assert torch.equal(other["weights"], found[0]["weights"])
    assert found[0]["lr"] == pytest.approx(expected["lr"], rel=2e-4)
    for name, values in expected["seen"].items():
        # A gain is a difference of two float32 losses, and that of universal's first update, at 1e-7, is rounding.
        first, tolerance = (2, 2e-2) if name == "gain_ratio" else (1, 2e-4)
        assert found[0]["seen"][name][first:] == pytest.approx(values[first:], rel=tolerance, abs=tolerance), name
    if not run.sharding.startswith("fsdp1_flat"):  # whose parameters have other shapes
        difference = (found[0]["weights"] - expected["weights"]).norm() / expected["weights"].norm()
        assert float(difference) < 2e-4


@pytest.mark.parametrize("sharding", TWO)
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_universal_does_what_it_does_alone(sharding, clip, tmp_path) -> None:
    """Clipped, nobody says so: the norm is that of the end of the backward pass."""
    run = Run(sharding=sharding, data_ranks=TWO[sharding], clip=clip, tell=not clip)
    found = results(run, tmp_path)
    assert len(set(found[0]["lr"])) > 10 and found[0]["seen"]["pretrained"][0] > 0.3
    _check(run, found, _alone(run))


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "nesterov"])
@pytest.mark.parametrize("sharding", TWO)
def test_all_signals_under_accumulation_and_clipping(sharding, optimizer, tmp_path) -> None:
    run = Run(
        sharding=sharding,
        data_ranks=TWO[sharding],
        controller=SIGNALS,
        optimizer=OPTIMIZERS[optimizer],
        clip=0.05,
        accumulation=2,
        steps=6,
    )
    _check(run, results(run, tmp_path), _alone(run))


@pytest.mark.parametrize("sharding", FOUR)
@pytest.mark.parametrize("controller", [SIGNALS, "universal"])
def test_two_dimensions_of_ranks(sharding, controller, tmp_path) -> None:
    run = Run(sharding=sharding, data_ranks=FOUR[sharding], controller=controller)
    _check(run, results(run, tmp_path, processes=4), _alone(run))


@pytest.mark.parametrize("make", [plain_bert, lora])
def test_a_sharded_encoder_and_adapters_on_one(make, tmp_path) -> None:
    """The update of adapters is that of their product, whose factors lie in parts."""
    run = Run(sharding="fsdp2", data_ranks=2, make=make, controller=SIGNALS, steps=6)
    expected = _alone(run)
    found = results(run, tmp_path)
    del found[0]["weights"], found[1]["weights"], expected["weights"]
    _check(replace(run, sharding="fsdp1_flat"), [{**row, "weights": torch.zeros(1)} for row in found], expected)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def _parts(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def _save(run: Run, folder: Path) -> None:
    model, optimizer, scheduler = train(run, last=9)
    dcp.save(_parts(model, optimizer), checkpoint_id=folder / "parts", no_dist=not dist.is_initialized())
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(scheduler.state_dict(), folder / "scheduler.pt")


def _resume(run: Run, folder: Path) -> None:
    model, optimizer, scheduler = build(run)
    state = _parts(model, optimizer)
    dcp.load(state, checkpoint_id=folder / "parts", no_dist=not dist.is_initialized())
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    assert scheduler.updates == 0  # torch has made a step with zeros to have a state to load into
    scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))
    train(run, first=9, built=(model, optimizer, scheduler))
    result = {"lr": scheduler.lr_history(), "seen": seen(scheduler), "weights": weights(model, run)}
    torch.save(result, folder / f"{dist.get_rank() if dist.is_initialized() else 0}.pt")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("ends", [("fsdp2", "alone"), ("alone", "fsdp2"), ("fsdp2", "fsdp2")])
def test_a_run_goes_on_with_another_number_of_ranks(ends, tmp_path) -> None:
    """At update 9 there is a decision, which reads what was kept of update 8."""
    runs = [Run(sharding=name, data_ranks=2 if name == "fsdp2" else 1) for name in ends]
    for run, step in zip(runs, (_save, _resume), strict=True):
        launch(step, run, tmp_path) if run.data_ranks == 2 else step(run, tmp_path)
    found, expected = torch.load(tmp_path / "0.pt"), _alone(runs[0])
    assert found["lr"] == pytest.approx(expected["lr"][9:], rel=2e-4)
    assert float((found["weights"] - expected["weights"]).norm() / expected["weights"].norm()) < 2e-4
    if ends == ("fsdp2", "fsdp2"):
        whole = results(runs[0], tmp_path / "whole")[0]
        assert found["lr"] == whole["lr"][9:] and torch.equal(found["weights"], whole["weights"])


# --- nothing is left behind -----------------------------------------------------------------------------------------


def _coarse(folder: Path, fields: tuple[str, ...]) -> None:
    model = Net()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ControlledLR(optimizer, Watcher(fields=fields), model=model, max_grad_norm=0)
    for parts in data(Run(steps=6, data_ranks=2), dist.get_rank()):
        model(**parts[0])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(weights(model, Run()), folder / f"{len(fields)}-{dist.get_rank()}.pt")


def test_a_pass_ahead_of_the_update_leaves_no_weights_that_are_stale_after_it(tmp_path) -> None:
    """Losses in bfloat16 are computed again, in float32, before the step."""
    for fields in (("loss",), ("loss", "gain_ratio")):
        launch(_coarse, tmp_path, fields)
    one, two = (torch.load(tmp_path / f"{fields}-0.pt") for fields in (1, 2))
    assert torch.equal(one, two)


# --- what cannot be measured ----------------------------------------------------------------------------------------


def _refused(folder: Path, case: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    model, fields, words = Net(), ("update_ratio",), ""
    seen_by = model
    if case == "partial":
        model.head.bias = torch.nn.Parameter(DTensor.from_local(model.head.bias.detach(), mesh, [Replicate()]))
        words = "a gradient of shape .* is kept as partial sums"
    elif case == "mesh":
        pair = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "stage"))["stage"]
        fully_shard(model, mesh=pair)
        words = "on a mesh of 1 ranks, and 2 ranks decide together, as under pipeline"
    elif case == "inside":
        seen_by, model = model, FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        words = "pass the module that FullyShardedDataParallel"
    elif case == "adapters":
        model = lora()
        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        seen_by, words = model, "first FSDP and DeepSpeed keep these in flat parameters; use fully_shard"
    else:
        fully_shard(model, mesh=mesh)
        fields, words = ("head_mean",), "head_mean, and fully_shard .* only a part"
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    scheduler = ControlledLR(optimizer, Watcher(fields=fields), model=seen_by, hook=False, max_grad_norm=0)
    make = lora if case == "adapters" else Net
    batch = next(data(Run(make=make, data_ranks=2), dist.get_rank()))[0]
    if case == "partial":
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        model.head.bias.grad = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    else:
        model(**batch)["loss"].backward()
    with pytest.raises(ValueError, match=words):
        optimizer.step()
    assert scheduler.updates == 0
    (folder / f"refused-{dist.get_rank()}").touch()


@pytest.mark.parametrize("case", ["partial", "mesh", "inside", "adapters", "head"])
def test_what_cannot_be_measured_fails_before_the_first_update(case, tmp_path) -> None:
    launch(_refused, tmp_path, case)
    assert len(list(tmp_path.iterdir())) == 2


def test_shards_of_unequal_size_count_once() -> None:
    """A unit test of the factors: 2 parts of which 2 ranks have each one, and what all have whole."""
    from hf_adaptive_lr.distributed import Shards

    class Mesh:
        def size(self, dimension: int | None = None) -> int:
            return 4 if dimension is None else 2

    weight = torch.nn.Parameter(torch.zeros(3))
    shards = Shards(None, None)
    assert shards.parts(weight) == 1 and shards.numel(weight) == 3 and not shards.flat
    weight.placements, weight.device_mesh = (Replicate(), Shard(0)), Mesh()
    assert shards.parts(weight) == 2
    weight.placements = (Shard(1), Shard(0))
    assert shards.parts(weight) == 4
