"""Checkpoints that are not whole are not resumed from, and a whole one is always there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_adaptive_lr import AdaptiveLRCallback, AdaptiveLRTrainer, ControlledLR, GuardCallback
from hf_adaptive_lr.controllers import CONTROLLERS
from tests.tiny import Tokens, bert, flat, mlp

UPDATES = 8


def _trainer(folder: Path, **settings: object) -> AdaptiveLRTrainer:
    settings = {"save_strategy": "steps", "save_steps": 4, **settings}
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=UPDATES,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    guard = GuardCallback(snapshot_every=2)
    return AdaptiveLRTrainer(
        model=bert(), args=args, train_dataset=Tokens(), controller="hypergradient", callbacks=[guard]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer = _trainer(folder)
    trainer.train()
    torch.save(flat(trainer.model), folder / "end.pt")
    return folder


@pytest.fixture
def mine(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "mine"))


def _state(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _schedule(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / "scheduler.pt"
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


# What is done to a checkpoint after 8 updates, and what is said.
FAULTS = {
    "no optimizer": (lambda c: (c / "optimizer.pt").unlink(), "it has no optimizer.pt"),
    "no schedule": (lambda c: (c / "scheduler.pt").unlink(), "it has no scheduler.pt"),
    "no generators": (lambda c: (c / "rng_state.pth").unlink(), "it has no rng_state.pth"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "it has no model.safetensors"),
    "no state": (lambda c: (c / "trainer_state.json").unlink(), "it has no trainer_state.json"),
    "not a whole state": (lambda c: _cut(c / "trainer_state.json"), "trainer_state.json is cut short"),
    "not a whole schedule": (lambda c: _cut(c / "scheduler.pt"), "scheduler.pt is cut short"),
    "not a whole optimizer": (lambda c: _cut(c / "optimizer.pt"), "optimizer.pt is cut short"),
    "not all weights": (lambda c: _cut(c / "model.safetensors"), "model.safetensors is cut short"),
    "no snapshot's end": (lambda c: _cut(c / "snapshot.pt"), "snapshot.pt is cut short"),
    "an older state": (lambda c: _state(c, global_step=7), "says global_step=7, the folder's name 8"),
    "a step of 1e9": (lambda c: _state(c, global_step=10**9), "says global_step=1000000000"),
    "a text as step": (lambda c: _state(c, global_step="8"), "which is no number of updates"),
    "a later schedule": (lambda c: _schedule(c, updates=20), "and scheduler.pt 20"),
    "an older schedule": (lambda c: _schedule(c, updates=4), "and scheduler.pt 4"),
    "updates below zero": (lambda c: _schedule(c, updates=-5), "and scheduler.pt -5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_not_resumed_from(fault, mine) -> None:
    """By its path that is an error; True takes the one before, and ends in the same weights."""
    damage, said = FAULTS[fault]
    damage(mine / "checkpoint-8")
    trainer = _trainer(mine, save_strategy="no")
    with pytest.raises(ValueError, match="cannot resume from .*checkpoint-8") as error:
        trainer.train(str(mine / "checkpoint-8"))
    assert said in str(error.value) and "\n" not in str(error.value)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == UPDATES
    assert torch.equal(flat(trainer.model), torch.load(mine / "end.pt", weights_only=True))
    damage(mine / "checkpoint-4")
    shutil.rmtree(mine / "checkpoint-8")
    if "updates" not in fault and "older" not in fault:  # which name another number here
        with pytest.raises(ValueError, match="has no whole checkpoint to resume from; checkpoint-4: "):
            trainer.train(True)


def test_weights_alone_are_not_resumed_from(tmp_path) -> None:
    trainer = _trainer(tmp_path, save_only_model=True)
    trainer.train()
    with pytest.raises(ValueError, match="save_only_model=True writes it"):
        trainer.train(str(tmp_path / "checkpoint-8"))


def test_the_one_before_is_deleted_when_the_new_one_is_whole(tmp_path, monkeypatch) -> None:
    """Checked at every moment at which a file of a checkpoint has been written: there is a whole one, or none yet."""
    from hf_adaptive_lr.trainer import saving
    from hf_adaptive_lr.trainer.checkpoints import newest_whole

    seen = []

    def rotate(run_dir: str, *args: object, **kwargs: object) -> None:
        checkpoint = newest_whole(Path(run_dir))
        assert checkpoint is not None
        seen.append((checkpoint.name, (checkpoint / "snapshot.pt").is_file(), sorted(synced)))
        keep(run_dir, *args, **kwargs)

    keep, sync, synced = saving.rotate_checkpoints, saving.sync, []

    def note(folder: Path) -> None:
        synced.append(folder.name)
        sync(folder)

    monkeypatch.setattr(saving, "rotate_checkpoints", rotate)
    monkeypatch.setattr(saving, "sync", note)
    _trainer(tmp_path, save_total_limit=1).train()
    both = ["checkpoint-4", "checkpoint-8"]
    assert seen == [(both[0], True, both[:1]), (both[1], True, both)]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == both[1:]


def test_a_mixture_of_two_runs_is_not_whole(mine, monkeypatch) -> None:
    """Killed while it writes over a checkpoint of an earlier run: new weights, the state of the old run."""
    from hf_adaptive_lr.trainer.checkpoints import fault

    class Killed(BaseException):
        pass

    def kill(*args: object) -> None:
        raise Killed

    trainer = _trainer(mine)
    monkeypatch.setattr(trainer, "_save_rng_state", kill)
    with pytest.raises(Killed):
        trainer.train()
    assert "it has no trainer_state.json" in str(fault(mine / "checkpoint-4"))


def test_a_plain_trainer_goes_on_from_a_checkpoint_with_its_own_schedule(mine) -> None:
    trainer = _trainer(mine)
    plain = Trainer(model=bert(), args=trainer.args, train_dataset=Tokens())
    plain.train(resume_from_checkpoint=str(mine / "checkpoint-4"))
    rates = [row["learning_rate"] for row in plain.state.log_history if row["step"] > 4 and "learning_rate" in row]
    assert rates[1:] == pytest.approx([0.01 * (UPDATES - step) / UPDATES for step in (5, 6, 7)])  # linear to 0
    with pytest.raises(ValueError, match="another scheduler wrote it"):  # and not back again
        trainer.train(str(mine / "checkpoint-8"))


def test_a_callback_does_not_go_on_from_a_later_schedule(tmp_path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=UPDATES,
        save_steps=4,
        lr_scheduler_type="constant",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(bert(), args, train_dataset=Tokens(), callbacks=[AdaptiveLRCallback("hypergradient")]).train()
    shutil.copy(tmp_path / "checkpoint-8" / "scheduler.pt", tmp_path / "checkpoint-4")
    again = Trainer(bert(), args, train_dataset=Tokens(), callbacks=[AdaptiveLRCallback("hypergradient")])
    with pytest.raises(ValueError, match="has counted 4 updates and scheduler.pt 8"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"updates": -5}, "updates=-5"),
        ({"updates": 1.5}, "updates=1.5"),
        ({"held": -1}, "held=-1"),
        ({"answer": [NAN]}, "answer"),
        ({"base_lrs": [float("inf")]}, "base_lrs"),
        ({"scale": NAN}, "scale=nan"),
        ({"controller_state": {"factor": torch.tensor(NAN)}}, "controller_state"),
        ({"controller_state": None}, "controller_state"),
    ],
)
def test_a_state_with_impossible_numbers_changes_nothing(changes, said) -> None:
    scheduler = ControlledLR(
        torch.optim.SGD(mlp().parameters(), lr=0.1), CONTROLLERS["hypergradient"](), total_steps=9
    )
    before = str(scheduler.state_dict())
    with pytest.raises(ValueError, match=said):
        scheduler.load_state_dict({**scheduler.state_dict(), **changes})
    assert str(scheduler.state_dict()) == before
