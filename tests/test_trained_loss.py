"""The loss that a controller hears is the one that is trained, and nobody else writes its learning rates."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_adaptive_lr import AdaptiveLRCallback, AdaptiveLRTrainer, ControlledLR, Linear
from hf_adaptive_lr.sensors.trained_loss import _root_of_backward
from tests import integrations
from tests.controllers_for_tests import LossOnly, Watcher
from tests.tiny import Tokens, bert

Loss = Callable[..., torch.Tensor]
WEIGHTS = torch.tensor([1.0, 20.0, 1.0])


def _weighted(output, batch) -> torch.Tensor:
    return 10 * cross_entropy(output.logits, batch["labels"], WEIGHTS)


UNHEARD: dict[str, Loss] = {
    "class weights": _weighted,
    "scaled": lambda output, batch: 10 * output.loss,
    "regulariser": lambda output, batch: output.loss + (output.logits - 1).square().mean(),
    "regulariser in place": lambda output, batch: output.loss.add_((output.logits - 1).square().mean()),
    "distillation": lambda output, batch: 0.5 * output.loss + 0.5 * output.logits.softmax(-1).square().sum(-1).mean(),
    "two heads": lambda output, batch: output.loss + cross_entropy(output.logits.roll(1, -1), batch["labels"]),
    "focused": lambda output, batch: output.loss**2,
}


def _trainer(loss: Loss, base: type[Trainer] = Trainer) -> type[Trainer]:
    class Own(base):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            output = model(**inputs)
            value = loss(output, inputs)
            return (value, output) if return_outputs else value

    return Own


def _loop(step: Callable[[torch.nn.Module, dict], None], controller=None, **settings) -> ControlledLR:
    """Three updates by a function that does the backward passes of one."""
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = ControlledLR(optimizer, controller or LossOnly(), model=model, **settings)
    for batch in list(DataLoader(Tokens(), batch_size=8))[:3]:
        step(model, batch)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return scheduler


@pytest.mark.parametrize("name", UNHEARD)
def test_a_loss_that_is_not_the_trained_one_fails_fast(name) -> None:
    with pytest.raises(ValueError, match=r"not the one that is trained.*AdaptiveLRTrainer.*observe\(loss="):
        _loop(lambda model, batch: UNHEARD[name](model(**batch), batch).backward())


@pytest.mark.parametrize("name", ["class weights", "regulariser"])
def test_the_callback_and_a_passed_scheduler_fail_fast_before_the_first_update(name, tmp_path) -> None:
    for way in ("callback", "optimizers="):
        model = bert()
        before = integrations._flat(model)
        optimizer = integrations.optimizer_for(model)
        parts = (
            {"callbacks": [AdaptiveLRCallback("universal")]}
            if way == "callback"
            else {"optimizers": (optimizer, ControlledLR(optimizer, "universal", model=model, total_steps=6))}
        )
        trainer = _trainer(UNHEARD[name])(
            model=model, args=integrations.arguments(tmp_path), train_dataset=Tokens(), **parts
        )
        with pytest.raises(ValueError, match="not the one that is trained"):
            trainer.train()
        assert torch.equal(before, integrations._flat(model)), way


def test_the_subclass_hears_the_trained_loss_of_any_compute_loss(tmp_path) -> None:
    args = integrations.arguments(tmp_path, max_steps=3)
    trainer = _trainer(_weighted, AdaptiveLRTrainer)(
        model=bert(), args=args, train_dataset=Tokens(), controller=LossOnly()
    )
    trainer.train()
    heard = [decision.observation["loss"] for decision in trainer.lr_scheduler.trace]
    assert heard == pytest.approx([row["loss"] for row in trainer.state.log_history if "loss" in row])


def test_rules_that_need_no_loss_work_with_any(tmp_path) -> None:
    trainer = _trainer(_weighted)(
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

    scheduler = _loop(step)
    seen = [decision.observation["loss"] for decision in scheduler.trace]
    assert seen == pytest.approx([float(torch.stack(losses).mean()) for losses in true], rel=1e-6)


def test_a_window_with_fewer_micro_batches_at_the_end_of_an_epoch_is_no_other_loss() -> None:
    count = iter((2, 1, 2))

    def step(model, batch) -> None:
        for _ in range(next(count)):
            (model(**batch).loss / 2).backward()

    assert _loop(step).updates == 3


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
        assert _loop(step).updates == 3


def test_a_loss_that_is_not_finite_is_not_taken_for_another_one() -> None:
    def poisoned(model, batch) -> None:
        with torch.no_grad():
            model.classifier.bias.fill_(float("nan"))
        model(**batch).loss.backward()

    with pytest.warns(UserWarning, match="learning rate kept: update 0: loss is nan"):
        assert _loop(poisoned).updates == 3


def test_what_a_caller_reports_is_believed() -> None:
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    for batch in list(DataLoader(Tokens(), batch_size=8))[:2]:
        loss = _weighted(model(**batch), batch)
        scheduler.observe(loss=loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert scheduler.trace[-1].observation["loss"] == pytest.approx(float(loss.detach()))


def test_a_regulariser_that_grows_in_mid_run_is_said_once() -> None:
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    with pytest.warns(UserWarning, match=r"not the one that is trained.*said once") as caught:
        for number, batch in enumerate(list(DataLoader(Tokens(), batch_size=4))[:8]):
            output = model(**batch)
            (output.loss + max(0, number - 3) * (output.logits - 1).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(caught) == 1 and scheduler.updates == 8


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


# --- step() on every micro-batch ------------------------------------------------------------------------------------


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


# --- other writers --------------------------------------------------------------------------------------------------


def _steps(optimizer: torch.optim.Optimizer, between: Callable[[int], None], count: int = 4) -> None:
    for number in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        between(number)


def _sgd(tensor: bool = False) -> torch.optim.SGD:
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(2))]},
        {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0},
    ]
    return torch.optim.SGD(groups, lr=torch.tensor(0.1) if tensor else 0.1)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_learning_rate_set_in_mid_run_is_overruled_and_said_once(tensor) -> None:
    optimizer = _sgd(tensor)
    scheduler = ControlledLR(optimizer, Watcher())

    def between(number: int) -> None:
        if tensor:
            optimizer.param_groups[0]["lr"].fill_(0.7)
        else:
            optimizer.param_groups[0]["lr"] = 0.7

    with pytest.warns(
        UserWarning, match=r"group 0 to 0.7, where ControlledLR had left 0.1; that is overruled"
    ) as said:
        _steps(optimizer, between)
    assert len(said) == 1 and scheduler.lr_history() == pytest.approx([0.1] * 4)


def test_a_group_woken_from_zero_is_said() -> None:
    optimizer = _sgd()
    scheduler = ControlledLR(optimizer, Watcher())
    with pytest.warns(UserWarning, match="group 1 to 0.02, where ControlledLR had left 0;"):
        _steps(optimizer, lambda number: optimizer.param_groups[1].update(lr=0.02))
    scheduler.close()
    optimizer.param_groups[1]["lr"] = 0.02
    again = ControlledLR(optimizer, Watcher())
    _steps(optimizer, lambda number: None, 1)
    assert again.get_last_lr() == [0.1, 0.02]  # the way out


@pytest.mark.parametrize("sequential", [True, False])
def test_a_second_scheduler_is_said_once(sequential) -> None:
    optimizer = _sgd()
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=3)
    scheduler = ControlledLR(optimizer, Watcher())
    with pytest.warns(UserWarning, match="said once") as said, warnings.catch_warnings():
        warnings.filterwarnings("default")
        other = (
            torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, scheduler], milestones=[3])
            if sequential
            else warmup
        )
        _steps(optimizer, lambda number: other.step(), 5)
    assert len([w for w in said if "said once" in str(w.message)]) == 1
    assert scheduler.lr_history() == [0.1] * 5


def test_a_new_scheduler_starts_from_a_learning_rate_that_was_changed_since() -> None:
    optimizer = _sgd()
    first = ControlledLR(optimizer, Linear(), total_steps=4)
    _steps(optimizer, lambda number: None, 2)
    first.close()
    second = ControlledLR(optimizer, Watcher())  # nobody has changed it: the base is the user's
    _steps(optimizer, lambda number: None, 1)
    assert second.get_last_lr() == [0.1, 0.0]
    optimizer.param_groups[0]["lr"] = 0.03
    third = ControlledLR(optimizer, Watcher())
    _steps(optimizer, lambda number: None, 1)
    assert third.get_last_lr() == [0.03, 0.0]


def test_a_new_scheduler_after_one_of_torch_says_from_where_it_starts() -> None:
    optimizer = _sgd()
    torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    optimizer.param_groups[0]["lr"] = 0.01
    scheduler = ControlledLR(optimizer, Watcher())
    with pytest.warns(UserWarning, match=r"lr=0.01 and initial_lr=0.1.*base learning rate is 0.1"):
        _steps(optimizer, lambda number: None, 2)
    assert scheduler.lr_history() == [0.1, 0.1]


def test_a_resumed_run_and_a_restored_optimizer_are_no_other_writers() -> None:
    def run(stop: int, optimizer: torch.optim.SGD, scheduler: ControlledLR) -> None:
        _steps(optimizer, lambda number: None, stop)

    optimizer = _sgd()
    scheduler = ControlledLR(optimizer, Linear(), total_steps=6)
    run(3, optimizer, scheduler)
    saved = optimizer.state_dict(), scheduler.state_dict()
    for order in ("optimizer first", "scheduler made first"):
        other = _sgd()
        if order == "optimizer first":
            other.load_state_dict(saved[0])
            resumed = ControlledLR(other, Linear(), total_steps=6)
        else:
            resumed = ControlledLR(other, Linear(), total_steps=6)
            other.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        run(3, other, resumed)
        assert resumed.lr_history() == pytest.approx([0.05, 0.1 / 3, 0.1 / 6])
    optimizer.load_state_dict(saved[0])  # in mid-run, as somebody who goes back to the best weights
    run(1, optimizer, scheduler)


# --- an optimizer that is not the one that steps --------------------------------------------------------------------


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
