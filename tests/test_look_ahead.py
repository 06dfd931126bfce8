"""DSA through Trainer and through a raw Accelerate loop: same steps, accumulation, clipping, resume, two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import set_seed

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments
from hf_adaptive_lr.optimizers import DSA
from hf_adaptive_lr.optimizers.groups import raw
from tests import integrations
from tests.test_ranks import _launch, _save
from tests.tiny import Tokens, bert, flat

LR = integrations.LR


def _train(folder: Path, *, dropout: float = 0.1, resume: str | None = None, **changes) -> AdaptiveLRTrainer:
    args = integrations.arguments(folder, AdaptiveLRTrainingArguments, dsa=True, **changes)
    trainer = AdaptiveLRTrainer(model=bert(dropout), args=args, train_dataset=Tokens(96), controller="linear")
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def _plain(dropout: float = 0.1) -> torch.Tensor:
    set_seed(3)
    model = bert(dropout)
    optimizer = DSA(integrations.optimizer_for(model))
    set_seed(3)
    model.train()
    for step, batch in enumerate(DataLoader(Tokens(96), batch_size=integrations.BATCH)):
        if step == integrations.STEPS:
            break
        for group in optimizer.param_groups:
            group["lr"] = LR * (integrations.STEPS - step) / integrations.STEPS
        state = torch.get_rng_state()
        model(**batch).loss.backward()
        after = torch.get_rng_state()

        def closure(batch=batch, state=state, after=after) -> torch.Tensor:
            torch.set_rng_state(state)  # the same dropout mask
            loss = model(**batch).loss
            loss.backward()
            torch.set_rng_state(after)
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()
    return flat(model)


def test_trainer_takes_the_steps_of_a_plain_loop(tmp_path) -> None:
    trainer = _train(tmp_path)
    assert isinstance(raw(trainer.optimizer), DSA)
    assert torch.equal(flat(trainer.model), _plain())
    low, _, high = raw(trainer.optimizer).factors()[0]
    assert low < 1 < high, "the factors have moved"


def test_accumulated_micro_batches_are_one_look(tmp_path) -> None:
    whole = _train(tmp_path / "one", dropout=0.0, max_grad_norm=0.1)
    parts = _train(
        tmp_path / "two", dropout=0.0, max_grad_norm=0.1, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    # The sign of a look-ahead gradient near zero may differ by rounding; then one factor differs by its step.
    difference = (flat(whole.model) - flat(parts.model)).abs()
    assert float(difference.median()) < 1e-6
    assert float(difference.max()) < 0.1 * LR


@pytest.mark.parametrize("update", [1, 4])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_a_resumed_run_is_the_same(update, optim, tmp_path) -> None:
    settings = {"optim": optim, "max_grad_norm": 1.0}
    whole = _train(tmp_path / "whole", save_strategy="steps", save_steps=1, **settings)
    resumed = _train(tmp_path / "rest", resume=str(tmp_path / "whole" / f"checkpoint-{update}"), **settings)
    assert torch.equal(flat(resumed.model), flat(whole.model))


def test_dsa_settings_come_from_the_arguments(tmp_path) -> None:
    trainer = _train(tmp_path, dsa_kwargs='{"granularity": "tensor", "beta": 0.2}')
    optimizer = raw(trainer.optimizer)
    assert (optimizer.granularity, optimizer.beta) == ("tensor", 0.2)
    with pytest.raises(ValueError, match="dsa_kwargs.*not valid JSON"):
        integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, dsa_kwargs="{")


def test_a_controller_that_reads_directions_fails_fast(tmp_path) -> None:
    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, dsa=True)
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller="hypergradient")
    with pytest.raises(ValueError, match="alignment.*DSA sets a learning rate of its own"):
        trainer.train()


def _on_a_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    trainer = _train(folder, dropout=0.0, per_device_train_batch_size=4)
    _save(folder, trainer.lr_scheduler.lr_history(), trainer.accelerator.unwrap_model(trainer.model))


def test_two_processes_look_ahead_together(tmp_path) -> None:
    _launch(_on_a_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    alone = _train(tmp_path / "alone", dropout=0.0, per_device_train_batch_size=8)
    difference = (flat(alone.model) - first["weights"]).abs()
    assert float(difference.median()) < 1e-6
    assert float(difference.max()) < 0.1 * LR


def test_a_raw_accelerate_loop_gives_the_closure(tmp_path) -> None:
    set_seed(3)
    model = bert(0.0)
    optimizer = DSA(integrations.optimizer_for(model))
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(Tokens(96), batch_size=integrations.BATCH)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    set_seed(3)
    model.train()
    for step, batch in enumerate(loader):
        if step == integrations.STEPS:
            break
        for group in optimizer.param_groups:
            group["lr"] = LR * (integrations.STEPS - step) / integrations.STEPS

        def closure(batch=batch) -> torch.Tensor:
            loss = model(**batch).loss
            accelerator.backward(loss)
            return loss

        closure()
        optimizer.step(closure)
        optimizer.zero_grad()
    assert torch.equal(flat(model), _plain(dropout=0.0))
