"""The benchmark: its tasks stay as they are, its machinery measures, and its page says what the rows do."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hf_adaptive_lr
from hf_adaptive_lr import Linear, Plateau
from hf_adaptive_lr.bench import yardstick_data, yardstick_plan, yardstick_real
from hf_adaptive_lr.bench.rows import append_row, read_rows
from hf_adaptive_lr.bench.runner import attempt, identity
from hf_adaptive_lr.bench.verdict_data import Parts, Rows
from hf_adaptive_lr.bench.yardstick_methods import METHODS, TRAINER_LR, Method, missing_package, replay, third_party
from hf_adaptive_lr.bench.yardstick_page import PAGE, render, write_page
from hf_adaptive_lr.bench.yardstick_plan import (
    BUDGET,
    PRIMARY,
    PRIMARY_ENDPOINT,
    PROFILES,
    Book,
    Profile,
    budget_runs,
    complete,
    missing,
    own_lr_runs,
    reference_runs,
    studies,
    sweep_lrs,
    sweep_runs,
    troubled,
    tuned_lr,
    tuning_runs,
)
from hf_adaptive_lr.bench.yardstick_plots import PLOTS
from hf_adaptive_lr.bench.yardstick_results import results_of
from hf_adaptive_lr.bench.yardstick_run import YardstickRun
from hf_adaptive_lr.bench.yardstick_scores import Results, best_so_far
from hf_adaptive_lr.bench.yardstick_tasks import (
    COUNTED,
    LANES,
    REAL,
    TASKS,
    VARIANTS,
    VECTOR,
    RealTask,
    VectorTask,
    changed,
)
from hf_adaptive_lr.bench.yardstick_vector import Lion, _Scheduled, train_lane
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.meta.problem import Problem
from hf_adaptive_lr.meta.tasks.base import TaskSpec
from tests.statistics_checks import aa_test, power_test

PACKAGE = Path(hf_adaptive_lr.__file__).parent
TINY = Profile(name="quick", tasks=(), seeds=3, vector_seeds=2, sweep_seeds=0, tuning_stride=4)


def at(name: str, lr: float) -> Method:
    """A method whose default learning rate on vectorised tasks is another one: rows of the default have curves."""
    return dataclasses.replace(METHODS[name], vector_lr=lr)


def flat(spec: dict, name: str = "") -> dict:
    """A nested spec with one level."""
    out = {}
    for key, value in spec.items():
        out |= flat(value, f"{name}{key}.") if isinstance(value, dict) else {f"{name}{key}": value}
    return out


def vector(name: str = "toy", seed: int = 0, steps: int = 20) -> VectorTask:
    spec = TaskSpec("quadratic", LANES, seed, {"dims": 4})
    return VectorTask(name=name, problem=Problem(spec, total_steps=steps))


def images(size: int, seed: int) -> Rows:
    """Noise with a bright stripe where the label says."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (size,), generator=generator)
    pixels = torch.randn(size, 1, 28, 28, generator=generator)
    pixels[torch.arange(size), 0, 2 * labels] += 3.0
    return Rows({"pixel_values": pixels, "labels": labels})


@pytest.fixture
def small(monkeypatch):
    """The convolutional task on data in memory, in a dozen updates."""
    data = Parts(images(120, 1), images(30, 2), images(30, 3), images(40, 4))
    monkeypatch.setattr(yardstick_real, "load", lambda task: data)
    return dataclasses.replace(TASKS["image-cnn"], updates=12, batch_size=8)


# --- tasks --------------------------------------------------------------------------------------------------------


def test_tasks_are_as_they_were_frozen() -> None:
    assert changed() == []


def test_a_changed_task_is_noticed(monkeypatch) -> None:
    other = dataclasses.replace(TASKS["image-vit"], updates=151)
    monkeypatch.setitem(TASKS, "image-vit", other)
    assert changed() == ["image-vit"]


def test_nothing_that_trains_controllers_knows_the_frozen_tasks() -> None:
    for path in sorted((PACKAGE / "meta").rglob("*.py")):
        text = path.read_text()
        assert "yardstick_" not in text and "frozen.json" not in text, path


def test_vectorised_tasks_are_unseen_draws_of_every_family() -> None:
    families = [task.family for task in VECTOR]
    assert {families.count(family) for family in set(families)} == {2}
    assert set(families) == {"quadratic", "mlp", "conv", "transformer", "finetune", "trouble"}
    bodies = [t.problem.task.config["body_seed"] for t in TASKS.values() if t.family == "finetune"]
    assert all(2000 <= body < 3000 for body in bodies)  # those of the split "test"


def test_variants_differ_from_their_task_in_one_thing() -> None:
    assert {task.axis for task in VARIANTS} == {
        "length / 4",
        "length x 4",
        "batch / 4",
        "batch x 4",
        "width x 4",
        "Lion",
    }
    for variant in VARIANTS:
        base = TASKS["-".join(variant.name.split("-")[:2])]
        assert not base.axis
        mine, theirs = flat(variant.spec()), flat(base.spec())
        assert len({name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}) == 1


def test_lion_moves_every_weight_alike() -> None:
    weights, grads = torch.zeros(2, 3), torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, -1.0]])
    lion = Lion(kind="adamw")
    state = lion.init(weights)
    assert torch.equal(lion.direction(weights, grads, state), grads.sign())
    assert torch.allclose(state["exp_avg"], 0.01 * grads)
    # Algorithm 2: the direction mixes the old mean with a tenth of the new gradient, the mean keeps a hundredth.
    assert torch.equal(lion.direction(weights, -0.05 * grads, state), grads.sign())
    task = dataclasses.replace(vector(steps=30), optimizer="lion")
    assert (
        train_lane(task, METHODS["linear"], 0, 0.03)["valid_loss"]
        < train_lane(task, METHODS["linear"], 0, 1e-8)["valid_loss"]
    )


def test_parts_of_a_real_task_share_no_rows(monkeypatch) -> None:
    def numbered(pool: int, test: int, seed: int) -> tuple[Rows, Rows]:
        del seed
        rows = [Rows({"pixel_values": torch.arange(n), "labels": torch.zeros(n)}) for n in (pool, test)]
        return rows[0], rows[1]

    monkeypatch.setattr(yardstick_data, "_mnist", numbered)
    yardstick_data.load.cache_clear()
    parts = yardstick_data.load(TASKS["image-cnn"])
    yardstick_data.load.cache_clear()
    seen = torch.cat([part.columns["pixel_values"] for part in (parts.train, parts.valid, parts.controller)])
    assert len(seen) == len(seen.unique()) == 2400 + 200 + 200


# --- methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.replay_of and missing_package(m) is None])
def test_every_method_trains_a_real_task(name, small) -> None:
    row = attempt(YardstickRun(small, METHODS[name], 0, METHODS[name].lr))
    assert "error" not in row
    assert [step for step, _ in row["valid_curve"]] == [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12]
    assert row["updates"] == 12 and math.isfinite(row["test_loss"]) and 0 <= row["test_accuracy"] <= 1
    assert {"torch", "transformers"} <= row["versions"].keys() and row["seconds"] > 0
    if METHODS[name].finder:
        assert row["found_lr"] > 1e-5
    assert row["pairing"] == pairing_of_constant(small)  # the same first weights and batches for all


@cache
def pairing_of_constant(task: RealTask) -> str:
    return attempt(YardstickRun(task, METHODS["constant"], 0, METHODS["constant"].lr))["pairing"]


def test_curves_change_nothing(small, monkeypatch) -> None:
    run = YardstickRun(small, METHODS["schedule_free"], 0, 1e-2)
    with_curves = attempt(run)
    monkeypatch.setattr(yardstick_real, "POINTS", 1)
    without = attempt(run)
    assert with_curves["loss_curve"] == without["loss_curve"]
    assert with_curves["test_loss"] == without["test_loss"]


def test_schedule_free_is_evaluated_at_its_average(small) -> None:
    task = vector(steps=30)
    lane, constant = (train_lane(task, at(name, 0.3), 0, 0.3) for name in ("schedule_free", "constant"))
    assert lane["valid_curve"][0] == constant["valid_curve"][0]
    assert lane["valid_loss"] < lane["first_loss"]


def test_greedy_as_shipped_cannot_fall_below_its_floor_and_repaired_it_can() -> None:
    def last(name: str) -> float:
        losses = iter(range(1, 1000))  # ever worse
        run = SimpleNamespace(
            total_steps=40,
            base_lr=torch.full((1,), TRAINER_LR, dtype=torch.float64),
            evaluate=lambda split: torch.tensor([float(next(losses))]),
        )
        chooser = _Scheduled(run, METHODS[name])
        return [float(chooser.lr(step)) for step in range(400)][-1]

    assert last("greedy") >= TRAINER_LR > last("greedy_repaired")


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.on_vector and missing_package(m) is None])
def test_every_method_trains_lanes(name) -> None:
    task = dataclasses.replace(TASKS["mlp-1"], problem=dataclasses.replace(TASKS["mlp-1"].problem, total_steps=12))
    row = train_lane(task, METHODS[name], 1, METHODS[name].vector_lr)
    assert len(row["valid_curve"]) == 11 and row["updates"] == 12 and math.isfinite(row["test_loss"])


def test_lanes_are_paired_and_the_tuning_seeds_never_see_test_rows(small) -> None:
    task = vector()
    first = [train_lane(task, METHODS[m], 3, 1e-2)["first_loss"] for m in ("constant", "linear", "prodigy")]
    assert len(set(first)) == 1
    assert "test_loss" not in train_lane(task, METHODS["linear"], COUNTED, 1e-2)
    assert "test_loss" not in attempt(YardstickRun(small, METHODS["linear"], COUNTED, 1e-2))


def test_what_is_told_of_the_length_is_believed() -> None:
    told = dataclasses.replace(METHODS["linear"], told=0.25)
    factors = [factor for _, factor in train_lane(vector(steps=40), told, 0, 1e-2)["factor_curve"]]
    assert factors[0] == 1.0 and max(factors[12:]) < 1e-3


@pytest.mark.parametrize("kind", ["loss_spike", "weight_noise"])
def test_trouble_comes_half_way_and_is_felt(kind) -> None:
    task = vector(steps=40)
    for name in ("constant", "prodigy"):
        lr = 0.05 if name == "constant" else 1.0
        calm = train_lane(task, at(name, lr), 0, lr)
        rough = train_lane(task, next(m for m in troubled(at(name, lr)) if m.trouble == kind), 0, lr)
        before = [loss for step, loss in calm["valid_curve"] if step <= 20]
        assert [loss for step, loss in rough["valid_curve"] if step <= 20] == before
        # Adam-like optimizers hardly feel a single large gradient.
        assert rough["valid_curve"][6] != calm["valid_curve"][6]
    assert rough["test_loss"] != calm["test_loss"]


def test_a_third_party_controller_is_one_entry(tmp_path) -> None:
    Linear().save_pretrained(tmp_path / "mine")
    method = third_party(str(tmp_path / "mine"))
    assert method.name == "mine" and method.fits(vector())
    theirs, ours = train_lane(vector(), method, 0, 1e-2), train_lane(vector(), METHODS["linear"], 0, 1e-2)
    assert theirs["test_loss"] == ours["test_loss"]


def test_digests_tell_configurations_apart_and_not_names() -> None:
    base = METHODS["hypergradient"]
    assert dataclasses.replace(base, name="other", text="x").digest == base.digest
    assert dataclasses.replace(base, config={"beta": 0.5}).digest != base.digest


# --- the plan -----------------------------------------------------------------------------------------------------


def test_the_endpoint_names_what_is_tested() -> None:
    assert all(f"`{name}`" in PRIMARY_ENDPOINT for name in PRIMARY)
    assert len(TASKS) >= 10 and len(PRIMARY) <= 6


def test_a_comparison_is_completed_once(tmp_path) -> None:
    task, methods, book = vector(), [METHODS["hypergradient"], METHODS["replay:hypergradient"]], Book(tmp_path)
    complete([task], methods, TINY, book, bar=False)
    rows = read_rows(book.path("toy"))
    assert not any("error" in row for row in rows)
    assert {"linear", "cosine", "hypergradient", "replay:hypergradient"} <= {row["method"] for row in rows}
    before = book.path("toy").read_bytes()
    assert list(missing([task], methods, TINY, Book(tmp_path))) == []
    complete([task], methods, TINY, Book(tmp_path), bar=False)
    assert book.path("toy").read_bytes() == before


def test_equal_budgets_choose_by_validation_loss_and_report_test_loss(tmp_path) -> None:
    task, book = vector(), Book(tmp_path)
    method, profile = METHODS["constant"], dataclasses.replace(TINY, sweep_all=True)
    for run in tuning_runs(task, profile):
        append_row(book.path("toy"), made_up(run, 1.0))
    for run in reference_runs(task, profile, Book(tmp_path)):
        append_row(book.path("toy"), made_up(run, 1.0))
    lrs = sweep_lrs(task, method)
    # The fourth learning rate is best by validation loss, the first by test loss, of which nobody may know.
    for run in budget_runs(task, method, profile):
        append_row(book.path("toy"), made_up(run, 0.1 if run.lr == lrs[3] else 2.0))
    for run in sweep_runs(task, method, profile):
        append_row(book.path("toy"), made_up(run, {lrs[3]: 1.5, lrs[0]: 0.5}.get(run.lr, 3.0)))
    regret = Results([task], [method], profile, Book(tmp_path)).equal_budget(method)
    with_best = [3 in study for study in studies()]
    assert any(with_best) and all(len(study) == BUDGET for study in studies())
    assert [round(float(r), 4) for r in regret[0][with_best]] == [round(math.log(1.5), 4)] * sum(with_best)


def test_a_replay_leaves_its_own_seed_out(tmp_path) -> None:
    task, method, book = vector(), METHODS["hypergradient"], Book(tmp_path)
    runs = own_lr_runs(task, method, TINY, book)
    assert own_lr_runs(task, METHODS["replay:hypergradient"], TINY, book) == []
    for number, run in enumerate(runs):
        append_row(book.path("toy"), made_up(run, 1.0) | {"factor_curve": [(0.0, float(number + 1))]})
    replays = own_lr_runs(task, METHODS["replay:hypergradient"], TINY, Book(tmp_path))
    assert [run.method.config["factors"] for run in replays] == [(2.5,), (2.0,), (1.5,)]


def test_the_sweep_has_four_decades_and_the_full_one_eight() -> None:
    full = PROFILES["full"]
    for task, decades in ((TASKS["mlp-1"], 4.0), (TASKS["image-cnn"], 7.0)):
        lrs = sorted({run.lr for run in sweep_runs(task, METHODS["linear"], full)})
        assert math.log10(lrs[-1] / lrs[0]) == pytest.approx(decades, abs=0.01)
    assert sweep_runs(TASKS["image-cnn"], METHODS["wsd"], full) == []
    found = sweep_runs(TASKS["image-cnn"], METHODS["relative"], full)  # one run per seed for all rates
    assert len(found) == 24 and {(run.seed, run.lr) for run in found} == {(seed, 5e-5) for seed in range(3)}
    assert sweep_runs(TASKS["text-lora"], METHODS["linear"], full) == []
    assert len(sweep_runs(TASKS["text-lora"], METHODS["linear"], PROFILES["extended"])) == 24


def test_a_killed_comparison_goes_on_to_the_same_rows(tmp_path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def run(folder: Path) -> None:
        complete([vector(steps=60)], [METHODS["hypergradient"]], TINY, Book(folder), bar=False)

    process = multiprocessing.get_context("fork").Process(target=run, args=(killed,))
    process.start()
    path = Book(killed).path("toy")
    for _ in range(2400):
        if path.is_file() and len(path.read_bytes().splitlines()) > 5:
            break
        time.sleep(0.05)
    process.kill()
    process.join()
    done = len(read_rows(path))
    for folder in (killed, whole):
        run(folder)

    def timeless(folder: Path) -> list[dict]:
        rows = read_rows(Book(folder).path("toy"))
        plain = [{k: v for k, v in row.items() if k not in ("seconds", "commit")} for row in rows]
        return sorted(plain, key=lambda row: (row["method"], row["lr"], row["seed"]))  # what was lost comes last

    assert 5 < done < len(timeless(whole))
    assert timeless(killed) == timeless(whole)


# --- from rows alone ----------------------------------------------------------------------------------------------


def made_up(run: YardstickRun, loss: float) -> dict:
    key, task_digest, method_digest = identity(run)
    return {
        "row": "run",
        **dataclasses.asdict(key),
        "task_digest": task_digest,
        "method_digest": method_digest,
        "first_loss": 10.0,
        "valid_loss": loss,
        "test_loss": loss,
        "valid_curve": [(0, 10.0), (10, 1.5 * loss), (20, loss)],
        "factor_curve": [(0.0, 1.0), (0.5, 0.5)],
        "seconds": 1.0,
        "updates": 20,
        "versions": {"torch": "2"},
        "commit": "abc",
    }


def results(folder: Path, effect: float, rng: np.random.Generator, tasks: int = 12) -> Results:
    """A comparison of made-up rows; the losses of `schedule_free` are multiplied."""
    toys = [vector(f"toy-{k}", seed=k) for k in range(tasks)]
    methods = [METHODS[name] for name in ("hypergradient", "greedy_repaired", "schedule_free")]
    book = Book(folder)
    for task in toys:
        while runs := list(missing([task], methods, TINY, book)):
            lines = []
            for run in runs:
                loss = math.exp(rng.normal(0.0, 0.05)) * (effect if run.method.name == "schedule_free" else 1.0)
                lines.append(json.dumps(made_up(run, loss)) + "\n")
            folder.mkdir(parents=True, exist_ok=True)
            with book.path(task.name).open("a") as file:
                file.writelines(lines)
            book.forget(task.name)
    return Results(toys, methods, TINY, book)


def test_the_whole_pipeline_finds_a_planted_effect_and_only_that(tmp_path) -> None:
    found = results(tmp_path, 1.15, np.random.default_rng(0)).primary()
    assert {name for name, difference in found.items() if difference.found()} == {"schedule_free"}
    assert found["schedule_free"].value == pytest.approx(math.log(1.15), abs=0.04)


def test_the_whole_pipeline_finds_nothing_where_there_is_nothing(tmp_path) -> None:
    false = 0
    for trial in range(8):
        found = results(tmp_path / str(trial), 1.0, np.random.default_rng([7, trial]), tasks=8).primary()
        false += any(difference.found() for difference in found.values())
    assert false <= 2


def test_the_statistics_keep_their_level_and_find_what_is_there() -> None:
    def noise(rng: np.random.Generator) -> dict:
        return {name: np.exp(rng.normal(0, 0.05, (12, 3))) for name in ("cosine", "a", "b")}

    assert aa_test(noise, "cosine", trials=60).share <= 0.13
    assert power_test(noise, "cosine", "a", by=0.1, trials=20).share >= 0.9


def test_the_page_is_the_same_when_rendered_again(tmp_path) -> None:
    results(tmp_path / "rows", 1.2, np.random.default_rng(0), tasks=3)
    pages = []
    for name in ("one", "two"):
        again = Results(
            [vector(f"toy-{k}", seed=k) for k in range(3)],
            [METHODS[name] for name in ("hypergradient", "greedy_repaired", "schedule_free")],
            TINY,
            Book(tmp_path / "rows"),
        )
        page = write_page(again, tmp_path / name, command="the command")
        pages.append({path.name: path.read_bytes() for path in page.parent.iterdir()})
    assert pages[0] == pages[1] and pages[0].keys() == {PAGE, *PLOTS}
    text = pages[0][PAGE].decode()
    assert PRIMARY_ENDPOINT.splitlines()[0] in text and "too few tasks" in text and "nan" not in text


def test_a_failed_run_is_the_worst_and_a_page_without_rows_says_so(tmp_path) -> None:
    made = results(tmp_path, 1.0, np.random.default_rng(0), tasks=2)
    task = made.tasks[0]
    run = own_lr_runs(task, METHODS["hypergradient"], TINY, made.book)[0]
    made.book.rows(task.name)[identity(run)] = {**dataclasses.asdict(run.key), "error": "ValueError: no"}
    again = Results(made.tasks, made.methods, TINY, made.book)
    assert again.scores["hypergradient"].regret[0, 0] == pytest.approx(math.log(100))
    assert math.isinf(again.scores["hypergradient"].steps[0, 0])
    assert "1 more ended in an error" in render(again, command="x")
    assert "No rows yet" in render(Results([vector()], [], TINY, Book(tmp_path / "none")), command="x")


def test_the_reference_is_tuned_by_validation_loss_on_its_own_seeds(tmp_path) -> None:
    task, book = vector(), Book(tmp_path)
    runs = tuning_runs(task, TINY)
    assert {run.seed for run in runs} == set(range(COUNTED, LANES))
    best = sorted({run.lr for run in runs})[1]
    for run in runs:
        append_row(book.path("toy"), made_up(run, 1.0 if run.lr == best else 2.0) | {"test_loss": None})
    assert tuned_lr(task, TINY, Book(tmp_path)) == best


def test_best_so_far_is_a_running_minimum() -> None:
    assert best_so_far([(0, 2.0), (1, None), (2, 3.0), (3, 1.0)]) == [(0, 2.0), (1, 2.0), (2, 2.0), (3, 1.0)]


# --- the verb -----------------------------------------------------------------------------------------------------


def test_the_verb_runs_resumes_and_renders(tmp_path, monkeypatch, capsys) -> None:
    for name in ("quadratic-1", "mlp-1"):
        problem = dataclasses.replace(TASKS[name].problem, total_steps=12)
        monkeypatch.setitem(TASKS, name, VectorTask(name=name, problem=problem))
    monkeypatch.setattr("hf_adaptive_lr.bench.yardstick_tasks.changed", list)
    tiny = dataclasses.replace(TINY, tasks=("quadratic-1", "mlp-1"))
    monkeypatch.setattr(yardstick_plan, "PROFILES", {"quick": tiny, "full": tiny})
    command = ["bench", "--quick", "--output-dir", str(tmp_path), "--methods", "hypergradient", "wsd"]
    assert main(command) == 0
    assert "hypergradient" in capsys.readouterr().out
    page = (tmp_path / PAGE).read_bytes()
    rows = {path.name: path.read_bytes() for path in (tmp_path / "rows").iterdir()}
    assert main([*command, "--render-only"]) == 0 and main(command) == 0
    assert (tmp_path / PAGE).read_bytes() == page
    assert {path.name: path.read_bytes() for path in (tmp_path / "rows").iterdir()} == rows


def test_a_controller_that_fails_in_its_runs_is_said(tmp_path, monkeypatch, capsys) -> None:
    problem = dataclasses.replace(TASKS["quadratic-1"].problem, total_steps=12)
    monkeypatch.setitem(TASKS, "quadratic-1", VectorTask(name="quadratic-1", problem=problem))
    monkeypatch.setattr("hf_adaptive_lr.bench.yardstick_tasks.changed", list)
    monkeypatch.setattr(yardstick_plan, "PROFILES", {"quick": dataclasses.replace(TINY, tasks=("quadratic-1",))})
    (tmp_path / "mine.py").write_text(
        "from hf_adaptive_lr import Controller\nclass Late(Controller):\n    controller_type = 'late'\n"
        "    def decide(self, obs, state, params=None):\n        if obs.step == 3:\n            1 / 0\n"
        "        return obs.lr / obs.base_lr, state\n"
    )
    source = f"{tmp_path}/mine.py:Late"
    command = [
        "bench",
        "--quick",
        "--output-dir",
        str(tmp_path / "out"),
        "--methods",
        "cosine",
        "--controller",
        source,
    ]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "runs ended in an error, the first: ZeroDivisionError" in said.err
    assert "too few tasks to compare" in said.out and "cosine: " in said.out


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


def test_a_controllers_folder_gets_what_the_rows_say_for_its_card(tmp_path, capsys) -> None:
    folder = tmp_path / "mine"
    Plateau(cut=0.3).save_pretrained(folder)
    words = ["bench", "--quick", "--output-dir", str(tmp_path / "bench"), "--controller", str(folder)]
    (folder / "eval_results.json").write_text("earlier")
    assert main([*words, "--render-only", "--write-results"]) == 1  # nothing has run
    assert "no real task has all its runs" in capsys.readouterr().err
    assert (folder / "eval_results.json").read_text() == "earlier"
    task, quick = TASKS["image-cnn"], yardstick_plan.PROFILES["quick"]
    book = yardstick_plan.Book(tmp_path / "bench" / "rows")
    for run in yardstick_plan.own_lr_runs(task, third_party(str(folder)), quick, book):
        key, task_digest, method_digest = identity(run)
        row = {"row": "run", **dataclasses.asdict(key), "task_digest": task_digest, "method_digest": method_digest}
        row |= {"test_loss": 0.5 + 0.1 * run.seed, "test_accuracy": 0.8, "failed": False, "parameters": 10}
        append_row(book.path(task.name), row)
    assert main([*words, "--render-only", "--write-results"]) == 0
    assert f"written to {folder / 'eval_results.json'}" in capsys.readouterr().out
    found = json.loads((folder / "eval_results.json").read_text())
    assert [result["task"] for result in found["results"]] == ["image-cnn"] and len(found["not_tested"]) == 1
    assert found["results"][0]["metrics"]["test_loss"]["mean"] == pytest.approx(0.6)
    assert f"--controller {folder}" in found["command"]
    assert main(["card", str(folder)]) == 0
    assert "| image-cnn |" in capsys.readouterr().out


def test_results_for_a_card_are_those_of_the_rows() -> None:
    book, full = yardstick_plan.Book(Path("model_cards/rows")), yardstick_plan.PROFILES["full"]
    relative, linear = (results_of(METHODS[name], full, book, "command") for name in ("relative", "linear"))
    assert len(relative["results"]) == 7 and relative["not_tested"] == []
    assert all(result["note"] == "no learning rate given" for result in relative["results"])
    assert not any("note" in result for result in linear["results"])
    one = next(result for result in relative["results"] if result["task"] == "image-cnn")
    rows = [json.loads(line) for line in Path("model_cards/rows/bench_image-cnn.jsonl").read_text().splitlines()]
    mine = [row for row in rows if row["method"] == "relative" and row["seed"] < full.seeds and "test_accuracy" in row]
    assert one["metrics"]["test_accuracy"]["mean"] == pytest.approx(np.mean([row["test_accuracy"] for row in mine]))


def test_changed_tasks_are_refused(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("hf_adaptive_lr.bench.yardstick_tasks.changed", lambda: ["mlp-1"])
    assert main(["bench", "--output-dir", str(tmp_path), "--tasks", "mlp-1"]) == 2
    assert "not as they were frozen" in capsys.readouterr().err


def test_every_real_task_has_a_budget_of_60_to_600_updates() -> None:
    assert all(60 <= task.updates <= 600 for task in REAL)
    assert sum(task.name.startswith("text") for task in REAL) >= 3 <= sum(t.name.startswith("image") for t in REAL)
    assert isinstance(replay(METHODS["plrs"]), Method)
