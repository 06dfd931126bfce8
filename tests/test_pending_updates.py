"""`scheduler.step()` after every micro-batch, after a skipped update, and of an optimizer that never steps."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_adaptive_lr import ControlledLR, Linear
from tests.controllers_for_tests import LossOnly
from tests.tiny import Tokens, bert


@pytest.mark.parametrize("hook", [True, False])
def test_step_after_every_micro_batch_drops_no_loss(hook) -> None:
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model, hook=hook)
    losses: list[float] = []
    for number, batch in enumerate(list(DataLoader(Tokens(), batch_size=4))[:8]):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        (loss / 4).backward()
        if not hook:
            scheduler.observe(loss=loss)
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
    seen = [decision.observation["loss"] for decision in scheduler.trace]
    assert seen == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4])


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("first", ["step", "zero_grad"])
def test_step_after_a_skipped_update_drops_its_losses(to_none, first) -> None:
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    losses: list[float] = []
    for number, batch in enumerate(list(DataLoader(Tokens(), batch_size=4))[:4]):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        loss.backward()
        if number not in (1, 2):  # as a gradient scaler skips: optimizer.step is not called
            optimizer.step()
        if first == "step":
            scheduler.step()
        optimizer.zero_grad(set_to_none=to_none)
        if first == "zero_grad":
            scheduler.step()
    seen = [decision.observation["loss"] for decision in scheduler.trace]
    if first == "zero_grad" and not to_none:
        assert seen[-1] == pytest.approx(sum(losses[1:]) / 3)  # nothing tells it from accumulated micro-batches
    else:
        assert seen == pytest.approx([losses[0], losses[3]])


def test_an_optimizer_that_never_steps_is_said_once() -> None:
    class SAM(torch.optim.Optimizer):
        """Foret et al. 2021 in the form that is copied most: two methods, and an optimizer inside."""

        def __init__(self, params, base_optimizer, rho=0.05, **kwargs) -> None:
            super().__init__(params, {"rho": rho, **kwargs})
            self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
            self.param_groups = self.base_optimizer.param_groups

        @torch.no_grad()
        def first_step(self) -> None:
            for p in (p for group in self.param_groups for p in group["params"]):
                self.state[p]["old"] = p.clone()
                p.add_(0.05 * p.grad / p.grad.norm())
                p.grad = None

        @torch.no_grad()
        def second_step(self) -> None:
            for p in (p for group in self.param_groups for p in group["params"]):
                p.copy_(self.state[p]["old"])
            self.base_optimizer.step()
            self.base_optimizer.zero_grad()

    def train(hooked: str) -> ControlledLR:
        weight = torch.nn.Parameter(torch.ones(2))
        sam = SAM([weight], torch.optim.SGD, lr=0.1)
        scheduler = ControlledLR(sam if hooked == "sam" else sam.base_optimizer, Linear(), total_steps=300)
        for _ in range(300):
            weight.square().sum().backward()
            sam.first_step()
            weight.square().sum().backward()
            sam.second_step()
            scheduler.step()
        return scheduler

    with pytest.warns(UserWarning, match=r"\(SAM\) has applied no update.*SAM's first_step.*base_optimizer") as said:
        assert train("sam").updates == 0
    assert len(said) == 1
    assert train("base").updates == 300


@pytest.mark.parametrize("controller", [Linear(), LossOnly()], ids=["no loss", "loss"])
def test_many_micro_batches_before_the_first_update_are_no_missed_updates(controller) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, controller, model=model, hook=False, total_steps=2)
    for number in range(256):
        scheduler.before_forward()
        loss = model(torch.ones(1, 2)).square().mean()
        (loss / 128).backward()
        if controller.needs:
            scheduler.observe(loss=loss)
        if number % 128 == 127:
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
    assert scheduler.updates == 2


@pytest.mark.parametrize("controller", [Linear(), LossOnly()], ids=["no loss", "loss"])
def test_updates_that_another_optimizer_makes_are_missed_ones(controller) -> None:
    model = torch.nn.Linear(2, 1)
    mine, other = (torch.optim.SGD(model.parameters(), lr=0.01) for _ in range(2))
    scheduler = ControlledLR(mine, controller, model=model, total_steps=300)
    with pytest.warns(UserWarning, match=r"has applied no update; does another optimizer train this model") as said:
        for _ in range(200):
            loss = model(torch.ones(1, 2)).square().mean()
            loss.backward()
            if controller.needs:
                scheduler.observe(loss=loss)
            other.step()
            scheduler.step()
            other.zero_grad()
    assert len(said) == 1


def test_a_stand_in_for_layer_wise_optimizers_fails_fast() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    stand_in = LayerWiseDummyOptimizer(optimizer_dict={weight: torch.optim.SGD([weight], lr=0.1)}, lr=0.1)
    with pytest.raises(ValueError, match="layer-wise optimizer.*use its form that is not layer-wise"):
        ControlledLR(stand_in, Linear(), total_steps=3)
