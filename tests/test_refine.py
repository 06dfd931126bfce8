"""Schedules refined from the gradient norms of past runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import median_filter
from transformers import Trainer

from hf_adaptive_lr import AdaptiveLRTrainer, AutoController, Linear, Universal
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.tuning.refine import RefineError, read_past_run, refine, refined_schedule, running_median
from tests import integrations
from tests.tiny import Tokens, bert


def _state(folder, norms, *, rate=1e-3, every=1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = [
        {"step": (i + 1) * every, "grad_norm": norm, "learning_rate": rate, "loss": 1.0}
        for i, norm in enumerate(norms)
    ]
    (folder / "trainer_state.json").write_text(json.dumps({"max_steps": len(norms) * every, "log_history": log}))


# --- the paper's algorithm ---


def test_constant_norms_give_linear_decay() -> None:
    assert refined_schedule([2.5] * 101) == pytest.approx(np.linspace(1, 0, 101))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_formula_term_by_term(power: float) -> None:
    norms = np.random.default_rng(0).lognormal(size=40)
    weights = norms**-power
    expected = np.array([weights[t] * sum(weights[t + 1 :]) for t in range(40)])
    assert refined_schedule(norms, smoothing=0.0, power=power) == pytest.approx(expected / expected.max())


@pytest.mark.parametrize("count, smoothing", [(100, 0.1), (37, 0.3), (12, 1.0), (10, 0.0)])
def test_the_running_median_is_the_authors(count: int, smoothing: float) -> None:
    """As their README pads for scipy's filter."""
    norms = np.random.default_rng(1).lognormal(size=count)
    width = 2 * (int(smoothing * count) // 2) + 1
    pad = 2 * width
    expected = median_filter(np.pad(norms, (0, pad), mode="reflect"), size=width, mode="nearest")[:-pad]
    assert running_median(norms, width) == pytest.approx(expected)


def test_rising_norms_decay_early_and_falling_ones_late() -> None:
    linear = np.linspace(1, 0, 100)
    falling = refined_schedule(np.linspace(3, 1, 100))
    assert falling[50] > linear[50] and falling.argmax() > 10, "small rates at first, where the norms are large"
    assert refined_schedule(np.linspace(1, 3, 100))[50] < linear[50]


@pytest.mark.parametrize(
    "norms, settings, said",
    [
        ([1.0], {}, "at least two finite numbers above 0"),
        ([1.0, 0.0], {}, "at least two finite numbers above 0"),
        ([1.0, float("nan")], {}, "at least two finite numbers above 0"),
        ([1.0, 1.0], {"smoothing": 1.5}, r"smoothing=1.5 is outside \[0, 1\]; 0.1 is the paper's"),
        ([1.0, 1.0], {"power": 0.0}, r"power=0.0 is outside \(0, 4\]; 2 is the paper's"),
    ],
)
def test_bad_values_are_named(norms, settings, said) -> None:
    with pytest.raises(RefineError, match=said):
        refined_schedule(norms, **settings)


# --- runs ---


def test_a_run_of_an_unmodified_trainer(tmp_path) -> None:
    args = integrations.arguments(tmp_path, max_steps=20, max_grad_norm=1.0, save_strategy="steps", save_steps=10)
    trainer = Trainer(model=bert(), args=args, train_dataset=Tokens())
    trainer.train()
    run = read_past_run(tmp_path)
    logged = [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]
    assert run.source == tmp_path / "checkpoint-20" / "trainer_state.json", "the newest checkpoint"
    assert run.norms.tolist() == logged and run.peak_lr == integrations.LR
    assert run.progress.tolist() == pytest.approx([i / 20 for i in range(20)])


def test_a_run_of_this_library_has_more_norms_than_its_log(tmp_path) -> None:
    args = integrations.arguments(tmp_path, max_steps=24, max_grad_norm=1.0, logging_steps=12)
    small = Universal(hidden_size=4, params=Universal.random_params(hidden_size=4))
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller=small)
    trainer.train()
    trainer.save_state()
    run = read_past_run(tmp_path)
    assert run.source.name == "lr_trace.jsonl"
    seen = [d.observation["grad_norm"] for d in trainer.lr_scheduler.trace if d.observation]
    assert run.norms.tolist() == pytest.approx(seen) and len(seen) >= 20


def test_the_schedule_trains_what_linear_trains_when_norms_were_constant(tmp_path) -> None:
    _state(tmp_path / "past", [0.7] * 30)
    controller = refine([read_past_run(tmp_path / "past")])
    _, (expected, _) = integrations.subclassed(Linear(), tmp_path / "linear")
    _, (got, _) = integrations.subclassed(controller, tmp_path / "refined")
    assert got == pytest.approx(expected)


def test_several_runs_count_alike_whatever_their_scale(tmp_path) -> None:
    shape = np.linspace(2, 1, 50)
    _state(tmp_path / "a", shape.tolist())
    _state(tmp_path / "b", (100 * shape).tolist(), every=5)
    one = refine([read_past_run(tmp_path / "a")])
    both = refine([read_past_run(tmp_path / "a"), read_past_run(tmp_path / "b")])
    assert both.factors == pytest.approx(one.factors, abs=0.02)  # logged at the end of five updates


def test_norms_that_were_not_finite_are_left_out(tmp_path) -> None:
    _state(tmp_path, [1.0] * 20 + [float("nan"), None, 0.0] + [1.0] * 7)
    run = read_past_run(tmp_path)
    assert len(run.norms) == 27 and np.isfinite(run.norms).all()


# --- the command ---


def test_the_command_writes_a_controller(tmp_path, capsys) -> None:
    _state(tmp_path / "run", np.linspace(3, 1, 40).tolist(), rate=2e-4)
    assert main(["refine", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "40 gradient norms, largest learning rate 0.0002" in printed
    assert f"--controller {tmp_path / 'out'} --learning-rate 0.0002" in printed
    controller = AutoController.from_pretrained(tmp_path / "out")
    assert controller.controller_type == "replay" and max(controller.factors) == 1.0
    assert main(["card", str(tmp_path / "out")]) == 0
    card = capsys.readouterr().out
    assert "Defazio et al. 2023" in card and "run (40 norms)" in card and "| learning rate | 0.0002 |" in card
    assert "Nothing: it is a rule" not in card


def test_the_command_in_json(tmp_path, capsys) -> None:
    _state(tmp_path / "run", [1.0] * 20)
    assert main(["refine", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["learning_rate"] == 1e-3 and said["sources"][0]["norms"] == 20
    assert said["factors"] == pytest.approx([1 - p for p in said["progress"]])


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda folder: None, "is no folder; give the output_dir of a run"),
        (lambda folder: folder.mkdir(), "has neither lr_trace.jsonl nor trainer_state.json"),
        (lambda folder: _state(folder, [1.0] * 3), "has 3 gradient norms, refinement needs 10; log more often"),
        (
            lambda folder: (folder.mkdir(), (folder / "trainer_state.json").write_text("[]")),
            "is not Trainer's: TypeError",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "lr_trace.jsonl").write_text('[]\n3\n{"step": -5}\n')),
            "is not a trace: TypeError",
        ),
    ],
)
def test_the_command_fails_in_one_line(tmp_path, capsys, make, said) -> None:
    make(tmp_path / "run")
    assert main(["refine", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, capsys) -> None:
    _state(tmp_path / "run", [1.0] * 20)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("somebody's")
    assert main(["refine", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out")]) == 2
    assert "is not empty; name another folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").read_text() == "somebody's"


def test_a_setting_out_of_range_writes_nothing(tmp_path, capsys) -> None:
    _state(tmp_path / "run", [1.0] * 20)
    assert main(["refine", str(tmp_path / "run"), "--output-dir", str(tmp_path / "out"), "--power", "9"]) == 2
    assert "power=9.0 is outside (0, 4]" in capsys.readouterr().err and not (tmp_path / "out").exists()
