"""Stop at any update and resume: the same learning rates, weights and log as a run that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback

from hf_adaptive_lr import AdaptiveLRCallback, AdaptiveLRTrainer, AdaptiveLRTrainingArguments, ControlledLR, Plateau
from hf_adaptive_lr.controllers import CONTROLLERS
from tests import integrations
from tests.controllers_for_tests import Classified, Everything, Extra, Recurrent, by_default
from tests.tiny import Tokens, batches, bert, flat, mlp

UPDATES = 12
ALL = [
    *(by_default(name) for name in CONTROLLERS if name != "plateau"),
    Plateau(window=2),
    Plateau(metric="eval_loss", window=2),
    Recurrent(),
    Everything(),
    Classified(),
    Extra(),
]
IDS = [f"{c.controller_type}-{getattr(c, 'metric', '')}".strip("-") for c in ALL]
EPHEMERAL = ("runtime", "per_second", "total_flos", "train_loss")


class StopAt(TrainerCallback):
    """End training after this many updates, as a preempted job ends."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.update:
            control.should_training_stop = True


def _trainer(controller, folder: Path, *callbacks: TrainerCallback, **changes) -> AdaptiveLRTrainer:
    settings = {"max_steps": UPDATES, "save_strategy": "steps", "save_steps": 1, "max_grad_norm": 0.1, **changes}
    args = integrations.arguments(folder, AdaptiveLRTrainingArguments, train_sampling_strategy="random", **settings)
    return AdaptiveLRTrainer(
        model=bert(), args=args, train_dataset=Tokens(), controller=controller, callbacks=list(callbacks)
    )


def _log(trainer: Trainer) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not any(part in k for part in EPHEMERAL)} for row in trainer.state.log_history
    ]


def _rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "lr_trace.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("controller", ALL, ids=IDS)
def test_trainer_resumes_exactly_at_each_of_the_first_updates(controller, tmp_path) -> None:
    whole = _trainer(controller, tmp_path / "whole")
    whole.train()
    expected = _rows(tmp_path / "whole")
    assert [row["step"] for row in expected] == list(range(UPDATES))
    for update in range(1, UPDATES):
        # Every checkpoint of the uninterrupted run is a place where it might have been stopped.
        folder = tmp_path / "resumed"
        folder.mkdir(exist_ok=True)
        (folder / "lr_trace.jsonl").write_bytes((tmp_path / "whole" / "lr_trace.jsonl").read_bytes())
        resumed = _trainer(controller, folder, save_strategy="no")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{update}"))
        assert torch.equal(flat(resumed.model), flat(whole.model)), update
        assert _rows(folder) == expected, update
        assert _log(resumed)[: len(_log(whole)) - 1] == _log(whole)[:-1], update


@pytest.mark.parametrize("integration", ["callback", "optimizers"])
@pytest.mark.parametrize("update", [1, 5])
def test_the_other_integrations_into_trainer_resume_exactly(integration, update, tmp_path) -> None:
    def build(folder: Path, *callbacks: TrainerCallback) -> tuple[Trainer, object]:
        model = bert()
        args = integrations.arguments(folder, max_steps=UPDATES, save_strategy="steps", save_steps=update)
        if integration == "callback":
            callback = AdaptiveLRCallback(Recurrent())
            trainer = Trainer(model=model, args=args, train_dataset=Tokens(), callbacks=[callback, *callbacks])
            return trainer, lambda: callback.scheduler
        optimizer = integrations.optimizer_for(model)
        scheduler = ControlledLR(optimizer, Recurrent(), model=model, total_steps=UPDATES)
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=Tokens(),
            optimizers=(optimizer, scheduler),
            callbacks=list(callbacks),
        )
        return trainer, lambda: scheduler

    whole, scheduler = build(tmp_path / "whole")
    whole.train()
    expected = scheduler().lr_history()
    stopped, _ = build(tmp_path / "stopped", StopAt(update))
    stopped.train()
    resumed, scheduler = build(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    assert scheduler().lr_history() == expected[update:]
    assert torch.equal(flat(resumed.model), flat(whole.model))


@pytest.mark.parametrize("controller", ALL, ids=IDS)
def test_plain_loop_resumes_exactly_through_torch_save(controller, tmp_path) -> None:
    def run(
        steps: range, state: Path | None = None
    ) -> tuple[list[float], torch.nn.Module, ControlledLR, torch.optim.Optimizer]:
        model = mlp(batch_norm=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)

        def loss_of(number: int) -> torch.Tensor:
            x, y = batches(UPDATES, seed=7)[number]
            return torch.nn.functional.cross_entropy(model(x), y)

        scheduler = ControlledLR(
            optimizer,
            controller,
            model=model,
            hook=False,
            total_steps=UPDATES,
            max_grad_norm=0,
            other_loss=loss_of,
            meta_loss=loss_of,
        )
        if state is not None:
            saved = torch.load(state, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
            torch.set_rng_state(saved["rng"])
        data = batches(UPDATES)
        for step in steps:
            x, y = data[step]
            scheduler.before_forward(lambda x=x, y=y: torch.nn.functional.cross_entropy(model(x), y))
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            evaluated = step % 3 == 0 or controller.fresh_eval
            scheduler.observe(loss=loss, eval_loss=float(step % 4) if evaluated else None, logits=logits)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return scheduler.lr_history(), model, scheduler, optimizer

    whole, model, _, _ = run(range(UPDATES))
    for update in range(1, UPDATES):
        first, part, scheduler, optimizer = run(range(update))
        state = {
            "model": part.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        torch.save(state, tmp_path / "state.pt")
        second, resumed, _, _ = run(range(update, UPDATES), tmp_path / "state.pt")
        assert first + second == whole, update
        assert torch.equal(flat(resumed), flat(model)), update


def test_a_horizon_changed_while_running_comes_back_and_a_new_one_wins() -> None:
    def build(total: int) -> ControlledLR:
        return ControlledLR(torch.optim.SGD(mlp().parameters(), lr=1.0), "linear", total_steps=total)

    scheduler = build(10)
    scheduler.extend(10)
    state = scheduler.state_dict()
    same = build(10)
    same.load_state_dict(state)
    assert [d.lr[0] for d in same.simulate(2)] == [1.0, 0.95]
    longer = build(40)
    longer.load_state_dict(state)
    assert [d.lr[0] for d in longer.simulate(2)] == [1.0, 0.975]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(mlp().parameters(), lr=1.0), 1).state_dict(),
            "another scheduler",
        ),
        (lambda: _state("constant"), "controller_type=constant"),
        (lambda: {**_state("linear"), "format": 99}, "newer than this library"),
        (lambda: {**_state("linear"), "base_lrs": [1.0, 2.0]}, "2 parameter groups"),
    ],
)
def test_a_foreign_state_fails_fast_with_a_sentence_and_changes_nothing(state, message) -> None:
    scheduler = ControlledLR(torch.optim.SGD(mlp().parameters(), lr=1.0), "linear", total_steps=10)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict(state())
    assert str(scheduler.state_dict()) == str(before)


def _state(name: str) -> dict:
    return ControlledLR(torch.optim.SGD(mlp().parameters(), lr=1.0), name, total_steps=10).state_dict()


def test_a_state_of_another_config_fails_fast() -> None:
    def build(window: int) -> ControlledLR:
        return ControlledLR(torch.optim.SGD(mlp().parameters(), lr=1.0), Plateau(window=window))

    with pytest.raises(ValueError, match="config"):
        build(3).load_state_dict(build(4).state_dict())


def test_accelerate_resumes_exactly_through_save_state(tmp_path) -> None:
    def build() -> tuple:
        accelerator = Accelerator(cpu=True)
        model = bert()
        optimizer = integrations.optimizer_for(model)
        scheduler = ControlledLR(optimizer, Everything(), model=model, total_steps=UPDATES, max_grad_norm=0)
        return (accelerator, scheduler, *accelerator.prepare(model, optimizer, scheduler))

    def run(parts: tuple, first: int, last: int) -> None:
        accelerator, _, model, optimizer, prepared = parts
        model.train()
        for step in range(first, last):
            rows = [Tokens(96)[i] for i in range(8 * step, 8 * step + 8)]
            batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            prepared.step()
            optimizer.zero_grad()

    whole = build()
    run(whole, 0, 5)
    whole[0].save_state(str(tmp_path))
    run(whole, 5, UPDATES)
    resumed = build()
    resumed[0].load_state(str(tmp_path))
    run(resumed, 5, UPDATES)
    assert resumed[1].lr_history() == whole[1].lr_history()[5:]
    assert torch.equal(flat(resumed[2]), flat(whole[2]))
