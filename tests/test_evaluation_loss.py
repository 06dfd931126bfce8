"""Controllers that need an evaluation loss get one through every integration, or the run says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hf_adaptive_lr import (
    AdaptiveLRCallback,
    AdaptiveLRTrainer,
    AdaptiveLRTrainingArguments,
    ControlledLR,
    Plateau,
    PPOSchedule,
)
from tests import integrations
from tests.tiny import Tokens, bert

OWN = Tokens(12, seed=2)


def _plateau() -> Plateau:
    return Plateau(metric="eval_loss", window=2, min_win_rate=1.0)


# Opening a data loader draws a random number, after which dropout would have other masks: there is none.


def _subclass(controller: Any, folder: Path, **changes: Any) -> ControlledLR:
    args = integrations.arguments(folder, AdaptiveLRTrainingArguments, **changes)
    trainer = AdaptiveLRTrainer(
        model=bert(dropout=0.0), args=args, train_dataset=Tokens(), controller=controller, controller_dataset=OWN
    )
    trainer.train()
    return trainer.lr_scheduler


def _callback(controller: Any, folder: Path, resume: str | None = None, **changes: Any) -> ControlledLR:
    callback = AdaptiveLRCallback(controller)
    args = integrations.arguments(folder, eval_on_start=True, **changes)
    trainer = Trainer(
        model=bert(dropout=0.0), args=args, train_dataset=Tokens(), eval_dataset=OWN, callbacks=[callback]
    )
    trainer.train(resume_from_checkpoint=resume)
    assert callback.scheduler is not None
    return callback.scheduler


def _seen(scheduler: ControlledLR) -> list[float]:
    return [decision.observation["eval_loss"] for decision in scheduler.trace if decision.observation is not None]


def test_the_callback_sees_the_evaluations_that_the_subclass_makes(tmp_path) -> None:
    steps = 12
    expected = _subclass(_plateau(), tmp_path, max_steps=steps, controller_eval_steps=2)
    got = _callback(_plateau(), tmp_path, max_steps=steps, eval_strategy="steps", eval_steps=2)
    assert [math.isfinite(loss) for loss in _seen(got)] == [step % 2 == 0 for step in range(steps)]
    # Trainer adds up in float32, the subclass in float64: a relative 1e-7 times the few updates in between.
    assert _seen(got) == pytest.approx(_seen(expected), rel=1e-5, nan_ok=True)
    assert got.lr_history() == expected.lr_history() and len(set(got.lr_history())) > 1


def test_the_callback_asks_for_an_evaluation_at_every_decision_that_needs_one(tmp_path) -> None:
    controller = PPOSchedule(params=PPOSchedule.random_params(), every_steps=2)
    expected, got = _subclass(controller, tmp_path), _callback(controller, tmp_path)
    assert _seen(got) == pytest.approx(_seen(expected), rel=1e-5)
    assert len(_seen(got)) > 2 and got.lr_history() == pytest.approx(expected.lr_history(), rel=1e-4)


def test_an_evaluation_before_a_checkpoint_is_in_it(tmp_path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    whole = _callback(_plateau(), tmp_path / "whole", max_steps=8, **settings)
    # Without the evaluation at the start of the resumed run, which would report the same once more.
    callback = AdaptiveLRCallback(_plateau())
    args = integrations.arguments(tmp_path / "again", max_steps=8, **settings)
    trainer = Trainer(
        model=bert(dropout=0.0), args=args, train_dataset=Tokens(), eval_dataset=OWN, callbacks=[callback]
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert callback.scheduler is not None
    assert callback.scheduler.lr_history() == whole.lr_history()[4:]
    assert _seen(callback.scheduler)[0] == _seen(whole)[4] and math.isfinite(_seen(whole)[4])


@pytest.mark.parametrize(
    ("controller", "settings", "message"),
    [
        (_plateau(), {}, "eval_strategy='no' makes no evaluations; set eval_strategy='steps'"),
        (PPOSchedule(params=PPOSchedule.random_params()), {"eval_strategy": "steps"}, "eval_on_start=True"),
    ],
    ids=["plateau", "ppo_schedule"],
)
def test_a_callback_that_will_see_no_evaluation_fails_fast(controller, settings, message, tmp_path) -> None:
    trainer = Trainer(
        model=bert(),
        args=integrations.arguments(tmp_path, **settings),
        train_dataset=Tokens(),
        eval_dataset=OWN,
        callbacks=[AdaptiveLRCallback(controller)],
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_several_evaluation_sets_fail_fast(tmp_path) -> None:
    trainer = Trainer(
        model=bert(),
        args=integrations.arguments(tmp_path, eval_strategy="steps", eval_steps=1),
        train_dataset=Tokens(),
        eval_dataset={"a": OWN, "b": OWN},
        callbacks=[AdaptiveLRCallback(_plateau())],
    )
    with pytest.raises(ValueError, match=r"needs eval_loss, and there are several evaluation sets \(a, b\)"):
        trainer.train()
    assert trainer.state.global_step == 0


class _Looks(TrainerCallback):
    """Predicts, and evaluates under a name of its own, not when Trainer will evaluate: that would be forgotten."""

    trainer: Trainer

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % 2:
            self.trainer.predict(OWN)
            self.trainer.evaluate(OWN, metric_key_prefix="test")
            self.trainer.evaluate(Tokens(12, seed=3))


def test_other_evaluations_than_trainers_own_are_nobodys_business(tmp_path) -> None:
    looks, callback = _Looks(), AdaptiveLRCallback(_plateau())
    trainer = Trainer(
        model=bert(dropout=0.0),
        args=integrations.arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=Tokens(),
        eval_dataset=OWN,
        callbacks=[looks, callback],
    )
    looks.trainer = trainer
    trainer.train()
    assert callback.scheduler is not None
    assert [math.isfinite(loss) for loss in _seen(callback.scheduler)] == [step in (2, 4) for step in range(6)]
    own = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log and log["step"] % 2 == 0]
    assert _seen(callback.scheduler)[2::2] == own[:2]
    trainer.evaluate(OWN, metric_key_prefix="test")
    trainer.evaluate({"a": OWN})  # the training is over
    trainer.evaluate(Dataset.from_dict({"input_ids": OWN[:]["input_ids"].tolist()}))


class _Again(TrainerCallback):
    """Evaluates at once, on other data after an evaluation of Trainer's, on Trainer's own after updates 1 and 5."""

    trainer: Trainer
    nested = False

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        if not self.nested:
            self.nested = True
            self.trainer.evaluate(Tokens(12, seed=3))
            self.nested = False

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step in (1, 5):
            self.nested = True
            self.trainer.evaluate()
            self.nested = False


def test_trainers_own_data_counts_whoever_evaluates_it_and_other_data_does_not(tmp_path) -> None:
    again, callback = _Again(), AdaptiveLRCallback(_plateau())
    trainer = Trainer(
        model=bert(dropout=0.0),
        args=integrations.arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=Tokens(),
        eval_dataset=OWN,
        callbacks=[again, callback],
    )
    again.trainer = trainer
    trainer.train()
    assert callback.scheduler is not None
    logged = [(log["step"], log["eval_loss"]) for log in trainer.state.log_history if "eval_loss" in log]
    own = {step: loss for step, loss in logged[:-2] if step in (1, 5)}
    own |= {2: logged[1][1], 4: logged[3][1]}  # the first at its step, the second is of the other data
    seen = {step: loss for step, loss in enumerate(_seen(callback.scheduler)) if math.isfinite(loss)}
    assert seen == own


def test_a_passed_scheduler_fails_after_the_second_evaluation_that_nobody_reports(tmp_path) -> None:
    model = bert()
    optimizer = integrations.optimizer_for(model)
    scheduler = ControlledLR(optimizer, _plateau(), model=model, total_steps=6)
    args = integrations.arguments(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer = Trainer(
        model=model, args=args, train_dataset=Tokens(), eval_dataset=OWN, optimizers=(optimizer, scheduler)
    )
    text = r"evaluated without a report of it; call observe\(eval_loss=...\).*Callback"
    with pytest.warns(UserWarning, match=f"{text}.*next time is an error"), pytest.raises(ValueError, match=text):
        trainer.train()
    assert scheduler.updates == 2


def test_a_loop_may_evaluate_before_it_trains() -> None:
    model = bert(dropout=0.0)
    optimizer = integrations.optimizer_for(model)
    scheduler = ControlledLR(optimizer, _plateau(), model=model, total_steps=8)

    def evaluate() -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            loss = [model(**OWN[part : part + 4]).loss for part in (0, 4, 8)]
        model.train()
        return torch.stack(loss).mean()

    evaluate()
    with pytest.warns(UserWarning, match="evaluated without a report of it") as said:
        for step in range(8):
            model(**Tokens()[slice(8)]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 3 == 2:
                scheduler.observe(eval_loss=evaluate())
    assert len(said) == 1 and sum(map(math.isfinite, _seen(scheduler))) == 2


def test_a_loop_that_reports_its_evaluations_works_and_one_that_makes_none_is_told() -> None:
    for evaluates in (True, False):
        model = bert()
        optimizer = integrations.optimizer_for(model)
        scheduler = ControlledLR(optimizer, _plateau(), model=model, total_steps=8)

        def run(model=model, optimizer=optimizer, scheduler=scheduler, evaluates=evaluates) -> None:
            for step in range(8):
                model(**Tokens()[slice(8)]).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                model.eval()
                with torch.no_grad():
                    output = model(**{name: rows for name, rows in OWN[:].items() if evaluates or name != "labels"})
                if evaluates and (step % 2 or not step):
                    scheduler.observe(eval_loss=output.loss)
                model.train()

        if evaluates:
            run()
            assert sum(map(math.isfinite, _seen(scheduler))) == 4
        else:
            with pytest.warns(UserWarning, match="half of the run is over.*needs eval_loss and has seen none") as said:
                run()
            assert len(said) == 1
