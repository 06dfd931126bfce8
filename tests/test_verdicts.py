"""The paper study: fair runs, tuning by validation alone, statistics, mechanical words, pages out of rows."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_adaptive_lr import Controller
from hf_adaptive_lr.bench import verdict_judge, verdict_pages, verdict_plan
from hf_adaptive_lr.bench.rows import Row, RowsError, append_row, read_rows
from hf_adaptive_lr.bench.run_record import Meter, curve
from hf_adaptive_lr.bench.runner import attempt, identity, run_all
from hf_adaptive_lr.bench.training_run import TrainingRun
from hf_adaptive_lr.bench.verdict import main
from hf_adaptive_lr.bench.verdict_data import corrupt, load
from hf_adaptive_lr.bench.verdict_judge import Cell
from hf_adaptive_lr.bench.verdict_methods import BASELINES, METHODS, Method
from hf_adaptive_lr.bench.verdict_models import Classifier
from hf_adaptive_lr.bench.verdict_papers import MARGINS, PAPERS, Claim, Comparison, Paper
from hf_adaptive_lr.bench.verdict_plan import TUNING_SEED, Book, Tuning
from hf_adaptive_lr.bench.verdict_tasks import QUICK_TASKS, TASKS, Task
from hf_adaptive_lr.controllers import CONTROLLERS
from hf_adaptive_lr.hub.card import notes_of

ROOT = Path(__file__).parent.parent
CARDS = ROOT / "model_cards"
DIGITS = QUICK_TASKS["digits-mlp"]
GROWING = replace(DIGITS, extensions=3)  # the same runs; more learning rates may follow

TOY = Paper(
    name="toy",
    title="Somebody, a title",
    link="https://example.org",
    claim="It is good.",
    tasks=("digits-mlp",),
    methods=("hypergradient", "replay:hypergradient"),
    claims=(
        Claim("It is not worse.", (Comparison("digits-mlp", "hypergradient", "constant", relation="not worse"),)),
        Claim("It is a theorem.", why="no run can test it"),
    ),
    controls=(Claim("Feedback.", (Comparison("digits-mlp", "hypergradient", "replay:hypergradient"),)),),
    notes="First words.",
)
TOY_METHODS = [METHODS[name] for name in (*BASELINES, *TOY.methods)]


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Book:
    """All rows of the toy paper, from real quick runs."""
    made = Book(tmp_path_factory.mktemp("rows"))
    verdict_plan.complete([DIGITS], TOY_METHODS, range(2), made, QUICK_TASKS, bar=False)
    return made


@pytest.fixture
def toy(monkeypatch) -> Paper:
    monkeypatch.setitem(PAPERS, "toy", TOY)
    return TOY


def tuned_on_digits(name: str, book: Book, task: Task = DIGITS) -> Tuning:
    return verdict_plan.tuned(task, METHODS[name], book, QUICK_TASKS)


def counted(name: str, book: Book) -> dict[int, Row]:
    return verdict_plan.counted(DIGITS, METHODS[name], book, QUICK_TASKS)


# --- runs ---------------------------------------------------------------------------------------------------------


def test_runs_of_one_seed_are_a_pair_whatever_the_method() -> None:
    # Plateau looks at held-out data at every update, the other two differ in their learning rates.
    watching = Method(name="watching", controller="plateau", config={"metric": "eval_loss", "window": 2})
    methods = [METHODS["constant"], METHODS["hypergradient"], watching, METHODS["constant_twice_as_long"]]
    rows = [attempt(TrainingRun(DIGITS, method, 3, lr)) for method in methods for lr in (0.01, 0.3)]
    assert not [row["error"] for row in rows if "error" in row]
    assert len({(row["pairing"], row["first_loss"]) for row in rows}) == 1
    assert len({row["test_loss"] for row in rows}) > 4
    other = attempt(TrainingRun(DIGITS, METHODS["constant"], 4, 0.01))
    assert (other["pairing"], other["first_loss"]) != (rows[0]["pairing"], rows[0]["first_loss"])


def test_a_run_gives_the_same_row_twice() -> None:
    rows = [attempt(TrainingRun(DIGITS, METHODS["hypergradient"], 0, 0.1)) for _ in range(2)]
    first, second = ({k: v for k, v in row.items() if "seconds" not in k} for row in rows)
    assert first == second


def test_a_row_says_what_was_measured() -> None:
    row = attempt(TrainingRun(DIGITS, METHODS["linear"], 0, 0.5))
    assert [factor for _, factor in row["factor_curve"]] == pytest.approx([1 - k / 12 for k in range(12)], rel=1e-5)
    assert row["final_lr"] == pytest.approx(0.5 / 12, rel=1e-5)
    assert row["loss_curve"][0] == (0.0, row["first_loss"])
    assert row["train_loss"] == row["loss_curve"][-1][1]  # a tenth of twelve updates is one
    assert row["passes"] == {"forward": 1.0, "backward": 1.0}
    assert row["setting"]["parameters"] == 64 * 64 + 64 + 64 * 10 + 10
    assert row["setting"]["updates"] == 12
    assert not row["diverged"]
    assert str(Path.home()) not in json.dumps(row)


def test_looking_at_held_out_data_is_paid_for() -> None:
    watching = Method(name="watching", controller="plateau", config={"metric": "eval_loss", "window": 2})
    row = attempt(TrainingRun(DIGITS, watching, 0, 0.1))
    evaluations, trained = 12 * DIGITS.controller_rows, 12 * DIGITS.batch_size
    assert row["passes"] == {"forward": 1 + evaluations / trained, "backward": 1.0}


def test_the_meter_counts_rows_of_every_pass() -> None:
    model = Classifier(nn.Sequential(nn.Linear(4, 3)), 3)
    meter = Meter(model)
    x, y = torch.zeros(5, 4), torch.zeros(5, dtype=torch.long)
    model(x, y).loss.backward()
    with torch.no_grad():
        model(x)
    torch.autograd.grad(model(x[:2], y[:2]).loss, list(model.parameters()))
    assert meter.rows == {"forward": 12, "backward": 7}
    meter.close()
    model(x, y).loss.backward()
    assert meter.rows == {"forward": 12, "backward": 7}


def test_a_run_that_comes_apart_is_a_row_and_not_an_error() -> None:
    row = attempt(TrainingRun(replace(DIGITS, updates=40), METHODS["constant"], 0, 10.0))
    assert row["diverged"] is True
    assert "error" not in row
    assert len(row["loss_curve"]) == 25


def test_a_curve_is_of_means_over_stretches() -> None:
    assert curve(list(map(float, range(100))), 50)[:2] == [(0.005, 0.5), (0.025, 2.5)]
    assert len(curve([1.0] * 7, 50)) == 7


def test_the_four_parts_of_the_data_are_disjoint() -> None:
    data = load(TASKS["digits-mlp"])
    parts = (data.train, data.valid, data.controller, data.test)
    assert [len(part) for part in parts] == [1000, 200, 200, 397]
    images = [tuple(image.tolist()) for part in parts for image in part.columns["pixel_values"]]
    assert len(set(images)) == 1797


def test_wrong_labels_are_the_same_for_every_seed_and_only_in_training() -> None:
    clean, noisy = load(DIGITS), load(replace(DIGITS, label_noise=0.4))
    share = float((clean.train.columns["labels"] != noisy.train.columns["labels"]).float().mean())
    assert 0.25 < share < 0.47  # 0.36 expected: a tenth of the new labels are the old ones
    for part in ("valid", "controller", "test"):
        assert torch.equal(getattr(clean, part).columns["labels"], getattr(noisy, part).columns["labels"])
    assert torch.equal(corrupt(torch.arange(9), 0.0, 9), torch.arange(9))


# --- tasks, methods, papers ---------------------------------------------------------------------------------------


def test_digests_follow_what_matters() -> None:
    task, method = TASKS["fashion-cnn"], METHODS["plrs"]
    assert replace(task, lrs=(1.0,), tuned_on="digits-mlp").digest == task.digest
    assert replace(task, updates=301).digest != task.digest
    assert replace(method, name="other", lr="constant").digest == method.digest
    assert replace(method, config={"low": 0.2}).digest != method.digest
    assert len({task.digest for task in (*TASKS.values(), *QUICK_TASKS.values())}) == 2 * len(TASKS)
    own = [m for m in METHODS.values() if m.replay_of is None and m.weights == "none"]
    assert len({m.digest for m in own}) == len(own)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_made_and_trains(name) -> None:
    method = METHODS[name]
    assert method.lr == "tuned" or method.lr in METHODS
    assert method.replay_of is None or method.lr == method.replay_of
    for variant in method.variants():
        assert variant.make_controller().controller_type == method.controller
    row = attempt(TrainingRun(replace(DIGITS, updates=6), method.variants()[0], 0, 0.1))
    assert "error" not in row, row["error"]
    assert (row["pairing"], row["held"]) == (attempt_of_constant()["pairing"], 0)
    assert (row["passes"] != {"forward": 1.0, "backward": 1.0}) == (method.extra_passes != "none")


@cache
def attempt_of_constant() -> Row:
    return attempt(TrainingRun(replace(DIGITS, updates=6), METHODS["constant"], 0, 0.1))


def test_a_method_that_cannot_be_made_says_why() -> None:
    with pytest.raises(ValueError, match="no controller 'nothing', which method 'm' is of"):
        Method(name="m", controller="nothing").make_controller()
    with pytest.raises(ValueError, match="method 'm' does not fit 'constant'.*nonsense"):
        Method(name="m", controller="constant", config={"nonsense": 1}).make_controller()


def test_stairs_are_stairs() -> None:
    method = METHODS["step_decay"].variants()[2]
    row = attempt(TrainingRun(replace(DIGITS, updates=20), method, 0, 0.1))
    factors = [factor for _, factor in row["factor_curve"]]
    assert factors == pytest.approx([0.9 ** (t // 2) for t in range(20)], rel=1e-5)


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_papers_ask_for_what_is_run_and_name_no_numbers(paper) -> None:
    methods = {*BASELINES, *paper.methods}
    assert methods <= METHODS.keys()
    assert set(paper.tasks) <= TASKS.keys()
    for comparison in (c for claim in (*paper.claims, *paper.controls) for c in claim.comparisons):
        assert comparison.task in paper.tasks
        assert {comparison.method, comparison.against} <= methods
    for name in paper.methods:
        assert {METHODS[name].lr, METHODS[name].replay_of} <= {*methods, "tuned", None}
    for claim in (*paper.claims, *paper.controls):
        assert bool(claim.comparisons) != bool(claim.why)
        assert not re.search(r"\d", claim.text + claim.why)
    assert not re.search(r"\d", paper.claim + paper.notes)


# --- tuning and planning ------------------------------------------------------------------------------------------


def put(book: Book, name: str, lr: float, valid_loss: float | None, **more: object) -> None:
    """A tuning row of a method on the digits."""
    run = TrainingRun(DIGITS, METHODS[name], TUNING_SEED, lr, tuning=True)
    key, task_digest, method_digest = identity(run)
    head = {"task": key.task, "method": name, "seed": key.seed, "lr": lr}
    row = {**head, "task_digest": task_digest, "method_digest": method_digest, "diverged": False, **more}
    append_row(book.path(DIGITS), {**row, "valid_loss": valid_loss})
    book.forget(DIGITS)


def test_the_learning_rate_is_the_best_on_validation_rows_whatever_the_test_rows_say(tmp_path) -> None:
    book = Book(tmp_path)
    assert DIGITS.lrs == (0.1, 0.3)
    assert [run.lr for run in tuned_on_digits("linear", book, GROWING).wanted] == [0.1, 0.3]
    put(book, "linear", 0.1, 0.5, test_loss=0.1, train_loss=0.1)
    put(book, "linear", 0.3, 0.4, test_loss=0.9, train_loss=0.9)
    assert [run.lr for run in tuned_on_digits("linear", book, GROWING).wanted] == [
        1.0
    ]  # the best is the largest: go on
    put(book, "linear", 1.0, 0.6, test_loss=0.0)
    found = tuned_on_digits("linear", book, GROWING)
    assert (found.lr, found.runs, found.at_edge, found.wanted) == (0.3, 3, False, ())


def test_tuning_runs_never_touch_the_test_rows(book) -> None:
    rows = read_rows(book.path(DIGITS))
    tuning = [row for row in rows if row["seed"] == TUNING_SEED]
    assert len(tuning) >= 8
    assert all(row["tuning"] and "valid_loss" in row for row in tuning)
    assert not [key for row in tuning for key in row if key.startswith("test")]
    assert not [key for row in rows if row not in tuning for key in row if key.startswith("valid")]


def test_the_grid_grows_a_limited_number_of_times_and_the_edge_is_confessed(tmp_path) -> None:
    book = Book(tmp_path)
    while wanted := tuned_on_digits("linear", book, GROWING).wanted:
        for run in wanted:
            put(book, "linear", run.lr, 5 + math.log10(run.lr))  # the smaller the better
    found = tuned_on_digits("linear", book, GROWING)
    assert (found.lr, found.at_edge, found.runs) == (0.003, True, 5)
    assert tuned_on_digits("linear", book) == replace(found, lr=0.1, runs=2, variant=METHODS["linear"])
    highest = replace(GROWING, lrs=(3.0, 10.0))  # the scheduler allows no more
    for lr, loss in ((3.0, 0.2), (10.0, 0.1)):
        put(book, "linear", lr, loss)
    assert tuned_on_digits("linear", book, highest).lr == 10.0


def test_failed_tuning_runs_are_the_worst(tmp_path) -> None:
    book = Book(tmp_path)
    put(book, "linear", 0.1, None, diverged=True)
    put(book, "linear", 0.3, 0.1, error="ValueError: nothing")
    found = tuned_on_digits("linear", book)
    assert (found.variant, found.wanted) == (None, ())
    assert verdict_plan.counting_run(DIGITS, METHODS["linear"], 0, book, QUICK_TASKS) is None


def test_alternatives_are_tuned_with_the_learning_rate(tmp_path) -> None:
    method = replace(METHODS["hypergradient"], alternatives=({"beta": 0.01}, {"beta": 0.2}))
    book = Book(tmp_path)
    wanted = verdict_plan.tuned(DIGITS, method, book, QUICK_TASKS).wanted
    assert [(run.method.config["beta"], run.lr) for run in wanted] == [
        (b, lr) for b in (0.01, 0.2) for lr in DIGITS.lrs
    ]
    run_all(wanted, book.path(DIGITS), bar=False)
    book.forget(DIGITS)
    found = verdict_plan.tuned(DIGITS, method, book, QUICK_TASKS)
    best = min(read_rows(book.path(DIGITS)), key=lambda row: row["valid_loss"])
    assert found.variant is not None
    assert (found.variant.config["beta"], found.lr) == (best["config"]["beta"], best["lr"])


def test_transfer_takes_over_what_was_tuned_elsewhere(book) -> None:
    other = replace(DIGITS, name="elsewhere", updates=6, tuned_on="digits-mlp")
    tasks = {**QUICK_TASKS, "elsewhere": other}
    assert verdict_plan.tuned(other, METHODS["linear"], book, tasks) == tuned_on_digits("linear", book)
    run = verdict_plan.counting_run(other, METHODS["linear"], 0, book, tasks)
    assert run is not None
    assert (run.task, run.lr, run.tuning) == (other, tuned_on_digits("linear", book).lr, False)


def test_a_replay_is_the_mean_of_the_other_seeds(book) -> None:
    source, replays = counted("hypergradient", book), counted("replay:hypergradient", book)
    assert source.keys() == replays.keys() == {0, 1}
    for seed, row in replays.items():
        other = source[1 - seed]
        assert row["config"]["factors"] == [factor for _, factor in other["factor_curve"]]
        assert row["lr"] == other["lr"]
        played = [factor for _, factor in row["factor_curve"]]
        assert played == pytest.approx(row["config"]["factors"], rel=1e-4)
    assert source[0]["factor_curve"] != source[1]["factor_curve"]


def test_a_third_seed_makes_the_replays_anew(book, tmp_path) -> None:
    grown = Book(tmp_path)
    grown.path(DIGITS).write_bytes(book.path(DIGITS).read_bytes())
    methods = [METHODS["hypergradient"], METHODS["replay:hypergradient"]]
    verdict_plan.complete([DIGITS], methods, range(3), grown, QUICK_TASKS, bar=False)
    source, replays = counted("hypergradient", grown), counted("replay:hypergradient", grown)
    means = [(a[1] + b[1]) / 2 for a, b in zip(source[1]["factor_curve"], source[2]["factor_curve"], strict=True)]
    assert replays[0]["config"]["factors"] == pytest.approx(means, rel=1e-5)
    assert len(read_rows(grown.path(DIGITS))) == len(read_rows(book.path(DIGITS))) + 1 + 3


def test_runs_of_different_length_have_no_mean_schedule() -> None:
    with pytest.raises(ValueError, match="of different length"):
        verdict_plan.mean_schedule([[(0.0, 1.0)], [(0.1, 1.0)]])


def test_nothing_is_missing_when_all_is_there(book) -> None:
    assert not list(verdict_plan.missing([DIGITS], TOY_METHODS, range(2), book, QUICK_TASKS))
    third = list(verdict_plan.missing([DIGITS], TOY_METHODS, range(3), book, QUICK_TASKS))
    assert [(run.key.method, run.seed) for run in third] == [(m, 2) for m in (*BASELINES, "hypergradient")]


# --- words --------------------------------------------------------------------------------------------------------


def cell(losses: list[float | None], **more: object) -> Cell:
    """Runs with these test losses by seed; None for one that came apart."""
    rows = {
        seed: {"task": "t", "method": "m", "test_loss": loss, "diverged": loss is None, "pairing": str(seed), **more}
        for seed, loss in enumerate(losses)
    }
    return Cell(rows, Tuning())


def met(mine: list[float | None], other: list[float | None], relation: str = "better", required: int = 5):
    comparison = Comparison("t", "m", "o", "test_loss", relation)  # type: ignore[arg-type]
    return verdict_judge.judged(comparison, {("t", "m"): cell(mine), ("t", "o"): cell(other)}, required)


def test_comparisons_are_judged_mechanically() -> None:
    steady = [1.0, 1.1, 1.2, 1.3, 1.4]
    much_lower, a_bit_lower = [x - 0.5 for x in steady], [x - 0.1 * (-1) ** k for k, x in enumerate(steady)]
    assert met(much_lower, steady).met is True
    assert met(steady, much_lower).met is False
    assert met(a_bit_lower, steady).met is False
    margin = MARGINS["test_loss"]
    slightly = [x + margin / 2 for x in steady]
    assert met(slightly, steady).met is False
    assert met(slightly, steady, "not worse").met is True
    assert met([x + 2 * margin for x in steady], steady, "not worse").met is False
    assert MARGINS == {"test_loss": 0.02, "train_loss": 0.02, "test_accuracy": 0.01}  # in words on every page


def test_failures_and_missing_seeds_decide_too() -> None:
    steady: list[float | None] = [1.0, 1.1, 1.2, 1.3, 1.4]
    low: list[float | None] = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert met([None, *low[1:]], steady).met is False
    assert met([None, *low[1:]], steady).reason == "failed runs"
    assert met(low, [None, *steady[1:]]).met is True
    assert met(low, [None, *steady[1:]]).difference.n == 4
    assert met(low, [None] * 5).met is None
    assert met(low[:4], steady).reason == "too few seeds"
    assert met(low[:4], steady, required=2).met is True
    assert (met([], steady).met, met([], steady).reason) == (None, "not run")


def test_what_is_no_pair_is_refused() -> None:
    cells = {("t", "m"): cell([1.0, 2.0], pairing="a"), ("t", "o"): cell([1.0, 2.0], pairing="b")}
    with pytest.raises(RowsError, match="t, seed [01]: m and m are not a pair"):
        verdict_judge.judged(Comparison("t", "m", "o"), cells, required=2)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ([True, True], "holds"),
        ([True, False], "partly"),
        ([True, None], "partly"),
        ([False, False], "fails"),
        ([False, None], "fails"),
        ([None, None], "untestable"),
        ([], "untestable"),
    ],
)
def test_the_word_of_a_claim(found, word) -> None:
    assert verdict_judge.claim_word(found) == word


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["holds", "holds", "untestable"], "holds"),
        (["holds", "fails"], "partly"),
        (["holds", "partly"], "partly"),
        (["partly", "untestable"], "partly"),
        (["fails", "fails"], "fails"),
        (["untestable"], "untestable"),
    ],
)
def test_the_word_of_a_paper(words, word) -> None:
    assert verdict_judge.paper_word(words) == word


# --- pages --------------------------------------------------------------------------------------------------------


def test_the_figures_of_a_page_are_those_of_the_rows(book) -> None:
    from scipy.stats import t

    page = verdict_pages.render(TOY, book, quick=True)
    mine = [row["test_loss"] for row in counted("hypergradient", book).values()]
    base = [row["test_loss"] for row in counted("constant", book).values()]
    half = t.ppf(0.975, 1) * abs(mine[0] - mine[1]) / 2
    gaps = [a - b for a, b in zip(mine, base, strict=True)]
    line = next(line for line in page.splitlines() if line.startswith("| hypergradient |"))
    assert f"| {sum(mine) / 2:.4f} ± {half:.4f} |" in line
    assert f"| {sum(gaps) / 2:+.4f} ± {t.ppf(0.975, 1) * abs(gaps[0] - gaps[1]) / 2:.4f} |" in line
    assert f"| {tuned_on_digits('hypergradient', book).lr:g}" in line
    seconds = [row["cpu_seconds"] for row in counted("hypergradient", book).values()]
    assert f"| 0 of 2 | {sum(seconds) / 2:.1f} | 1.00 / 1.00 |" in line
    assert "| digits-mlp | digits | 160 / 60 / 60 / 60 | mlp | 4,810, 4,810 | sgd | 16 | 12 | - | 2 |" in page
    assert "python -m hf_adaptive_lr.bench.verdict toy --quick" in page
    assert "worth nothing" in page


@pytest.mark.parametrize("paper", [*PAPERS.values(), TOY], ids=[*PAPERS, "toy"])
def test_without_rows_a_page_has_no_numbers_and_no_verdict(paper, tmp_path) -> None:
    page = verdict_pages.render(paper, Book(tmp_path / "rows"))
    assert "**Verdict: untestable.**" in page
    names = [paper.title, paper.link, *sorted(TASKS, key=len, reverse=True)]
    for name in names:
        page = page.replace(name, "")
    assert not re.findall(r"\d", page)


def test_notes_survive(book, tmp_path) -> None:
    path = verdict_pages.write_page(TOY, book, tmp_path / "cards", quick=True)
    assert notes_of(path.read_text()) == "First words."
    written = "Another *hand*.\n\n- kept\n- as it is"
    path.write_text(path.read_text().replace("First words.", written))
    verdict_pages.write_page(TOY, book, tmp_path / "cards", quick=True)
    assert notes_of(path.read_text()) == written
    assert notes_of("no markers") is None


def test_a_changed_row_changes_the_page(book, tmp_path) -> None:
    other = Book(tmp_path)
    for row in read_rows(book.path(DIGITS)):
        if row["method"] == "hypergradient" and row["seed"] == 0:
            row["test_loss"] += 0.125
        append_row(other.path(DIGITS), row)
    assert verdict_pages.render(TOY, other, quick=True) != verdict_pages.render(TOY, book, quick=True)


def pages() -> list[str]:
    return [name for name in PAPERS if (CARDS / f"{name}.md").is_file()]


@pytest.mark.parametrize("name", pages())
def test_the_committed_page_is_what_its_rows_say(name) -> None:
    page = (CARDS / f"{name}.md").read_text()
    assert verdict_pages.render(PAPERS[name], Book(CARDS / "rows"), notes_of(page)) == page
    assert not re.search(r"\d", notes_of(page) or "")
    for found in verdict_judge.cells(PAPERS[name], Book(CARDS / "rows"), TASKS).values():
        assert not found.runs or len(found.runs) >= 5


@pytest.mark.parametrize("path", sorted(CARDS.glob("rows/verdict_*.jsonl")), ids=lambda path: path.stem)
def test_committed_rows_are_of_controllers_as_they_are_now(path) -> None:
    for row in read_rows(path):
        method = METHODS.get(row["method"])
        if method is None or method.replay_of is not None or "error" in row:
            continue
        was = {key: value for key, value in row["config"].items() if key != "controller"}
        now = [json.loads(json.dumps(variant.make_controller().config())) for variant in method.variants()]
        assert any(was == {key: it.get(key) for key in was} for it in now), f"{row['method']}: run it again"


# --- the command --------------------------------------------------------------------------------------------------


def verdict(tmp_path: Path, *words: str) -> int:
    folders = ["--rows-dir", str(tmp_path / "rows"), "--cards-dir", str(tmp_path / "cards")]
    return main([*words, *folders])


def test_the_command_runs_renders_and_runs_nothing_twice(toy, tmp_path, capsys) -> None:
    assert verdict(tmp_path, "toy", "--quick") == 0
    out = capsys.readouterr().out
    assert re.match(r"toy: (holds|fails)\n", out)
    assert "untestable  It is a theorem." in out
    page, rows = tmp_path / "cards" / "toy.md", tmp_path / "rows" / "verdict_digits-mlp.jsonl"
    assert str(page) in out
    before = page.read_text(), rows.read_bytes()
    page.write_text(before[0].replace("First words.", "Mine."))
    assert verdict(tmp_path, "toy", "--quick") == 0
    assert (page.read_text().replace("Mine.", "First words."), rows.read_bytes()) == before
    page.unlink()
    assert verdict(tmp_path, "toy", "--quick", "--render-only") == 0
    assert page.read_text() == before[0]


@dataclass(frozen=True, kw_only=True)
class Interrupting(Controller):
    """Somebody presses Ctrl-C at its first decision."""

    controller_type = "interrupting"

    def decide(self, obs, state, params=None):
        raise KeyboardInterrupt


def test_ctrl_c_keeps_what_has_ended_and_says_how_to_go_on(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(CONTROLLERS, "interrupting", Interrupting)
    monkeypatch.setitem(METHODS, "interrupting", Method(name="interrupting", controller="interrupting"))
    monkeypatch.setitem(PAPERS, "toy", replace(TOY, methods=("interrupting",), claims=(), controls=()))
    assert verdict(tmp_path, "toy", "--quick") == 130
    way_on = "continue with: python -m hf_adaptive_lr.bench.verdict toy --quick"
    assert f"interrupted; finished runs are kept, {way_on}" in capsys.readouterr().err
    rows = read_rows(tmp_path / "rows" / "verdict_digits-mlp.jsonl")
    assert {row["method"] for row in rows} == set(BASELINES)
    assert not (tmp_path / "cards").exists()


def test_bad_requests_are_one_line(toy, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["toyy"], "no paper 'toyy'; did you mean toy?"),
        (["zzz"], "no paper 'zzz'; known: "),
        (["toy", "--seeds", "1"], "--seeds 1: at least 2"),
        (["toy", "--jobs", "0"], "--jobs 0: at least 1"),
        (["toy", "--tasks", "moon"], "'toy' is not tried on 'moon'; known: digits-mlp"),
        (["toy", "--quick", "--rows-dir", "model_cards/rows"], "would mix its rows or pages with the real ones"),
        (["toy", "--quick", "--cards-dir", "model_cards"], "would mix its rows or pages with the real ones"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("python -m hf_adaptive_lr.bench.verdict: error: ")
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_pages_and_summaries_in_json(toy, tmp_path, capsys) -> None:
    assert verdict(tmp_path, "plrs", "--quick", "--render-only", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["paper"] == "plrs" and told["page"].startswith(str(tmp_path))


def test_damaged_rows_are_one_line(toy, tmp_path, capsys) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "verdict_digits-mlp.jsonl").write_text("nonsense\n")
    assert verdict(tmp_path, "toy", "--render-only") == 2
    assert "line 1 is not JSON" in capsys.readouterr().err


def test_what_failed_is_tried_again_when_asked(toy, tmp_path, capsys) -> None:
    assert verdict(tmp_path, "toy", "--quick") == 0
    path = tmp_path / "rows" / "verdict_digits-mlp.jsonl"
    rows = read_rows(path)
    at = next(k for k, row in enumerate(rows) if row["method"] == "constant" and row["seed"] == 1)
    kept = {key: rows[at][key] for key in ("row", "task", "method", "seed", "lr", "task_digest", "method_digest")}
    rows[at] = {**kept, "error": "OSError: no space"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verdict(tmp_path, "toy", "--quick") == 0
    assert "1 of 2" in (tmp_path / "cards" / "toy.md").read_text()
    assert verdict(tmp_path, "toy", "--quick", "--retry-failed") == 0
    assert "1 of 2" not in (tmp_path / "cards" / "toy.md").read_text()
    capsys.readouterr()
