"""The paper study: every method trains, tuning by validation alone, mechanical words, pages out of rows."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch

from hf_adaptive_lr import Controller
from hf_adaptive_lr.bench.method import Method
from hf_adaptive_lr.bench.plan import Book, Choice
from hf_adaptive_lr.bench.results import failed
from hf_adaptive_lr.bench.rows import Row, RowsError, append_row, read_rows
from hf_adaptive_lr.bench.runner import attempt, identity, run_all
from hf_adaptive_lr.bench.studies.papers import credit, judge, overview, pages, plan, taught, teaching
from hf_adaptive_lr.bench.studies.papers.__main__ import main
from hf_adaptive_lr.bench.studies.papers.claims import MARGINS, PAPERS, Claim, Comparison, Paper
from hf_adaptive_lr.bench.studies.papers.judge import Cell, Found
from hf_adaptive_lr.bench.studies.papers.methods import BASELINES, METHODS
from hf_adaptive_lr.bench.studies.papers.plan import FULL, LADDER, QUICK, TUNING_SEED, Setup, book_of
from hf_adaptive_lr.bench.studies.papers.tasks import TASKS, TUNED_ON
from hf_adaptive_lr.bench.train import TrainingRun
from hf_adaptive_lr.cli import main as cli
from hf_adaptive_lr.controllers import CONTROLLERS, PPOSchedule
from hf_adaptive_lr.hub.card import notes_of
from hf_adaptive_lr.meta.inner import InnerOptimizer
from hf_adaptive_lr.meta.problem import Problem
from hf_adaptive_lr.meta.suites import SUITES, Suite
from hf_adaptive_lr.meta.tasks import TaskSpec

CARDS = Path(__file__).parent.parent / "model_cards"
DIGITS = QUICK.tasks["digits-mlp"]
GROWING = replace(QUICK, extensions=3)  # the same runs; more learning rates may follow

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
    use="Good for tests.",
    notes="First words.",
)
TOY_METHODS = [METHODS[name] for name in (*BASELINES, *TOY.methods)]


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Book:
    """All rows of the toy paper, from real quick runs."""
    made = book_of(tmp_path_factory.mktemp("rows"))
    plan.complete(DIGITS, TOY_METHODS, QUICK, made, bar=False)
    return made


@pytest.fixture
def toy(monkeypatch) -> Paper:
    monkeypatch.setitem(PAPERS, "toy", TOY)
    return TOY


def tuned(name: str, book: Book, setup: Setup = QUICK) -> Choice:
    return plan.tuned(DIGITS, METHODS[name], setup, book)


def counted(name: str, book: Book, setup: Setup = QUICK) -> dict[int, Row]:
    return plan.counted(DIGITS, METHODS[name], setup, book)


def rendered(book: Book, paper: Paper = TOY, setup: Setup = QUICK) -> str:
    return pages.render(judge.find(paper, setup, book), book)


# --- tasks, methods, papers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.replay_of is None])
def test_every_method_trains_from_the_same_start_and_says_what_it_costs(name) -> None:
    method, task = METHODS[name], replace(DIGITS, updates=6)
    for variant in method.variants():
        assert variant.make_controller().controller_type == method.controller
    row = attempt(TrainingRun(task, method.variants()[0], 0, 0.1))
    assert "error" not in row, row["error"]
    assert row["pairing"] == attempt(TrainingRun(task, METHODS["constant"], 0, 0.1, counts=False))["pairing"]
    assert (row["passes"] != {"forward": 1.0, "backward": 1.0}) == (method.extra_passes != "none")


def test_methods_that_differ_have_digests_that_differ() -> None:
    variants = [v for m in METHODS.values() if m.replay_of is None for v in m.variants()]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert len({task.digest for task in (*TASKS.values(), *QUICK.tasks.values())}) == 2 * len(TASKS)


def test_stairs_are_stairs() -> None:
    row = attempt(TrainingRun(replace(DIGITS, updates=20), METHODS["step_decay"].variants()[2], 0, 0.1))
    assert [lr for _, lr in row["lr_curve"]] == pytest.approx([0.1 * 0.9 ** (t // 2) for t in range(20)], rel=1e-4)


@pytest.mark.parametrize("paper", PAPERS.values(), ids=PAPERS)
def test_papers_ask_for_what_is_run_and_name_no_numbers(paper) -> None:
    methods = {*BASELINES, *paper.methods}
    assert methods <= METHODS.keys()
    assert set(paper.tasks) <= TASKS.keys()
    for comparison in (c for claim in (*paper.claims, *paper.controls) for c in claim.comparisons):
        assert comparison.task in paper.tasks
        assert {comparison.method, comparison.against} <= methods
    for name in paper.methods:
        assert {METHODS[name].lr.removeprefix("tuned:"), METHODS[name].replay_of} <= {*methods, "tuned", None}
    for claim in (*paper.claims, *paper.controls):
        assert bool(claim.comparisons) != bool(claim.why)
        assert not re.search(r"\d", claim.text + claim.why)
    assert not re.search(r"\d", paper.claim + paper.notes)


# --- tuning and planning ------------------------------------------------------------------------------------------


def put(book: Book, lr: float, valid_loss: float | None, **more: object) -> None:
    """A tuning row of the linear schedule on the digits."""
    key, task_digest, method_digest = identity(TrainingRun(DIGITS, METHODS["linear"], TUNING_SEED, lr, counts=False))
    head = {**asdict(key), "task_digest": task_digest, "method_digest": method_digest}
    append_row(book.path(DIGITS.name), {**head, "valid_loss": valid_loss, **more})
    book.forget(DIGITS.name)


def test_the_learning_rate_is_the_best_on_validation_rows_and_the_best_is_not_the_outermost(tmp_path) -> None:
    book = book_of(tmp_path)
    assert [run.lr for run in tuned("linear", book, GROWING).wanted] == [0.1, 0.3]
    put(book, 0.1, 0.5, train_loss=0.1)
    put(book, 0.3, 0.4, train_loss=0.9)
    assert [run.lr for run in tuned("linear", book, GROWING).wanted] == [1.0]  # the best is the largest: go on
    put(book, 1.0, 0.6)
    found = tuned("linear", book, GROWING)
    assert (found.lr, len(found.tried), found.at_edge, found.wanted) == (0.3, 3, False, ())


def test_the_study_tries_six_learning_rates_first_around_the_tasks_own(tmp_path) -> None:
    lrs = {}
    for name in ("digits-mlp", "fashion-resnet", "newsgroups-minilm3"):
        lrs[name] = [run.lr for run in plan.tuned(TASKS[name], METHODS["linear"], FULL, book_of(tmp_path)).wanted]
    assert lrs["digits-mlp"] == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    assert lrs["fashion-resnet"] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    assert lrs["newsgroups-minilm3"] == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]


def test_the_grid_grows_a_limited_number_of_times_and_the_edge_is_confessed(tmp_path) -> None:
    book = book_of(tmp_path)
    while wanted := tuned("linear", book, GROWING).wanted:
        for run in wanted:
            put(book, run.lr, 5 + math.log10(run.lr))  # the smaller the better
    found = tuned("linear", book, GROWING)
    assert (found.lr, found.at_edge, len(found.tried)) == (0.003, True, 5)
    assert (tuned("linear", book).lr, tuned("linear", book).at_edge) == (0.1, True)
    for lr in LADDER[-3:]:  # the scheduler allows no more than 10
        put(book, lr, 1 / lr)
    assert plan.tuned(replace(DIGITS, lr=3.0), METHODS["linear"], replace(GROWING, above=1), book).lr == 10.0


def test_failed_tuning_runs_are_the_worst(tmp_path) -> None:
    book = book_of(tmp_path)
    put(book, 0.1, None)
    put(book, 0.3, 0.1)
    assert tuned("linear", book).lr == 0.3
    put(book, 0.3, None, error="ValueError: nothing")
    assert (tuned("linear", book).method, tuned("linear", book).wanted) == (None, ())
    assert plan.counting_runs(DIGITS, METHODS["linear"], QUICK, book) == []


def test_alternatives_are_tuned_with_the_learning_rate(tmp_path) -> None:
    method, book = replace(METHODS["hypergradient"], alternatives=({"beta": 0.01}, {"beta": 0.2})), book_of(tmp_path)
    wanted = plan.tuned(DIGITS, method, QUICK, book).wanted
    assert [(run.method.config["beta"], run.lr) for run in wanted] == [
        (b, lr) for b in (0.01, 0.2) for lr in (0.1, 0.3)
    ]
    rows = run_all(wanted, book.path(DIGITS.name), bar=False)
    assert not [key for row in rows for key in row if key.startswith("test")]  # tuning never reads them
    book.forget(DIGITS.name)
    found, best = plan.tuned(DIGITS, method, QUICK, book), min(rows, key=lambda row: row["valid_loss"])
    assert found.method is not None
    assert (found.method.config["beta"], found.lr) == (best["method_spec"]["config"]["beta"], best["lr"])


def test_transfer_takes_over_what_was_tuned_elsewhere(book, monkeypatch) -> None:
    monkeypatch.setitem(TUNED_ON, "elsewhere", "digits-mlp")
    other = replace(DIGITS, name="elsewhere", updates=6)
    setup = replace(QUICK, tasks={**QUICK.tasks, "elsewhere": other})
    assert plan.tuned(other, METHODS["linear"], setup, book) == tuned("linear", book)
    runs = plan.counting_runs(other, METHODS["linear"], setup, book)
    assert [(run.task, run.lr, run.seed) for run in runs] == [(other, tuned("linear", book).lr, s) for s in (0, 1)]


def test_a_replay_is_the_mean_of_the_other_seeds_and_anew_with_a_third(book, tmp_path) -> None:
    source, replays = counted("hypergradient", book), counted("replay:hypergradient", book)
    assert source.keys() == replays.keys() == {0, 1}
    for seed, row in replays.items():
        other = source[1 - seed]
        assert row["lr"] == other["lr"]
        assert [lr for _, lr in row["lr_curve"]] == pytest.approx([lr for _, lr in other["lr_curve"]], rel=1e-4)
    assert source[0]["lr_curve"] != source[1]["lr_curve"]
    grown, three = book_of(tmp_path), replace(QUICK, seeds=3)
    grown.path(DIGITS.name).write_bytes(book.path(DIGITS.name).read_bytes())
    methods = [METHODS["hypergradient"], METHODS["replay:hypergradient"]]
    missing = plan.missing(DIGITS, methods, three, grown)
    assert [(run.key.method, run.seed) for run in missing] == [("hypergradient", 2)]
    plan.complete(DIGITS, methods, three, grown, bar=False)
    assert len(read_rows(grown.path(DIGITS.name))) == len(read_rows(book.path(DIGITS.name))) + 1 + 3
    assert counted("replay:hypergradient", grown, three).keys() == {0, 1, 2}


def test_nothing_is_missing_when_all_is_there(book) -> None:
    assert plan.missing(DIGITS, TOY_METHODS, QUICK, book) == []


# --- words --------------------------------------------------------------------------------------------------------


def cell(losses: list[float | None], **more: object) -> Cell:
    """Runs with these test losses by seed; None for one that came apart."""
    rows = {
        seed: {"task": "t", "method": "m", "test_loss": loss, "diverged": loss is None, "pairing": str(seed), **more}
        for seed, loss in enumerate(losses)
    }
    return Cell(rows, Choice())


def met(mine: list[float | None], other: list[float | None], relation: str = "better", setup: Setup = FULL):
    comparison = Comparison("t", "m", "o", "test_loss", relation)  # type: ignore[arg-type]
    return judge.judged(comparison, Found(TOY, setup, {("t", "m"): cell(mine), ("t", "o"): cell(other)}))


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
    assert MARGINS == {"test_loss": 0.02, "train_loss": 0.02, "test_metric": 0.01}  # in words on every page


def test_failures_and_missing_seeds_decide_too() -> None:
    steady: list[float | None] = [1.0, 1.1, 1.2, 1.3, 1.4]
    low: list[float | None] = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert met([None, *low[1:]], steady).met is False
    assert met([None, *low[1:]], steady).reason == "failed runs"
    assert met(low, [None, *steady[1:]]).met is True
    assert met(low, [None, *steady[1:]]).difference.n == 4
    assert met(low, [None] * 5).met is None
    assert met(low[:4], steady).reason == "too few seeds"
    assert met(low[:4], steady, setup=QUICK).met is True
    assert (met([], steady).met, met([], steady).reason) == (None, "not run")


def test_what_is_no_pair_is_refused() -> None:
    found = {("t", "m"): cell([1.0, 2.0], pairing="a"), ("t", "o"): cell([1.0, 2.0], pairing="b")}
    with pytest.raises(RowsError, match="t, seed [01]: m and m are not a pair"):
        judge.judged(Comparison("t", "m", "o"), Found(TOY, QUICK, found))


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
    assert judge.claim_word(found) == word


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
    assert judge.paper_word(words) == word


# --- pages --------------------------------------------------------------------------------------------------------


def test_the_figures_of_a_page_are_those_of_the_rows(book) -> None:
    from scipy.stats import t

    page = rendered(book)
    mine = [row["test_loss"] for row in counted("hypergradient", book).values()]
    base = [row["test_loss"] for row in counted("constant", book).values()]
    half = t.ppf(0.975, 1) * abs(mine[0] - mine[1]) / 2
    gaps = [a - b for a, b in zip(mine, base, strict=True)]
    line = next(line for line in page.splitlines() if line.startswith("| hypergradient |"))
    assert f"| {sum(mine) / 2:.4f} ± {half:.4f} |" in line
    assert f"| {sum(gaps) / 2:+.4f} ± {t.ppf(0.975, 1) * abs(gaps[0] - gaps[1]) / 2:.4f} |" in line
    assert re.search(rf"\| {tuned('hypergradient', book).lr:g}\*? \| 2 \|", line)
    seconds = [row["cpu_seconds"] for row in counted("hypergradient", book).values()]
    assert f"| 0 of 2 | {sum(seconds) / 2:.1f} | 1.00 / 1.00 |" in line
    assert "| digits-mlp | digits | 160 / 60 / 60 / 60 | mlp | 4,810, 4,810 | sgd | 16 | 12 | - | 2 |" in page
    assert "python -m hf_adaptive_lr.bench.studies.papers toy --quick" in page
    assert "worth nothing" in page


@pytest.mark.parametrize("paper", [*PAPERS.values(), TOY], ids=[*PAPERS, "toy"])
def test_without_rows_a_page_has_no_numbers_and_no_verdict(paper, tmp_path) -> None:
    page = rendered(book_of(tmp_path / "rows"), paper, FULL)
    assert "**Verdict: untestable.**" in page
    for name in (paper.title, paper.link, *sorted(TASKS, key=len, reverse=True)):
        page = page.replace(name, "")
    assert not re.findall(r"\d", page)


@pytest.mark.parametrize("name", PAPERS)
def test_the_committed_page_is_what_its_rows_say(name) -> None:
    page, book = (CARDS / f"{name}.md").read_text(), book_of(CARDS / "rows")
    found = judge.find(PAPERS[name], FULL, book)
    assert pages.render(found, book, notes_of(page)) == page
    assert not re.search(r"\d", notes_of(page) or "")
    for at, of in found.cells.items():
        assert of.runs.keys() == {*FULL.counting_seeds(TASKS[at[0]], METHODS[at[1]])}
        for row in of.runs.values():
            assert not METHODS[at[1]].replay_of or row["method_spec"]["config"]["factors"]
            _check_config(row)


def test_the_committed_overview_is_what_the_rows_say() -> None:
    book = book_of(CARDS / "rows")
    found = {name: judge.find(paper, FULL, book) for name, paper in PAPERS.items()}
    text = overview.render(found)
    assert (CARDS / overview.PAGE).read_text() == text
    for name, paper in PAPERS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| [`{name}`]"))
        mine, linear = (found[name].cells[paper.tasks[0], method].runs for method in (name, "linear"))
        gaps = [mine[seed]["test_loss"] - linear[seed]["test_loss"] for seed in mine if not failed(mine[seed])]
        assert f"{paper.tasks[0]} {sum(gaps) / len(gaps):+.3f} ± " in line
        assert f"**{judge.verdict(found[name])}**" in line
        # Three sentences: what it is good for, what it costs, when to leave it.
        parts = re.fullmatch(r"Good for [^.]+\. It costs [^.]+\. Leave it [^.]+\.", paper.use.replace("one's", "ones"))
        assert parts, paper.use


def test_an_overview_without_rows_has_no_numbers(tmp_path) -> None:
    found = {"hypergradient": judge.find(TOY, FULL, book_of(tmp_path / "rows"))}
    page = overview.write(found, tmp_path, quick=True)
    assert "| **untestable** | - | - | - | " in page.read_text() and "worth nothing" in page.read_text()
    assert (tmp_path / overview.PICTURE).stat().st_size > 1000


def _check_config(row: Row) -> None:
    """Rows say with which settings a controller ran, defaults and all: what has changed since must run again."""
    now = [json.loads(json.dumps(variant.make_controller().config())) for variant in METHODS[row["method"]].variants()]
    was = {key: value for key, value in row.get("config", {}).items() if key != "controller"}
    assert any(was == {key: it.get(key) for key in was} for it in now), f"{row['method']}: run it again"


# --- the command --------------------------------------------------------------------------------------------------


def papers(tmp_path: Path, *words: str) -> int:
    return main([*words, "--output-dir", str(tmp_path)])


def test_the_command_runs_what_is_missing_renders_keeps_notes_and_runs_nothing_twice(
    toy, book, tmp_path, capsys
) -> None:
    page, rows = tmp_path / "toy.md", tmp_path / "rows" / "papers_digits-mlp.jsonl.gz"
    for row in read_rows(book.path(DIGITS.name)):
        if row["method"] != "replay:hypergradient":
            append_row(rows.with_suffix(""), row)
    assert papers(tmp_path, "toy", "--quick") == 0
    assert counted("replay:hypergradient", book_of(rows.parent)).keys() == {0, 1}
    out = capsys.readouterr().out
    assert re.match(rf"toy: (holds|fails), written to {re.escape(str(page))}, from the rows in ", out)
    before = page.read_text(), rows.read_bytes()
    page.write_text(before[0].replace("First words.", "Another *hand*.\n\n- kept"))
    assert papers(tmp_path, "toy", "--quick") == 0
    assert notes_of(page.read_text()) == "Another *hand*.\n\n- kept"
    assert (page.read_text().replace("Another *hand*.\n\n- kept", "First words."), rows.read_bytes()) == before
    page.unlink()
    capsys.readouterr()
    assert papers(tmp_path, "toy", "--quick", "--render-only") == 0
    assert page.read_text() == before[0] and capsys.readouterr().out == out


@dataclass(frozen=True, kw_only=True)
class Interrupting(Controller):
    """Somebody presses Ctrl-C at its first decision."""

    controller_type = "interrupting"

    def decide(self, obs, state, params=None):
        raise KeyboardInterrupt


def test_ctrl_c_keeps_what_has_ended(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(CONTROLLERS, "interrupting", Interrupting)
    monkeypatch.setitem(METHODS, "interrupting", Method(name="interrupting", controller="interrupting", lr="tuned"))
    monkeypatch.setitem(PAPERS, "toy", replace(TOY, methods=("interrupting",), claims=(), controls=()))
    assert papers(tmp_path, "toy", "--quick") == 130
    assert "interrupted; finished runs are kept, the same command goes on" in capsys.readouterr().err
    rows = read_rows(tmp_path / "rows" / "papers_digits-mlp.jsonl")
    assert {row["method"] for row in rows} == set(BASELINES)
    assert not (tmp_path / "toy.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toyy"], "argument NAME: invalid choice: 'toyy' (choose from"),
        (["plrs", "--jobs", "0"], "argument --jobs: 0 must be at least 1"),
        (["plrs", "--quick", "--output-dir", "model_cards"], "would mix its rows and pages with the real ones"),
    ],
)
def test_bad_requests_are_refused(words, message, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_damaged_rows_are_one_line(toy, tmp_path, capsys) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "papers_digits-mlp.jsonl").write_text("nonsense\n")
    assert papers(tmp_path, "toy", "--render-only") == 2
    assert "line 1 is not JSON" in capsys.readouterr().err


def test_what_failed_is_tried_again_when_asked(toy, book, tmp_path, capsys) -> None:
    path = tmp_path / "rows" / "papers_digits-mlp.jsonl"
    for row in read_rows(book.path(DIGITS.name)):
        if row["method"] == "constant" and row["seed"] == 1:
            kept = ("row", "task", "method", "seed", "lr", "task_digest", "method_digest")
            row = {**{key: row[key] for key in kept}, "error": "OSError: no space"}
        append_row(path, row)
    assert papers(tmp_path, "toy", "--quick") == 0
    assert "1 of 2" in (tmp_path / "toy.md").read_text()
    assert papers(tmp_path, "toy", "--quick", "--retry-failed") == 0
    assert "1 of 2" not in (tmp_path / "toy.md").read_text()
    capsys.readouterr()


# --- teaching ppo_schedule -------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_teaching(monkeypatch, tmp_path) -> Path:
    """The study of `ppo_schedule` at a size of seconds, on images that a package brings."""

    def problems(generator: torch.Generator, seed: int, runs: int, split: str) -> Problem:
        shape = {"data": "mnist-5000", "n_train": 40, "side": 7, "channels": 0, "width": 8, "eval_size": 16}
        return Problem(TaskSpec("lenet", runs, seed, shape), InnerOptimizer("adamw"), 6, 3e-3, 3e-3)

    monkeypatch.setitem(SUITES, "perceptrons", Suite("perceptrons", (problems,)))
    monkeypatch.setattr(teaching, "LESSONS", {"paper": (2, 2), "paired": (1, 2)})
    monkeypatch.setattr(teaching, "SEEDS", (0, 1))
    monkeypatch.setattr(teaching, "COSTS", {"perceptron": (1, {"side": 7, "channels": 0, "width": 8})})
    for name, value in {"JUDGED": 2, "CREDIT_RUNS": 2, "CREDIT_PLAYS": 3}.items():
        monkeypatch.setattr(teaching, name, value)
    few = {name: taught.SCHEDULES[name][:1] for name in ("constant", "step_decay")}
    for name, value in {"LADDER": (3e-3,), "TUNING_RUNS": 2, "TEST_RUNS": 3, "SCHEDULES": few}.items():
        monkeypatch.setattr(taught, name, value)
    return tmp_path / "cards" / "rows"


def test_the_teaching_study_is_the_same_twice_and_goes_on_where_it_was(tiny_teaching) -> None:
    assert teaching.section(tiny_teaching) == ""
    assert teaching.main(["--output-dir", str(tiny_teaching)]) == 0
    rows = read_rows(tiny_teaching / teaching.NAME)
    assert teaching.main(["--output-dir", str(tiny_teaching)]) == 0
    assert read_rows(tiny_teaching / teaching.NAME) == rows
    again = teaching.learn("paired", 1, *teaching.LESSONS["paired"])
    (kept,) = (row for row in rows if (row.get("preset"), row.get("seed")) == ("paired", 1))
    assert again["curve"] == kept["curve"] and again["weights"] == kept["weights"]
    (problem,) = SUITES["perceptrons"].problems("train", 10**6, 2)
    assert credit.credit(teaching.teacher("paper", 0), problem, 3) == [
        row for row in rows if row["row"] in ("credit", "spread")
    ]
    assert (tiny_teaching.parent / teaching.PICTURE).read_bytes().startswith(b"\x89PNG")

    section = teaching.section(tiny_teaching)
    losses = [row["curve"][-1]["loss"] for row in rows if row.get("preset") == "paired"]
    assert f" {sum(losses) / 2:.3f} ±" in next(line for line in section.splitlines() if line.startswith("| `paired`"))
    tested = {row["method"]: row["losses"] for row in rows if row["row"] == "test" and row["task"] == "lenet"}
    gap = sum(tested["constant"]) / 3 - sum(tested["step_decay"]) / 3
    assert f"{gap:+.4f} ±" in next(line for line in section.splitlines() if line.startswith("| constant |"))
    assert {"paper", "paired", "replay:paired", "random_walk"} <= tested.keys()


def test_a_training_of_the_study_is_the_command_lines(tiny_teaching, tmp_path) -> None:
    row = teaching.learn("paired", 1, 2, 2)
    line = "train schedule_ppo --suite perceptrons --preset paired --runs 2 --iterations 2 --every-steps 2 --seed 1"
    assert cli([*line.split(), "--output-dir", str(tmp_path / "out")]) == 0
    trained = PPOSchedule.from_pretrained(tmp_path / "out")
    assert {name: tensor.tolist() for name, tensor in trained.params.items()} == row["weights"]
    assert teaching.policy(row) == trained
