"""Checkpoints that are not whole are not resumed from, and a whole one is always there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_adaptive_lr import AdaptiveLRCallback, AdaptiveLRTrainer, ControlledLR, Controller, GuardCallback
from hf_adaptive_lr.controllers import CONTROLLERS
from hf_adaptive_lr.trainer.checkpoints import Expected, fault, newest_whole, sync
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
    "an older schedule": (lambda c: _schedule(c, updates=4, global_step=4), "and scheduler.pt 4"),
    "a schedule of more steps": (lambda c: _schedule(c, global_step=9), "and scheduler.pt 9"),
    "generators of two processes": (
        lambda c: (c / "rng_state.pth").rename(c / "rng_state_0.pth"),
        "needs rng_state.pth",
    ),
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


@pytest.mark.parametrize(("at", "other"), [(4, 8), (8, 4)])
def test_a_callback_does_not_go_on_from_another_schedule(at, other, tmp_path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=UPDATES,
        save_steps=4,
        lr_scheduler_type="constant",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(bert(), args, train_dataset=Tokens(), callbacks=[AdaptiveLRCallback("hypergradient")]).train()
    shutil.copy(tmp_path / f"checkpoint-{other}" / "scheduler.pt", tmp_path / f"checkpoint-{at}")
    again = Trainer(bert(), args, train_dataset=Tokens(), callbacks=[AdaptiveLRCallback("hypergradient")])
    with pytest.raises(ValueError, match=f"has counted {at} updates and scheduler.pt {other}"):
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_a_callback_says_that_a_file_is_missing(name, tmp_path) -> None:
    args = TrainingArguments(
        str(tmp_path), max_steps=4, save_steps=2, lr_scheduler_type="constant", use_cpu=True, disable_tqdm=True
    )
    Trainer(bert(), args, train_dataset=Tokens(), callbacks=[AdaptiveLRCallback("hypergradient")]).train()
    (tmp_path / "checkpoint-2" / name).unlink()
    again = Trainer(bert(), args, train_dataset=Tokens(), callbacks=[AdaptiveLRCallback("hypergradient")])
    with pytest.warns(UserWarning, match=f"no controller state, .*{name}"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_names_only_callbacks_as_such(run) -> None:
    """Trainer warns of others, with restore_callback_states_from_checkpoint=True."""
    state = json.loads((run / "checkpoint-8" / "trainer_state.json").read_text())
    assert sorted(state["stateful_callbacks"]) == ["GuardCallback", "TrainerControl"]


def test_generators_are_of_as_many_processes(mine) -> None:
    checkpoint = mine / "checkpoint-8"
    one = checkpoint / "rng_state.pth"
    assert fault(checkpoint, Expected(processes=1)) is None
    assert "this run of 2 processes needs rng_state_0.pth, rng_state_1.pth" in str(
        fault(checkpoint, Expected(processes=2))
    )
    for rank in range(2):
        shutil.copy(one, checkpoint / f"rng_state_{rank}.pth")
    one.unlink()
    assert fault(checkpoint, Expected(processes=2)) is None
    assert "needs rng_state_2.pth" in str(fault(checkpoint, Expected(processes=3)))
    (checkpoint / "rng_state_2.pth").write_bytes((checkpoint / "rng_state_0.pth").read_bytes())
    assert "needs no more files" in str(fault(checkpoint, Expected(processes=2)))


def test_one_process_writes_over_the_checkpoint_of_several(mine) -> None:
    for rank in range(2):
        shutil.copy(mine / "checkpoint-4" / "rng_state.pth", mine / "checkpoint-4" / f"rng_state_{rank}.pth")
    _trainer(mine).train()
    assert fault(mine / "checkpoint-4", Expected(processes=1)) is None


def test_a_gradient_scaler_needs_its_state(mine) -> None:
    trainer = _trainer(mine)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match="it has no scaler.pt"):
        trainer.train(str(mine / "checkpoint-8"))
    torch.save(trainer.accelerator.scaler.state_dict(), mine / "checkpoint-8" / "scaler.pt")
    assert fault(mine / "checkpoint-8", Expected(scaler=True)) is None


def test_files_of_the_user_are_not_looked_into(mine) -> None:
    """Nor weights in the format before the zip, or of a name that a subclass gives them."""
    checkpoint = mine / "checkpoint-8"
    for name in ("index.bin", "optimizer_notes.pt", "faiss.pth"):
        (checkpoint / name).write_bytes(b"anything")
    torch.save(torch.zeros(2), checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert fault(checkpoint) is None
    (checkpoint / "pytorch_model.bin").write_bytes(b"")
    assert "pytorch_model.bin is cut short" in str(fault(checkpoint))


def test_a_trainer_with_weights_of_its_own_resumes(tmp_path) -> None:
    class Own(AdaptiveLRTrainer):
        def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
            Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
            torch.save(self.model.state_dict(), Path(str(output_dir)) / "mine.ckpt")

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: object = None) -> None:
            self.model.load_state_dict(torch.load(Path(resume_from_checkpoint) / "mine.ckpt", weights_only=True))

    def made() -> Own:
        return Own(bert(), _trainer(tmp_path).args, train_dataset=Tokens(), controller="hypergradient")

    whole, again = made(), made()
    whole.train()
    again.train(str(tmp_path / "checkpoint-4"))
    assert torch.equal(flat(again.model), flat(whole.model))


def test_a_checkpoint_has_the_arguments_as_they_were_given(tmp_path) -> None:
    trainer = _trainer(tmp_path, save_total_limit=1)
    trainer.train()
    saved = torch.load(tmp_path / "checkpoint-8" / "training_args.bin", weights_only=False)
    assert saved.to_dict() == trainer.args.to_dict()
    assert saved.save_total_limit == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSPC, errno.EIO])
def test_a_file_system_without_fsync_of_folders_ends_no_run(number, mine, monkeypatch) -> None:
    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        keep(handle)

    keep = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    if number in (errno.ENOSPC, errno.EIO):
        with pytest.raises(OSError, match=os.strerror(number)):
            sync(mine / "checkpoint-8")
    else:
        sync(mine / "checkpoint-8")
        _trainer(mine, save_total_limit=1).train()


def test_a_file_that_goes_while_a_checkpoint_is_synced_is_left(mine, monkeypatch) -> None:
    def opened(path: Path, *args: object) -> int:
        if Path(path).is_file():
            Path(path).unlink()
        return keep(path, *args)

    keep = os.open
    monkeypatch.setattr(os, "open", opened)
    sync(mine / "checkpoint-8")
    monkeypatch.undo()
    assert not [path for path in (mine / "checkpoint-8").rglob("*") if path.is_file()]


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


@dataclass(frozen=True, kw_only=True)
class NothingYet(Controller):
    """A controller of a user whose state begins with NaN for "no loss so far"; it learns in the second decision."""

    controller_type = "nothing_yet"
    needs = frozenset({"loss"})

    def init(self, batch_shape=(), *, n_groups=1, seed=0, device=None) -> dict:
        return {"lowest": torch.full(batch_shape, NAN), "count": torch.zeros(batch_shape)}

    def decide(self, obs, state, params=None) -> tuple[torch.Tensor, dict]:
        count = state["count"] + 1
        lowest = torch.where(count > 1, torch.fmin(state["lowest"], obs.require("loss").float()), state["lowest"])
        return torch.ones_like(obs.lr), {"lowest": lowest, "count": count}


def test_nan_that_stands_for_nothing_yet_resumes() -> None:
    def made() -> ControlledLR:
        return ControlledLR(torch.optim.SGD(mlp().parameters(), lr=0.1), NothingYet(), total_steps=9)

    saved = made().state_dict()
    assert saved["controller_state"]["lowest"].isnan()
    made().load_state_dict(saved)
    saved["controller_state"]["count"] = torch.tensor(NAN)
    with pytest.raises(ValueError, match="controller_state has NaN in 'count'"):
        made().load_state_dict(saved)
