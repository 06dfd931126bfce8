"""The loss that a controller hears is the one that is trained."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_adaptive_lr import AdaptiveLRCallback, AdaptiveLRTrainer, ControlledLR, Linear
from hf_adaptive_lr.sensors.trained_loss import _root_of_backward
from tests import integrations
from tests.controllers_for_tests import Everything, LossOnly
from tests.own_losses import UNHEARD, Loss, loop, weighted
from tests.tiny import Tokens, bert


def _trainer(loss: Loss, base: type[Trainer] = Trainer) -> type[Trainer]:
    class Own(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs)
            value = loss(output, inputs)
            return (value, output) if return_outputs else value

    return Own


@pytest.mark.parametrize("name", UNHEARD)
def test_a_loss_that_is_not_the_trained_one_fails_fast(name) -> None:
    with pytest.raises(ValueError, match=r"not the one that is trained.*AdaptiveLRTrainer.*observe\(loss="):
        loop(lambda model, batch: UNHEARD[name](model(**batch), batch).backward())


@pytest.mark.parametrize("name", ["class weights", "regulariser"])
def test_the_callback_and_a_passed_scheduler_fail_fast_before_the_first_update(name, tmp_path) -> None:
    for way in ("callback", "optimizers="):
        model = bert()
        before = integrations._flat(model)
        optimizer = integrations.optimizer_for(model)
        parts = (
            {"callbacks": [AdaptiveLRCallback("universal_1")]}
            if way == "callback"
            else {"optimizers": (optimizer, ControlledLR(optimizer, "universal_1", model=model, total_steps=6))}
        )
        trainer = _trainer(UNHEARD[name])(
            model=model, args=integrations.arguments(tmp_path), train_dataset=Tokens(), **parts
        )
        with pytest.raises(ValueError, match="not the one that is trained"):
            trainer.train()
        assert torch.equal(before, integrations._flat(model)), way


def test_the_subclass_hears_the_trained_loss_of_any_compute_loss(tmp_path) -> None:
    args = integrations.arguments(tmp_path, max_steps=3)
    trainer = _trainer(weighted, AdaptiveLRTrainer)(
        model=bert(), args=args, train_dataset=Tokens(), controller=LossOnly()
    )
    trainer.train()
    heard = [decision.observation["loss"] for decision in trainer.lr_scheduler.trace]
    assert heard == pytest.approx([row["loss"] for row in trainer.state.log_history if "loss" in row])


def test_rules_that_need_no_loss_work_with_any(tmp_path) -> None:
    trainer = _trainer(weighted)(
        model=bert(),
        args=integrations.arguments(tmp_path, max_steps=2),
        train_dataset=Tokens(),
        callbacks=[AdaptiveLRCallback(Linear())],
    )
    trainer.train()


def _accumulated(model, batch, divide: bool, in_place: bool = False) -> list[torch.Tensor]:
    losses = []
    for part in range(2):
        loss = model(**{name: rows[part::2] for name, rows in batch.items()}).loss
        losses.append(loss.detach().clone())
        if in_place:
            loss /= 2
        (loss / 2 if divide else loss).backward()
    return losses


@pytest.mark.parametrize("divide", ["outside", "in place", "not at all"])
def test_accumulated_losses_are_the_trained_ones(divide) -> None:
    true = []

    def step(model, batch) -> None:
        true.append(_accumulated(model, batch, divide == "outside", divide == "in place"))

    scheduler = loop(step)
    seen = [decision.observation["loss"] for decision in scheduler.trace]
    assert seen == pytest.approx([float(torch.stack(losses).mean()) for losses in true], rel=1e-6)


def test_a_window_with_fewer_micro_batches_at_the_end_of_an_epoch_is_no_other_loss() -> None:
    count = iter((2, 1, 2))

    def step(model, batch) -> None:
        for _ in range(next(count)):
            (model(**batch).loss / 2).backward()

    assert loop(step).updates == 3


def test_a_first_window_with_fewer_micro_batches_is_no_other_loss() -> None:
    count = iter((3, 4, 3))

    def step(model, batch) -> None:
        for _ in range(next(count)):
            (model(**batch).loss / 4).backward()

    assert loop(step).updates == 3


@pytest.mark.parametrize(
    "factors", [(0.3, 0.3, 0.3), (0.5, 0.25, 0.25), (2.0, 2.0), (0.5,), (1000.0, 1000.0), (512.0, 256.0)]
)
def test_no_other_factor_is_taken_for_accumulation_or_a_scaler(factors) -> None:
    def step(model, batch) -> None:
        for factor in factors:
            (model(**batch).loss * factor).backward()

    with pytest.raises(ValueError, match="not the one that is trained"):
        loop(step)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_gradient_scaler_whose_step_is_not_called_is_no_factor(accumulation) -> None:
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    for batch in list(DataLoader(Tokens(), batch_size=8))[:2]:
        for _ in range(accumulation):
            scaler.scale(model(**batch).loss / accumulation).backward()
        scaler.unscale_(optimizer)
        optimizer.step()
        scaler.update()
        optimizer.zero_grad()
    assert scheduler.updates == 2


def test_a_gradient_scaler_of_any_scale_is_no_factor() -> None:
    for scale in (1000.0, 65536.0):
        model = bert(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scheduler = ControlledLR(optimizer, LossOnly(), model=model)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for batch in list(DataLoader(Tokens(), batch_size=8))[:2]:
            for _ in range(2):
                scaler.scale(model(**batch).loss / 2).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert scheduler.updates == 2


def test_other_forms_of_the_same_loss_are_heard() -> None:
    def one_pass_for_two(model, batch) -> None:
        (0.5 * model(**batch).loss + 0.5 * model(**batch).loss).backward()

    def weighted_gradient(model, batch) -> None:
        for _ in range(2):
            model(**batch).loss.backward(gradient=torch.tensor(0.5))

    def in_bfloat16(model, batch) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(3):
                (model(**batch).loss.bfloat16() / 3).backward()

    for step in (one_pass_for_two, weighted_gradient, in_bfloat16):
        assert loop(step).updates == 3


def test_the_same_loss_computed_once_more_is_heard() -> None:
    """As TRL's SFTTrainer does, from the log-probabilities."""

    def step(model, batch) -> None:
        for part in range(2):
            rows = {name: value[part::2] for name, value in batch.items()}
            (cross_entropy(model(**rows).logits, rows["labels"]) / 2).backward()

    assert loop(step).updates == 3


def test_a_loss_that_is_not_finite_is_not_taken_for_another_one() -> None:
    def poisoned(model, batch) -> None:
        with torch.no_grad():
            model.classifier.bias.fill_(float("nan"))
        model(**batch).loss.backward()

    with pytest.warns(UserWarning, match="learning rate kept: update 0: loss is nan"):
        assert loop(poisoned).updates == 3


def test_a_regulariser_that_grows_in_mid_run_is_said_once() -> None:
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    with pytest.warns(UserWarning, match=r"not the one that is trained.*said once") as caught:
        for number, batch in enumerate(list(DataLoader(Tokens(160), batch_size=4))[:40]):
            output = model(**batch)
            (output.loss + max(0, number - 3) * (output.logits - 1).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(caught) == 1 and scheduler.updates == 40


def test_gradients_that_are_not_finite_are_no_neutral_alignment() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scheduler = ControlledLR(optimizer, "hypergradient")
    with pytest.warns(UserWarning, match="learning rate kept: update 2: alignment is nan"):
        for gradient in (1.0, 1.0, float("nan"), float("inf")):
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
    assert [decision.reason for decision in scheduler.trace] == ["decision", "decision", "held", "held"]


def test_the_root_is_found_from_a_thread_of_the_autograd_engine() -> None:
    """Hooks of tensors on an accelerator run in such a thread, while the one that called backward() waits."""
    found = []

    class InAnotherThread(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            thread = threading.Thread(target=lambda: found.append(_root_of_backward()))
            thread.start()
            thread.join()
            return gradient

    loss = InAnotherThread.apply(torch.tensor(2.0, requires_grad=True)) * 3
    loss.backward()
    root, value = found[0]
    assert root is loss and float(value) == 6.0
    assert _root_of_backward() == (None, None)


class _Mean(torch.nn.Module):
    """Returns a loss of shape (1,), as parts that gather the losses of several devices do."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.shape = torch.nn.Parameter(torch.tensor([1.0, -2.0])), shape

    def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (rows @ self.weight - 1).square().mean().reshape(self.shape)}


def test_a_loss_of_shape_1_is_heard_like_a_0d_one() -> None:
    seen = []
    for shape in ((), (1,)):
        model = _Mean(shape)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = ControlledLR(optimizer, Everything(), model=model, total_steps=4)
        for number in range(4):
            model(torch.eye(2) + number).pop("loss").backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seen.append([decision.observation for decision in scheduler.trace])
    assert seen[0] == [pytest.approx(one, nan_ok=True) for one in seen[1]]
    assert len({one["loss"] for one in seen[1]}) == 4
