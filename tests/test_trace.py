"""The trace of a long run: updates at which nothing changed have no line, and yet every reader finds them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_adaptive_lr.report import read_run, render_report
from hf_adaptive_lr.scheduler import trace as trace_file
from hf_adaptive_lr.scheduler.decision import Decision
from hf_adaptive_lr.scheduler.trace import TraceWriter, read_trace

UPDATES = 997


def _decision(step: int) -> Decision:
    """Warm-up, then a decision every 37 updates."""
    ramp, last = min(1.0, (step + 1) / 5), step - step % 37
    lr = ramp / (1 + last)
    if step == last:
        return Decision(step, (lr, 2 * lr), "decision", ramp, lr, lr, {"loss": 1.0})
    return Decision(step, (lr, 2 * lr), "between", ramp)


def _write(folder: Path, first: int = 0, last: int = UPDATES) -> Path:
    writer = TraceWriter(folder / "lr_trace.jsonl", total_steps=UPDATES)
    for step in range(first, last):
        writer(_decision(step))
    return writer.path


@pytest.fixture
def long(tmp_path, monkeypatch) -> Path:
    """The trace of a run whose first 100 updates have a line each."""
    monkeypatch.setattr(trace_file, "LONG", 100)
    (tmp_path / "long").mkdir()
    return _write(tmp_path / "long")


def test_every_update_is_read_back_from_few_lines(long) -> None:
    expected = [_decision(step).as_dict() for step in range(UPDATES)]
    assert read_trace(long) == expected
    assert len(long.read_text().splitlines()) < 100 + UPDATES / 37 + UPDATES / 100 + 1


@pytest.mark.parametrize("at", [0, 1, 50, 99, 100, 101, 148, 149, 300, 399, 400, 401, 990, UPDATES])
def test_a_resumed_run_writes_the_same_lines(at, long, tmp_path) -> None:
    (tmp_path / "parts").mkdir()
    path = _write(tmp_path / "parts", 0, min(at + 9, UPDATES))  # killed a little after its checkpoint
    _write(tmp_path / "parts", at)
    if at < UPDATES:
        assert path.read_bytes() == long.read_bytes()


def test_the_report_counts_them_and_draws_the_same(long, tmp_path) -> None:
    (tmp_path / "full").mkdir()
    trace_file.LONG = 10**9  # put back by the fixture
    full = read_run(_write(tmp_path / "full").parent)
    few = read_run(long.parent)
    for name in ("updates in the trace", "decisions", "first LR", "largest LR", "last LR"):
        assert few.facts[name] == full.facts[name]
    assert few.last_step == full.last_step == UPDATES - 1
    assert f"of {UPDATES:,} updates are in this table" in render_report([few])


def test_two_writers_of_one_trace_are_told(tmp_path) -> None:
    writers = [TraceWriter(tmp_path / "lr_trace.jsonl") for _ in range(2)]
    for writer in writers:
        writer(_decision(0))
    writers[1](_decision(1))
    with pytest.warns(UserWarning, match="another process writes into .* of its own"):
        writers[0](_decision(1))
    writers[0](_decision(2))


def test_a_run_that_changes_its_working_folder_keeps_its_trace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = TraceWriter(Path("lr_trace.jsonl"))
    writer(_decision(0))
    (tmp_path / "elsewhere").mkdir()
    os.chdir("elsewhere")
    writer(_decision(1))
    assert len(read_trace(tmp_path / "lr_trace.jsonl")) == 2
