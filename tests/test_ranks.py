"""Two real processes (gloo): one learning rate, one set of weights, and loud failure when the ranks drift apart."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, GradientState

from hf_adaptive_lr import (
    AdaptiveLRTrainer,
    AdaptiveLRTrainingArguments,
    ControlledLR,
    Hypergradient,
    KLTarget,
    Plateau,
    distributed,
)
from hf_adaptive_lr.sensors.deepspeed import check_config
from tests import integrations
from tests.controllers_for_tests import Classified, Everything, Extra, LossOnly, Recurrent, Watcher
from tests.tiny import Tokens, batches, bert, flat, mlp

CONTROLLERS = [Hypergradient(), Recurrent(), Everything(), Plateau(metric="eval_loss", window=2), KLTarget(start=0.5)]
PER_RANK = [Classified(), Extra()]  # look at one rank's batch, so one process cannot see the same

IDS = [c.controller_type for c in CONTROLLERS]


def _launch(function: Callable[..., None], *args: object) -> None:
    debug_launcher(_fresh, args=(function, *args), num_processes=2)


def _fresh(function: Callable[..., None], *args: object) -> None:
    # A forked process inherits the one-process state of Accelerate that earlier tests left in the parent.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    function(*args)


def _train(controller, folder: Path, per_device: int, **changes) -> AdaptiveLRTrainer:
    args = integrations.arguments(
        folder, AdaptiveLRTrainingArguments, per_device_train_batch_size=per_device, max_grad_norm=0.1, **changes
    )
    trainer = AdaptiveLRTrainer(model=bert(dropout=0.0), args=args, train_dataset=Tokens(107), controller=controller)
    trainer.train()
    return trainer


def _save(path: Path, lrs: list[float], model: torch.nn.Module) -> None:
    rank = dist.get_rank() if dist.is_initialized() else "alone"
    torch.save({"lrs": lrs, "weights": flat(model)}, path / f"{rank}.pt")


def _trainer_on_a_rank(controller, folder: Path, changes: dict) -> None:
    torch.set_num_threads(1)
    trainer = _train(controller, folder, 8, **changes)
    _save(folder, trainer.lr_scheduler.lr_history(), trainer.accelerator.unwrap_model(trainer.model))


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("controller", CONTROLLERS, ids=IDS)
def test_trainer_on_two_processes(controller, optim, tmp_path) -> None:
    changes = {"optim": optim, "learning_rate": 0.05 if optim == "sgd" else 1e-3}
    _launch(_trainer_on_a_rank, controller, tmp_path, changes)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(first["lrs"]) == integrations.STEPS
    assert first["lrs"] == second["lrs"]
    assert torch.equal(first["weights"], second["weights"])

    alone = _train(controller, tmp_path / "alone", 16, **changes)
    # Float32 sums in another order; Adam divides by the root of tiny second moments and magnifies that.
    tolerance = 1e-5 if optim == "sgd" else 1e-3
    assert alone.lr_scheduler.lr_history() == pytest.approx(first["lrs"], rel=tolerance)
    assert torch.allclose(flat(alone.model), first["weights"], atol=tolerance)


@pytest.mark.parametrize("controller", PER_RANK, ids=[c.controller_type for c in PER_RANK])
def test_two_processes_agree_and_resume(controller, tmp_path) -> None:
    _launch(_trainer_on_a_rank, controller, tmp_path, {"save_strategy": "steps", "save_steps": 3})
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["lrs"] == second["lrs"]
    assert len(set(first["lrs"])) > 2
    assert torch.equal(first["weights"], second["weights"])
    _launch(_resumed_on_a_rank, controller, tmp_path, str(tmp_path / "checkpoint-3"))
    resumed = torch.load(tmp_path / "0.pt")
    assert resumed["lrs"] == first["lrs"][3:]
    assert torch.equal(resumed["weights"], first["weights"])


def _resumed_on_a_rank(controller, folder: Path, checkpoint: str) -> None:
    torch.set_num_threads(1)
    args = integrations.arguments(
        folder, AdaptiveLRTrainingArguments, per_device_train_batch_size=8, max_grad_norm=0.1, save_strategy="no"
    )
    trainer = AdaptiveLRTrainer(model=bert(dropout=0.0), args=args, train_dataset=Tokens(107), controller=controller)
    trainer.train(resume_from_checkpoint=checkpoint)
    _save(folder, trainer.lr_scheduler.lr_history(), trainer.accelerator.unwrap_model(trainer.model))


def _accelerate_on_a_rank(controller, folder: Path) -> None:
    torch.set_num_threads(1)
    lrs, weights = integrations.accelerated(controller)
    torch.save({"lrs": lrs, "weights": weights}, folder / f"{dist.get_rank()}.pt")


def test_accelerate_steps_the_scheduler_twice_and_it_does_no_harm(tmp_path) -> None:
    _launch(_accelerate_on_a_rank, Recurrent(), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(first["lrs"]) == integrations.STEPS
    assert first["lrs"] == second["lrs"]
    assert torch.equal(first["weights"], second["weights"])


def _broken_reduction(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.mean_of_rows = lambda rows: rows[dist.get_rank()]
    with pytest.raises(RuntimeError, match="ranks have drifted apart"):
        integrations.accelerated(LossOnly())
    (folder / f"noticed-{dist.get_rank()}").touch()


def test_a_broken_reduction_is_noticed_at_the_next_decision(tmp_path) -> None:
    _launch(_broken_reduction, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["noticed-0", "noticed-1"]


def _loss_of_one_rank_is_nan(folder: Path) -> None:
    torch.set_num_threads(1)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, LossOnly())
    for step, (x, y) in enumerate(batches(4)):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        bad = step == 2 and dist.get_rank() == 1
        with pytest.warns(UserWarning, match="learning rate kept") if step == 2 else _nothing():
            scheduler.observe(loss=float("nan") if bad else loss)
            optimizer.step()
        optimizer.zero_grad()
    torch.save([d.as_dict() for d in scheduler.trace], folder / f"{dist.get_rank()}.pt")


def _evaluates_on_one_rank(folder: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Plateau(metric="eval_loss", window=2))
    for step, (x, y) in enumerate(batches(3)):
        torch.nn.functional.cross_entropy(model(x), y).backward()
        if step == 1 and dist.get_rank() == 0:
            scheduler.observe(eval_loss=0.75)
        optimizer.step()
    torch.save([d.observation["eval_loss"] for d in scheduler.trace], folder / f"{dist.get_rank()}.pt")


def test_an_evaluation_on_one_rank_reaches_all(tmp_path) -> None:
    _launch(_evaluates_on_one_rank, tmp_path)
    for rank in (0, 1):
        seen = torch.load(tmp_path / f"{rank}.pt")
        assert seen[1] == 0.75
        assert seen[0] != seen[0]
        assert seen[2] != seen[2]


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_a_nan_on_one_rank_holds_the_rate_on_both(tmp_path) -> None:
    _launch(_loss_of_one_rank_is_nan, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert [row["lr"] for row in first] == [row["lr"] for row in second]
    assert [row["reason"] for row in first] == ["decision", "decision", "held", "decision"]
    assert first[2]["lr"] == first[1]["lr"]


def _norms_under_ddp(folder: Path) -> None:
    """The norm at the end of the backward pass, beside that which clipping returns after the exchange."""
    torch.set_num_threads(1)
    inner = mlp()
    model = torch.nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Watcher(fields=("grad_norm",)), model=inner, hook=False)
    told = []
    for number in range(3):
        for micro_batch in range(2):
            x, y = batches(12)[4 * number + 2 * micro_batch + dist.get_rank()]
            with contextlib.nullcontext() if micro_batch else model.no_sync():
                loss = torch.nn.functional.cross_entropy(model(x), y)
                scheduler.observe(loss=loss)
                (loss / 2).backward()
        told.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)))
        optimizer.step()
        optimizer.zero_grad()
    heard = [row.observation["grad_norm"] for row in scheduler.trace]
    torch.save({"told": told, "heard": heard}, folder / f"{dist.get_rank()}.pt")


def test_the_norm_before_clipping_is_that_after_the_exchange(tmp_path) -> None:
    _launch(_norms_under_ddp, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert first["heard"] == first["told"] and min(first["told"]) > 0.05


def test_accelerates_wrapper_for_deepspeed_fails_fast() -> None:
    """Without ZeRO it has torch's own optimizer inside, and exchanges gradients after the backward pass."""
    from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

    AcceleratorState(cpu=True)
    wrapped = DeepSpeedOptimizerWrapper(torch.optim.AdamW(mlp().parameters(), lr=0.1))
    with pytest.raises(ValueError, match="DeepSpeed steps AdamW, and a controller needs ZeRO of stage 1, 2 or 3"):
        ControlledLR(wrapped, "constant")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"scheduler": {"type": "WarmupLR"}}, "has 'scheduler', which would write the learning rates"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "has zero_optimization.offload_optimizer"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "zero_optimization.offload_param"),
    ],
)
def test_a_config_of_deepspeed_under_which_nothing_steers_is_refused_by_name(config, said) -> None:
    """What runs under DeepSpeed itself is in test_deepspeed.py."""
    check_config({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}})
    with pytest.raises(ValueError, match=said):
        check_config(config)


@pytest.fixture(autouse=True)
def _no_group_left_behind():
    yield
    assert not dist.is_initialized()
    assert "RANK" not in os.environ
