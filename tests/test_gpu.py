"""The GPU check on a CPU: its command without a GPU, and the logic of its checks where nothing needs one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from hf_adaptive_lr import Hypergradient
from hf_adaptive_lr.bench import gpu, gpu_checks
from hf_adaptive_lr.bench.gpu_runs import Card, Loop, Scale
from hf_adaptive_lr.bench.rows import write_rows
from hf_adaptive_lr.bench.studies.measured import header
from hf_adaptive_lr.bench.studies.tiny_bert import TINY

SMALL = Scale(TINY, width=32, layers=1, tokens=16, batch=4, loop=14, blocks=1, updates=6)


class Waiting(Card):
    """A device on which forbidden updates of a list make the host wait."""

    def __init__(self, updates: list[int]) -> None:
        super().__init__("cpu")
        self.asked: list[bool] = []
        self.updates = updates

    def without_syncs(self, forbidden: bool):
        self.asked.append(forbidden)
        if forbidden and len(self.asked) - 1 in self.updates:
            raise RuntimeError("called a synchronizing CUDA operation")
        return super().without_syncs(forbidden)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output-dir", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "no GPU" in said.err
    assert list(tmp_path.iterdir()) == []
    assert gpu.main(["--output-dir", str(tmp_path), "--render-only"]) == 0
    assert "Not run yet" in (tmp_path / gpu.PAGE).read_text()


def test_the_page_is_what_the_command_makes_of_the_rows() -> None:
    cards = Path(gpu.CARDS)
    assert gpu.page(gpu.read_rows(cards / gpu.ROWS)) == (cards / gpu.PAGE).read_text()


def test_all_checks_hold_where_nothing_needs_a_gpu(tmp_path, capsys) -> None:
    rows = list(gpu.measure(Card("cpu"), SMALL, 1e6))
    checks = [row for row in rows if row["row"] == "check"]
    assert {row["check"] for row in checks} == set(gpu.CHECKS)
    assert [row for row in checks if row["held"] is False] == []
    found = {(row["check"], row["case"]): row for row in checks}
    assert found["host syncs between decisions", "universal"]["of_updates"] > 4
    assert found["steps of the optimizer", "compiled to a CUDA graph"]["rates"] < 1e-3
    assert found["guard", "rollback"]["rollback"] == 1
    assert {case for check, case in found if check == "decoder"} == {
        "universal",
        *(f"linear, {rate:g}" for rate in gpu_checks.GRID),
    }
    write_rows(tmp_path / gpu.ROWS, [header("test", device="a card"), *rows])
    assert gpu.main(["--output-dir", str(tmp_path), "--render-only"]) == 0
    shown = (tmp_path / gpu.PAGE).read_text()
    assert shown in capsys.readouterr().out and "On a card, torch" in shown and "| decoder | universal | - |" in shown


def test_waiting_between_decisions_is_counted() -> None:
    card = Waiting([3, 7])
    run = Loop(card, SMALL, Hypergradient())  # decides at updates 0 and 10
    quiet = [update for update, asked in enumerate(card.asked) if asked]
    assert quiet == [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13] and run.between == len(quiet)
    assert run.syncs == 2 and len(run.losses) == SMALL.loop - 2
    assert run.scheduler.updates == SMALL.loop - 2


def test_other_errors_are_not_taken_for_waiting() -> None:
    class Broken(Card):
        def without_syncs(self, forbidden: bool):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Loop(Broken("cpu"), SMALL, None)


def test_a_check_that_raises_or_comes_too_late_is_a_row(monkeypatch, tmp_path) -> None:
    def fails(card: Card, scale: Scale):
        yield {"case": "first", "held": True}
        raise ValueError("no such\nthing")

    def late(card: Card, scale: Scale):
        yield {"case": "late", "held": True}

    monkeypatch.setattr(gpu, "CHECKS", {"one": fails, "two": late})
    times = iter([0.0, 1.0, 5.0, 6.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    rows = list(gpu.measure(Card("cpu"), SMALL, 3.0))
    assert [row.get("error", "") for row in rows] == [
        "",
        "ValueError: no such thing",
        "TimeoutError: not begun: 3 seconds were over",
        "",
    ]
    assert rows[-1]["seconds"] == 6
    write_rows(tmp_path / gpu.ROWS, [header("test", device="a card"), *rows])
    assert gpu.main(["--output-dir", str(tmp_path), "--render-only"]) == 1
