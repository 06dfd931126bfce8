"""The page of `universal`: figures from made-up rows that can be worked out by hand, and the committed page."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from hf_adaptive_lr.bench import universal_ablations, universal_page, yardstick_methods
from hf_adaptive_lr.bench.rows import append_row
from hf_adaptive_lr.bench.runner import identity
from hf_adaptive_lr.bench.universal_figures import (
    MINE,
    Curve,
    Pairs,
    curve,
    harm,
    improved_by,
    improvement,
    pairs,
    summary,
)
from hf_adaptive_lr.bench.yardstick_methods import METHODS, Method
from hf_adaptive_lr.bench.yardstick_plan import PROFILES, Book, own_lr_runs, reference_runs, sweep_runs, tuning_runs
from hf_adaptive_lr.bench.yardstick_tasks import TASKS

ROOT = Path(__file__).parent.parent
FULL = dataclasses.replace(PROFILES["full"], tasks=("text-minilm", "image-cnn"))
ACCURACY = {MINE: 0.9, "linear": 0.5, "cosine": 0.4}


@pytest.fixture
def book(tmp_path, monkeypatch) -> Book:
    """Two real tasks on which `universal`, linear and cosine have all rows."""
    mine = Method(name=MINE, text="made up", controller="relative")
    monkeypatch.setattr(yardstick_methods, "METHODS", {**METHODS, MINE: mine})
    for module in ("universal_figures", "universal_page", "yardstick_plan"):
        monkeypatch.setattr(f"hf_adaptive_lr.bench.{module}.METHODS", {**METHODS, MINE: mine})
    book = Book(tmp_path)
    for name in FULL.tasks:
        task = TASKS[name]
        runs = tuning_runs(task, FULL)
        for method in (mine, METHODS["linear"], METHODS["cosine"]):
            runs += own_lr_runs(task, method, FULL, book) + sweep_runs(task, method, FULL)
        _write(book, {identity(run): run for run in runs}.values())
        _write(book, [run for run in reference_runs(task, FULL, book) if book.get(run) is None])
    return book


def _write(book: Book, runs) -> None:
    for run in runs:
        key, task_digest, method_digest = identity(run)
        at_best = run.method.name == "linear" and run.lr == 1e-3
        accuracy = 0.8 if at_best else ACCURACY[run.method.name]
        row = {"row": "run", **dataclasses.asdict(key), "task_digest": task_digest, "method_digest": method_digest}
        row |= {"valid_loss": 1 - accuracy, "test_loss": 1 - accuracy, "test_accuracy": accuracy, "first_loss": 1.0}
        append_row(book.path(run.task.name), row | {"parameters": 10, "failed": False, "pairing": "x"})
        book.forget(run.task.name)


def test_curves_and_their_summary(book) -> None:
    task = TASKS["text-minilm"]
    linear, mine = (curve(task, name, FULL, book) for name in ("linear", MINE))
    assert len(linear.lrs) == 8 and dict(zip(linear.lrs, linear.accuracy, strict=True))[1e-3] == pytest.approx(0.8)
    assert mine.accuracy == pytest.approx([0.9] * 8)
    assert summary({"one": linear}) == pytest.approx((0.5 + 0.3 / 8, 0.8, 0.5))
    assert curve(task, "prodigy", FULL, book) is None


def test_pairs_against_the_tuned_schedule_and_a_default(book) -> None:
    tasks = [TASKS[name] for name in FULL.tasks]
    tuned, default = (pairs(tasks, name, "test_accuracy", FULL, book) for name in (None, "cosine"))
    assert tuned.tasks == FULL.tasks and tuned.mine.shape == (2, 3)
    assert tuned.difference().value == pytest.approx(0.1) and default.difference().value == pytest.approx(0.5)
    loss = pairs(tasks, None, "test_loss", FULL, book)
    assert improvement(loss) == 1.0 and improved_by(loss) == 2
    assert harm(tasks, FULL, book) == (0.0, 6)
    assert pairs(tasks, "prodigy", "test_loss", FULL, book).tasks == ()


def test_a_run_that_failed_counts_as_the_worst() -> None:
    found = Pairs(("a",), np.array([[math.inf, 1.0]]), np.array([[1.0, 1.0]]))
    assert improvement(found) == 0.25 and improved_by(found) == 0
    assert summary({"a": Curve((1.0, 2.0), (0.2, 0.4)), "b": Curve((1.0, 2.0), (0.6, 0.8))}) == pytest.approx(
        (0.5, 0.6, 0.4)
    )


def test_the_page_says_it(book) -> None:
    page = universal_page.render(FULL, book, "tried *this*")
    assert "| `universal_bundled` | 2 | 0.900 | 0.900 | 0.900 |" in page
    assert "| linear, tuned | 2 | 0.900 | 0.800 | +0.100 [+0.100, +0.100] | 1.00 | 0.50 |" in page
    curves = universal_page.curves_of(FULL, book)
    assert universal_page.left_out(FULL, curves) == ""
    assert universal_page.left_out(dataclasses.replace(FULL, tasks=(*FULL.tasks, "text-lora")), curves).endswith(
        "decade: text-lora.\n"
    )
    words = universal_page.in_words(FULL, book)
    assert "On all 2 real tasks" in words and "is 0.900; a linear schedule tuned for each has 0.800" in words
    assert "tried *this*" in page and "| tasks with a loss lower by 5 % | at least 1 | 2 of 2 |" in page
    assert universal_page.picture(universal_page.curves_of(FULL, book)).startswith(b"\x89PNG")
    empty = universal_page.render(FULL, Book(book.folder / "none"), None)
    assert empty.count("No rows yet") == 6 and "![" not in empty


def test_ablations_stand_beside_the_whole_one(book) -> None:
    assert universal_ablations.ablations(FULL, book) == ""
    for name, accuracy in ((universal_ablations.WHOLE, 0.6), ("ablations/newcomers", 0.2), ("relative_walk", 0.7)):
        for task in (TASKS[name] for name in FULL.tasks):
            for seed in range(3):
                row = {"row": "run", "task": task.name, "method": name, "seed": seed, "lr": 5e-5, "first_loss": 1.0}
                row |= {"task_digest": task.digest, "method_digest": "x", "test_loss": 1 - accuracy}
                append_row(book.path(task.name), row | {"test_accuracy": accuracy})
            book.forget(task.name)
    text = universal_ablations.ablations(FULL, book)
    assert "| the bundled one |  | 2 | 0.900 |  |  |" in text and "gain ratio" not in text
    assert "| the bundled one | 2 | 0.700 | -0.200 [-0.200, -0.200] | 3.00 [3.00, 3.00] |" in text
    assert "| that of a quarter of an hour | 2 | 0.200 | -0.400 [-0.400, -0.400] | 2.00 [2.00, 2.00] |" in text


def test_trainings_stand_beside_each_other_on_the_quick_tasks(book, monkeypatch) -> None:
    quick = dataclasses.replace(PROFILES["quick"], tasks=("text-minilm", "image-cnn"), tuning_stride=1)
    monkeypatch.setattr(universal_ablations, "PROFILES", {"quick": quick})
    assert universal_ablations.trainings(book) == ""  # one alone says nothing
    for task, losses in (("text-minilm", (0.2, 0.4, 0.8)), ("image-cnn", (0.2, 0.2, None))):
        for seed, loss in enumerate(losses):
            row = {"row": "run", "task": task, "method": "trainings/seed-1", "seed": seed, "lr": 5e-5}
            row |= {"task_digest": TASKS[task].digest, "method_digest": "x", "test_loss": loss, "first_loss": 1.0}
            append_row(book.path(task), row)
        book.forget(task)
    # The tuned schedule has 0.2: ln 1, ln 2 and ln 4; ln 1 twice and a failed run, which is ln 100.
    text = universal_ablations.trainings(book)
    assert "| 60 minutes, seed 1 | +0.69 | +1.54 | +1.11 |" in text
    assert "| bundled, 15 minutes | -0.69 | -0.69 | -0.69 |" in text and "seed 0" not in text


def test_the_committed_page_is_what_the_rows_say() -> None:
    page = (ROOT / "model_cards" / universal_page.PAGE).read_text(encoding="utf-8")
    notes = universal_page.notes_of(page)
    assert universal_page.render(PROFILES["full"], Book(ROOT / universal_page.ROWS), notes) == page


def test_without_rows_the_command_says_so(tmp_path, capsys) -> None:
    assert universal_page.main(["--rows-dir", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err
