"""Runs whose length is not known beforehand, is cut short, or grows: through every integration, also learned."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_adaptive_lr import (
    AdaptiveLRCallback,
    AdaptiveLRTrainer,
    AdaptiveLRTrainingArguments,
    AutoController,
    ControlledLR,
    Controller,
)
from tests import integrations
from tests.tiny import Tokens, bert

NAMES = ["universal", "constant", "hypergradient"]


class EndAt(TrainerCallback):
    """Asks for a cooldown after some updates."""

    def __init__(self, update: int, steps: int) -> None:
        self.update, self.steps, self.ask = update, steps, None

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.update:
            self.ask(self.steps)


def _controller(name: str) -> Controller:
    return AutoController.from_pretrained(name)


def _trainer(folder, integration: str, name: str, end: EndAt | None = None, **changes):
    """A trainer of 40 updates at most whose controller does not know it, and its scheduler once there is one."""
    settings = {"max_steps": 40, **changes}
    asks = [end] if end is not None else []
    if integration == "subclass":
        args = integrations.arguments(folder, AdaptiveLRTrainingArguments, anytime=True, **settings)
        trainer = AdaptiveLRTrainer(
            model=bert(), args=args, train_dataset=Tokens(), controller=_controller(name), callbacks=asks
        )
        if end is not None:
            end.ask = trainer.cooldown
        return trainer, lambda: trainer.lr_scheduler
    if integration == "callback":
        callback = AdaptiveLRCallback(_controller(name), anytime=True)
        args = integrations.arguments(folder, **settings)
        trainer = Trainer(model=bert(), args=args, train_dataset=Tokens(), callbacks=[callback, *asks])
        if end is not None:
            end.ask = callback.cooldown
        return trainer, lambda: callback.scheduler
    model = bert()
    optimizer = integrations.optimizer_for(model)
    scheduler = ControlledLR(optimizer, _controller(name), model=model, max_grad_norm=0.0)
    args = integrations.arguments(folder, **settings)
    trainer = Trainer(
        model=model, args=args, train_dataset=Tokens(), optimizers=(optimizer, scheduler), callbacks=asks
    )
    if end is not None:
        end.ask = scheduler.cooldown
    return trainer, lambda: scheduler


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_unknown_length_is_the_same_through_all_integrations(tmp_path, name) -> None:
    found = []
    for integration in ("subclass", "callback", "scheduler"):
        trainer, scheduler = _trainer(tmp_path / integration, integration, name, max_steps=12)
        trainer.train()
        assert scheduler().run.total_steps is None
        found.append((scheduler().lr_history(), integrations._flat(trainer.model)))
    for rates, weights in found[1:]:
        assert rates == found[0][0] and torch.equal(weights, found[0][1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("integration", ["subclass", "callback"])
def test_a_cooldown_goes_to_zero_and_ends_the_training(tmp_path, integration, name) -> None:
    trainer, scheduler = _trainer(tmp_path, integration, name, EndAt(10, 5))
    trainer.train()
    rates = scheduler().lr_history()
    assert trainer.state.global_step == len(rates) == 15
    start = rates[9]
    assert rates[10:] == pytest.approx([start * (1 - i / 5) for i in range(5)], rel=1e-6)


def test_the_integrations_cool_down_alike(tmp_path) -> None:
    found = []
    for integration in ("subclass", "callback"):
        trainer, scheduler = _trainer(tmp_path / integration, integration, "universal", EndAt(8, 4))
        trainer.train()
        found.append((scheduler().lr_history(), integrations._flat(trainer.model)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("integration", ["subclass", "callback"])
def test_a_run_that_is_killed_in_its_cooldown_ends_where_it_would_have(tmp_path, integration) -> None:
    saving = {"save_strategy": "steps", "save_steps": 6}
    whole, _ = _trainer(tmp_path / "whole", integration, "universal", EndAt(5, 4), **saving)
    whole.train()
    assert whole.state.global_step == 9
    resumed, _ = _trainer(tmp_path / "resumed", integration, "universal", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert resumed.state.global_step == 9
    assert torch.equal(integrations._flat(whole.model), integrations._flat(resumed.model))


@pytest.mark.parametrize("integration", ["subclass", "callback"])
@pytest.mark.parametrize("steps", [0, 35, True, 2.5])
def test_a_cooldown_out_of_range_fails_fast(tmp_path, integration, steps) -> None:
    trainer, scheduler = _trainer(tmp_path, integration, "constant", EndAt(10, steps))
    with pytest.raises(ValueError, match="at least 1 and at most 30, the rest"):
        trainer.train()
    assert scheduler().cooldown_left is None


def test_a_cooldown_of_no_run_fails_fast(tmp_path) -> None:
    trainer, _ = _trainer(tmp_path, "subclass", "constant")
    for ask in (trainer.cooldown, AdaptiveLRCallback("constant").cooldown):
        with pytest.raises(ValueError, match="no run is under way"):
            ask(3)


def test_a_schedule_that_needs_the_length_says_so(tmp_path) -> None:
    trainer, _ = _trainer(tmp_path, "subclass", "cosine")
    with pytest.raises(ValueError, match="needs the length of the run"):
        trainer.train()


@pytest.mark.parametrize("name", ["linear", "universal", "hypergradient"])
@pytest.mark.parametrize("integration", ["subclass", "callback", "scheduler"])
def test_resumed_with_a_longer_horizon(tmp_path, integration, name) -> None:
    """From update 6 on, everything is decided as in a run of 12 updates that is half-way."""

    def run(folder, steps: int, **options):
        changes = {"max_steps": steps, "save_strategy": "steps", "save_steps": 6}
        if integration == "subclass":
            args = integrations.arguments(folder, AdaptiveLRTrainingArguments, **changes)
            trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller=_controller(name))
            trainer.train(**options)
            return trainer, trainer.lr_scheduler
        if integration == "callback":
            callback = AdaptiveLRCallback(_controller(name))
            args = integrations.arguments(folder, **changes)
            trainer = Trainer(model=bert(), args=args, train_dataset=Tokens(), callbacks=[callback])
            trainer.train(**options)
            return trainer, callback.scheduler
        model = bert()
        optimizer = integrations.optimizer_for(model)
        scheduler = ControlledLR(optimizer, _controller(name), model=model, total_steps=steps, max_grad_norm=0.0)
        args = integrations.arguments(folder, **changes)
        trainer = Trainer(model=model, args=args, train_dataset=Tokens(), optimizers=(optimizer, scheduler))
        trainer.train(**options)
        return trainer, scheduler

    run(tmp_path / "short", 6)
    trainer, scheduler = run(tmp_path / "long", 12, resume_from_checkpoint=str(tmp_path / "short" / "checkpoint-6"))
    assert trainer.state.global_step == scheduler.updates == 12 and scheduler.run.total_steps == 12
    rates = scheduler.lr_history()
    assert len(rates) == 6 and all(rate > 0 for rate in rates)
    if name == "linear":
        assert rates == pytest.approx([integrations.LR * (1 - t / 12) for t in range(6, 12)])
