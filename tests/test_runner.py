"""The row runner: resumable, append-only, the same in one process and in several."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from hf_adaptive_lr.bench.rows import (
    RowsError,
    RunKey,
    append_row,
    digest,
    forget_errors,
    pack,
    packed_path,
    read_rows,
    write_rows,
)
from hf_adaptive_lr.bench.runner import Workers, leave_launcher, run_all
from hf_adaptive_lr.bench.studies.papers.methods import METHODS
from hf_adaptive_lr.bench.studies.papers.plan import QUICK
from hf_adaptive_lr.bench.train import TrainingRun


@dataclass(frozen=True)
class Square:
    """A run that squares its learning rate and notes in a file that it was executed."""

    lr: float
    log: Path
    seed: int = 0
    method_spec: str = "first"
    ends_in: type[BaseException] | None = None
    delay: float = 0.0

    @property
    def key(self) -> RunKey:
        return RunKey("numbers", "square", self.seed, self.lr)

    @property
    def task_digest(self) -> str:
        return digest("numbers")

    @property
    def method_digest(self) -> str:
        return digest(self.method_spec)

    def execute(self) -> dict:
        with self.log.open("a") as file:
            file.write(f"{self.lr}\n")
        time.sleep(self.delay)
        if self.ends_in is not None:
            raise self.ends_in(f"no {self.log}")
        return {"result": self.lr**2, "threads": torch.get_num_threads()}


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log").touch()
    return tmp_path / "log"


def executed(log: Path) -> list[float]:
    return [float(line) for line in log.read_text().splitlines()]


def test_rows_come_in_the_order_of_the_plan_each_once(tmp_path, log) -> None:
    plan = [Square(3.0, log), Square(1.0, log), Square(3.0, log)]
    rows = run_all(plan, tmp_path / "rows.jsonl", bar=False)
    assert [(row["lr"], row["result"]) for row in rows] == [(3.0, 9.0), (1.0, 1.0)]
    assert read_rows(tmp_path / "rows.jsonl") == rows
    assert executed(log) == [3.0, 1.0]


def test_an_interrupted_plan_goes_on_where_it_was(tmp_path, log) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    plan = [Square(1.0, log), Square(2.0, log), Square(3.0, log, ends_in=KeyboardInterrupt), Square(4.0, log)]
    with pytest.raises(KeyboardInterrupt):
        run_all(plan, path, bar=False)
    assert [row["lr"] for row in read_rows(path)] == [1.0, 2.0]
    before = path.read_bytes()
    rows = run_all([replace(run, ends_in=None) for run in plan], path, bar=False)
    assert [row["result"] for row in rows] == [1.0, 4.0, 9.0, 16.0]
    assert executed(log) == [1.0, 2.0, 3.0, 3.0, 4.0]  # 3.0 had not ended
    assert path.read_bytes().startswith(before)
    run_all(plan, path, bar=False)
    assert len(executed(log)) == 5


def test_one_thread_in_this_process_and_then_as_before(tmp_path, log) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (row,) = run_all([Square(1.0, log)], tmp_path / "rows.jsonl", bar=False)
        assert row["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_torn_last_line_is_dropped_and_its_run_done_again(tmp_path, log) -> None:
    path = tmp_path / "rows.jsonl"
    run_all([Square(1.0, log), Square(2.0, log)], path, bar=False)
    whole = path.read_bytes()
    for cut in (1, 30):  # only the line's end is missing, or half of the line
        path.write_bytes(whole[:-cut])
        assert [row["lr"] for row in read_rows(path)] == [1.0]
        run_all([Square(1.0, log), Square(2.0, log)], path, bar=False)
        assert path.read_bytes() == whole
    assert executed(log) == [1.0, 2.0, 2.0, 2.0]


def test_a_damaged_line_within_the_file_is_refused_by_number(tmp_path, log) -> None:
    path = tmp_path / "rows.jsonl"
    run_all([Square(1.0, log), Square(2.0, log)], path, bar=False)
    first, second = path.read_text().splitlines()
    path.write_text(f"{first[:-3]}\n{second}\n")
    with pytest.raises(RowsError, match="line 1 is not JSON"):
        run_all([Square(3.0, log)], path, bar=False)
    assert executed(log) == [1.0, 2.0]


def test_what_has_changed_is_not_taken_for_what_was(tmp_path, log) -> None:
    path = tmp_path / "rows.jsonl"
    run_all([Square(1.0, log)], path, bar=False)
    run_all([Square(1.0, log, method_spec="second"), Square(1.0, log)], path, bar=False)
    assert len({row["method_digest"] for row in read_rows(path)}) == 2
    run_all([Square(1.0, log, seed=1)], path, bar=False)
    assert executed(log) == [1.0, 1.0, 1.0]


def test_a_failing_run_is_a_row_that_counts_as_done_until_it_is_forgotten(tmp_path, log) -> None:
    path = tmp_path / "rows.jsonl"
    plan = [Square(1.0, log, ends_in=ValueError), Square(2.0, log)]
    bad, good = run_all(plan, path, bar=False)
    assert bad["error"] == "ValueError: no log"  # the folder stays private
    assert good["result"] == 4.0
    run_all(plan, path, bar=False)
    assert executed(log) == [1.0, 2.0]
    assert forget_errors(path) == 1
    again, _ = run_all([Square(1.0, log), Square(2.0, log)], path, bar=False)
    assert again["result"] == 1.0
    assert executed(log) == [1.0, 2.0, 1.0]
    assert forget_errors(path) == 0


def test_numbers_that_json_has_not_are_null(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    append_row(path, {"loss": float("nan"), "curve": [(0.0, float("inf"))], "lr": 1.0})
    assert path.read_text() == '{"loss": null, "curve": [[0.0, null]], "lr": 1.0}\n'


def test_jobs_must_be_positive(tmp_path) -> None:
    with pytest.raises(ValueError, match="jobs=0 must be at least 1"):
        run_all([], tmp_path / "rows.jsonl", jobs=0)


def test_two_processes_write_the_rows_of_one(tmp_path) -> None:
    task = QUICK.tasks["digits-mlp"]
    plan = [TrainingRun(task, METHODS[name], 0, 0.1) for name in ("constant", "linear", "hypergradient")]
    plan.append(TrainingRun(replace(task, model="cnn"), METHODS["constant"], 0, 0.1))  # cannot be: digits are vectors
    here = run_all(plan, tmp_path / "one.jsonl", bar=False)
    with Workers(2) as workers:
        there = [run_all(half, tmp_path / "two.jsonl", jobs=workers, bar=False) for half in (plan[:2], plan[2:])]
    assert list(map(timeless, here)) == list(map(timeless, there[0] + there[1]))
    assert ["error" in row for row in here] == [False, False, False, True]
    assert len(read_rows(tmp_path / "two.jsonl")) == 4


def timeless(row: dict) -> str:
    """A row without what was measured with a clock."""
    return json.dumps({name: value for name, value in row.items() if "seconds" not in name})


def _append_many(path: Path, writer: int) -> None:
    for number in range(40):
        append_row(path, {"writer": writer, "number": number})


def test_rows_of_several_writers_are_all_there(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_append_many, args=(path, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    assert sorted((row["writer"], row["number"]) for row in read_rows(path)) == [
        (writer, number) for writer in range(4) for number in range(40)
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def _run_plan(path: Path, log: Path, delay: float) -> None:
    run_all([Square(float(lr), log, delay=delay) for lr in range(6)], path, bar=False)


def test_processes_share_a_plan_and_each_has_all_rows_in_the_end(tmp_path, log) -> None:
    path = tmp_path / "rows.jsonl"
    fork = multiprocessing.get_context("fork")
    commands = [fork.Process(target=_run_plan, args=(path, log, 0.05)) for _ in range(3)]
    for process in commands:
        process.start()
    for process in commands:
        process.join()
    assert [process.exitcode for process in commands] == [0] * 3
    assert sorted(executed(log)) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]  # none twice
    assert [file.name for file in tmp_path.iterdir() if file != log] == ["rows.jsonl"]


def test_a_claim_of_a_killed_process_is_free(tmp_path, log) -> None:
    path = tmp_path / "rows.jsonl"
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_run_plan, args=(path, log, 60.0))
    process.start()
    while not executed(log):
        time.sleep(0.01)
    process.kill()
    process.join()
    run_all([Square(0.0, log)], path, bar=False)
    assert [row["lr"] for row in read_rows(path)] == [0.0]


def test_packed_rows_are_the_same_rows(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"task": "t", "method": name, "seed": seed, "versions": {"torch": "2"}, "loss": seed / 3, "curve": [[0, None]]}
        for name in ("a", "b")
        for seed in range(3)
    ]
    for row in rows[:4]:
        append_row(path, row)
    pack(path)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl.gz"]
    assert read_rows(path) == rows[:4]
    for row in rows[4:]:
        append_row(path, row)
    assert read_rows(path) == rows
    pack(path)
    packed = packed_path(path).read_bytes()
    assert read_rows(path) == rows
    assert gzip.decompress(packed).count(b'"torch"') == 2  # once for each method
    write_rows(path, rows)
    assert packed_path(path).read_bytes() == packed  # nothing of the clock in it
    packed_path(path).write_bytes(packed[:-20])
    with pytest.raises(RowsError, match="rows.jsonl.gz is no file of packed rows"):
        read_rows(path)


def test_under_a_launcher_each_process_works_for_itself(monkeypatch) -> None:
    assert leave_launcher() == (0, 1)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert leave_launcher() == (1, 2)
    assert leave_launcher() == (0, 1)  # Trainer, too, finds itself alone
