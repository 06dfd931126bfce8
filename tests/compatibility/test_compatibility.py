"""Every row of the compatibility table, run for real."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_adaptive_lr.bench.rows import read_rows
from tests.compatibility import optimizers, rollouts, sampling, sharding, steps
from tests.compatibility import page as compatibility
from tests.compatibility.checks import Check, CheckFailed, require
from tests.compatibility.page import CHECKS, measure, page

# timm needs torchvision, whose wheel for CPUs is not on PyPI; Trackio and W&B bring servers of their own. All
# others come with the test extra.
_OPTIONAL = {
    "timm through transformers' wrapper": "torchvision",
    "Trackio": "trackio",
    "Weights & Biases, offline": "wandb",
}


@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_a_row_of_the_table(check: Check) -> None:
    if check.name in _OPTIONAL and find_spec(_OPTIONAL[check.name]) is None:
        pytest.skip(f"{_OPTIONAL[check.name]} is not installed")
    assert check.run()


def test_a_failure_is_a_row_and_not_a_crash(tmp_path, monkeypatch, capsys) -> None:
    def wrong(folder: Path) -> list[str]:
        require(folder.exists(), "there is a folder")
        require(False, "water is dry")
        return []

    checks = (Check("wrong", ("torch",), wrong), Check("absent", ("no-such-package",), wrong))
    monkeypatch.setattr(compatibility, "CHECKS", checks)
    assert compatibility.main(["--output-dir", str(tmp_path)]) == 1
    rows = [json.loads(line) for line in (tmp_path / "rows/compatibility.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["wrong"]
    assert rows[0]["error"] == "CheckFailed: not true: water is dry"
    text = (tmp_path / "COMPATIBILITY.md").read_text()
    assert "fails" in text and "water is dry" in text and "not installed where this was written" in text


def test_rows_of_other_environments_stay(tmp_path, monkeypatch) -> None:
    path = tmp_path / "rows/compatibility.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"name": "absent", "versions": {"x": "1"}, "held": ["all"], "error": ""}) + "\n")
    checks = (Check("right", ("torch",), lambda folder: ["so"]), Check("absent", ("no-such-package",), lambda _: []))
    monkeypatch.setattr(compatibility, "CHECKS", checks)
    assert compatibility.main(["--output-dir", str(tmp_path)]) == 0
    assert "| absent | x 1 | works | all |" in (tmp_path / "COMPATIBILITY.md").read_text()


def test_an_unknown_row_is_named(tmp_path, capsys) -> None:
    assert compatibility.main(["--only", "nothing-like-it", "--output-dir", str(tmp_path)]) == 2
    assert "no row has nothing-like-it in it; rows: Trainer; " in capsys.readouterr().err


def test_a_broken_trainer_is_found() -> None:
    """The facts can fail: a trainer that overrules its schedule is not said to work."""
    from transformers import Trainer, TrainingArguments

    from tests.compatibility import models as tiny
    from tests.compatibility.checks import Kit, check_schedule

    class Stubborn(Trainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            self.args.max_grad_norm = 1e-3 if self.args.lr_scheduler_type == "linear" else 1.0
            return scheduler

    def facts(folder: Path) -> list[str]:
        parts = {"model": tiny.bert(), "train_dataset": tiny.encoded()}
        return [check_schedule(Kit(Stubborn, TrainingArguments, lambda: dict(parts)), folder)]

    with pytest.raises(CheckFailed, match="equals lr_scheduler_type='linear'"):
        Check("stubborn", ("transformers",), facts).run()


def test_the_page_has_the_rows_that_it_was_given() -> None:
    row = measure(CHECKS[0])
    assert row is not None and not row["error"]
    text = page([row])
    assert f"| Trainer | transformers {row['versions']['transformers']} | works |" in text
    assert text.count("not run") == len(CHECKS) - 1


def test_the_page_is_what_its_rows_say() -> None:
    cards = Path(__file__).parents[2] / "model_cards"
    rows = [json.loads(line) for line in (cards / compatibility.ROWS).read_text().splitlines()]
    assert {row["name"] for row in rows} == {check.name for check in CHECKS}
    assert page(rows) == (cards / compatibility.PAGE).read_text()


# TRL 1.16 asks transformers 5.23 for the old name of its checkpointing flag.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_settings_of_two_trainers_go_together_and_keep_the_first_ones_defaults(tmp_path) -> None:
    from trl.trainer.sft_config import SFTConfig

    from hf_adaptive_lr import AdaptiveLRTrainingArguments

    @dataclass
    class Config(SFTConfig, AdaptiveLRTrainingArguments):
        pass

    theirs = SFTConfig(output_dir=str(tmp_path), bf16=False, gradient_checkpointing=False)
    both = Config(
        output_dir=str(tmp_path),
        bf16=False,
        gradient_checkpointing=False,
        lr_factors={"lora_B": 16},
        divergence_guard=True,
    )
    assert both.divergence_guard and both.lr_factors == {"lora_B": 16}
    assert (both.learning_rate, both.logging_steps) == (theirs.learning_rate, theirs.logging_steps) != (5e-5, 500)


def test_rollouts_generate_once_an_update_and_learn(tmp_path) -> None:
    """The small version of `python -m tests.compatibility.rollouts`."""
    for name in rollouts.TRAINERS:
        row = rollouts.run(name, "subclass", "constant", guard=True, seed=0, updates=60)
        assert row["generations"] == row["updates"] == 60 and not row["alarms"], row
        assert row["last_reward"] > 3 * row["first_reward"], row
        row = rollouts.run(name, "subclass", "universal", guard=False, seed=0, updates=8)
        assert row["generations"] == row["updates"] == 8, row
    row = rollouts.run("GRPO", "callback", "universal", guard=True, seed=0, updates=4)
    assert row["generations"] == row["updates"] == 4 and not row["error"], row
    row = rollouts.run("GRPO", "callback", "plateau", guard=True, seed=0, updates=4)
    assert row["updates"] == 0 and row["generations"] == 1 and "is not the one that is trained" in row["error"]


def test_universal_on_another_optimizer_learns_without_a_rate() -> None:
    """The small version of `python -m tests.compatibility.optimizers`."""
    name = "Muon (matrices alone)"
    loss = optimizers.run(name, "universal", optimizers.OPTIMIZERS[name][1], seed=0, rows=slice(1300, None))
    assert loss < 1.5  # from log(10)
    rows = list(optimizers.measure([name], seeds=1, updates=2))
    assert [row["method"] for row in rows] == ["universal", "linear, tuned", "linear, usual"]


def test_the_page_of_optimizers_is_what_its_rows_say() -> None:
    cards = Path(__file__).parents[2] / "model_cards"
    rows = read_rows(cards / optimizers.ROWS)
    assert optimizers.page(rows) == (cards / optimizers.PAGE).read_text()
    assert {row["optimizer"] for row in rows if row["row"] == "run"} == set(optimizers.OPTIMIZERS)


def test_kl_target_learns_at_a_rate_too_large_and_the_callback_does_as_the_subclass() -> None:
    """The small version of `--only rates signals`."""
    rows = [steps.rate_run("kl_target", 100, 0, updates=8, callback=callback) for callback in (False, True)]
    assert rows[0] == rows[1] and len(rows[0]["rewards"]) == 8
    assert rows[0]["rates"][0] == steps.USUAL and max(rows[0]["rates"]) < 10 * steps.USUAL
    for name in steps.TRAINERS:
        row = steps.signal_run(name, "constant", 100, 0, updates=3)
        assert {*steps.SEEN} <= row["signals"].keys() and row["signals"]["kl"][0] > 0.1, name
        assert ("logged `kl`" in row["signals"]) == (name in ("GRPO", "RLOO", "KTO"))


def test_the_page_of_rollouts_is_what_its_rows_say() -> None:
    cards = Path(__file__).parents[2] / "model_cards"
    rows = read_rows(cards / rollouts.ROWS)
    assert rollouts.page(rows) == (cards / rollouts.PAGE).read_text()
    assert {row["trainer"] for row in rows if row["row"] == "run"} == set(rollouts.TRAINERS)


def test_the_page_of_sharding_is_what_its_rows_say() -> None:
    """Of the small runs themselves are tests/test_sharded.py and tests/test_deepspeed.py."""
    cards = Path(__file__).parents[2] / "model_cards"
    rows = read_rows(cards / sharding.ROWS)
    assert sharding.page(rows) == (cards / sharding.PAGE).read_text()
    for row in rows:
        assert row["ranks_equal"] or row["error"]
        coarse = 0.25 if row["cell"] == "signals" else 5e-3  # of the gain ratio, a difference of losses
        assert row["error"] or row["difference"] < (coarse if "bf16" in row["way"] else 2e-4)


def test_the_page_of_sampling_is_what_its_rows_say() -> None:
    cards = Path(__file__).parents[2] / "model_cards"
    rows = read_rows(cards / sampling.ROWS)
    assert sampling.page(rows) == (cards / sampling.PAGE).read_text()
    assert {row["optimizer"] for row in rows if row["row"] == "sample"} == set(sampling.OPTIMIZERS)
    small = list(sampling.measure(["Lion"], seeds=1, width=32))
    assert [row["wanted"] for row in small] == [0.05, 0.25] and all(abs(row["error"]) < 0.05 for row in small)
