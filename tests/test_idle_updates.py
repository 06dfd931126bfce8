"""A step without any gradient changes nothing and does not count."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hf_adaptive_lr import DSA, ControlledLR
from hf_adaptive_lr.optimizers.groups import no_update
from hf_adaptive_lr.scheduler.decision import Decision
from tests.controllers_for_tests import LossOnly
from tests.tiny import flat, mlp


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.1, momentum=0.9, foreach=False),
        lambda p: SGD(p, lr=0.1, foreach=True),
        lambda p: SGD(p, lr=0.1, fused=True),
        lambda p: AdamW(p, lr=0.1, foreach=False),
        lambda p: AdamW(p, lr=0.1, foreach=True),
        lambda p: AdamW(p, lr=0.1, fused=True),
        lambda p: Adam(p, lr=torch.tensor(0.1), foreach=False),
    ],
)
@pytest.mark.parametrize("given", [(), (None,)])  # Accelerate passes a closure of None
def test_a_step_without_gradients_is_a_skipped_update(make, given) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    scheduler = ControlledLR(optimizer, LossOnly(), total_steps=10)
    heard: list[Decision] = []
    scheduler.listeners.append(heard.append)

    def update(loss: float, gradients: bool) -> None:
        scheduler.observe(loss=loss)
        if gradients:
            for p in model.parameters():
                p.grad = torch.ones_like(p)
        optimizer.step(*given)
        scheduler.step()
        optimizer.zero_grad()

    update(0.5, True)
    assert scheduler.get_last_lr() == pytest.approx([0.1])
    weights, state = flat(model).clone(), str(scheduler.state_dict())
    update(77.0, False)
    assert torch.equal(flat(model), weights)
    assert str(scheduler.state_dict()) == state
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
    assert scheduler.updates == len(scheduler.trace) == len(heard) == 1
    update(0.25, True)
    assert scheduler.updates == 2
    assert scheduler.trace[-1].observation == {"loss": 0.25}  # 77 belonged to the update that was skipped


def test_one_gradient_anywhere_makes_an_update() -> None:
    frozen, unused, used = (nn.Parameter(torch.zeros(2), requires_grad=k > 0) for k in range(3))
    optimizer = SGD([{"params": [frozen, unused]}, {"params": [used]}], lr=1.0)
    scheduler = ControlledLR(optimizer, "constant")
    used.grad = torch.zeros(2)  # zero is a gradient too
    optimizer.step()
    assert scheduler.updates == 1
    used.grad = None
    optimizer.step()
    assert scheduler.updates == 1


def test_healthy_updates_pay_for_one_look() -> None:
    looks = []

    class Counted(nn.Parameter):
        @property
        def grad(self) -> Tensor | None:
            looks.append(1)
            return torch.ones(())

    optimizer = SGD([Counted(torch.zeros(())) for _ in range(50)], lr=1.0)
    assert not no_update(optimizer, ())
    assert len(looks) == 1


@pytest.mark.parametrize("by_name", [False, True])
def test_a_step_with_a_closure_is_never_taken_for_a_skipped_one(by_name) -> None:
    weight = nn.Parameter(torch.ones(2))
    for optimizer in (SGD([weight], lr=0.1), torch.optim.LBFGS([weight], lr=0.1, max_iter=2)):
        scheduler = ControlledLR(optimizer, "constant")

        def closure(optimizer: Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        before = weight.detach().clone()
        weight.grad = None
        optimizer.step(**{"closure": closure}) if by_name else optimizer.step(closure)
        assert scheduler.updates == 1
        assert not torch.equal(weight, before)


def test_dsa_counts_what_it_applies() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = DSA(SGD([weight], lr=0.1))
    scheduler = ControlledLR(optimizer, "linear", total_steps=10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)
    closure()
    optimizer.feed(closure)
    optimizer.step()
    assert scheduler.updates == 2
    weight.grad = None
    optimizer.feed(closure)
    before = weight.detach().clone()
    with suppress(RuntimeError):  # whether that is worth an error is the optimizer's business
        optimizer.step()
    assert scheduler.updates == 2
    assert torch.equal(weight, before)
    assert scheduler.lr_history() == pytest.approx([0.1, 0.09])
