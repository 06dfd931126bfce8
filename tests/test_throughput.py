"""The throughput command: it runs, its rows are whole, and all its columns train the same weights. No timing."""

from __future__ import annotations

import json

import pytest
import torch

from hf_adaptive_lr.bench import throughput
from hf_adaptive_lr.bench.throughput_columns import COLUMNS, Eager, Jax, Sensed, Vector, Vmap, Work

TINY = Work(3, dims=6, width=5, classes=3, batch=4)


def _columns():
    task = TINY.task(4)
    return [kind(task, TINY.rates()) for kind in COLUMNS if kind is not Jax or Jax.installed()]


def test_quick_writes_whole_rows(tmp_path, capsys) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    threads = torch.get_num_threads()
    assert throughput.main(["--quick", "--output", str(path)]) == 0
    assert torch.get_num_threads() == threads and [p.name for p in path.parent.iterdir()] == [path.name]
    first, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["row"] == "header" and first["command"].endswith("throughput --quick --threads 1")
    assert {"versions", "date", "threads", "cpu", "clock", "net"} <= set(first) and first["versions"]["torch"]
    assert [(r["runs"], r["column"]) for r in rows] == [(n, c.name) for n in (1, 3) for c in COLUMNS]
    printed = capsys.readouterr().out
    for row in rows:
        assert row["column"] in printed and row["row"] == "throughput" and row["disagreement"] < 1e-3
        if row["column"] == Jax.name and not Jax.installed():
            assert row["note"] == "not installed" and "not installed" in printed
            continue
        assert 0 < row["lowest"] <= row["steps_per_second"] <= row["highest"] and row["vector_run_over_it"] > 0
        assert row["target"] is None and row["updates_per_block"] >= 1 and row["share_of_peak"] > 0


def test_targets_are_shown_where_they_hold(monkeypatch) -> None:
    monkeypatch.setattr(throughput, "TARGET_RUNS", 3)
    rows = throughput.measure(TINY, 1, 0.001, throughput.clock(1)[1])
    targets = {r["column"]: r["target"] for r in rows if r.get("target")}
    assert targets == {k: v for k, v in throughput.TARGETS.items() if k != Jax.name or Jax.installed()}
    assert throughput.table(rows).count("(target ") == len(targets)


def test_columns_agree() -> None:
    columns = _columns()
    start = columns[0].task.init()
    assert throughput.disagreement(columns) < 1e-3
    for column in columns:
        # They agree on something: the weights went somewhere, and the columns hold what they say.
        moved = column.weights() - start[: column.runs]
        assert moved.shape == (min(3, column.runs), start.shape[1]) and (moved.abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("kind", [Eager, Vmap])
def test_a_column_that_computes_something_else_is_noticed(kind) -> None:
    columns = _columns()
    culprit = next(c for c in columns if type(c) is kind)
    culprit.done = 1  # starts with the second batch
    with pytest.raises(RuntimeError, match="does not compute what VectorRun does"):
        throughput.disagreement(columns)


def test_sensed_runs_begin_again_at_their_horizon() -> None:
    sensed = next(c for c in _columns() if type(c) is Sensed)
    sensed.draw()
    sensed.advance(210)
    assert sensed.run.step == 10 and sensed.optimizer.kind == "adamw"


def test_flops_are_those_of_the_products() -> None:
    # 64-32-10 at batch 64: forward and the gradient of both matrices, and of the hidden layer.
    assert Work(1).flops == 2 * 64 * (2 * (64 * 32 + 32 * 10) + 32 * 10)
    assert next(c for c in _columns() if type(c) is Vector).unit == 1


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--rounds", "0"], ["--threads", "0"]])
def test_bad_numbers_are_one_line(arguments, capsys) -> None:
    with pytest.raises(SystemExit):
        throughput.main(arguments)
    assert "at least 1" in capsys.readouterr().err
