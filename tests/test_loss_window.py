"""The loss of an update: micro-batches, two sources, and several readers of one window."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_adaptive_lr import ControlledLR
from hf_adaptive_lr.sensors.forward_hook import ForwardHook
from hf_adaptive_lr.sensors.loss_window import LossWindow
from tests.controllers_for_tests import LossOnly


class Model(nn.Module):
    """Returns its loss as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: float, num_items_in_batch: int | None = None) -> dict[str, torch.Tensor]:
        return {"loss": self.w * x / (num_items_in_batch or 1)}


def test_one_hook_collects_means_or_shares() -> None:
    model, window = Model(), LossWindow()
    hook = ForwardHook(model, window)
    for x in (1.0, 2.0, 6.0):
        model(x)
    assert len(window) == 3 and float(window.mean()) == 3.0 and window.mean().dtype == torch.float64
    window.clear()
    for x in (1.0, 2.0, 6.0):
        model(x, num_items_in_batch=3)
    assert window.shares and float(window.mean()) == pytest.approx(3.0)
    window.clear()
    model.eval()
    model(5.0)
    model.train()
    with torch.no_grad():
        model(5.0)
    hook.close()
    model(5.0)
    assert not window and not window.shares
    with pytest.raises(ValueError, match="observe"):
        window.mean()


def test_a_caller_replaces_the_loss_that_the_hook_found() -> None:
    model, window = Model(), LossWindow()
    hook = ForwardHook(model, window)
    model(1.0, num_items_in_batch=2)
    assert window.observe(torch.tensor(4.0)) and not window.shares
    assert not window.observe(torch.tensor(8.0))  # a micro-batch that the hook did not see
    model(3.0)
    assert window.observe(torch.tensor(6.0))
    assert float(window.mean()) == 6.0
    hook.close()


def test_another_reader_shares_the_window_of_the_scheduler() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    read = []
    optimizer.register_step_pre_hook(lambda *_: read.append(float(scheduler.losses.mean())))
    for x in (1.0, 3.0):
        for part in (x, 3 * x):
            model(part)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        assert len(scheduler.losses) == 0  # emptied by the step
    assert read == [decision.observation["loss"] for decision in scheduler.trace] and read[0] == 2.0
