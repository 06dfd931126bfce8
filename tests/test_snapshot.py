"""Snapshots: going back is bit-exact, taking reuses its buffers, and a kill -9 never leaves half a file."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from hf_adaptive_lr import ControlledLR, Hypergradient
from hf_adaptive_lr.guard.host_copy import tensors
from hf_adaptive_lr.guard.snapshot import Snapshot
from tests.controllers_for_tests import Recurrent
from tests.tiny import batches, flat, mlp

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
}
SCHEDULERS = {
    "none": lambda o: None,
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40),
    "recurrent": lambda o: ControlledLR(o, Recurrent(), total_steps=40),
    "hypergradient": lambda o: ControlledLR(o, Hypergradient(), total_steps=40, max_grad_norm=0),
}


def _run(model, optimizer, scheduler, data) -> list[float]:
    losses = []
    for x, y in data:
        x = x + 0.01 * random.random() + 0.01 * float(numpy.random.rand())
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        if isinstance(scheduler, ControlledLR):
            scheduler.observe(loss=loss, grad_norm=torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def _setup(optimizer: str = "adamw", scheduler: str = "none"):
    model = mlp(batch_norm=True)
    made = OPTIMIZERS[optimizer](model.parameters())
    return model, made, SCHEDULERS[scheduler](made)


def _everything(model) -> list[torch.Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


# A learning rate that is a tensor and a controller that reads directions are each tested with the others.
PAIRS = [(o, s) for o in OPTIMIZERS for s in SCHEDULERS if (o, s) != ("tensor lr", "hypergradient")]


@pytest.mark.parametrize(("optimizer", "scheduler"), PAIRS)
def test_training_goes_on_from_a_restore_as_from_the_snapshot(optimizer, scheduler) -> None:
    model, opt, sched = _setup(optimizer, scheduler)
    snapshot = Snapshot(model, opt, schedulers=sched)
    data = batches(30)
    _run(model, opt, sched, data[:10])
    assert snapshot.take({"update": 10})
    losses, expected = _run(model, opt, sched, data[10:20]), None
    expected = _everything(model)
    _run(model, opt, sched, data[20:])
    assert snapshot.restore() == {"update": 10}
    assert _run(model, opt, sched, data[10:20]) == losses
    assert all(torch.equal(a, b) for a, b in zip(_everything(model), expected, strict=True))
    snapshot.restore()  # it stays available and is not what training goes on to change
    assert _run(model, opt, sched, data[10:20]) == losses


def test_the_state_before_the_first_update_has_no_optimizer_state() -> None:
    model, opt, _ = _setup()
    snapshot = Snapshot(model, opt)
    snapshot.take()
    losses = _run(model, opt, None, batches(5))
    snapshot.restore()
    assert not opt.state
    assert _run(model, opt, None, batches(5)) == losses


def test_two_slots_newest_first() -> None:
    model, opt, _ = _setup()
    snapshot = Snapshot(model, opt)
    weights = []
    for update in range(3):
        _run(model, opt, None, batches(2, seed=update))
        weights.append(flat(model).clone())
        snapshot.take(update)
    assert len(snapshot) == 2
    assert snapshot.restore(1) == 1
    assert torch.equal(flat(model), weights[1])
    assert snapshot.restore() == 2
    assert torch.equal(flat(model), weights[2])
    snapshot.drop(0)
    assert (len(snapshot), snapshot.restore()) == (1, 1)
    with pytest.raises(ValueError, match="no state 1"):
        snapshot.restore(1)


def _pointers(value) -> list[int]:
    if isinstance(value, torch.Tensor):
        return [value.data_ptr()]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [p for item in items for p in _pointers(item)]


def test_buffers_are_used_again() -> None:
    model, opt, sched = _setup("adamw", "recurrent")
    snapshot = Snapshot(model, opt, schedulers=sched)
    _run(model, opt, sched, batches(2))
    snapshot.take()
    snapshot.take()
    first = sorted(p for state in snapshot._states for p in _pointers(state))
    for _ in range(3):
        _run(model, opt, sched, batches(2))
        snapshot.take()
        assert sorted(p for state in snapshot._states for p in _pointers(state)) == first
    live = _pointers([p.data for p in model.parameters()])
    assert not set(live) & set(first)


def test_only_what_trains_is_stored() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 2))
    model[0].requires_grad_(False)
    temperature = nn.Parameter(torch.ones(()))
    opt = torch.optim.SGD([*model[1].parameters(), temperature], lr=0.1)
    snapshot = Snapshot(model, opt)
    snapshot.take()
    generators = 30_000
    assert 4 * 202 <= sum(t.nbytes for t in tensors(snapshot._states[0])) < 4 * 202 + generators
    temperature.data.zero_()
    snapshot.restore()
    assert temperature == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "bias in bf16", "buffer", "optimizer"])
def test_a_state_that_is_not_finite_is_not_taken_and_nothing_is_lost(where, value) -> None:
    model, opt, _ = _setup("momentum")
    model.add_module("last", nn.Linear(2, 2, dtype=torch.bfloat16))
    snapshot = Snapshot(model, opt)
    x, y = batches(1)[0]
    nn.functional.cross_entropy(model[:5](x), y).backward()
    opt.step()
    assert snapshot.take("good")
    target = {
        "weight": lambda: model[0].weight.data,
        "bias in bf16": lambda: model.last.bias.data,
        "buffer": lambda: model[1].running_mean,
        "optimizer": lambda: next(iter(opt.state.values()))["momentum_buffer"],
    }[where]()
    target.view(-1)[1] = value
    assert not snapshot.take("bad")
    assert len(snapshot) == 1
    assert snapshot.restore() == "good"
    assert snapshot.take("good again")


def test_large_finite_values_are_not_taken_for_infinity() -> None:
    model = nn.Linear(200, 200).half()
    model.weight.data.fill_(60_000.0)
    assert Snapshot(model).take()
    model = nn.Linear(2, 2)
    model.weight.data.fill_(3e38)
    assert Snapshot(model).take()


def test_another_model_or_optimizer_fails_before_anything_changes() -> None:
    model, opt, _ = _setup()
    snapshot = Snapshot(model, opt)
    snapshot.take()
    model[0].weight.data.add_(1.0)
    before = flat(model).clone()
    model[4].requires_grad_(False)
    with pytest.raises(ValueError, match="not those of the snapshot"):
        snapshot.restore()
    model[4].requires_grad_(True)
    opt.add_param_group({"params": [nn.Parameter(torch.zeros(1), requires_grad=False)]})
    with pytest.raises(ValueError, match="had \\[6\\] parameters"):
        snapshot.restore()
    assert torch.equal(flat(model), before)


def test_sharded_parameters_fail_fast() -> None:
    model = nn.Linear(2, 2)
    model.weight.ds_id = 0
    with pytest.raises(ValueError, match="DeepSpeed leaves each rank only a part"):
        Snapshot(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="slots=0"):
        Snapshot(model, slots=0)


def test_buffers_are_repaired_alone() -> None:
    model, opt, _ = _setup()
    snapshot = Snapshot(model, opt)
    snapshot.take()
    assert not snapshot.repair_buffers()
    model[0].weight.data.add_(1.0)
    weights = flat(model).clone()
    model(torch.full((8, 4), math.nan))
    assert snapshot.repair_buffers()
    assert torch.equal(flat(model), weights)
    assert all(torch.isfinite(b).all() for b in model.buffers())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_new_process_continues_from_disk(scheduler, tmp_path) -> None:
    model, opt, sched = _setup("adamw", scheduler)
    snapshot = Snapshot(model, opt, schedulers=sched)
    _run(model, opt, sched, batches(5))
    snapshot.take({"update": 5})
    snapshot.to_disk(tmp_path)
    losses = _run(model, opt, sched, batches(5, seed=2))
    assert torch.load(tmp_path / "snapshot.pt", weights_only=True)["states"][0]["meta"] == {"update": 5}
    assert [p.name for p in tmp_path.iterdir()] == ["snapshot.pt"]

    model, opt, sched = _setup("adamw", scheduler)
    snapshot = Snapshot(model, opt, schedulers=sched)
    snapshot.from_disk(tmp_path)
    assert snapshot.restore() == {"update": 5}
    assert _run(model, opt, sched, batches(5, seed=2)) == losses
    assert all(s["step"].device.type == "cpu" for s in opt.state.values())


def test_a_scheduler_that_no_safe_file_can_hold_is_named(tmp_path) -> None:
    class Odd:
        def state_dict(self):
            return {"deep": [numpy.float64(1.0)]}

    snapshot = Snapshot(mlp(), schedulers=Odd())
    snapshot.take()
    with pytest.raises(TypeError, match=r"schedulers\[0\].deep\[0\] is a float64"):
        snapshot.to_disk(tmp_path)
    assert not list(tmp_path.iterdir())


# --- kill -9 ----------------------------------------------------------------------------------------------------


def _die(*args: object, **kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at(point: str) -> None:
    """Let this process die at a point of the next write."""
    if point == "half written":
        save = torch.save

        def half(value, file):
            save(value, file)
            file.truncate(file.tell() // 2)
            file.flush()
            _die()

        torch.save = half
    elif point == "before fsync":
        os.fsync = _die
    elif point == "before rename":
        os.replace = _die
    else:
        replace = os.replace
        os.replace = lambda a, b: (replace(a, b), _die())


def _write_and_die(folder: Path, point: str) -> None:
    model = nn.Linear(1, 1)
    model.weight.data.fill_(2.0)
    snapshot = Snapshot(model)
    snapshot.take("new")
    _at(point)
    snapshot.to_disk(folder)


def _write_for_ever(folder: Path) -> None:
    model = nn.Linear(300, 300)
    snapshot = Snapshot(model)
    for value in range(10_000):
        model.weight.data.fill_(float(value))
        snapshot.take(value)
        snapshot.to_disk(folder)


def _process(function: Callable[..., None], *args: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


@pytest.mark.parametrize("point", ["half written", "before fsync", "before rename", "after rename"])
def test_a_kill_while_writing_leaves_a_whole_file(point, tmp_path) -> None:
    model = nn.Linear(1, 1)
    model.weight.data.fill_(1.0)
    snapshot = Snapshot(model)
    snapshot.take("old")
    snapshot.to_disk(tmp_path)
    process = _process(_write_and_die, tmp_path, point)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    snapshot.from_disk(tmp_path)
    new = point == "after rename"
    assert (snapshot.restore(), model.weight.item()) == (("new", 2.0) if new else ("old", 1.0))
    snapshot.to_disk(tmp_path)  # what the killed process left is in nobody's way
    assert [p.name for p in tmp_path.iterdir()] == ["snapshot.pt"]


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path) -> None:
    for delay in (0.0, 0.003, 0.007, 0.011, 0.023):
        folder = tmp_path / str(delay)
        process = _process(_write_for_ever, folder)
        while not (folder / "snapshot.pt").exists():
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join(30)
        model = nn.Linear(300, 300)
        snapshot = Snapshot(model)
        snapshot.from_disk(folder)
        assert (model.weight == snapshot.restore()).all()
