"""MetaLRTrainer: the schedule is learned during the fine-tuning, from data of its own, and can be taken along."""

from __future__ import annotations

import math

import pytest
import torch

from hf_adaptive_lr import (
    AdaptiveLRTrainer,
    AdaptiveLRTrainingArguments,
    AutoController,
    Linear,
    MetaLRTrainer,
    MLRSNet,
)
from tests import integrations
from tests.tiny import CLASSES, Tokens, bert, flat

STEPS = 12


def _trainer(folder, *, net: MLRSNet | None = None, **changes) -> MetaLRTrainer:
    settings = {"optim": "sgd", "learning_rate": 1.0, "max_steps": STEPS, **changes}
    return MetaLRTrainer(
        model=bert(),
        args=integrations.arguments(folder, AdaptiveLRTrainingArguments, **settings),
        train_dataset=Tokens(96),
        controller=net or MLRSNet(meta_learn=True, meta_every=2, meta_lr=0.05),
        controller_dataset=Tokens(24, seed=2),
    )


def test_gamma_follows_from_the_training_sets_loss_in_evaluation_mode(tmp_path) -> None:
    trainer = _trainer(tmp_path)
    trainer.train()
    model, data = bert().eval(), Tokens(96)
    with torch.no_grad():
        loss = float(model(input_ids=data.ids, labels=data.labels).loss)
    gamma = abs(loss**0.5 * math.log(loss * CLASSES) / CLASSES**0.25) / 4
    assert float(trainer.lr_scheduler.controller_state["gamma"]) == pytest.approx(gamma, rel=1e-5)
    rates = trainer.lr_scheduler.lr_history()
    assert all(0 < lr < gamma for lr in rates)
    assert trainer.lr_scheduler.controller_state["meta_steps"] == STEPS // 2


def test_a_meta_set_that_wants_longer_steps_gets_them(tmp_path) -> None:
    """One learned number, a meta set like the training set, far too small a rate: it grows."""
    net = MLRSNet(meta_learn=True, meta_every=1, meta_lr=0.1, meta_weight_decay=0.0, network="scalar")
    trainer = _trainer(tmp_path, net=net, learning_rate=0.01, per_device_train_batch_size=96)
    with torch.no_grad():  # sure and wrong, so that all batches agree on the way
        trainer.model.classifier.weight.mul_(100)
    trainer.train()
    rates = trainer.lr_scheduler.lr_history()
    assert rates[-1] > 1.2 * rates[0]


def test_the_learned_schedule_can_be_saved_and_used_frozen(tmp_path) -> None:
    trainer = _trainer(tmp_path / "learn")
    with pytest.raises(ValueError, match="call train"):
        trainer.learned_controller()
    trainer.train()
    learned = trainer.learned_controller()
    assert (learned.snapshots, learned.meta_learn) == (3, False)
    learned.save_pretrained(tmp_path / "net")
    frozen = AutoController.from_pretrained(tmp_path / "net")
    args = integrations.arguments(tmp_path / "use", AdaptiveLRTrainingArguments, learning_rate=1e-3, max_steps=6)
    other = AdaptiveLRTrainer(model=bert(seed=1), args=args, train_dataset=Tokens(48, seed=4), controller=frozen)
    other.train()
    assert len(set(other.lr_scheduler.lr_history())) == 6
    assert [row.reason for row in other.lr_scheduler.trace] == ["decision"] * 6


@pytest.mark.parametrize("update", [1, 5, 6])
def test_learning_resumes_exactly(update, tmp_path) -> None:
    whole = _trainer(tmp_path / "whole", save_strategy="steps", save_steps=1)
    whole.train()
    resumed = _trainer(tmp_path / "rest")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{update}"))
    assert resumed.lr_scheduler.lr_history() == whole.lr_scheduler.lr_history()[update:]
    assert torch.equal(flat(resumed.model), flat(whole.model))
    assert torch.equal(resumed.lr_scheduler.controller_state["theta"], whole.lr_scheduler.controller_state["theta"])


def test_a_second_training_measures_again(tmp_path) -> None:
    trainer = _trainer(tmp_path)
    trainer.train()
    first = float(trainer.lr_scheduler.controller_state["gamma"])
    trainer.lr_scheduler = None
    trainer.optimizer = None
    trainer.train()
    assert float(trainer.lr_scheduler.controller_state["gamma"]) != first


def test_other_controllers_fail_fast(tmp_path) -> None:
    for controller in (Linear(), MLRSNet(params=MLRSNet.random_params())):
        with pytest.raises(ValueError, match="MetaLRTrainer learns an MLR-SNet"):
            _trainer(tmp_path, net=controller)


def test_a_short_run_with_the_papers_rhythm_is_told(tmp_path) -> None:
    with pytest.warns(UserWarning, match="meta_every=300.*12 updates"):
        _trainer(tmp_path, net=MLRSNet(meta_learn=True)).train()
