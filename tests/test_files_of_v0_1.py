"""Files that version 0.1.0 wrote (`fixtures/make_v0_1.py`) are read, resumed and reported.

A resumed run ends where the old code ended without a stop. Not to the bit: another processor or torch sums in another
order, which moves a loss or a gradient by some float32 roundings (2^-24 = 6e-8 of it), and a difference of losses, as
in the gain ratio, by a hundred times that. When every weight of the checkpoints was moved at random by up to 2^-22 of
itself, and when torch ran without vector instructions, learning rates ended within 2e-5 of what is expected
(`universal`; the others 2e-6) and weights, which are of size 1, within 3e-7. The tolerances are ten times that and
more. A state that is not taken over, be it the controller's, the guard's, the envelope's or the optimizer's, is off by
far more: 2e-2 and above for learning rates or 4e-3 for weights.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from hf_adaptive_lr import AutoController, GuardCallback
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.report import read_run
from tests.fixtures import make_v0_1 as old

FILES = Path(__file__).parent / "fixtures" / "v0_1"
EXPECTED = json.loads((FILES / "expected.json").read_text())
CONTROLLERS = sorted(EXPECTED["decisions"])
LR = {"rel": 3e-4, "abs": 0.0}
WEIGHTS = {"rel": 0.0, "abs": 3e-6}
SAME_LOSS = {"rel": 1e-5}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all files, in the current folder, as some of them name each other by relative paths."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    # Their maker left the generators out where nothing is drawn any more; Trainer has always written them.
    for checkpoint in (tmp_path / "trainer").glob("*/checkpoint-8"):
        if not (checkpoint / "rng_state.pth").exists():
            shutil.copy(FILES / "trainer/universal_guard/checkpoint-8/rng_state.pth", checkpoint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- controllers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_folder_loads_with_its_config_and_decides_as_before(name, files) -> None:
    controller = AutoController.from_pretrained(files / "controllers" / name)
    saved = json.loads((FILES / "controllers" / name / "config.json").read_text())
    config = json.loads(json.dumps(controller.config()))  # tuples become lists
    assert controller.controller_type == saved["controller_type"] == name
    assert {key: saved[key] for key in config} == config
    assert controller.config() != type(controller)().config() if not controller.learned else controller.params
    assert old.decisions(controller) == pytest.approx(EXPECTED["decisions"][name], **LR)


def test_learned_weights_are_the_same_to_the_bit(files) -> None:
    params = AutoController.from_pretrained("controllers/gru").params
    assert {name: tensor.flatten().tolist() for name, tensor in params.items()} == EXPECTED["params"]["gru"]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_saved_again_keeps_all_that_the_folder_said(name, files) -> None:
    folder = files / "controllers" / name
    before = AutoController.from_pretrained(folder)
    before.save_pretrained(folder)
    old_config, new_config = (
        json.loads((at / "config.json").read_text()) for at in (FILES / "controllers" / name, folder)
    )
    ours = {"library_version", "format_version"}
    assert {k: v for k, v in new_config.items() if k not in ours} == {
        k: v for k, v in old_config.items() if k not in ours
    }
    after = AutoController.from_pretrained(folder)
    assert after == before and after.params.keys() == before.params.keys()
    assert all(torch.equal(after.params[key], before.params[key]) for key in before.params)


@pytest.mark.parametrize("name", ["gru", "plateau"])
def test_the_notes_of_a_card_survive_a_new_card(name, files) -> None:
    card = files / "controllers" / name / "README.md"
    assert old.NOTES in card.read_text()
    # A line at the end is not a person's notes, so it goes: the card really is written anew.
    card.write_text(card.read_text() + "\nleftover\n")
    assert main(["card", f"controllers/{name}", "--output", str(card)]) == 0
    assert card.read_text().count(old.NOTES) == 1 and "leftover" not in card.read_text()


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", old.TRAINERS)
def test_a_trainer_resumes_from_an_old_checkpoint_to_the_old_end(name, files) -> None:
    expected, folder = EXPECTED["trainer"][name], files / "trainer" / name
    trainer = old.TRAINERS[name](files / "controllers", folder)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{old.HALF}"))
    assert trainer.state.global_step == old.UPDATES
    ours = old.rates(trainer)
    assert 3 < len(ours) < len(expected["lr"])
    assert ours == pytest.approx(expected["lr"][-len(ours) :], **LR)
    assert old.flat(trainer.model) == pytest.approx(expected["weights"], **WEIGHTS)
    log = trainer.state.log_history
    assert [row["step"] for row in log if "loss" in row] == list(range(1, old.UPDATES + 1))
    assert set(log[old.HALF]) == set(log[old.HALF - 1]), "the same values are logged under the same names"


@pytest.mark.parametrize("name", [name for name in old.TRAINERS if name != "plateau_callback"])
def test_the_trace_of_a_resumed_run_goes_on_in_the_old_file(name, files) -> None:
    folder = files / "trainer" / name
    before = lines(folder / "lr_trace.jsonl")
    trainer = old.TRAINERS[name](files / "controllers", folder)
    trainer.train(resume_from_checkpoint=True)
    after = lines(folder / "lr_trace.jsonl")
    done = len(after) - len(old.rates(trainer))
    assert after[:done] == before[:done] and done > 5
    for key in ("step", "reason", "detail"):
        assert [row.get(key) for row in after] == [row.get(key) for row in before]
    assert [set(row.get("observation", {})) for row in after] == [set(row.get("observation", {})) for row in before]


def test_the_guard_goes_back_to_a_snapshot_in_an_old_checkpoint(files) -> None:
    folder = files / "trainer" / "universal_guard"
    before = lines(folder / "events.jsonl")
    trainer = old.TRAINERS["universal_guard"](files / "controllers", folder)
    trainer.train(resume_from_checkpoint=True)
    guard = next(cb.guard for cb in trainer.callback_handler.callbacks if isinstance(cb, GuardCallback))
    after = lines(folder / "events.jsonl")
    assert guard.rollbacks == len(after) == 2 and guard.factor == 0.25
    assert after[0] == before[0], "what happened before the checkpoint stays as it was written"
    numbers = ("lr_before", "lr_after")
    for name in numbers:
        assert after[1].pop(name) == pytest.approx(before[1].pop(name), **LR)
    assert after[1] == before[1]
    assert after[1]["restored_update"] < old.HALF, "taken before the checkpoint, so it was read from it"


@pytest.mark.filterwarnings("ignore:.*decisions in succession were corrected:UserWarning")
@pytest.mark.parametrize("name", old.PLAIN)
def test_a_plain_loop_goes_on_from_an_old_state(name, files) -> None:
    expected = EXPECTED["plain"][name]
    loop = old.Loop(files / "controllers", name)
    loop.load(torch.load("plain.pt", weights_only=True)[name])
    assert loop.scheduler.updates == old.HALF
    assert loop.scheduler.get_last_lr() == [expected["lr"][old.HALF - 1]]
    loop.run(old.HALF, old.UPDATES)
    assert loop.scheduler.lr_history() == pytest.approx(expected["lr"][old.HALF :], **LR)
    assert old.flat(loop.model) == pytest.approx(expected["weights"], **WEIGHTS)


def test_meta_training_resumes_from_an_old_checkpoint(files) -> None:
    curves = json.loads(Path("meta_training/training.json").read_text())["curves"]
    old.command(*old.TRAIN, "--iterations", 4, "--resume")
    record = json.loads(Path("meta_training/training.json").read_text())
    assert record["iterations"] == 4 and record["curves"][:2] == curves
    params = AutoController.from_pretrained("meta_training").params
    assert params.keys() == EXPECTED["meta_training"].keys()
    for name, values in EXPECTED["meta_training"].items():
        # 800 updates an iteration are learned from, so roundings grow: the same two experiments gave up to 1.2e-4.
        # The two iterations move the weights by 6e-3 and more, and without Adam's state they end 1e-2 elsewhere.
        assert params[name].flatten().tolist() == pytest.approx(values, rel=0.0, abs=1e-3)


# --- finetune and the report -----------------------------------------------------------------------------------------


def test_finetune_continues_an_old_run_to_more_updates(files) -> None:
    expected, folder = EXPECTED["finetune"], files / "finetune" / "run"
    before = lines(folder / "lr_trace.jsonl")
    old.command(*old.FINETUNE, "--resume", "--max-steps", 12)
    after = lines(folder / "lr_trace.jsonl")
    assert after[: len(before)] == before and len(before) == 8
    assert [row["lr"] for row in after] == pytest.approx(expected["lr"], **LR)
    results = json.loads((folder / "results.json").read_text())
    assert results["loss"] == pytest.approx(expected["loss"], **SAME_LOSS)
    assert (results["updates"], results["decisions"]) == (12, expected["decisions"])
    assert results["accuracy"] == pytest.approx(expected["accuracy"], abs=1 / 12)  # one row of twelve may be a tie


RUNS = ["finetune/run", *(f"trainer/{name}" for name in old.TRAINERS if name != "plateau_callback")]


@pytest.mark.parametrize("name", RUNS)
def test_the_report_of_an_old_run_says_what_its_files_say(name, files) -> None:
    folder = files / name
    trace = lines(folder / "lr_trace.jsonl")
    run = read_run(folder)
    applied = [row for row in run.rows if row.lr is not None]
    assert not run.notes
    for key, default in (("step", None), ("lr", None), ("reason", None), ("ramp", 1.0), ("proposed", None)):
        assert [getattr(row, key) for row in applied] == [row.get(key, default) for row in trace]
    assert [dict(row.observation) for row in applied] == [row.get("observation", {}) for row in trace]
    events = lines(folder / "events.jsonl") if (folder / "events.jsonl").is_file() else []
    assert [(event.step, event.action) for event in run.events] == [(row["step"], row["action"]) for row in events]
    state = json.loads(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())
    assert run.losses == [
        (row["step"] - 1, row["loss"]) for row in state["log_history"] if "loss" in row and math.isfinite(row["loss"])
    ]
    kind = json.loads((folder / "controller.json").read_text())["controller_type"]
    told = {"controller": kind, "first LR": f"{trace[0]['lr']:.6g}", "last LR": f"{trace[-1]['lr']:.6g}"}
    assert told.items() <= run.facts.items()
    assert main(["report", name, "--output", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert all(text in page for text in (kind, told["first LR"], told["last LR"], name))
    assert all(event["reason"] in page for event in events)
