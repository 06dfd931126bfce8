"""The trace of a long run: updates whose rates go straight on have no line, and yet every reader finds them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hf_adaptive_lr.report import read_run, render_report
from hf_adaptive_lr.scheduler import trace as trace_file
from hf_adaptive_lr.scheduler.decision import Decision
from hf_adaptive_lr.scheduler.trace import TraceWriter, read_trace

UPDATES = 3_000


def _decision(step: int, last: int = UPDATES) -> Decision:
    """Warm-up, a decision every 370 updates and a straight line to zero between them; a cut, then a cooldown."""
    since = step - step % 370
    line = (last - step) / (last - since)
    scale = 0.5 if step >= 1_500 else 1.0
    ramp = min(1.0, (step + 1) / 50) * line * scale
    lr = ramp / (1 + since)
    if step >= 2_700:
        return Decision(step, (1e-3 * line, 2e-3 * line), "cooldown", line)
    if step == since:
        return Decision(step, (lr, 2 * lr), "decision", ramp, lr, lr, {"loss": 1.0})
    return Decision(step, (lr, 2 * lr), "between", ramp)


def _write(folder: Path, first: int = 0, last: int = UPDATES) -> Path:
    writer = TraceWriter(folder / "lr_trace.jsonl", total_steps=UPDATES)
    for step in range(first, last):
        writer(_decision(step))
    return writer.path


@pytest.fixture
def long(tmp_path, monkeypatch) -> Path:
    """The trace of a run whose first 1,000 updates have a line each."""
    monkeypatch.setattr(trace_file, "LONG", 1_000)
    (tmp_path / "long").mkdir()
    return _write(tmp_path / "long")


def test_every_update_is_read_back_from_few_lines(long) -> None:
    rows = read_trace(long)
    assert [(row["step"], row["reason"]) for row in rows] == [(s, _decision(s).reason) for s in range(UPDATES)]
    for row in rows:
        expected = _decision(row["step"]).as_dict()
        assert row.keys() == expected.keys()
        for name in ("lr", "lrs", *(["ramp"] if "ramp" in row else [])):
            assert row[name] == pytest.approx(expected[name], rel=2e-6, abs=0)
    # A line each at first; then every tenth, decisions and the one after them, the cut, the cooldown's start, the end.
    assert len(long.read_text().splitlines()) < 1_000 + 200 + 2 * 6 + 6


@pytest.mark.parametrize("end", [1_005, 1_111, 2_995])
def test_a_run_that_ends_before_its_planned_end_is_whole(end, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trace_file, "LONG", 1_000)
    writer = TraceWriter(tmp_path / "lr_trace.jsonl", total_steps=UPDATES)
    for step in range(end):
        writer(_decision(step))
    writer.flush()
    writer.flush()  # again changes nothing
    rows = read_trace(writer.path)
    assert [row["step"] for row in rows] == list(range(end))
    assert rows[-1]["lr"] == pytest.approx(_decision(end - 1).lr[0], rel=2e-6)
    for step in range(end, UPDATES):  # and it can go on
        writer(_decision(step))
    assert [row["step"] for row in read_trace(writer.path)] == list(range(UPDATES))


def test_a_trace_of_before_is_continued_as_it_was(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trace_file, "LONG", 4)
    lines = [
        {"step": 0, "lr": 0.5, "reason": "decision"},
        {"step": 4, "lr": 0.25, "reason": "decision", "unchanged": 3},
    ]
    path = tmp_path / "lr_trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    writer = TraceWriter(path)
    for step in range(1_010, 1_020):
        writer(Decision(step, (0.25,) if step < 1_015 else (0.125,), "between"))
    writer.flush()
    rates = [row["lr"] for row in read_trace(path)]
    assert rates == [0.5] * 4 + [0.25] * 1_011 + [0.125] * 5


def test_lines_of_events_without_a_step_are_read(tmp_path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"action": "skip"}\n{"action": "rollback"}\n')
    assert [row["action"] for row in read_trace(path)] == ["skip", "rollback"]


def test_ten_million_updates_have_few_lines(tmp_path) -> None:
    writer = TraceWriter(tmp_path / "lr_trace.jsonl", total_steps=10_000_000)
    for step in (*range(20_000), *range(9_000_000, 9_200_000)):  # what lies between would take a minute
        left = 1 - step / 10_000_000
        writer(Decision(step, (1e-3 * left,), "between", left))
    assert len(writer.path.read_text().splitlines()) <= 20_000 + 25


def test_traces_of_before_are_read_as_they_were(tmp_path) -> None:
    lines = [
        {"step": 0, "lr": 0.5, "reason": "decision"},
        {"step": 1, "lr": 0.25, "reason": "decision"},
        {"step": 4, "lr": 0.125, "reason": "decision", "unchanged": 2},
    ]
    path = tmp_path / "lr_trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(row["lr"], row["reason"]) for row in read_trace(path)] == [
        (0.5, "decision"),
        (0.25, "decision"),
        (0.25, "between"),
        (0.25, "between"),
        (0.125, "decision"),
    ]
    assert read_run(tmp_path).facts["updates in the trace"] == "5"


@pytest.mark.parametrize(
    "at", [0, 1, 370, 999, 1000, 1001, 1110, 1111, 1112, 1115, 1499, 1500, 1501, 1502, 2701, 2990, UPDATES]
)
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
