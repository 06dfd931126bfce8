"""The benchmark from rows to page: ruin, harm and regret by hand, negative losses, partial rows, what is claimed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from hf_adaptive_lr.bench import comparison, plan
from hf_adaptive_lr.bench.comparison import Comparison, compare, origin
from hf_adaptive_lr.bench.method import Method
from hf_adaptive_lr.bench.methods import METHODS, TUNED_METHODS
from hf_adaptive_lr.bench.page import PAGE, render, summary, write_page
from hf_adaptive_lr.bench.pictures import METHODS_PICTURE, RATES_PICTURE, TUNING_PICTURE
from hf_adaptive_lr.bench.results import as_text, results_of
from hf_adaptive_lr.bench.rows import Row, append_row
from hf_adaptive_lr.bench.scores import TUNED, WORST, Scale, TaskRows, cell, ruin, tuning
from hf_adaptive_lr.bench.sources import SOURCES, Source
from hf_adaptive_lr.bench.tables import best_rival, breakdown, left_out, losses, parts_worth
from hf_adaptive_lr.bench.targets import targets
from hf_adaptive_lr.bench.tasks import TASKS, Task
from hf_adaptive_lr.hub.results import check_results

INF, NAN = math.inf, math.nan
SEEDS = 3
Losses = Mapping[str, list[float | None]]


def task(name: str = "toy", **more) -> Task:
    values = {
        "suite": "test",
        "data": f"data-{name}",
        "model": "net",
        "kind": "scratch",
        "batch_size": 8,
        "updates": 100,
        "train_rows": 500,
        "test_rows": 400,
        "valid_rows": 400,
        "lr": 1e-3,
    }
    return Task(name=name, **{**values, **more})


class Origins(dict):
    """Data sets by name: those of the benchmark, "data-NAME" of the origin NAME, "data-NAME-more" as well."""

    def __missing__(self, name: str) -> Source:
        return Source(read=lambda: None, origin=name.split("-")[1], suite="test", kind="text")


@pytest.fixture(autouse=True)
def origins(monkeypatch):
    """The made-up data sets of these tests."""
    monkeypatch.setattr(comparison, "SOURCES", Origins(SOURCES))


def row(of: Task, method: str, seed: int, loss: float | None, lr: float = 1e-3, **more) -> Row:
    """A run that began at a loss of 2 and whose accuracy is .9 (F1 .7), against .5 of the best constant answer."""
    head = {"task": of.name, "method": method, "seed": seed, "lr": lr}
    scores = {"first_loss": 2.0, "valid_loss": loss, "test_loss": loss, "valid_metric": 0.9, "test_metric": 0.9}
    curve = [[0, 2.0], [50, 1.5], [100, loss]]
    cost = {"cpu_seconds": 10.0, "updates": 100, "valid_curve": curve, "pairing": f"{seed}", "diverged": loss is None}
    cost |= {"lr_curve": [[0.0, lr], [0.5, lr / 2], [1.0, 0.0]], "peak_lr": lr, "final_lr": lr / 100}
    about = {"setting": {"parameters": 7}, "versions": {"torch": "2"}, "commit": "abc"}
    about |= {"test_macro_f1": 0.7, "chance_metric": 0.5, "chance_loss": 2.0, "valid_count": 400, "test_count": 400}
    return {**head, **scores, **cost, **about, **more}


def rows_of(of: Task, losses: Losses, *, tuned: float = 1.0, **more) -> TaskRows:
    """Rows of these test losses by seed; tuned linear has the loss `tuned`, at an LR of 1e-3."""
    counted = {name: [row(of, name, seed, loss) for seed, loss in enumerate(some)] for name, some in losses.items()}
    for name in ("linear", TUNED):
        counted.setdefault(name, [row(of, "linear", seed, tuned) for seed in range(SEEDS)])
    counted.setdefault("rule", [row(of, "rule", seed, tuned) for seed in range(SEEDS)])
    grid = {1e-4: 1.5, 1e-3: tuned, 2e-3: tuned + 0.01, 1e-2: 3.0}
    tried = {lr: [row(of, "linear", 100 + s, loss, lr) for s in range(SEEDS)] for lr, loss in grid.items()}
    return TaskRows(of, list(counted), ("linear", 1e-3), {**counted, **more}, {"linear": tried})


def suite(every: list[TaskRows], methods: tuple[str, ...] = ("universal", "rule", "default", "prodigy", "linear")):
    return Comparison("test", every, [METHODS[name] for name in methods])


# --- losses -------------------------------------------------------------------------------------------------------


def test_losses_are_compared_by_ratios_and_those_of_densities_by_nats() -> None:
    ratios, nats = Scale(), Scale(nats=True)
    assert ratios.excess([1.1, 0.5], 1.0) == pytest.approx(np.log([1.1, 0.5]))
    assert nats.excess([-1.0, 0.3], -1.1) == pytest.approx([0.1, 1.4])
    assert (ratios.margin(0.1), nats.margin(0.1)) == pytest.approx((math.log(1.1), 0.1))
    # What came apart is beyond everything, and level with its like; a loss of 0 is at the other end.
    assert ratios.excess([NAN, INF, 1.0, NAN, 0.0], [1.0, 1.0, NAN, INF, 1.0]).tolist() == [INF, INF, -INF, 0, -INF]
    assert nats.excess([NAN, 0.0, NAN], [-5.0, NAN, NAN]).tolist() == [INF, -INF, 0]
    with pytest.raises(ValueError, match="never negative, but one is -1"):
        ratios.excess(-1.0, 1.0)


def test_the_mean_of_losses_leaves_out_what_came_apart() -> None:
    assert Scale().centre([1.0, 4.0, NAN]) == pytest.approx(2.0)
    assert Scale(nats=True).centre([-1.0, 4.0, INF]) == 1.5
    assert Scale().centre([NAN]) == INF
    assert Scale(floor=0.04).centre([0.0, 1.0]) == pytest.approx(0.2)


def test_of_a_task_that_is_solved_ratios_say_nothing() -> None:
    # The best constant answer has a loss of 2: below .02 all are alike, on both sides.
    of = rows_of(task(), {"rule": [1e-6] * 3, "default": [0.0] * 3}, tuned=1e-5)
    solved = cell([row(of.task, "x", seed, loss) for seed, loss in enumerate((1e-3, 0.0, 0.0199))], of)
    assert solved.regret.tolist() == [0, 0, 0] and not solved.ruin.any.any()
    assert not solved.harm["rule"].any() and not solved.harm["default"].any() and (solved.target <= 1).all()
    found = cell([row(of.task, "x", 0, 0.03)], of)
    assert found.regret == pytest.approx([math.log(1.5)]) and found.harm["rule"].all() and found.ruin.above_rule.all()
    # Densities have no floor: there is nothing special about a loss of 0.
    of = rows_of(task(objective="density"), {"rule": [0.0] * 3}, tuned=0.0)
    assert cell([row(of.task, "x", 0, 0.01)], of).regret == pytest.approx([0.01])


# --- a method on a task -------------------------------------------------------------------------------------------


def test_the_three_parts_of_ruin() -> None:
    of = rows_of(task(), {"rule": [1.0, 1.0, 1.0]})
    worse, none, apart = (row(of.task, "x", seed, loss) for seed, loss in enumerate((2.1, 1.05, None)))
    found = cell([worse, none, apart], of).ruin
    assert found.ended_worse.tolist() == [True, False, True]
    assert found.above_rule.tolist() == [True, False, True]
    assert not found.at_chance.any() and found.any.tolist() == [True, False, True]
    # A standard error of 400 rows of which half are right by chance is .025.
    shares = [0.50, 0.524, 0.526]
    found = cell([row(of.task, "x", i, 1.0, test_metric=share) for i, share in enumerate(shares)], of).ruin
    assert found.at_chance.tolist() == [True, True, False] == found.any.tolist()
    # 10 % above `rule`'s mean, not that of the same seed.
    of = rows_of(task(), {"rule": [0.8, 1.0, 1.25]})
    found = cell([row(of.task, "x", seed, loss) for seed, loss in enumerate((1.09, 1.11, 1.0))], of).ruin
    assert found.above_rule.tolist() == [False, True, False]
    # Harder test rows ruin nobody: before and after are compared on the validation rows.
    harder = [row(of.task, "x", 0, 1.9, test_loss=2.1), row(of.task, "x", 0, 2.1, test_loss=1.9)]
    assert ruin(harder, of).ended_worse.tolist() == [False, True]
    error = {"task": "toy", "method": "x", "seed": 0, "lr": 1.0, "error": "ValueError: no"}
    assert cell([error], of).ruin.any.all() and cell([error], of).regret.tolist() == [WORST]


def test_at_chance_goes_by_the_answers_that_were_judged() -> None:
    tuned = [row(task(), "linear", seed, 1.0, test_count=10_000, valid_count=100) for seed in range(SEEDS)]
    of = rows_of(
        task(test_rows=7, objective="tokens"), {}, linear=tuned, **{TUNED: tuned}
    )  # standard errors .005 and .05
    mine = [row(of.task, "x", 0, 1.0, test_metric=m, valid_metric=m) for m in (0.504, 0.506, 0.549, 0.551)]
    assert ruin(mine, of).at_chance.tolist() == [True, False, False, False]
    assert ruin(mine, of, "valid").at_chance.tolist() == [True, True, True, False]


def test_tuned_linear_has_learned_by_its_mean_and_not_by_a_lucky_seed() -> None:
    for shares, learned in (([0.5, 0.5, 0.56], False), ([0.5, 0.52, 0.7], True)):
        tuned = [row(task(), "linear", seed, 1.0, test_metric=share) for seed, share in enumerate(shares)]
        of = rows_of(task(), {}, **{TUNED: tuned})
        assert cell([row(of.task, "x", 0, 1.0, test_metric=0.4)], of).ruin.at_chance.all() == learned


def test_points_of_imbalanced_tasks_are_of_macro_f1() -> None:
    for imbalance, points in ((1.0, -2.0), (20.0, -30.0)):
        of = rows_of(task(imbalance=imbalance), {})
        mine = [row(of.task, "universal", s, 1.0, test_metric=0.88, test_macro_f1=0.4) for s in range(SEEDS)]
        assert cell(mine, of).points == pytest.approx(points)
        of = dataclasses.replace(of, wanted=["universal"], counted={**of.counted, "universal": mine})
        metrics = results_of("universal", {"test": suite([of])}, "c")["results"][0]["metrics"]
        other = {"test_accuracy": 0.88} if imbalance == 1.0 else {"test_macro_f1": 0.4}
        assert {name: metrics[name]["mean"] for name in metrics if name != "test_loss"} == other


def test_nobody_is_at_chance_where_tuned_linear_is() -> None:
    of = rows_of(task(), {}, **{TUNED: [row(task(), "linear", seed, 1.0, test_metric=0.5) for seed in range(SEEDS)]})
    assert not cell([row(of.task, "x", 0, 1.0, test_metric=0.4)], of).ruin.at_chance.any()


def test_negative_losses() -> None:
    of = rows_of(task(objective="density"), {"rule": [-1.0] * 3, "default": [-1.5] * 3}, tuned=-1.2)
    mine = [row(of.task, "x", seed, loss) for seed, loss in enumerate((-1.03, -0.97, -0.89))]
    found = cell(mine, of)
    assert found.regret == pytest.approx([0.17, 0.23, 0.31])
    assert found.harm["rule"].tolist() == [False, True, True] and found.harm["default"].all()
    assert found.ruin.above_rule.tolist() == [False, False, True]
    assert math.isnan(found.points) and found.target.tolist() == [INF] * 3
    assert cell([row(of.task, "x", 0, -1.19)], of).target.tolist() == [1.0]  # within two hundredths of a nat


def test_harm_is_paired_by_seed() -> None:
    of = rows_of(task(), {"rule": [1.0, 2.0, None], "default": [1.5, 1.5, 1.5]})
    found = cell([row(of.task, "x", seed, loss) for seed, loss in enumerate((1.021, 2.039, None))], of)
    assert found.harm["rule"].tolist() == [True, False, False]  # both came apart: no harm
    assert found.harm["default"].tolist() == [False, True, True]


def test_accuracy_seconds_and_steps_to_the_target() -> None:
    of = rows_of(task(), {}, tuned=1.0)
    slow = {"cpu_seconds": 15.0, "test_metric": 0.88}
    early = row(of.task, "x", 0, 3.0, valid_curve=[[0, 2.0], [20, 1.01], [100, 3.0]], **slow)
    late = row(of.task, "x", 1, 1.0, **slow)
    miss = row(of.task, "x", 2, 1.0, valid_curve=[[0, 2.0], [50, None], [100, 1.03]], **slow)
    found = cell([early, late, miss], of)
    assert found.points == pytest.approx(-2.0) and found.seconds == 1.5
    assert found.target.tolist() == [0.2, 1.0, INF]  # the first time counts, even if the run falls apart later


def test_a_tuning_curve_says_where_the_best_rate_is_and_where_ruin_begins() -> None:
    found = tuning(rows_of(task(), {}), "linear")
    assert (found.best, found.good, found.ruin) == (1e-3, (1e-3, 2e-3), 1e-2)
    assert found.lrs == (1e-4, 1e-3, 2e-3, 1e-2) and found.seconds == 4 * SEEDS * 10.0
    assert tuning(rows_of(task(), {}), "cosine") is None
    # One seed of three that comes apart at a rate rules it out as the best, and is no ruin of half the runs.
    of = rows_of(task(), {})
    of.tuning["linear"][2e-3][0]["valid_loss"] = None
    found = tuning(of, "linear")
    assert found.good == (1e-3, 1e-3) and found.ruin == 1e-2 and np.isinf(found.losses[2]).sum() == 1


# --- over tasks ---------------------------------------------------------------------------------------------------


def three_tasks() -> Comparison:
    kinds = ("scratch", "adapter", "pretrained")
    every = [
        rows_of(
            task(f"t{i}", kind=kind, updates=updates), {"universal": mine, "rule": [1.1] * 3, "default": [1.3] * 3}
        )
        for i, (kind, updates, mine) in enumerate(
            zip(kinds, (30, 600, 2000), ([1.0] * 3, [1.05] * 3, [1.1, 1.2, 3.0]), strict=True)
        )
    ]
    return suite(every)


def test_a_method_over_tasks() -> None:
    line = three_tasks().line("universal")
    assert line.tasks == 3 and line.ruin == pytest.approx(1 / 9) == line.ended_worse == line.above_rule
    assert line.at_chance == 0 and line.harm_rule == pytest.approx(2 / 9) and line.harm_default == pytest.approx(1 / 9)
    regrets = [0.0, math.log(1.05), (math.log(1.1) + math.log(1.2) + math.log(3)) / 3]
    assert line.regret.value == pytest.approx(np.mean(regrets)) and line.worst == ("t2", pytest.approx(regrets[2]))
    assert line.better == pytest.approx(2 / 3) and line.points == 0 and line.seconds == 1
    assert line.met == pytest.approx(3 / 9) and math.isinf(line.steps)
    # The least ruinous first, then the least regret.
    assert [each.method for each in three_tasks().lines()] == ["linear", TUNED, "rule", "universal", "default"]


def test_breakdowns_have_every_task_once() -> None:
    found = three_tasks()
    assert found.groups("kind") == {"scratch": ["t0"], "adapter": ["t1"], "pretrained": ["t2"]}
    assert list(found.groups("length")) == ["up to 60 updates", "61 to 600", "over 600"]
    assert "| `universal` | +0.000 | +0.049 | +0.459 (33%) |" in breakdown(found, "kind")
    assert list(found.groups("origin")) == ["t0", "t1", "t2"]


def of_two_origins() -> Comparison:
    """Four tasks of one origin and one of another; `default` is not run with SGD."""
    every = [
        rows_of(
            task(f"t{i}", data="data-a-more" if i % 2 else "data-a" if i < 4 else "data-b", optimizer=optimizer),
            {
                "universal": [1.2] * 3,
                "rule": [1.0, 1.01, 1.03],
                **({"default": [1.5] * 3} if optimizer != "sgd" else {}),
            },
        )
        for i, optimizer in enumerate(("adamw", "adamw", "sgd", "sgd", "adamw"))
    ]
    return suite(every)


def test_tasks_of_one_origin_are_one_draw() -> None:
    found = of_two_origins()
    assert found.groups("origin") == {"a": ["t0", "t1", "t2", "t3"], "b": ["t4"]}
    worth = found.primary()["universal"]
    assert worth.n == 5 and worth.least_p == 2 / 2**2 and found.against("universal", "rule").least_p == 2 / 2**2
    assert worth.value == pytest.approx(math.log(1.2))  # the mean over tasks
    text = render({"test": found}, command="c")
    assert "5 test tasks with data of 2 origins" in text and "5 from 2 origins" in text and "too few origins" in text
    assert origin(TASKS["brown-two"].data) == origin(TASKS["brown-tags"].data) == "brown"


def test_trainers_default_is_judged_where_it_is_run() -> None:
    found = of_two_origins()
    line = found.line("universal")
    assert line.harm_default == 0 and found.line("default").tasks == 3 and not found.lacking()
    assert "`default`: 100% of those on 3 tasks)" in summary({"test": found}, "universal")


def test_so_much_harm_is_found_between_two_seeds_of_one_method() -> None:
    # Of the six ordered pairs of 1, 1.01 and 1.03, one is 3 % above the other; 1.03 is 1.98 % above 1.01.
    assert of_two_origins().chance_harm() == pytest.approx(1 / 6)
    assert three_tasks().chance_harm() == 0
    text = " ".join(render({"test": of_two_origins()}, command="c").split())
    assert (
        "Of two runs of `rule` with different seeds the first has a loss more than 2% above the second's in 17%"
        in text
    )


def test_where_a_method_loses_the_worst_task_comes_first() -> None:
    lines = losses(three_tasks(), "universal").splitlines()
    assert lines[2].startswith("| t2 | 1.5821 (1 of 3 ruined) | 1.1000 | 1.3000 (3 of 3 ruined) | 1.0000 |")
    assert lines[2].endswith("| 1.1000 `rule` |") and lines[4].startswith("| t0 | 1.0000 |")


def test_tuning_costs_its_runs() -> None:
    found = three_tasks()
    assert found.tuning_cost("linear") == (120.0, 12.0) == found.tuning_cost(TUNED)
    assert found.tuning_cost("rule") is None and found.tuned("universal") == ()


def test_feedback_and_what_was_chosen_on_some_data() -> None:
    every = [rows_of(task(f"t{i}"), {"mine": [1.05 + i / 10] * 3, "replay:mine": [1.3] * 3}) for i in range(3)]
    mine = Method(name="mine", controller="universal", chosen_on=("data-t0-more",))
    found = Comparison("test", every, [mine, dataclasses.replace(mine, name="replay:mine", replay_of="mine")])
    worth = found.against("mine", "replay:mine")
    assert worth.value == pytest.approx(np.mean(np.log([1.05 / 1.3, 1.15 / 1.3, 1.25 / 1.3]))) and worth.n == 3
    unseen, low = math.log(1.15 * 1.25) / 2, math.log(1.05 * 1.15) / 2
    expected = f"| `mine` | {math.log(1.05):+.3f} | {unseen:+.3f} (100%) | {low:+.3f} to {unseen:+.3f} |"
    assert expected in left_out(found)


def test_targets_are_measured_one_by_one() -> None:
    def reached(**losses: list[float | None]) -> list[str]:
        every = [
            rows_of(task(f"t{i}", updates=300), {"rule": [1.2] * 3, "default": [1.3] * 3, **losses}) for i in range(4)
        ]
        found = Comparison("test", every, [METHODS[name] for name in ("universal", "default", "prodigy", "relative")])
        return [line.split("|")[-2].strip() for line in targets(found, "universal").splitlines()[2:]]

    assert reached(universal=[0.99] * 3, prodigy=[1.0] * 3) == ["yes"] * 8 + ["no"]  # ends at 1 % of its peak
    # A tenth worse than tuned linear: mean, upper end and worst task; an own controller that is better is no rival.
    worse = reached(universal=[1.11] * 3, prodigy=[1.2] * 3, relative=[1.0] * 3)
    assert worse == ["yes"] * 3 + ["no"] * 3 + ["yes", "yes", "no"]
    assert reached(universal=[1.11] * 3, prodigy=[1.1] * 3)[-2] == "no"
    # One run of three is 25 % above the rule's: ruin and harm, though in the mean it is below.
    ruined = reached(universal=[0.9, 0.9, 1.5])
    assert ruined[:3] == ["no"] * 3 and ruined[6] == "yes"


def test_a_part_is_judged_on_the_tasks_that_it_is_of() -> None:
    part = Method(name="without", text="a part less", part_of="universal", kinds=("adapter",))
    every = [
        rows_of(task("t0"), {"universal": [1.0] * 3}),
        rows_of(task("t1"), {"universal": [1.0] * 3, "without": [1.2] * 3}),
    ]
    found = Comparison("development", every, [METHODS["universal"], part])
    assert f"| `without` | a part less | 1 | 100% | 0% | {math.log(1.2):+.3f} |" in parts_worth(found)
    assert [line.method for line in found.lines() if line.method == "without"] == []
    assert best_rival(found, "t1", "universal") == "rule"
    text = render({"development": found}, command="c")
    assert text.index("## What the parts of `universal` are worth") < text.index("## Tuning")
    run_on = [task("t0", kind="adapter", suite=suite) for suite in ("development", "test")]
    ablation = METHODS["universal without length"]
    assert [plan.of_task(of, [ablation]) for of in run_on] == [[ablation], []]


def many(effect: float, rng: np.random.Generator, tasks: int = 12) -> Comparison:
    """`universal` and `prodigy` against tuned linear: noise, and what is planted."""
    every = []
    for i in range(tasks):
        gaps = 0.03 * rng.normal(size=(2, 1)) + 0.05 * rng.normal(size=(2, SEEDS))
        mine, other = np.exp(gaps + [[effect], [0.0]]).tolist()
        every.append(rows_of(task(f"t{i}"), {"universal": mine, "prodigy": other, "rule": [1.2] * 3}))
    return suite(every)


def test_the_primary_endpoint_finds_what_was_planted_and_nothing_else() -> None:
    planted = many(math.log(1.1), np.random.default_rng(0)).primary()
    assert list(planted) == ["universal", "rule", "prodigy"]
    assert planted["universal"].found() and planted["rule"].found() and not planted["prodigy"].found()
    assert planted["rule"].p_adjusted == pytest.approx(len(plan.PRIMARY) * 2 / 2**12)  # absent ones count
    none = [many(0.0, np.random.default_rng([1, i])).primary() for i in range(25)]
    assert sum(found["universal"].found() or found["prodigy"].found() for found in none) <= 4


def test_strangers_are_tested_too() -> None:
    every = [rows_of(task(f"t{i}"), {"theirs": [1.0] * 3}) for i in range(3)]
    assert "theirs" in Comparison("test", every, [METHODS["rule"], Method(name="theirs")]).primary()


def test_a_method_against_itself() -> None:
    times, tests = many(0.0, np.random.default_rng(3)).same_against_same()
    assert tests == 5 * 3 and times <= 3  # tuned linear, `linear` and `rule` have no noise at all


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_reads_from_the_top_and_is_the_same_when_rendered_again(tmp_path) -> None:
    development = [rows_of(task("d0", suite="development"), {"universal": [1.0] * 3})]
    suites = {"test": three_tasks(), "development": Comparison("development", development, [METHODS["universal"]])}
    pages = [write_page(suites, tmp_path / name, command="the command") for name in ("one", "two")]
    files = [{path.name: path.read_bytes() for path in page.parent.iterdir()} for page in pages]
    assert files[0] == files[1] and files[0].keys() == {PAGE, METHODS_PICTURE, RATES_PICTURE, TUNING_PICTURE}
    text = files[0][PAGE].decode()
    order = [
        "Asked of 3 test tasks with data of 3 origins, with 1 model, 30 to 2,000 updates",
        "On 3 test tasks with data of 3 origins, `universal` ruined 11% of its runs",
        "## All methods on the test tasks",
        "## Where `universal` loses",
        "*tuned linear*'s on 2 of 3 tasks",
        "## Primary endpoint",
        "too few origins",
        "## What `universal` was to reach",
        "## Ruin in its parts",
        "## By kind",
        "## What feedback is worth",
        "## Tuning",
        "## The tasks",
        "| t0 | test | data-t0 | net, scratch | adamw | 30 | 8 | 0.001 | 0.001 to 0.002 | 0.01 (10x) |",
        "## All methods on the development tasks",
        "## How it was done",
        plan.PRIMARY_ENDPOINT.splitlines()[0],
        "the command",
        "Commits: abc.",
    ]
    assert [part for part in order if part not in text] == []
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "nan" not in text and "inf" not in text.replace("information", "") and "Not complete" not in text


def test_partial_rows_make_a_page_that_says_what_is_lacking() -> None:
    waiting = TaskRows(task("t3"), ["universal"], None, {}, {})
    short = rows_of(task("t4"), {"universal": [1.0] * 3})
    lone = dataclasses.replace(short, wanted=["universal", "prodigy"])
    text = render({"test": suite([waiting, lone])}, command="the command")
    assert "**Not complete.** test: no tuned linear or `rule` yet on t3; `prodigy` on 1 of 1 tasks." in text
    assert "`prodigy`" not in text.partition("## All methods")[2].partition("## Where")[0]
    assert (
        "Asked of 1 test task with data of 1 origin," in text and "| `universal` | 1 | 0% | 0% | - | +0.000 |" in text
    )
    empty = render({"test": suite([waiting])}, command="the command")
    assert "No task has been run to its end yet." in empty and "No rows yet." in empty
    # Development tasks do for a page, but nothing is claimed from them and nothing tested.
    rows = [rows_of(task("d0", suite="development"), {"universal": [1.0] * 3})]
    both = {"test": suite([waiting]), "development": Comparison("development", rows, [METHODS["universal"]])}
    text = render(both, command="c")
    assert "## All methods on the development tasks\n\nThese tasks could be looked at" in text
    assert "## Primary endpoint" not in text and "**Not complete.** test: no tuned linear" in text
    assert "## The test tasks so far" not in text
    both["test"] = suite([waiting, short])
    text = render(both, command="c")
    so_far = text.partition("## The test tasks so far: 1 of 2")[2].partition(
        "## All methods on the development tasks"
    )[0]
    assert "| `universal` | 1 | 0% |" in so_far and "## Primary endpoint" not in text


def test_what_is_lacking_is_one_line_however_much_it_is() -> None:
    of = dataclasses.replace(rows_of(task(), {}), wanted=list(METHODS))
    found = Comparison("test", [of], METHODS.values())
    assert found.lacking().count("`") == 10 and found.lacking().endswith(" more on 1 of 1 tasks")


def test_a_task_without_a_sound_reference_waits() -> None:
    broken = rows_of(task(), {TUNED: [None] * 3})
    found = suite([broken])
    assert found.waiting == ["toy"] and not found.cells


def test_a_task_on_which_the_rule_comes_apart_counts() -> None:
    found = suite([rows_of(task(), {"rule": [None] * 3, "universal": [1.0] * 3})])
    assert found.line("rule").ruin == 1.0 and found.line("universal").ruin == 0.0
    assert found.line("rule").regret.value == WORST and found.line("universal").harm_rule == 0.0


@pytest.mark.parametrize(
    ("mine", "verdict"),
    [
        ([0.9] * 3, "Where nothing is tuned it is the better choice on tasks like these."),
        ([1.05] * 3, "The rule of thumb is the better choice on tasks like these."),
        ([1.5] * 3, "It ruins more than the rule of thumb: use `rule` where a run cannot be repeated."),
    ],
)
def test_three_sentences_about_a_controller(mine, verdict) -> None:
    suites = {"test": suite([rows_of(task(f"t{i}"), {"universal": mine}) for i in range(6)])}
    text = summary(suites, "universal")
    ruined = "100%" if mine[0] == 1.5 else "0%"
    assert text.startswith(
        f"On 6 test tasks with data of 6 origins, `universal` ruined {ruined} of its runs (`rule`: 0%)."
    )
    assert f"Its test loss is {mine[0]} times tuned linear's and {mine[0]} times `rule`'s" in text
    assert text.endswith(verdict)


def test_the_endpoint_is_not_looked_at_before_all_its_runs_are_there() -> None:
    done = rows_of(task("t0"), {"universal": [0.9] * 3})
    assert "too few origins" in render({"test": suite([done])}, command="c")
    lacking = dataclasses.replace(rows_of(task("t1"), {}), wanted=["universal"])
    waiting = dataclasses.replace(done, task=task("t2"), counted={})
    for other in (lacking, waiting):
        text = render({"test": suite([done, other])}, command="c")
        assert "It is tested once, when all its runs are there." in text and "p (Holm)" not in text


def test_a_few_origins_are_no_ground_for_a_choice() -> None:
    # Of four origins no p-value is below an eighth, however alike their differences and narrow the interval.
    suites = {"test": suite([rows_of(task(f"t{i}"), {"universal": [0.9] * 3}) for i in range(4)])}
    assert suites["test"].against("universal", "rule").high < 0
    assert summary(suites, "universal").endswith("4 tasks cannot tell it from the rule of thumb.")


def test_one_task_or_none_says_nothing() -> None:
    one = {"test": suite([rows_of(task(), {"universal": [0.9] * 3})])}
    assert summary(one, "universal").endswith("1 task cannot tell it from the rule of thumb.")
    assert summary(one, "prodigy") == "`prodigy` has not been run to its end on any task, so nothing can be said yet."


# --- cards --------------------------------------------------------------------------------------------------------


def test_results_for_a_card() -> None:
    suites = {"test": three_tasks()}
    found = results_of("universal", suites, "the command")
    checked = check_results(found)
    assert [result["task"] for result in checked] == ["t0", "t1", "t2"] and not found["not_tested"]
    last = checked[2]
    assert last["note"] == "no learning rate given"
    assert last["metrics"]["test_loss"]["mean"] == pytest.approx(5.3 / 3, rel=1e-5) and last["seeds"] == 3
    assert last["against"]["default"]["test_loss"]["word"] == "no difference"
    assert checked[0]["against"][TUNED]["test_accuracy"]["difference"] == 0
    assert '"format_version": 1' in as_text(found)
    assert results_of("prodigy", suites, "c")["results"] == []


def test_rows_that_are_no_pairs_are_not_compared() -> None:
    of = rows_of(task(), {"universal": [1.0] * 3})
    of.counted["universal"][0]["pairing"] = "another"
    found = results_of("universal", {"test": suite([of])}, "c")
    assert found["results"] == [] and found["not_tested"] == ["toy: data-toy, net, adamw (rows of two machines)"]


# --- with the plan ------------------------------------------------------------------------------------------------


def fill(folder: Path, tasks: list[Task], methods: list[Method], profile: plan.Profile, loss: Callable) -> plan.Book:
    """Rows of all runs that the plan asks for, made instead of trained."""
    book = plan.Book(folder)
    for of in tasks:
        while runs := plan.missing(of, methods, profile, book):
            for run in runs:
                curve = {"lr_curve": [[0.0, run.lr], [0.5, run.lr / 2]]}
                made = row(of, run.method.name, run.seed, loss(run), run.lr, **curve)
                digests = {"task_digest": run.task_digest, "method_digest": run.method_digest}
                append_row(book.path(of.name), {**made, **digests})
            book.forget(of.name)
    return book


def test_rows_of_the_plan_make_the_comparison(tmp_path) -> None:
    tasks = [task("a"), task("b", suite="development")]
    methods = [*TUNED_METHODS, *(METHODS[name] for name in ("rule", "default", "universal", "replay:universal"))]

    def loss(run) -> float:
        best = 4e-3 if run.method.warmup else 2e-3
        return 1.0 + 0.1 * abs(math.log(run.lr / best)) if run.method.lr == "tuned" else 1.05

    book = fill(tmp_path, tasks, methods, plan.PROFILES["full"], loss)
    suites = compare(tasks, methods, plan.PROFILES["full"], book)
    assert list(suites) == ["test", "development"] and not any(found.lacking() for found in suites.values())
    found = suites["test"]
    assert found.cells.keys() == {TUNED, *(method.name for method in methods)}
    assert (
        found.tuning("a", "cosine").best in plan.tuned(tasks[0], METHODS["cosine"], plan.PROFILES["full"], book).tried
    )
    # The test tasks are looked at once, when all can be scored.
    assert "## All methods on the test tasks" in render(suites, command="c")
    part = render(compare([*tasks, task("c")], methods, plan.PROFILES["full"], book), command="c")
    assert "## All methods on the development tasks" in part and "## All methods on the test tasks" not in part
    assert "test: no tuned linear or `rule` yet on c" in part
    # A method whose rows are gone is lacking; a page can still be written.
    gone = compare(tasks, [*methods, METHODS["prodigy"]], plan.PROFILES["full"], book)
    assert gone["test"].lacking() == "`prodigy` on 1 of 1 tasks"
    assert "`prodigy` on 1 of 1 tasks" in render(gone, command="c")


def test_a_loss_is_flat_until_it_has_made_a_tenth_of_its_way() -> None:
    of, draw = task(), np.random.default_rng(0)
    for corner in (0.3, 0.5):  # flat up to here, then a straight line from 1 to 0
        tuned = []
        for seed in range(SEEDS):
            at = (np.arange(25) + 0.5) / 25
            losses = np.where(at < corner, 1.0, (1.0 - at) / (1.0 - corner)) + 0.05 * draw.normal(size=25)
            tuned.append(row(of, "linear", seed, 1.0, loss_curve=np.column_stack([at, losses]).tolist()))
        found = suite([rows_of(of, {}, **{TUNED: tuned})])
        # A single point of noise would have crossed the line at once.
        assert found.flat_until(of.name) == pytest.approx(corner + 0.1 * (1 - corner), abs=0.05)
    level = [[(k + 0.5) / 25, 1.0] for k in range(25)]
    never = [row(of, "linear", seed, 1.0, loss_curve=level[: 25 - 9 * (seed == 1)]) for seed in range(SEEDS)]
    assert suite([rows_of(of, {}, **{TUNED: never})]).flat_until(of.name) == 1.0  # one of the runs was lost
    short = suite([rows_of(of, {}, **{TUNED: [row(of, "linear", 0, 1.0, loss_curve=[[0.5, 1.0]])]})])
    assert math.isnan(short.flat_until(of.name))
