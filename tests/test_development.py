"""The development split: what is run, that no test row is read, and the table."""

from __future__ import annotations

import dataclasses

import pytest

from hf_adaptive_lr.bench import development, yardstick_tasks
from hf_adaptive_lr.bench.rows import read_rows
from hf_adaptive_lr.bench.yardstick_data import load
from hf_adaptive_lr.bench.yardstick_real import train

SMALL = dataclasses.replace(yardstick_tasks.TASKS["image-cnn"], updates=4, train_rows=200, valid_rows=64)


@pytest.fixture
def one_task(monkeypatch) -> None:
    monkeypatch.setattr(development, "REAL", (SMALL,))


def test_rows_add_up_and_no_test_row_is_read(one_task, tmp_path, capsys, monkeypatch) -> None:
    seen = []

    def watched(task, method, seed, lr):
        row = train(task, method, seed, lr)
        seen.append((task.split_seed, seed, lr, row.keys()))
        return row

    monkeypatch.setattr("hf_adaptive_lr.bench.yardstick_real.train", watched)
    out = tmp_path / "rows.jsonl"
    line = ["--output", str(out), "--seeds", "1", "--relative", "0.01", "--linear", "0.001"]
    assert development.main(line) == 0
    assert development.main([*line, "--controller", "straight=relative"]) == 0
    rows = read_rows(out)
    assert [row["method"] for row in rows] == ["relative 0.01", "linear 0.001", "straight"]
    assert [(split, seed) for split, seed, *_ in seen] == [(777, 120)] * 3 and seen[1][2] == 0.001
    assert not any(key.startswith("test") for *_, keys in seen for key in keys)
    assert all(0 < row["valid_loss"] < 10 and row["valid_curve"][0][0] == 0 for row in rows)
    assert "| `straight` | 1 |" in capsys.readouterr().out


def test_the_other_draw_has_other_rows() -> None:
    mine, other = load(SMALL), load(dataclasses.replace(SMALL, split_seed=development.SPLIT))
    assert len(mine.valid) == len(other.valid)
    assert not all(
        bool((a["pixel_values"] == b["pixel_values"]).all()) for a, b in zip(mine.valid, other.valid, strict=True)
    )


def test_the_table_has_geometric_means_the_best_first(one_task) -> None:
    rows = [
        {"task": "image-cnn", "method": name, "seed": seed, "valid_loss": loss}
        for name, losses in (("good", (0.5, 0.125)), ("bad", (None, 100.0)))
        for seed, loss in enumerate(losses)
    ]
    lines = development.summary([*rows[2:], *rows[:2], {**rows[0], "task": "else", "method": "half"}]).splitlines()
    assert lines[0] == "|  | seeds | image-cnn | all |"
    assert lines[2:4] == ["| `good` | 2 | 0.25 | 0.25 |", "| `bad` | 2 | 100.00 | 100.00 |"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--seeds", "0"], "--seeds 0 must be at least 1"),
        (["--relative", "3"], "rho=3"),
        (["--linear", "100"], "learning rate 100 must be within"),
        (["--controller", "./nowhere"], "nowhere"),
    ],
)
def test_bad_requests_write_nothing(line, message, tmp_path, capsys) -> None:
    out = tmp_path / "rows.jsonl"
    assert development.main([*line, "--output", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()
