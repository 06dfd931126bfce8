"""GuardCallback in real trainings: healthy runs are not touched, damaged ones are skipped, taken back or ended."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from transformers import Trainer, TrainerCallback

from hf_adaptive_lr import (
    AdaptiveLRCallback,
    AdaptiveLRTrainer,
    AdaptiveLRTrainingArguments,
    ControlledLR,
    DivergenceError,
    DivergenceGuard,
    GuardCallback,
    Linear,
)
from hf_adaptive_lr.trainer.checkpoints import newest_whole
from tests import integrations
from tests.tiny import Tokens, bert, flat

UPDATES, FAULT = 40, 18
GUARD = {"snapshot_every": 5}


class Trouble(TrainerCallback):
    """NaN losses in these updates, or noise on all weights ahead of them."""

    def __init__(self, nan: tuple[int, ...] = (), noise: tuple[int, ...] = (), rank: int | None = None) -> None:
        self.nan, self.noise, self.rank = nan, noise, rank
        self.before: torch.Tensor | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        here = self.rank is None or args.process_index == self.rank

        def spoil(module, inputs, output):
            if here and module.training and state.global_step in self.nan:
                output.loss = output.loss * math.nan
            return output

        self.handle = kwargs["model"].register_forward_hook(spoil)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step in self.noise:
            with torch.no_grad():
                for p in kwargs["model"].parameters():
                    p.add_(20 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        if state.global_step == FAULT:
            self.before = flat(kwargs["model"])

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == FAULT + 1:
            self.after = flat(kwargs["model"])

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.handle.remove()


class StopAt(TrainerCallback):
    def __init__(self, update: int) -> None:
        self.update = update

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop |= state.global_step == self.update


INTEGRATIONS = ("plain", "trainer", "callback")


def _trainer(integration: str, folder: Path, *callbacks: TrainerCallback, **changes) -> Trainer:
    kind = AdaptiveLRTrainingArguments if integration == "trainer" else None
    native = {"lr_scheduler_type": "constant"} if integration == "callback" else {"lr_scheduler_type": "linear"}
    settings = {"max_steps": UPDATES, "learning_rate": 1e-3, "logging_strategy": "no", **({} if kind else native)}
    settings |= {"logging_strategy": "steps"} if "logging_steps" in changes else {}
    settings |= changes
    args = integrations.arguments(folder, kind, **settings) if kind else integrations.arguments(folder, **settings)
    common = {"model": bert(), "args": args, "train_dataset": Tokens()}
    if integration == "trainer":
        return AdaptiveLRTrainer(**common, controller=Linear(), callbacks=list(callbacks))
    extra = [AdaptiveLRCallback(Linear())] if integration == "callback" else []
    return Trainer(**common, callbacks=[*callbacks, *extra])


def _guard(trainer: Trainer) -> GuardCallback:
    return next(cb for cb in trainer.callback_handler.callbacks if isinstance(cb, GuardCallback))


def _actions(trainer: Trainer) -> list[tuple[str, int, str]]:
    return [(e["action"], e["update"], e["reason"]) for e in _guard(trainer).guard.events]


def _events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_making_our_parts_draws_no_random_number(tmp_path) -> None:
    model = bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = torch.get_rng_state()
    GuardCallback()
    AdaptiveLRCallback("relative")
    AdaptiveLRTrainingArguments(output_dir=str(tmp_path), divergence_guard_kwargs={"lr_cut": 0.25}, use_cpu=True)
    scheduler = ControlledLR(optimizer, "universal", model=model, total_steps=10, max_grad_norm=0)
    DivergenceGuard(model, optimizer, scheduler=scheduler)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("integration", INTEGRATIONS)
def test_a_healthy_run_is_the_same_bit_for_bit_with_a_guard(integration, tmp_path) -> None:
    weights = []
    for name, callbacks in (("without", []), ("with", [GuardCallback(**GUARD)])):
        trainer = _trainer(integration, tmp_path / name, *callbacks)
        trainer.train()
        weights.append(flat(trainer.model))
    assert torch.equal(*weights)
    assert _guard(trainer).guard.events == [] and not (tmp_path / "with" / "events.jsonl").exists()
    assert len(_guard(trainer).guard.snapshots) == 4


@pytest.mark.parametrize("integration", INTEGRATIONS)
def test_an_update_with_a_nan_loss_is_skipped_and_does_not_count(integration, tmp_path) -> None:
    trouble = Trouble(nan=(FAULT,))
    trainer = _trainer(integration, tmp_path, trouble, GuardCallback(**GUARD))
    trainer.train()
    assert _actions(trainer) == [("skip", FAULT, "non_finite_loss")]
    assert torch.equal(trouble.before, trouble.after)
    assert torch.isfinite(flat(trainer.model)).all()
    assert trainer.state.global_step == UPDATES
    (event,) = _events(tmp_path)
    assert event["step"] == FAULT and event["loss"] == "nan"
    counted = next(iter(trainer.optimizer.state.values()))["step"]
    assert int(counted) == UPDATES - 1
    native = integration != "callback"
    scheduler = trainer.lr_scheduler if native else trainer.optimizer.optimizer._adaptive_lr()
    assert scheduler.last_epoch == UPDATES - 1
    assert not trainer.accelerator.optimizer_step_was_skipped


@pytest.mark.parametrize("integration", INTEGRATIONS)
def test_damaged_weights_go_back_and_the_learning_rate_is_cut(integration, tmp_path) -> None:
    trainer = _trainer(integration, tmp_path, Trouble(noise=(FAULT,)), GuardCallback(**GUARD, recover=False))
    trainer.train()
    actions = [action for action, *_ in _actions(trainer)]
    assert actions.count("rollback") == 1 and actions.count("skip") == 2
    back = next(e for e in _events(tmp_path) if e["action"] == "rollback")
    assert back["restored_update"] <= FAULT and back["lr_after"] == pytest.approx(back["lr_before"] / 2)
    assert flat(trainer.model).abs().max() < 3  # the noise was of 20
    if integration == "trainer":
        last = [json.loads(line) for line in (tmp_path / "lr_trace.jsonl").read_text().splitlines()][-1]
        assert last["ramp"] == 0.5
        assert last["lr"] == pytest.approx(0.5 * 1e-3 * (1 - last["step"] / UPDATES))
    elif integration == "plain":
        assert set(trainer.lr_scheduler.base_lrs) == {5e-4}


def test_a_run_that_cannot_be_saved_ends_with_its_last_good_weights(tmp_path) -> None:
    trouble = Trouble(nan=tuple(range(FAULT, UPDATES * 9)))
    trainer = _trainer("trainer", tmp_path, trouble, GuardCallback(**GUARD, max_skips=1), max_steps=UPDATES * 3)
    trainer.train()
    guard = _guard(trainer).guard
    assert guard.stopped and guard.rollbacks == 3 and trainer.state.global_step < UPDATES * 3
    good = torch.load(tmp_path / "last_good" / "snapshot.pt", weights_only=True)["states"][0]
    assert torch.equal(good["weights"]["0.classifier.weight"], trainer.model.classifier.weight)
    assert "non_finite_loss" in guard.message and "written to" in guard.message
    trainer = _trainer("trainer", tmp_path / "b", trouble, GuardCallback(**GUARD, max_skips=1, raise_on_stop=True))
    with pytest.raises(DivergenceError, match="training diverged: non_finite_loss"):
        trainer.train()


@pytest.mark.parametrize("integration", INTEGRATIONS)
@pytest.mark.parametrize("stop", [FAULT + 1, FAULT + 7, FAULT + 12])
def test_a_run_in_trouble_resumes_bit_for_bit(integration, stop, tmp_path) -> None:
    def make(name: str, *more: TrainerCallback) -> Trainer:
        settings = {"save_strategy": "steps", "save_steps": 1}
        trouble = Trouble(nan=(FAULT - 3, FAULT + 10), noise=(FAULT,))
        return _trainer(integration, tmp_path / name, trouble, GuardCallback(**GUARD), *more, **settings)

    whole = make("whole")
    whole.train()
    make("parts", StopAt(stop)).train()
    with (tmp_path / "parts" / "events.jsonl").open("a") as file:  # as if it had gone on for a while and been killed
        file.write(json.dumps({"action": "skip", "update": stop + 1}) + "\n" + '{"torn')
    parts = make("parts")
    parts.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert torch.equal(flat(whole.model), flat(parts.model))
    assert _events(tmp_path / "whole") == _events(tmp_path / "parts")
    assert _guard(whole).guard.state_dict() == _guard(parts).guard.state_dict()
    assert any(action == "rollback" for action, *_ in _actions(parts))


def test_a_checkpoint_without_snapshots_or_without_a_guard_resumes_too(tmp_path, caplog) -> None:
    settings = {"save_strategy": "steps", "save_steps": 10}
    _trainer("trainer", tmp_path, StopAt(10), **settings).train()
    trainer = _trainer("trainer", tmp_path, GuardCallback(**GUARD, save_snapshots=False), StopAt(20), **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert not (tmp_path / "checkpoint-20" / "snapshot.pt").exists()
    trainer = _trainer("trainer", tmp_path, GuardCallback(**GUARD), **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert _guard(trainer).guard.updates == UPDATES - 10  # it was born at update 10


def test_the_arguments_make_a_guard_and_its_values_are_logged(tmp_path) -> None:
    settings = {"divergence_guard": True, "divergence_guard_kwargs": '{"snapshot_every": 5, "max_rollbacks": 2}'}
    trainer = _trainer("trainer", tmp_path, Trouble(nan=(FAULT,)), logging_steps=5, **settings)
    trainer.train()
    assert _guard(trainer).guard.max_rollbacks == 2
    logged = [row["adaptive_lr/guard_skips"] for row in trainer.state.log_history if "learning_rate" in row]
    assert logged[0] == 0.0 and logged[-1] == 1.0


def test_callback_states_that_trainer_restores_itself_are_the_same_guard(tmp_path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 10}
    trouble = Trouble(noise=(FAULT,))
    guard = GuardCallback(**GUARD, max_rollbacks=2, thresholds={"windows": (8, 32)})
    whole = _trainer("trainer", tmp_path, trouble, guard, **settings)
    whole.train()
    settings["restore_callback_states_from_checkpoint"] = True
    parts = _trainer("trainer", tmp_path, Trouble(noise=(FAULT,)), GuardCallback(), **settings)
    parts.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    made = _guard(parts)
    assert (made.thresholds.windows, made.guard.max_rollbacks) == ((8, 32), 2)
    assert made.guard.state_dict() == guard.guard.state_dict()
    assert torch.equal(flat(whole.model), flat(parts.model))


def test_accumulated_micro_batches_are_one_update(tmp_path) -> None:
    trouble = Trouble(nan=(FAULT,))
    trainer = _trainer("plain", tmp_path, trouble, GuardCallback(**GUARD), gradient_accumulation_steps=2)
    trainer.train()
    assert _actions(trainer) == [("skip", FAULT, "non_finite_loss")]


def test_dsa_is_guarded_as_well(tmp_path) -> None:
    trainer = _trainer("trainer", tmp_path, Trouble(nan=(FAULT,)), GuardCallback(**GUARD), dsa=True)
    trainer.train()
    assert _actions(trainer) == [("skip", FAULT, "non_finite_loss")]
    assert trainer.lr_scheduler.updates == UPDATES - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_cut": 0.0}, "lr_cut=0.0 is outside"),
        ({"max_skips": -1}, "max_skips=-1"),
        ({"thresholds": {"loss_ryse": 2}}, "thresholds have no 'loss_ryse'"),
        ({"thresholds": {"loss_rise": 0.5}}, "loss_rise=0.5"),
    ],
)
def test_bad_settings_fail_when_the_callback_is_made(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        GuardCallback(**settings)


# --- several processes ------------------------------------------------------------------------------------------


def _on_two_ranks(integration: str, folder: str) -> None:
    """Only rank 1 has the trouble; both have to act on it, and alike."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    trouble = Trouble(nan=(FAULT,), noise=(FAULT + 4,), rank=1)
    trainer = _trainer(integration, Path(folder), trouble, GuardCallback(**GUARD), per_device_train_batch_size=4)
    trainer.train()
    guard = _guard(trainer).guard
    mine = [flat(trainer.model), torch.tensor([guard.factor, guard.rollbacks, len(guard.events), guard.updates])]
    for value in mine:
        both = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(both, value)
        assert torch.equal(*both), f"rank {dist.get_rank()}"
    assert trouble.before is not None
    acts = _actions(trainer)
    assert acts[0] == ("skip", FAULT, "non_finite_loss"), acts
    assert sum(action == "rollback" for action, *_ in acts) == 1, acts
    assert torch.isfinite(flat(trainer.model)).all() and flat(trainer.model).abs().max() < 3


@pytest.mark.parametrize("integration", INTEGRATIONS)
def test_two_processes_act_alike_when_only_one_sees_the_nan(integration, tmp_path) -> None:
    debug_launcher(_on_two_ranks, args=(integration, str(tmp_path)), num_processes=2)
    assert [e["action"] for e in _events(tmp_path)].count("rollback") == 1


# --- kill -9 ----------------------------------------------------------------------------------------------------

MOMENTS = {
    "rollback": ("hf_adaptive_lr.guard.snapshot.restore_optimizer", "weights are back, the optimizer is not"),
    "write": ("hf_adaptive_lr.guard.snapshot_file.os.fsync", "the snapshot is written in part"),
    "rename": ("hf_adaptive_lr.guard.snapshot_file.os.replace", "the snapshot is written, its name is not"),
    "event": ("hf_adaptive_lr.trainer.guard_callback.EventWriter.__call__", "nobody has been told"),
}


def _job(folder: str, moment: str) -> None:
    """A run that is killed by the kernel at a moment, or goes on from its last checkpoint."""
    import unittest.mock

    settings = {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}
    trouble = Trouble(nan=(FAULT - 4,), noise=(FAULT,))
    trainer = _trainer("trainer", Path(folder), trouble, GuardCallback(**GUARD), **settings)
    last = newest_whole(Path(folder))
    if moment == "none":
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        torch.save({"weights": flat(trainer.model), "from": last and last.name}, Path(folder) / "end.pt")
        return

    rename = os.replace

    def kill(*args, **kwargs):
        if moment == "rename" and not str(args[1]).endswith("snapshot.pt"):
            return rename(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    with unittest.mock.patch(MOMENTS[moment][0], kill):
        trainer.train()


def _run_job(folder: Path, moment: str) -> int:
    """Exit code of the job in a forked process: a new interpreter would import for longer than the job trains."""
    process = multiprocessing.get_context("fork").Process(target=_job, args=(str(folder), moment))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unharmed")
    assert _run_job(folder, "none") == 0
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_the_worst_moment_loses_nothing(moment, unharmed, tmp_path) -> None:
    assert _run_job(tmp_path, moment) == -signal.SIGKILL
    assert _run_job(tmp_path, "none") == 0
    mine, whole = (torch.load(folder / "end.pt", weights_only=True) for folder in (tmp_path, unharmed))
    assert (mine["from"] is None) == (moment in ("write", "rename"))  # during the first checkpoint: from the beginning
    assert torch.equal(mine["weights"], whole["weights"])
    assert _events(tmp_path) == _events(unharmed)
    assert [e["action"] for e in _events(tmp_path)].count("rollback") == 1


# --- what is told of it -----------------------------------------------------------------------------------------


def test_the_report_of_a_run_in_trouble_says_what_the_guard_did(tmp_path) -> None:
    from hf_adaptive_lr.report import read_run, render_report

    trouble = Trouble(nan=(FAULT - 8,), noise=(FAULT,))
    _trainer("trainer", tmp_path, trouble, GuardCallback(**GUARD)).train()
    run = read_run(tmp_path)
    assert [event.action for event in run.events] == ["skip"] * 3 + ["rollback", "recover"]
    assert run.events[0].step == FAULT - 8 and run.events[3].facts["reason"] == "loss_spike"
    page = render_report([run])
    assert "guard: rollback" in page and "non_finite_loss" in page


def test_the_same_figures_go_to_tensorboard(tmp_path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trouble, settings = Trouble(nan=(FAULT,)), {"report_to": "tensorboard", "logging_steps": 5}
    _trainer("trainer", tmp_path, trouble, GuardCallback(**GUARD), **settings).train()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    skips = {event.step: event.value for event in board.Scalars("train/adaptive_lr/guard_skips")}
    assert (skips[15], skips[20]) == (0.0, 1.0)
    factors = {event.step: event.value for event in board.Scalars("train/adaptive_lr/factor")}
    assert factors[15] == pytest.approx(1 - 14 / UPDATES)


def test_healthy_runs_of_a_benchmark_are_watched_and_counted(tmp_path) -> None:
    from hf_adaptive_lr.bench.method import Method
    from hf_adaptive_lr.bench.studies.guard.false_alarms import counts, table
    from hf_adaptive_lr.bench.studies.papers.plan import QUICK
    from hf_adaptive_lr.bench.train import TrainingRun

    watched = Method(name="linear+guard", controller="linear", arguments={"divergence_guard": True})
    rows = [TrainingRun(QUICK.tasks["digits-mlp"], watched, seed, 0.1).execute() for seed in (0, 1)]
    rows = [{**row, "task": "digits-mlp"} for row in rows]
    assert counts(rows) == (0, 24, 0, 2)
    rows[1]["guard"] = {"loss_spike": 2}
    assert counts(rows) == (2, 24, 1, 2)
    assert "| all | 2 of 24 | 1 of 2 |" in table(rows)


# --- sharded models ---------------------------------------------------------------------------------------------


def test_without_snapshots_the_trainer_goes_back_to_its_own_checkpoint(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hf_adaptive_lr.trainer.guard_callback.sharder", lambda optimizer: "FSDP (flat parameters)")
    settings = {"save_strategy": "steps", "save_steps": 5}
    trouble = Trouble(noise=(FAULT,))
    trainer = _trainer("trainer", tmp_path, trouble, GuardCallback(recover=False), **settings)
    trainer.train()
    assert _guard(trainer).guard.snapshots is None
    acts = _actions(trainer)
    assert [a for a, *_ in acts].count("rollback") == 1
    assert flat(trainer.model).abs().max() < 3 and trainer.state.global_step == UPDATES
    assert trainer.lr_scheduler.run.scale == 0.5
    assert trainer.lr_scheduler.updates == UPDATES - len(acts)  # the schedule's position did not go back


# --- controllers in an envelope ---------------------------------------------------------------------------------


def test_a_learned_controller_beside_the_guard_is_in_an_envelope_and_rules_are_not(tmp_path) -> None:
    from hf_adaptive_lr import AutoController, Envelope

    def envelope(controller, **changes):
        args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, **changes)
        trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller=controller)
        return trainer.create_scheduler(10, trainer.create_optimizer()).run.config.envelope

    learned = AutoController.from_pretrained("mlr_snet")
    assert envelope(learned) is None
    assert envelope(learned, divergence_guard=True) == Envelope()
    assert envelope(Linear(), divergence_guard=True) is None
    assert envelope(learned, divergence_guard=True, controller_envelope="off") is None
    assert envelope(Linear(), controller_envelope='{"patience": 3}') == Envelope(patience=3)


def test_the_run_falls_back_from_a_controller_that_leads_astray_after_the_rollback(tmp_path) -> None:
    from hf_adaptive_lr import Replay

    wild = Replay(progress=(0.0, 0.3, 0.31, 1.0), factors=(1.0, 1.0, 1e6, 1e6))
    changes = {"learning_rate": 0.02, "max_steps": 120, "logging_strategy": "no", "divergence_guard": True}
    changes |= {"divergence_guard_kwargs": {"snapshot_every": 5}}
    changes |= {"controller_envelope": {"high": 1000.0, "max_ratio": 1000.0, "patience": 1000}}
    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, **changes)
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(size=480), controller=wild)
    trainer.train()
    fell_back = [e for e in _guard(trainer).guard.events if e.get("handed_over")]
    assert fell_back and trainer.lr_scheduler.fallen_back
    rows = [json.loads(line) for line in (tmp_path / "lr_trace.jsonl").read_text().splitlines()]
    assert rows[-1]["reason"] == "handed_over" and rows[-1]["lr"] < 0.02
    assert torch.isfinite(flat(trainer.model)).all()


class _Weighted(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = 10.0 * torch.nn.functional.cross_entropy(outputs.logits.double(), inputs["labels"])
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("kind", [_Weighted, Trainer])
def test_a_guard_that_hears_another_loss_than_the_trained_one_says_so_once(tmp_path, kind) -> None:
    args = integrations.arguments(tmp_path, max_steps=6, gradient_accumulation_steps=2)
    trainer = kind(model=bert(), args=args, train_dataset=Tokens(), callbacks=[GuardCallback()])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train()
    texts = [str(one.message) for one in said if "GuardCallback reads the loss" in str(one.message)]
    assert len(texts) == (1 if kind is _Weighted else 0)
