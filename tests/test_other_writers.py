"""Nobody but the controller writes its learning rates, or it is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_adaptive_lr import AdaptiveLRCallback, ControlledLR, Linear
from tests import integrations
from tests.controllers_for_tests import Watcher
from tests.tiny import Tokens, bert


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


def test_a_native_schedule_with_tensor_learning_rates_is_accepted_without_a_host_sync(tmp_path, monkeypatch) -> None:
    looks: list[str] = []

    class Callback(AdaptiveLRCallback):
        def on_step_begin(self, *args, **kwargs) -> None:
            with monkeypatch.context() as patch:
                for name in ("__float__", "__bool__", "item", "tolist"):
                    patch.setattr(torch.Tensor, name, lambda *_, name=name: looks.append(name) or 1.0)
                super().on_step_begin(*args, **kwargs)

    class Intruder(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
            if state.global_step == 4:
                optimizer.param_groups[0]["lr"].fill_(0.7)

    def train(*callbacks: TrainerCallback) -> ControlledLR:
        model, callback = bert(), Callback("linear")
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
        native = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        args = integrations.arguments(tmp_path)
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=Tokens(),
            optimizers=(optimizer, native),
            callbacks=[callback, *callbacks],
        )
        trainer.train()
        assert callback.scheduler is not None
        return callback.scheduler

    expected = [0.01 * (1 - step / 6) for step in range(6)]
    assert train().lr_history() == pytest.approx(expected) and not looks
    monkeypatch.setattr(Callback, "on_step_begin", AdaptiveLRCallback.on_step_begin)
    with pytest.warns(UserWarning, match="group 0 to 0.7, where ControlledLR had left"):
        assert train(Intruder()).lr_history() == pytest.approx(expected)


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
