"""One rate or one relative update for all: rows that add up, and regrets worked out by hand."""

from __future__ import annotations

import pytest

from hf_adaptive_lr.bench import steering
from hf_adaptive_lr.bench.rows import read_rows
from hf_adaptive_lr.meta.suites import SUITES


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(steering, "SUITE", "quadratic")
    monkeypatch.setattr(steering, "LRS", (1e-3, 1e-1))
    monkeypatch.setattr(steering, "RHOS", (1e-3, 1e-1))


@pytest.mark.usefixtures("small")
def test_rows_add_up_and_nothing_is_done_twice(tmp_path, capsys) -> None:
    output = tmp_path / "rows.jsonl"
    words = ["--draws", "1", "--runs", "3", "--output", str(output)]
    assert steering.main(words) == 0
    before = output.read_bytes()
    assert [row["method"] for row in read_rows(output)] == [
        "linear 0.001",
        "linear 0.1",
        "relative 0.001",
        "relative 0.1",
    ]
    assert steering.main([*words, "--controller", "slow=plateau"]) == 0
    assert output.read_bytes().startswith(before) and len(read_rows(output)) == 5
    assert "`slow`" in capsys.readouterr().out


def test_regret_is_to_the_problems_own_best_rate(monkeypatch) -> None:
    monkeypatch.setattr(steering, "LRS", (0.1, 1.0))
    losses = {"linear 0.1": [-1.0, -3.0], "linear 1": [0.0, 0.0], "relative 0.01": [-2.5, -2.5], "mine": [-4.0, -4.0]}
    rows = [{"problem": "0/0", "method": name, "log_loss": values} for name, values in losses.items()]
    rows.append({"problem": "0/1", "method": "mine", "log_loss": [0.0]})  # without its learning rates
    assert steering.regrets(rows)["mine"] == {"0/0": -2.0}
    assert steering.regrets(rows)["relative 0.01"] == {"0/0": -0.5}
    text = steering.summary(rows)
    assert "| one learning rate for all, the best: 0.1 | 1 | +0.00 |" in text and "| `mine` | 1 | -2.00 |" in text


def test_linear_is_linear_at_every_update() -> None:
    (problem,) = SUITES["quadratic"].problems("valid", 0, 3)
    controller, lr = steering.methods([])["linear 0.001"]
    run = problem.start()
    for t in range(problem.total_steps):
        run.advance(run.base_lr * 0 + lr * (1 - t / problem.total_steps), 1)
    by_hand = run.evaluate("outer_valid").double().log() - problem.start().evaluate("outer_valid").double().log()
    assert steering.play(problem, controller, lr).tolist() == pytest.approx(by_hand.tolist(), abs=1e-5)


@pytest.mark.parametrize("words", [["--draws", "0"], ["--runs", "-1"], ["--controller", "./nowhere"]])
def test_what_cannot_be_done_is_one_line(words, tmp_path, capsys) -> None:
    assert steering.main([*words, "--output", str(tmp_path / "rows.jsonl")]) == 2
    assert "error:" in capsys.readouterr().err
