"""Losses that the model's output does not have, and a loop that trains them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from hf_adaptive_lr import ControlledLR
from tests.controllers_for_tests import LossOnly
from tests.tiny import Tokens, bert

Loss = Callable[..., torch.Tensor]
WEIGHTS = torch.tensor([1.0, 20.0, 1.0])


def weighted(output, batch) -> torch.Tensor:
    return 10 * cross_entropy(output.logits, batch["labels"], WEIGHTS)


def _two_passes(output, batch) -> torch.Tensor:
    (output.logits - 1).square().mean().backward(retain_graph=True)
    return output.loss


def _second_pass(output, batch) -> torch.Tensor:
    output.loss.backward(retain_graph=True)
    return (output.logits - 1).square().mean()


UNHEARD: dict[str, Loss] = {
    "class weights": weighted,
    "scaled": lambda output, batch: 10 * output.loss,
    "regulariser": lambda output, batch: output.loss + (output.logits - 1).square().mean(),
    "regulariser in place": lambda output, batch: output.loss.add_((output.logits - 1).square().mean()),
    "distillation": lambda output, batch: 0.5 * output.loss + 0.5 * output.logits.softmax(-1).square().sum(-1).mean(),
    "two heads": lambda output, batch: output.loss + cross_entropy(output.logits.roll(1, -1), batch["labels"]),
    "a pass of its own": _two_passes,
    "a second pass": _second_pass,
    "focused": lambda output, batch: output.loss**2,
}


def loop(step: Callable[..., None], controller=None, **settings) -> ControlledLR:
    """Three updates by a function of model and batch, and perhaps the scheduler, that does one's backward passes."""
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = ControlledLR(optimizer, controller or LossOnly(), model=model, **settings)
    for batch in list(DataLoader(Tokens(), batch_size=8))[:3]:
        step(*(model, batch, scheduler)[: step.__code__.co_argcount])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return scheduler
