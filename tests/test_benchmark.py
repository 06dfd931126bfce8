"""The benchmark's machine: every method trains, runs are planned, resumed and shared, the command says what it did."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_adaptive_lr.bench import plan, train, trainers
from hf_adaptive_lr.bench.data import Parts, Rows
from hf_adaptive_lr.bench.method import RULE, SGD_RULE, TRAINER_LR, Method
from hf_adaptive_lr.bench.methods import METHODS, TUNED_METHODS, third_party
from hf_adaptive_lr.bench.plan import (
    PRIMARY,
    PRIMARY_ENDPOINT,
    Book,
    Profile,
    complete,
    counted_rows,
    counting_runs,
    missing,
    reference,
    tuned,
)
from hf_adaptive_lr.bench.record import evaluate
from hf_adaptive_lr.bench.rivals import OPTIMIZERS, VERSIONS, check_package, missing_package, package_of
from hf_adaptive_lr.bench.rows import append_row, read_rows
from hf_adaptive_lr.bench.runner import attempt, identity
from hf_adaptive_lr.bench.tasks import TASKS, Task, changed
from hf_adaptive_lr.bench.train import TrainingRun
from hf_adaptive_lr.cli import main

TINY = Profile(name="quick", tasks=("toy",), methods=("rule",), tuning_seeds=(100,), coarse=range(-1, 2))
TOY = Task(
    name="toy",
    suite="test",
    data="mnist-5000",
    model="cnn",
    kind="scratch",
    batch_size=8,
    updates=12,
    train_rows=120,
    valid_rows=30,
    controller_rows=30,
    test_rows=40,
    lr=1e-3,
)


def images(size: int, seed: int) -> Rows:
    """Noise with a bright stripe where the label says."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (size,), generator=generator)
    pixels = torch.randn(size, 1, 28, 28, generator=generator)
    pixels[torch.arange(size), 0, 2 * labels] += 3.0
    return Rows({"pixel_values": pixels, "labels": labels})


@pytest.fixture
def toy(monkeypatch):
    """A task on data in memory."""
    data = Parts(images(120, 1), images(30, 2), images(30, 3), images(40, 4), math.log(10), 0.1)
    monkeypatch.setattr(train, "load", lambda task: data)
    return TOY


def put(book: Book, run: TrainingRun, loss: float, **more: object) -> None:
    """A row as if the run had ended with a loss."""
    key, task_digest, method_digest = identity(run)
    row = {**dataclasses.asdict(key), "task_digest": task_digest, "method_digest": method_digest, "valid_loss": loss}
    append_row(book.path(run.task.name), {"row": "run", **row, **more})
    book.forget(run.task.name)


# --- one run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.replay_of and missing_package(m) is None])
def test_every_method_trains(name, toy) -> None:
    method = METHODS[name]
    row = attempt(TrainingRun(toy, method, 0, method.fixed_lr(toy) or 1e-3))
    assert "error" not in row, row["error"]
    assert (row["test_count"], row["valid_count"]) == (40, 30)
    assert row["test_loss"] > 0 and 0 <= row["test_metric"] <= 1 and row["updates"] == 12
    assert row["peak_lr"] > 0 and len(row["lr_curve"]) == 12
    assert [step for step, _ in row["valid_curve"]] == sorted({round(k * 1.5) for k in range(1, 9)})
    assert row["passes"]["backward"] >= 1 and row["method_spec"] == method.spec()
    json.dumps(row)


def test_runs_of_a_seed_are_paired_and_looking_changes_nothing(toy) -> None:
    linear, again = (attempt(TrainingRun(toy, METHODS["linear"], 1, 1e-3, counts=c)) for c in (True, False))
    rule = attempt(TrainingRun(toy, METHODS["rule"], 1, 1e-3))
    other = attempt(TrainingRun(toy, METHODS["linear"], 2, 1e-3))
    assert linear["pairing"] == again["pairing"] == rule["pairing"] != other["pairing"]
    assert linear["first_loss"] == rule["first_loss"] != other["first_loss"]
    assert linear["valid_loss"] == again["valid_loss"] and linear["passes"] == again["passes"]
    assert not {"test_loss", "lr_curve", "valid_curve"} & again.keys()  # it is there to tune


def test_schedules_are_trainers_own(toy) -> None:
    rates = [lr for _, lr in attempt(TrainingRun(toy, METHODS["linear"], 0, 1e-3))["lr_curve"]]
    assert rates == pytest.approx([1e-3 * (1 - k / 12) for k in range(12)], rel=1e-4)
    warm = dataclasses.replace(METHODS["linear_warmup"], warmup=0.25)
    rates = [lr for _, lr in attempt(TrainingRun(toy, warm, 0, 1e-3))["lr_curve"]]
    assert rates[:4] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3], rel=1e-4)


def test_the_range_test_is_of_the_tasks_own_optimizer_and_its_rate_is_used(toy) -> None:
    for optimizer in ("adamw", "sgd"):
        row = attempt(TrainingRun(dataclasses.replace(toy, optimizer=optimizer), METHODS["range_test"], 0, 1e-3))
        assert "error" not in row and row["found_lr"] != 1e-3
        assert row["lr_curve"][0][1] == pytest.approx(row["found_lr"], rel=1e-3) == row["peak_lr"]
        assert row["passes"]["backward"] > 5  # its updates are in the passes


@pytest.mark.parametrize(("updates", "seconds"), [(12, 12 * 2.0 + 100), (30, 28 * 2.0 * 30 / 28)])
def test_seconds_are_of_the_training_loop_without_its_first_updates(updates, seconds, toy, monkeypatch) -> None:
    now, step = [0.0], trainers._Recorded.training_step
    for module in (train, trainers):
        monkeypatch.setattr(module, "clock", lambda: np.array([now[0], now[0] / 2]))

    def timed(self, *args):
        loss = step(self, *args)
        now[0] += 2.0 + 50.0 * (self.state.global_step < 2)  # the first two are slow
        return loss

    def slowly(function):
        def later(*args, **named):
            now[0] += 1000.0  # what is not the loop
            return function(*args, **named)

        return later

    monkeypatch.setattr(trainers._Recorded, "training_step", timed)
    for name in ("build_trainer", "evaluate", "load"):
        monkeypatch.setattr(train, name, slowly(getattr(train, name)))
    monkeypatch.setattr(trainers, "evaluate", slowly(trainers.evaluate))
    row = attempt(TrainingRun(dataclasses.replace(toy, updates=updates), METHODS["linear"], 0, 1e-3))
    assert (row["seconds"], row["cpu_seconds"]) == pytest.approx((seconds, seconds / 2))


def test_gen_keeps_the_rates_that_it_finds(toy) -> None:
    rates = [lr for _, lr in attempt(TrainingRun(toy, METHODS["gen"], 0, 1e-3))["lr_curve"]]
    assert all(len(set(rates[k : k + 4])) == 1 for k in (0, 4, 8)) and len(set(rates)) > 1


def test_no_method_meets_an_optimizer_that_it_cannot_read(toy) -> None:
    for optimizer in ("adafactor", "rmsprop"):
        task = dataclasses.replace(toy, optimizer=optimizer)
        assert not METHODS["universal"].fits(task) and METHODS["plateau"].fits(task)
        for method in (m for m in METHODS.values() if m.controller and m.fits(task) and not m.replay_of):
            row = attempt(TrainingRun(task, method, 0, 1e-3))
            assert "error" not in row, (method.name, row["error"])
    assert not METHODS["hyperball"].fits(dataclasses.replace(toy, kind="adapter"))


def test_a_replay_waits_for_two_runs_that_came_through(tmp_path) -> None:
    method, book = METHODS["hypergradient"], Book(tmp_path)
    for run in counting_runs(TOY, method, TINY, book):
        more = {"error": "ValueError: no"} if run.seed else {"lr_curve": [(0.0, 1e-3)]}
        put(book, run, 1.0, **more)
    assert counting_runs(TOY, METHODS["replay:hypergradient"], TINY, book) == []


def test_a_run_of_sgd_has_its_momentum_and_every_optimizer_of_tasks_trains(toy) -> None:
    found = {}
    for optimizer in ("adamw", "sgd", "adam", "adafactor", "rmsprop"):
        task = dataclasses.replace(toy, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
        row = attempt(TrainingRun(task, METHODS["rule"], 0, METHODS["rule"].fixed_lr(task)))
        assert "error" not in row, row["error"]
        found[optimizer] = row["valid_loss"]
    assert len(set(found.values())) >= 4  # Adam and AdamW are one without weight decay
    plain = dataclasses.replace(toy, optimizer="sgd")
    assert attempt(TrainingRun(plain, METHODS["rule"], 0, 0.01))["valid_loss"] != found["sgd"]


@pytest.mark.parametrize("name", ["universal told 4x", "universal told no length"])
def test_a_run_whose_length_was_told_wrong_ends_by_a_cooldown(name, toy) -> None:
    task = dataclasses.replace(toy, updates=40)
    row = attempt(TrainingRun(task, METHODS[name], 0, 1e-3))
    assert "error" not in row, row.get("error")
    rates = [lr for _, lr in row["lr_curve"]]
    assert len(rates) == row["updates"] == 40 and row["valid_curve"][-1][0] == 40
    # From a steady rate over the last fifth of the run to an eighth of it at its last update.
    assert rates[-8:] == pytest.approx([rates[-8] * (8 - k) / 8 for k in range(8)], rel=1e-3)
    if name == "universal told no length":
        assert rates[-8] == pytest.approx(rates[-9], rel=0.2)


def test_scores_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 4, generator=generator), torch.randint(4, (300,), generator=generator)

    class Fixed(torch.nn.Module):
        def forward(self, logits, labels):
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
            return type("Output", (), {"logits": logits, "loss": loss})

    found = evaluate(Fixed(), Rows({"logits": logits, "labels": labels}), "classes")
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-6)
    assert found["count"] == 300
    assert found["metric"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    from sklearn.metrics import f1_score

    assert found["macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    # Tokens of several lengths: each counts once.
    words, tags = torch.randn(200, 6, 4, generator=generator), torch.randint(4, (200, 6), generator=generator)
    tags[:150, 3:] = -100
    found = evaluate(Fixed(), Rows({"logits": words, "labels": tags}), "tokens")
    assert found["count"] == 150 * 3 + 50 * 6
    assert found["loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(words.reshape(-1, 4), tags.reshape(-1))), rel=1e-6
    )
    broken = logits.clone()
    broken[:, 0] = torch.nan
    assert evaluate(Fixed(), Rows({"logits": broken, "labels": labels}), "classes")["metric"] == 0.0


# --- methods ------------------------------------------------------------------------------------------------------


def test_digests_tell_configurations_apart_and_not_names() -> None:
    method = METHODS["hypergradient"]
    renamed = dataclasses.replace(method, name="other", text="other")
    assert renamed.digest == method.digest
    assert dataclasses.replace(method, config={"beta": 0.01}).digest != method.digest
    assert METHODS["universal"].digest != METHODS["mlr_snet"].digest
    assert "weights" in METHODS["universal"].spec()


def test_methods_without_a_tuned_rate_have_that_of_the_rule() -> None:
    sgd = dataclasses.replace(TOY, optimizer="sgd", kind="adapter")
    assert METHODS["rule"].fixed_lr(TOY) == RULE["scratch"] and METHODS["rule"].fixed_lr(sgd) == SGD_RULE["adapter"]
    assert METHODS["default"].fixed_lr(TOY) == TRAINER_LR and METHODS["linear"].fixed_lr(TOY) is None
    assert METHODS["prodigy"].fixed_lr(sgd) == 1.0  # as its authors say


def test_what_observes_predictions_needs_classes() -> None:
    language = dataclasses.replace(TOY, objective="language")
    assert METHODS["ppo_schedule"].fits(TOY) and not METHODS["ppo_schedule"].fits(language)
    assert METHODS["universal"].fits(language) and METHODS["prodigy"].fits(language)


def test_a_third_party_controller_is_one_entry(tmp_path, toy) -> None:
    (tmp_path / "mine.py").write_text(
        "from hf_adaptive_lr import Controller\nclass Half(Controller):\n    controller_type = 'half'\n"
        "    def decide(self, obs, state, params=None):\n        return obs.lr * 0 + 0.5, state\n"
    )
    method = third_party(f"{tmp_path}/mine.py:Half")
    row = attempt(TrainingRun(toy, method, 0, 1e-3))
    assert row["peak_lr"] == pytest.approx(5e-4) and row["final_lr"] == pytest.approx(5e-4)


def test_the_endpoint_names_what_is_tested() -> None:
    assert all(f"`{name}`" in PRIMARY_ENDPOINT and name in METHODS for name in PRIMARY)


def test_packages_of_rivals_are_named(monkeypatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "prodigy", dataclasses.replace(OPTIMIZERS["prodigy"], install="no-such-package"))
    assert missing_package(METHODS["prodigy"]) == "no-such-package"
    assert missing_package(METHODS["linear"]) is None


def test_versions_of_rivals_are_those_that_were_tested() -> None:
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = dict(line.split("==") for line in lines if "==" in line)
    assert {name: constraints.get(name) for name in VERSIONS} == VERSIONS
    assert {package_of(method) for method in METHODS.values()} == {"", *VERSIONS}


def test_another_version_of_a_rival_is_refused_where_it_is_needed(monkeypatch, tmp_path, capsys, toy) -> None:
    monkeypatch.setitem(VERSIONS, "prodigyopt", "0.0.9")
    says = f"compared with prodigyopt 0.0.9, but {importlib.metadata.version('prodigyopt')} is installed"
    assert says in attempt(TrainingRun(toy, METHODS["prodigy"], 0, 1.0))["error"]
    command = ["bench", "--output-dir", str(tmp_path), "--methods"]
    assert main([*command, "prodigy"]) == 2 and says in capsys.readouterr().err
    assert main([*command, "prodigy", "--render-only"]) == 0  # pages need no package
    check_package(METHODS["schedule_free_radam"])


def test_constants_are_in_the_digests_of_the_methods_that_depend_on_them(monkeypatch) -> None:
    def digests() -> dict[str, str]:
        return {name: METHODS[name].digest for name in METHODS if not METHODS[name].replay_of}

    before = digests()
    for place, value, changed_ones in (
        ("method.EVALUATIONS", 10, {"greedy", "greedy_repaired", "reduce_on_plateau"}),
        ("method.RANGE_TEST_UPDATES", 50, {"range_test"}),
        ("method.GEN_EVERY", 8, {"gen"}),
        ("method.VERSIONS", {**VERSIONS, "schedulefree": "2"}, {"schedule_free_radam", "schedule_free_rule"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"hf_adaptive_lr.bench.{place}", value)
            assert {name for name, digest in digests().items() if digest != before[name]} == changed_ones


def test_trainers_default_is_not_asked_of_sgd(toy) -> None:
    assert METHODS["default"].fits(toy) and not METHODS["default"].fits(dataclasses.replace(toy, optimizer="sgd"))


# --- the plan -----------------------------------------------------------------------------------------------------


def tune(book: Book, best: float, method: Method = METHODS["linear_warmup"], profile: Profile = TINY) -> None:
    """Losses that are lowest at a learning rate and worse by the square of the distance."""
    while wanted := tuned(TOY, method, profile, book).wanted:
        for run in wanted:
            put(book, run, 1 + math.log(run.lr / best) ** 2)


def test_tuning_finds_the_best_rate_at_a_spacing_of_two_wherever_it_is(tmp_path) -> None:
    for number, best in enumerate((1e-3, 1.1e-4, 0.02)):
        book = Book(tmp_path / str(number))
        tune(book, best)
        choice = tuned(TOY, METHODS["linear_warmup"], TINY, book)
        assert abs(math.log2(choice.lr / best)) <= 0.51 and not choice.at_edge
        tried = sorted(choice.tried)
        near = tried[tried.index(choice.lr) - 1 : tried.index(choice.lr) + 2]
        assert [b / a for a, b in zip(near, near[1:], strict=False)] == pytest.approx([2.0, 2.0], rel=0.01)
    assert len(tuned(TOY, METHODS["linear_warmup"], TINY, Book(tmp_path / "0")).tried) == 5  # three coarse, two beside


def test_other_schedules_are_tried_around_the_first_ones_best(tmp_path) -> None:
    book = Book(tmp_path)
    assert tuned(TOY, METHODS["cosine"], TINY, book).wanted == ()  # not yet known where
    tune(book, 1e-3)
    tune(book, 2e-3, METHODS["cosine"])
    choice = tuned(TOY, METHODS["cosine"], TINY, book)
    assert choice.lr == 2e-3 and sorted(choice.tried) == [5e-4, 1e-3, 2e-3, 4e-3]


def test_a_diverged_rate_is_never_chosen_and_without_any_there_is_no_choice(tmp_path) -> None:
    book = Book(tmp_path)
    while wanted := tuned(TOY, METHODS["linear_warmup"], TINY, book).wanted:
        for run in wanted:
            put(book, run, float("nan") if run.lr > 1e-3 else 1.0 / run.lr)
    assert tuned(TOY, METHODS["linear_warmup"], TINY, book).lr == 1e-3
    book = Book(tmp_path / "none")
    for run in tuned(TOY, METHODS["linear_warmup"], TINY, book).wanted:
        put(book, run, float("nan"))
    assert tuned(TOY, METHODS["linear_warmup"], TINY, book).lr is None
    assert counting_runs(TOY, METHODS["linear_warmup"], TINY, book) == []


def test_tuned_linear_is_the_better_of_both_by_validation_loss(tmp_path) -> None:
    book = Book(tmp_path)
    tune(book, 1e-3)
    assert reference(TOY, TINY, book) is None
    while wanted := tuned(TOY, METHODS["linear"], TINY, book).wanted:
        for run in wanted:
            put(book, run, 0.9 + math.log(run.lr / 2e-3) ** 2)
    method, lr = reference(TOY, TINY, book)
    assert (method.name, lr) == ("linear", 2e-3)


def test_a_replay_leaves_its_own_seed_out(tmp_path) -> None:
    method, book = METHODS["hypergradient"], Book(tmp_path)
    runs, again = counting_runs(TOY, method, TINY, book), METHODS["replay:hypergradient"]
    assert counting_runs(TOY, again, TINY, book) == []
    for number, run in enumerate(runs):
        put(book, run, 1.0, lr_curve=[(0.0, (number + 1) * 1e-3)])
    replays = counting_runs(TOY, again, TINY, book)
    means = [math.sqrt(2 * 3), math.sqrt(1 * 3), math.sqrt(1 * 2)]
    assert [run.method.config["factors"][0] for run in replays] == pytest.approx(means, rel=1e-5)
    assert len({run.method.digest for run in replays}) == 3


def test_a_comparison_is_completed_once(tmp_path, toy) -> None:
    methods, book = [METHODS["hypergradient"], METHODS["replay:hypergradient"]], Book(tmp_path)
    assert list(complete([toy], methods, TINY, book, bar=False)) == ["toy"]
    rows = read_rows(book.path("toy"))
    assert not any("error" in row for row in rows)
    assert {row["method"] for row in rows} == {"linear", "linear_warmup", "rule", *(m.name for m in methods)}
    assert all(counted_rows(toy, method, TINY, book) for method in methods)
    book.pack(["toy"])
    assert missing(toy, methods, TINY, Book(tmp_path)) == []


# --- the command --------------------------------------------------------------------------------------------------


def test_tasks_are_as_they_were_frozen(monkeypatch, tmp_path, capsys) -> None:
    assert changed() == []
    name = next(iter(TASKS))
    monkeypatch.setitem(TASKS, name, dataclasses.replace(TASKS[name], updates=7))
    assert changed() == [name]
    assert main(["bench", "--full", "--output-dir", str(tmp_path), "--tasks", name, "--methods", "rule"]) == 2
    assert "not as they were frozen" in capsys.readouterr().err


@pytest.fixture
def small_bench(monkeypatch, toy):
    """The command on the small task alone."""
    monkeypatch.setattr("hf_adaptive_lr.bench.tasks.changed", list)
    monkeypatch.setattr("hf_adaptive_lr.bench.data.load", lambda task: None)
    monkeypatch.setitem(TASKS, "toy", toy)
    monkeypatch.setattr(plan, "PROFILES", {"quick": TINY})


def test_the_command_runs_resumes_and_renders(small_bench, tmp_path, capsys) -> None:
    command = ["bench", "--quick", "--output-dir", str(tmp_path), "--methods", "rule", "default"]
    assert main(command) == 0
    assert "written to" in capsys.readouterr().out
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in files} >= {"BENCHMARK.md", "bench_toy.jsonl.gz"}
    assert main([*command, "--render-only"]) == 0 and main(command) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_controller_that_fails_in_its_runs_is_said(small_bench, tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text(
        "from hf_adaptive_lr import Controller\nclass Late(Controller):\n    controller_type = 'late'\n"
        "    def decide(self, obs, state, params=None):\n        if obs.step == 3:\n            1 / 0\n"
        "        return obs.lr / obs.base_lr, state\n"
    )
    command = ["bench", "--output-dir", str(tmp_path / "out"), "--methods", "rule", "--controller"]
    assert main([*command, f"{tmp_path}/mine.py:Late"]) == 1
    assert "runs ended in an error, the first: ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "nonsense"], "no task 'nonsense'"),
        (["--methods", "nonsense"], "no method 'nonsense'"),
        (["--jobs", "0"], "at least 1"),
        (["--controller", "./nowhere", "--render-only"], "nowhere"),
        (["--controller", "plateau", "--render-only", "--write-results"], "give the folder of a controller"),
    ],
)
def test_requests_that_cannot_be_carried_out_are_one_line(words, says, tmp_path, capsys) -> None:
    assert main(["bench", "--output-dir", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def _bench(folder: Path, **environment: str) -> multiprocessing.Process:
    def work() -> None:
        os.environ.update(environment)
        sys.exit(main(["bench", "--quick", "--output-dir", str(folder), "--methods", "rule"]))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_a_killed_command_goes_on_and_ranks_of_a_launcher_share_the_runs(small_bench, tmp_path, capfd) -> None:
    process, path = _bench(tmp_path), Book(tmp_path / "rows").path("toy")
    while not read_rows(path):
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    before = read_rows(path)
    capfd.readouterr()
    ranks = [_bench(tmp_path, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in range(2)]
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert capfd.readouterr().out.count("written to") == 1  # by the first
    rows = read_rows(path)
    assert rows[: len(before)] == before
    assert len({(row["method"], row["seed"], row["lr"]) for row in rows}) == len(rows)  # none twice
    assert missing(TOY, [METHODS["rule"]], TINY, Book(tmp_path / "rows")) == []


def test_the_tuned_methods_are_the_schedules_of_trainer() -> None:
    assert [(m.schedule, m.warmup) for m in TUNED_METHODS] == [
        ("linear", 0.0),
        ("linear", 0.06),
        ("cosine", 0.0),
        ("cosine", 0.06),
    ]
