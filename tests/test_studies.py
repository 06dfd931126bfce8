"""The studies' commands: they run, their rows are whole, and what they compute is checked by hand. No timing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_adaptive_lr import AutoController, GRUController, MLRSNet, Observation
from hf_adaptive_lr.auto import PRETRAINED
from hf_adaptive_lr.bench.rows import read_rows
from hf_adaptive_lr.bench.studies import (
    known_answer,
    learn_schedule,
    long_run,
    overhead,
    run_cost,
)
from hf_adaptive_lr.bench.studies.timing import Lane
from tests.integrations import arguments
from tests.tiny import Tokens, bert

# --- the cost of a controller and of the guard ----------------------------------------------------------------------


@pytest.mark.parametrize("what", overhead.METHODS)
def test_overhead_writes_rows_that_say_how_they_came_about(what, tmp_path, capsys) -> None:
    output = tmp_path / "rows" / "overhead.jsonl"
    assert overhead.main([what, "--quick", "--output", str(output)]) == 0
    header, *rows = read_rows(output)
    assert header["row"] == "header" and header["threads"] == 1
    assert header["command"].endswith(f"studies.overhead {what} --quick")
    assert {"torch", "transformers", "hf_adaptive_lr"} <= header["versions"].keys() and header["cpu"]
    assert str(tmp_path) not in json.dumps([header, *rows]) and len(list(output.parent.iterdir())) == 1
    printed = capsys.readouterr().out
    assert [r["method"] for r in rows] == [m.name for m in overhead.METHODS[what]]
    for row in rows:
        low, high = row["interval"]
        assert 0 < low <= row["ratio"] <= high and row["inside"] >= 1 and row["plain_ms"] > 0
        assert row["size"] == "tiny" and row["target"] is None  # too small a model for the claim
        rare = row["method"] == overhead.GAIN.name
        assert row["pairs"] * row["every"] == (10 if what == "controllers" else 50) or rare
        assert f" {row['method']} | " in printed or rare
    assert rows[0]["inside"] == 1  # a plain trainer runs none of our code
    if what == "controllers":
        assert rows[1]["inside"] > 1
        assert f"{1 + 0.02 * (rows[-1]['ratio'] - 1):.3f} in 1000 updates" in printed


def test_the_cost_of_a_whole_run_counts_its_decisions(tmp_path, capsys) -> None:
    output = tmp_path / "rows" / "run_cost.jsonl"
    assert run_cost.main(["--quick", "--output", str(output)]) == 0
    header, plain, universal = read_rows(output)
    assert header["row"] == "header" and header["command"].endswith("studies.run_cost --quick")
    assert (plain["method"], plain["inside"], universal["method"]) == (overhead.NOISE, 1.0, "universal")
    assert universal["inside"] > 1 and universal["ratio"] > 0
    assert "| 20 | universal | 1 | " in capsys.readouterr().out


def test_a_long_run_is_watched_in_tenths(tmp_path, capsys) -> None:
    output = tmp_path / "rows" / "long_run.jsonl"
    assert long_run.main(["--quick", "--output", str(output)]) == 0
    header, *rows = read_rows(output)
    assert header["command"].endswith("studies.long_run --quick")
    assert [row["updates"] for row in rows] == list(range(200, 2001, 200))
    assert all(row["trace_lines"] == row["updates"] for row in rows)  # the first 20,000 have a line each
    assert {row["state_bytes"] for row in rows} == {rows[0]["state_bytes"]}  # also after it was read back
    assert 0 < rows[-1]["lr"] < rows[2]["lr"] and all(row["microseconds"] > 0 for row in rows)
    assert "| 2,000 | " in capsys.readouterr().out


def test_the_interval_of_few_pairs_is_their_range_and_of_more_it_leaves_extremes_out() -> None:
    assert overhead.median_interval([2.0, 1.0]) == (1.0, 2.0)
    assert overhead.median_interval(list(range(9))) == (1, 7)


@pytest.mark.parametrize(
    ("interval", "said"), [([1.0, 1.01], "yes"), ([1.005, 1.02], "unsure"), ([1.011, 1.02], "no")]
)
def test_a_verdict_needs_the_whole_interval_and_enough_pairs(interval, said) -> None:
    row = {"method": "linear", "target": 1.01, "interval": interval, "pairs": 6}
    assert overhead.verdict(row) == said
    assert overhead.verdict(row | {"pairs": 5}) == "unsure"
    assert overhead.verdict(row | {"target": None}) == "-"
    of_a_run = {"method": overhead.GAIN.name, "interval": [1 + (x - 1) * 50 for x in interval]}  # 20 of 1000 updates
    assert overhead.verdict(row | of_a_run) == said


def test_a_failing_trainer_fails_the_measurement(tmp_path) -> None:
    class Broken(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            raise ZeroDivisionError("broken")

    lane = Lane(Broken(model=bert(), args=arguments(tmp_path), train_dataset=Tokens()))
    with pytest.raises(ZeroDivisionError, match="broken"):
        lane.advance()
    lane.close()  # does not wait for it


# --- controllers that are trained -----------------------------------------------------------------------------------


def test_the_comparison_on_mlps_gives_losses_that_depend_on_the_rate(monkeypatch) -> None:
    monkeypatch.setattr(known_answer, "RATES", (1e-6, 1e-2))
    still = GRUController(
        hidden_size=4, params={k: 0 * v for k, v in GRUController.random_params(hidden_size=4).items()}
    )
    linear, learned = known_answer.compare(still, 1, 2)
    assert linear[1, 0] < linear[0, 0] - 0.1
    # A controller that never moves is a constant learning rate: at a rate this small nothing is learned either way.
    assert float(learned[0, 0]) == pytest.approx(float(linear[0, 0]), abs=0.02)


def test_a_short_lesson_leaves_a_controller(tmp_path, capsys) -> None:
    words = ["--task", "digits-mlp", "--quick", "--updates", "20", "--meta-every", "2", "--meta-lr", "0.01"]
    assert learn_schedule.main([*words, "--output-dir", str(tmp_path / "net")]) == 0
    assert "3 snapshots" in capsys.readouterr().out
    learned = AutoController.from_pretrained(tmp_path / "net")
    assert isinstance(learned, MLRSNet)
    record = json.loads((tmp_path / "net" / "training.json").read_text())
    assert record["lesson"]["meta_every"] == 2
    first, _, last = (torch.cat([p[i].flatten() for p in learned.params.values()]) for i in range(3))
    assert not torch.equal(first, last)
    for folder, more, said in (
        ("net", [], "exists; name another"),
        ("no", ["--meta-every", "0"], "must be at least 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            learn_schedule.main([*words, *more, "--output-dir", str(tmp_path / folder)])
        assert said in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_bundled_schedule_has_learned_to_decay() -> None:
    controller = AutoController.from_pretrained("mlr_snet")
    record = json.loads((PRETRAINED / "mlr_snet" / "training.json").read_text())
    assert record["command"].startswith("python -m hf_adaptive_lr.bench.studies.learn_schedule --")
    state, one = controller.init(), torch.ones((), dtype=torch.float64)
    factors = []
    for step in range(90):
        loss, classes = 2.3 * 0.98**step * one, 10 * one
        obs = Observation(step=step, total_steps=90, lr=one, base_lr=one, loss=loss, classes=classes)
        factor, state = controller.decide(obs, state)
        factors.append(float(factor))
    assert factors[25] > 10 * factors[55] > 10 * factors[85]
