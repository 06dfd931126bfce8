"""The cost of a decision: rows that say what was timed, and a median that an interruption does not move."""

from __future__ import annotations

import time

import pytest

from hf_adaptive_lr import Constant, Universal
from hf_adaptive_lr.bench.decision_cost import candidates, main, measure, seconds_of, table
from hf_adaptive_lr.bench.rows import read_rows


def test_the_net_is_a_part_of_the_decision() -> None:
    row = measure("universal", Universal(params=Universal.random_params()), calls=200)
    assert 0 < row["net_seconds"] < row["decision_seconds"] < 0.1
    assert row["weights"] == 4929
    assert measure("constant", Constant(), calls=50)["net_seconds"] is None


def test_one_interruption_does_not_count() -> None:
    calls = iter(range(10_000))
    assert seconds_of(lambda: time.sleep(0.01) if next(calls) % 50 == 0 else None, calls=100) < 1e-3


def test_the_command_writes_a_row_for_each(tmp_path, capsys) -> None:
    output = tmp_path / "rows.jsonl"
    assert main(["--output", str(output), "--calls", "5"]) == 0 == main(["--output", str(output), "--calls", "5"])
    rows = read_rows(output)
    assert [row["controller"] for row in rows] == list(candidates())
    assert table(rows) in capsys.readouterr().out
    assert {row["controller"]: row["bytes"] for row in rows}["mlr_snet"] > 1000


@pytest.mark.parametrize("calls", ["0", "-3"])
def test_no_calls_are_refused(calls, tmp_path, capsys) -> None:
    assert main(["--output", str(tmp_path / "x"), "--calls", calls]) == 2
    assert "at least 1" in capsys.readouterr().err
