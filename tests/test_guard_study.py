"""The guard's benchmark: every trouble does what it says, when it says, and the page says what the rows do."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_adaptive_lr.bench import trouble, trouble_pages, trouble_run
from hf_adaptive_lr.bench.data import Parts, Rows, collate
from hf_adaptive_lr.bench.record import evaluate
from hf_adaptive_lr.bench.rows import read_rows
from hf_adaptive_lr.bench.runner import run_all
from hf_adaptive_lr.bench.trouble import STREAM_SEEDS
from hf_adaptive_lr.bench.trouble_figures import Figures, first_alarm, tolerance, within
from hf_adaptive_lr.bench.trouble_injections import INJECTIONS, Striker, strikes
from hf_adaptive_lr.bench.trouble_methods import METHODS, guard_settings
from hf_adaptive_lr.bench.trouble_pages import TROUBLES
from hf_adaptive_lr.bench.trouble_restless import STREAMS
from hf_adaptive_lr.bench.trouble_run import TroubledTrainer, TroubleRun
from hf_adaptive_lr.bench.trouble_tasks import (
    EVALUATIONS,
    QUICK_TASKS,
    TASKS,
    as_task,
    build_model,
)
from hf_adaptive_lr.guard import guard
from hf_adaptive_lr.hub.card import notes_of
from tests.tiny import bert

CARDS = Path(__file__).parent.parent / "model_cards"
COMMAND = "the command"


def images(size: int, seed: int) -> Rows:
    """Noise with a bright stripe where the label says."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (size,), generator=generator)
    pixels = torch.randn(size, 1, 28, 28, generator=generator)
    pixels[torch.arange(size), 0, 2 * labels] += 3.0
    return Rows({"pixel_values": pixels, "labels": labels})


@pytest.fixture(autouse=True)
def parts(monkeypatch) -> Parts:
    found = Parts(images(200, 1), images(40, 2), images(1, 4), images(60, 3), 0.0, 0.0)
    for module in (trouble, trouble_run):
        monkeypatch.setattr(module, "load_parts", lambda task: found)
    return found


def quick(injection: str, method: str = "none", seed: int = 0) -> TroubleRun:
    return TroubleRun(QUICK_TASKS["image"], INJECTIONS[injection], METHODS[method], seed)


class Spy(TrainerCallback):
    """The weights before each update, what the model is given in training, and the number of evaluations."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: list[torch.Tensor] = []
        self.forwards: list[torch.Tensor] = []
        self.batches: list[dict[str, Any]] = []
        self.evaluations = 0
        self._model = model
        model.register_forward_pre_hook(self._forward, with_kwargs=True)

    def _flat(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self._model.parameters()]).clone()

    def _forward(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if model.training:
            self.batches.append(kwargs)
            self.forwards.append(self._flat())

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.weights.append(self._flat())

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.weights.append(self._flat())

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self.evaluations += 1


def spied(run: TroubleRun, parts: Parts, folder: Path, *, plain: bool = False) -> tuple[Spy, Any]:
    """The run, watched; `plain` through transformers' own Trainer and without a striker."""
    model = build_model(run.task, run.seed)
    spy = Spy(model)
    striker = {} if plain else {"striker": Striker(run.injection, model, run.task.updates, run.seed)}
    trainer = (Trainer if plain else TroubledTrainer)(
        model=model,
        args=run._arguments(str(folder)),
        train_dataset=parts.train,
        eval_dataset=parts.valid,
        data_collator=collate,
        callbacks=[spy],
        **striker,
    )
    trainer.train()
    return spy, trainer


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in INJECTIONS if n not in ("clean", "high_lr")])
def test_trouble_begins_at_two_fifths_of_the_run_give_or_take_a_tenth(name) -> None:
    found = [strikes(INJECTIONS[name], 200, seed) for seed in range(50)]
    assert found == [strikes(INJECTIONS[name], 200, seed) for seed in range(50)]
    assert all(60 <= at.start <= 100 for at in found)
    assert len({at.start for at in found}) > 15
    assert {len(at) for at in found} == {20 if name == "label_burst" else 1}


def test_a_short_run_is_struck_within_it() -> None:
    assert all(strikes(i, 1, 0).start == 0 for i in INJECTIONS.values() if i.name != "clean")
    assert strikes(INJECTIONS["high_lr"], 7, 0) == range(7)
    assert len(strikes(INJECTIONS["clean"], 7, 0)) == 0


# --- what -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean() -> Iterator[Any]:
    """A clean run, which all others are compared with."""
    found = Parts(images(200, 1), images(40, 2), images(1, 4), images(60, 3), 0.0, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trouble_run, "load_parts", lambda task: found)
        yield quick("clean").train()


def test_the_harness_changes_no_bit_of_a_clean_run(clean, parts, tmp_path) -> None:
    spy, _ = spied(quick("clean"), parts, tmp_path, plain=True)
    weights = torch.cat([p.detach().flatten() for p in clean.model.parameters()])
    assert torch.equal(spy.weights[-1], weights)
    assert not torch.equal(spy.weights[0], weights)


@pytest.mark.parametrize("name", [n for n in TROUBLES if n != "high_lr"])
def test_a_troubled_run_is_the_clean_one_up_to_the_strike_and_repeats_itself(name, clean) -> None:
    once, again = (quick(name).train() for _ in range(2))
    first = once.strikes.start
    assert 0 < first < 20
    assert once.losses[:first] == clean.losses[:first]
    assert once.grad_norms[:first] == clean.grad_norms[:first]
    # Clipping takes all of a loss spike away but its last bits, and then the run goes on as if nothing had been.
    assert once.losses[first:] != clean.losses[first:]
    for one, other in zip(once.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_nan_batch(clean) -> None:
    run = quick("nan_batch").train()
    first = run.strikes.start
    assert (
        torch.isnan(torch.tensor(run.losses[first:])).all() and not torch.isnan(torch.tensor(run.losses[:first])).any()
    )
    assert torch.isnan(torch.tensor(run.grad_norms[first]))
    assert run.scores["metric"] == 0.0
    row = quick("nan_batch").execute()
    assert row["diverged"] and row["strike"] == first


def test_nan_of_the_pixels_goes_through_the_model(parts, tmp_path) -> None:
    run = quick("nan_batch")
    spy, trainer = spied(run, parts, tmp_path)
    first = trainer.striker.updates.start
    assert spy.batches[first]["pixel_values"].isnan().all()
    assert not any(b["pixel_values"].isnan().any() for i, b in enumerate(spy.batches) if i != first)


def test_nan_of_texts_is_in_the_loss_and_in_every_gradient() -> None:
    model = bert()
    striker = Striker(INJECTIONS["nan_batch"], model, 1, 0)
    inputs = {"input_ids": torch.ones(2, 6, dtype=torch.long), "labels": torch.tensor([0, 1])}
    given = striker.before_forward(0, inputs)
    assert torch.equal(given["input_ids"], inputs["input_ids"])
    output = model(**given)
    output["loss"].backward()
    assert output.loss.isnan() and not output.logits.isnan().any()
    assert all(p.grad.isnan().all() for p in model.classifier.parameters())
    model.eval()
    assert not model(**given).loss.isnan()


def test_inf_gradient_is_of_one_parameter_before_clipping() -> None:
    run = quick("inf_gradient").train()
    assert run.grad_norms[run.strikes.start] == float("inf")
    assert run.losses[run.strikes.start] < 10
    model = bert()
    striker = Striker(INJECTIONS["inf_gradient"], model, 1, 0)
    model(
        **striker.before_forward(0, {"input_ids": torch.ones(2, 6).long(), "labels": torch.tensor([0, 1])})
    ).loss.backward()
    striker.after_backward()
    infinite = [p.grad.isinf().all() for p in model.parameters() if p.grad is not None and p.grad.isinf().any()]
    assert infinite == [True]


def test_loss_spike(clean) -> None:
    run = quick("loss_spike").train()
    first = run.strikes.start
    assert run.losses[first] == pytest.approx(100 * clean.losses[first], rel=1e-6)
    assert run.grad_norms[first] == pytest.approx(100 * clean.grad_norms[first], rel=1e-4)
    assert max(run.losses[first + 1 :]) < 10


def test_lr_spike_is_one_applied_update_a_hundred_times_as_large(clean, parts, tmp_path) -> None:
    struck, trainer = spied(quick("lr_spike"), parts, tmp_path)
    calm, _ = spied(quick("clean"), parts, tmp_path)
    first = trainer.striker.updates.start
    moves, usual = ([b - a for a, b in zip(s.weights, s.weights[1:], strict=False)] for s in (struck, calm))
    for before in range(first):
        assert torch.equal(moves[before], usual[before])
    assert moves[first].norm() / usual[first].norm() == pytest.approx(100.0, rel=1e-3)
    torch.testing.assert_close(moves[first], 100 * usual[first], rtol=1e-2, atol=1e-4)
    assert moves[first + 1].norm() < 3 * usual[first + 1].norm()
    assert trainer.lrs == clean.lrs  # the schedule has not noticed


def test_lr_spike_waits_for_an_update_that_is_applied() -> None:
    weight = nn.Linear(1, 1)
    weight.config = SimpleNamespace(num_labels=2)
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)
    striker = Striker(INJECTIONS["lr_spike"], weight, 1, 0)
    striker.watch(optimizer)
    moved = []
    for update, gradient in enumerate((None, 1.0, 1.0)):
        striker.before_forward(update, {})
        weight.weight.grad = None if gradient is None else torch.full((1, 1), gradient)
        before = weight.weight.item()
        optimizer.step()
        moved.append(before - weight.weight.item())
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert moved == pytest.approx([0.0, 10.0, 0.1], rel=1e-4)


def test_high_lr_is_thirty_times_as_high_all_along(clean) -> None:
    run = quick("high_lr").train()
    assert run.lrs == pytest.approx([30 * lr for lr in clean.lrs])
    assert run.losses[0] == clean.losses[0] and run.losses[2:] != clean.losses[2:]


def test_label_burst_draws_labels_and_leaves_the_rest(parts, tmp_path) -> None:
    run = quick("label_burst")
    struck, trainer = spied(run, parts, tmp_path)
    calm, _ = spied(quick("clean"), parts, tmp_path)
    assert len(trainer.striker.updates) == 2
    for update, (one, other) in enumerate(zip(struck.batches, calm.batches, strict=True)):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["labels"], other["labels"]) == (update not in trainer.striker.updates)
        assert one["labels"].max() < 10


def test_weight_noise_is_as_large_as_each_trained_tensor() -> None:
    model = bert()
    for weight in model.bert.embeddings.parameters():
        weight.requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    Striker(INJECTIONS["weight_noise"], model, 1, 0).before_forward(0, {})
    large = 0
    for name, weight in model.named_parameters():
        change, size = (t.square().mean().sqrt().item() for t in (weight.detach() - before[name], before[name]))
        if not weight.requires_grad or size == 0:
            assert change == 0
        elif weight.numel() > 200:
            large += 1
            assert change / size == pytest.approx(1.0, abs=0.2)
    assert large > 5


def test_weight_noise_comes_before_the_forward_pass(parts, tmp_path) -> None:
    spy, trainer = spied(quick("weight_noise"), parts, tmp_path)
    changed = [i for i, (a, b) in enumerate(zip(spy.weights, spy.forwards, strict=False)) if not torch.equal(a, b)]
    assert changed == list(trainer.striker.updates)


# --- healthy but restless streams ------------------------------------------------------------------------------------


def stream_batches(name: str, parts: Parts, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], range]:
    """The batches of a stream, those of the clean run, and the updates at which it is at work."""
    run = TroubleRun(dataclasses.replace(QUICK_TASKS["image"], updates=30), STREAMS[name], METHODS["none"], 0)
    struck, trainer = spied(run, parts, folder)
    calm, _ = spied(dataclasses.replace(run, injection=INJECTIONS["clean"]), parts, folder)
    assert all(torch.isfinite(loss) for loss in trainer.losses)
    return struck.batches, calm.batches, trainer.striker.updates


def test_sources_alternate_in_blocks_of_ten(parts, tmp_path) -> None:
    batches, clean, at = stream_batches("alternating", parts, tmp_path)
    other = [not torch.equal(a["labels"], b["labels"]) for a, b in zip(batches, clean, strict=True)]
    assert at == range(30) and not any(other[:10]) and all(other[10:20]) and not any(other[20:])
    same = torch.cat([(a["labels"] == b["labels"]).float() for a, b in zip(batches[10:20], clean[10:20], strict=True)])
    assert 0.4 < same.mean() < 0.7  # half of them are drawn, a tenth of these as they were


def test_a_change_is_for_good(parts, tmp_path) -> None:
    batches, clean, at = stream_batches("change", parts, tmp_path)
    other = [not torch.equal(a["labels"], b["labels"]) for a, b in zip(batches, clean, strict=True)]
    assert 9 <= at.start <= 15 and at.stop == 30
    assert not any(other[: at.start]) and all(other[at.start :])


def test_the_same_batch_is_repeated(parts, tmp_path) -> None:
    batches, _, _ = stream_batches("same_batch", parts, tmp_path)
    assert all(torch.equal(batch["pixel_values"], batches[0]["pixel_values"]) for batch in batches)


def test_a_loss_around_zero_trains_as_it_would(clean, parts, tmp_path) -> None:
    run = TroubleRun(QUICK_TASKS["image"], STREAMS["around_zero"], METHODS["none"], 0).train()
    assert abs(sum(run.losses)) / len(run.losses) < 0.05 and 0.02 < torch.tensor(run.losses).std() < 0.1
    assert run.grad_norms == pytest.approx(clean.grad_norms, rel=1e-4)


def test_a_season_is_a_factor_of_the_loss(clean) -> None:
    run = TroubleRun(QUICK_TASKS["image"], STREAMS["seasonal"], METHODS["none"], 0).train()
    assert run.losses[0] == pytest.approx(clean.losses[0])
    assert run.losses[1] / clean.losses[1] == pytest.approx(1 + 0.6 * math.sin(1 / 3), rel=0.05)


def test_a_stream_is_compared_with_its_own_unguarded_run() -> None:
    def of(method: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
        return row("seasonal", method, seed, accuracy, **more)

    rows = [*ROWS, *(of("none", seed, 0.5) for seed in range(4))]
    rows += [of("guard", 0, 0.48, actions={"rollback": 1}), of("guard", 1, 0.479), of("guard", 2, 0.6)]
    rows += [of("guard", 3, 0.5, actions={"rollback": 2, "stop": 1})]
    stream = Figures(rows).stream("seasonal")
    assert (stream.within, stream.stops, stream.rollbacks) == (2, 1, 2)
    page = trouble_pages.render({"image": rows, "text": []}, command=COMMAND)
    cells = "2 of 4 | 1 of 4 | 2 | 0.75 rollback, 0.25 stop | +1.5 | -2.1"
    assert f"| image | seasonal | {cells} |" in page.splitlines()


# --- methods and measures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "scheduler"), [("greedy", "GreedyLR"), ("plateau", "ReduceLROnPlateau")])
def test_schedules_that_need_evaluations_get_twenty(method, scheduler, parts, tmp_path) -> None:
    spy, trainer = spied(quick("clean", method), parts, tmp_path)
    assert type(trainer.lr_scheduler).__name__ == scheduler
    assert spy.evaluations == EVALUATIONS == trainer.lr_scheduler.last_epoch


def test_the_guard_sees_what_is_injected_and_the_row_says_what_it_did() -> None:
    row = quick("nan_batch", "guard").execute()
    assert row["actions"] == {"skip": 1} and row["reasons"] == {"non_finite_loss": 1}
    assert row["events"][0]["step"] == row["strike"] and first_alarm(row) == 0
    assert row["factor"] == 1.0 and not row["diverged"] and row["accuracy"] > 0
    assert row["setting"]["rows"] == {"train": 200, "valid": 40, "test": 60}
    assert {"torch", "transformers", "hf_adaptive_lr"} <= row["versions"].keys()
    assert "actions" not in quick("nan_batch").execute()


def test_a_guarded_clean_run_without_alarms_is_the_unguarded_one(clean) -> None:
    guarded = quick("clean", "guard").train()
    assert guarded.events == [] and guarded.losses == clean.losses and guarded.scores == clean.scores


def test_other_settings_of_the_guard_are_another_method(monkeypatch) -> None:
    spec = METHODS["guard"].spec()
    assert {"thresholds", "snapshot_every", "max_skips", "lr_cut", "constants"} <= spec["guard"].keys()
    assert json.loads(json.dumps(spec))["guard"] == spec["guard"] and spec["guard"]["constants"]
    usual = quick("clean", "guard").method_digest
    other = dataclasses.replace(METHODS["guard"], guard={"snapshot_every": 7})
    tried = dataclasses.replace(quick("clean"), method=other)
    assert tried.method_digest != usual != quick("clean").method_digest
    monkeypatch.setattr(guard, "_NEW", 9, raising=False)
    assert quick("clean", "guard").method_digest != usual
    assert dataclasses.replace(quick("clean"), part="valid").task_digest != quick("clean").task_digest


def test_answers_that_are_nan_are_wrong() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=x)

    logits = torch.tensor([[2.0, 1.0], [torch.nan, 1.0], [torch.nan, torch.nan], [0.0, 1.0]])
    found = evaluate(Half(), Rows({"x": logits, "labels": torch.tensor([0, 0, 0, 0])}), "classes")
    assert found["metric"] == 0.25 and found["loss"] != found["loss"]


def test_the_benchmark_reads_data_and_makes_models_for_the_study() -> None:
    text, image = (as_task(TASKS[name]) for name in ("text", "image"))
    assert (TASKS["text"].classes, TASKS["image"].classes) == (4, 10)
    assert (text.frozen, text.init_std, text.topics) == ("embeddings", 0.2, TASKS["text"].topics)
    first = build_model(QUICK_TASKS["image"], 0).vit.embeddings.patch_embeddings.projection.weight
    assert first.std() == pytest.approx(TASKS["image"].init_std, rel=0.1) and image.init_std == 0.1


# --- figures --------------------------------------------------------------------------------------------------------


def row(injection: str, method: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """A row as the runs write it."""
    made = TroubleRun(TASKS["image"], {**INJECTIONS, **STREAMS}[injection], METHODS[method], seed)
    guarded = {"actions": {}, "reasons": {}, "events": [], "factor": 1.0} if method == "guard" else {}
    setting = {**made.task.spec(), "rows": {"train": 7, "valid": 8, "test": 9}}
    setting |= {"parameters": 1000, "trained_parameters": 900}
    return {
        **{"task": "image", "method": made.key.method, "seed": seed, "lr": made.task.lr},
        **{"task_digest": made.task_digest, "method_digest": made.method_digest},
        **{"injection": injection, "accuracy": accuracy, "loss": 0.5, "diverged": False, "updates": 200, "strike": 70},
        **{"setting": setting, "method_spec": made.method.spec(), "versions": {"torch": "2"}},
        **guarded,
        **more,
    }


EVENTS = ((60, "loss_spike"), (70, None), (71, "loss_shift"))
ROWS = [
    *(row("clean", "none", seed, accuracy) for seed, accuracy in enumerate((0.70, 0.72, 0.74))),
    *(row("clean", "guard", seed, accuracy) for seed, accuracy in enumerate((0.70, 0.72, 0.74))),
    row(
        "lr_spike", "guard", 0, 0.66, actions={"skip": 5, "rollback": 1}, events=[{"step": 73, "reason": "loss_spike"}]
    ),
    row("lr_spike", "guard", 1, 0.659, actions={"skip": 2}, events=[{"step": s, "reason": r} for s, r in EVENTS]),
    row("lr_spike", "none", 0, 0.1, loss=None, diverged=True),
    row("clean", "greedy", 0, 0.60),
    row("lr_spike", "greedy", 0, 0.59),
]


def test_the_tolerance_is_two_points_or_twice_the_spread() -> None:
    assert tolerance([]) == tolerance([0.5]) == tolerance([0.7, 0.71]) == 0.02
    assert tolerance([0.70, 0.72, 0.74]) == pytest.approx(0.04)
    assert within(0.66 - 0.70, 0.04) and not within(0.6599 - 0.70, 0.04) and within(0.3, 0.04)


def test_runs_are_judged_against_the_clean_run_of_their_seed() -> None:
    figures = Figures(ROWS)
    assert figures.tolerance == pytest.approx(0.04)
    cell = figures.cell("lr_spike", "guard")
    assert (cell.within, cell.judged) == (1, 2)
    assert cell.mean == pytest.approx((-0.04 - 0.061) / 2) and cell.worst == pytest.approx(-0.061)
    assert figures.cell("lr_spike", "greedy").mean == pytest.approx(-0.01)  # its own clean run, not that of `none`
    assert figures.overall(TROUBLES, "guard") == (1, 2)
    assert figures.overall(TROUBLES, "none") == (0, 1)
    assert figures.false_alarms() == (0, 600, 3)
    assert [first_alarm(r) for r in cell.runs.values()] == [3, 1]


def test_a_run_that_raised_is_not_within_and_one_without_a_clean_run_is_not_judged() -> None:
    raised = {k: v for k, v in row("lr_spike", "guard", 2, 0.0).items() if k in ("task", "method", "seed", "lr")}
    digests = {k: ROWS[6][k] for k in ("task_digest", "method_digest")}
    figures = Figures([*ROWS, {**raised, **digests, "error": "ValueError: no"}, row("lr_spike", "guard", 9, 0.9)])
    cell = figures.cell("lr_spike", "guard")
    assert (cell.within, cell.judged, len(cell.runs)) == (1, 3, 4)


def test_rows_of_older_settings_are_left_out() -> None:
    older = [{**r, "method_digest": "old", "accuracy": 0.0} for r in ROWS if r["method"] == "lr_spike/guard"]
    assert Figures([*older, *ROWS]).cell("lr_spike", "guard").within == 1
    assert Figures([*({**r, "task_digest": "old"} for r in ROWS), *ROWS[:1]]).all() == ROWS[:1]


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_figures_of_the_page_are_those_of_the_rows() -> None:
    page = trouble_pages.render({"image": ROWS, "text": []}, "Mine.", command=COMMAND)
    assert (
        "**Within tolerance with the guard: 1 of 2 (50 %). Goal of 95 %: not met.** image 1 of 2 (50 %); text -."
        in page
    )
    assert "- image: 0 of 600 updates, in 3 clean guarded runs." in page
    assert "accuracy 72.0 %, standard deviation 2.0 points over 3 seeds. **Tolerance: 4.0 points.**" in page
    lines = page.splitlines()
    cells = "1 of 2 (50 %) | -5.0 | -6.1 | 66.0 % | 0.500 | 0 of 2 | 0.5 rollback, 3.5 skip | 2 (in 2)"
    assert f"| lr_spike | guard | {cells} |" in lines
    assert "|  | none | 0 of 1 (0 %) | -60.0 | -60.0 | 10.0 % | - (1 not finite) | 1 of 1 | - | - |" in lines
    assert "| clean | guard | 3 of 3 (100 %) | +0.0 | +0.0 | 72.0 % | 0.500 | 0 of 3 | none | - |" in lines
    assert "- image, lr_spike, seed 1: -6.1 (2 skip)." in lines
    assert COMMAND in page and '"loss_rise"' in page and notes_of(page) == "Mine."
    changed = [{**r, "accuracy": 0.67} if r["seed"] == 1 and "lr_spike" in r["method"] else r for r in ROWS]
    assert trouble_pages.render({"image": changed, "text": []}, command=COMMAND) != page


def test_a_share_that_only_rounds_to_the_goal_is_not_shown_as_it() -> None:
    assert trouble_pages._share(18994, 20000) == "18994 of 20000 (94.9 %)"
    assert trouble_pages._share(19, 20) == "19 of 20 (95 %)"


def test_without_rows_there_is_no_verdict() -> None:
    page = trouble_pages.render({"image": [], "text": []}, command=COMMAND)
    assert "**No guarded runs yet.**" in page and page.count("No runs yet.") == 3


def test_settings_that_are_mixed_are_said() -> None:
    other = {**ROWS[3], "method_spec": {"guard": {"snapshot_every": 1}}}
    assert "mixed" in trouble_pages.render({"image": [*ROWS[:3], *ROWS[4:], other], "text": []}, command=COMMAND)
    assert "mixed" not in trouble_pages.render({"image": ROWS, "text": []}, command=COMMAND)


def test_the_committed_page_is_what_its_rows_say() -> None:
    page = (CARDS / "GUARD.md").read_text()
    rows = {task: read_rows(CARDS / "rows" / trouble_pages.rows_file(task)) for task in TASKS}
    again = trouble_pages.render(rows, notes_of(page) or "", command=trouble.command(quick=False))
    assert again == page
    settings = [
        r["method_spec"]["guard"] for task in rows for r in Figures(rows[task]).runs("clean", "guard").values()
    ]
    assert settings and all(s == guard_settings({}) for s in settings), (
        "the guard's defaults have changed: run it again"
    )


# --- the command ----------------------------------------------------------------------------------------------------


def run_command(tmp_path: Path, *options: str) -> int:
    places = ["--rows-dir", str(tmp_path / "rows"), "--page", str(tmp_path / "GUARD.md")]
    return trouble.main(["--quick", "--tasks", "image", *places, *options])


def test_the_command_goes_on_where_it_was_and_keeps_the_notes(tmp_path, capsys, monkeypatch) -> None:
    chosen = {name: INJECTIONS[name] for name in ("clean", "lr_spike", "nan_batch")}
    monkeypatch.setattr(trouble, "INJECTIONS", chosen)
    monkeypatch.setattr(trouble, "STREAMS", {})
    assert run_command(tmp_path, "--methods", "guard", "none") == 0
    path, page = tmp_path / "rows" / "guard_image.jsonl", tmp_path / "GUARD.md"
    rows, text = path.read_bytes(), page.read_text()
    assert len(read_rows(path)) == 6
    assert "worth nothing" in text and str(tmp_path) not in text.replace(str(page), "") + rows.decode()
    assert str(page) in capsys.readouterr().out
    path.write_bytes(b"".join(rows.splitlines(keepends=True)[:4]))
    page.write_text(text.replace("<!-- notes -->", "<!-- notes -->\nMine."))
    assert run_command(tmp_path, "--methods", "guard", "none") == 0
    assert path.read_bytes().startswith(b"".join(rows.splitlines(keepends=True)[:4]))
    assert [timeless(r) for r in read_rows(path)] == [timeless(json.loads(r)) for r in rows.splitlines()]
    assert page.read_text().replace("Mine.\n", "") == text
    monkeypatch.setattr(TroubleRun, "execute", None)
    assert run_command(tmp_path, "--render-only") == 0 == run_command(tmp_path, "--methods", "none")


def timeless(found: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in found.items() if k != "seconds"})


def test_the_plan_has_ten_seeds_of_what_counts_and_three_of_the_rest() -> None:
    runs = trouble.plan(TASKS["image"], list(METHODS), 10)
    counts = {(r.injection.name, r.method.name): 0 for r in runs}
    for r in runs:
        counts[r.injection.name, r.method.name] += 1
    streams = {key: n for key, n in counts.items() if key[0] in STREAMS}
    assert streams == {(stream, method): STREAM_SEEDS for stream in STREAMS for method in ("guard", "none")}
    assert len({r.key for r in runs}) == len(runs)
    counts = {key: n for key, n in counts.items() if key not in streams}
    assert len(counts) == len(INJECTIONS) * len(METHODS)
    assert all(n == (10 if (i, m) == ("clean", "none") or m == "guard" else 3) for (i, m), n in counts.items())
    alone = trouble.plan(TASKS["image"], ["guard"], 10)
    assert {r.method.name for r in alone if r.injection.name == "clean"} == {"guard", "none"}
    assert len(alone) == 10 * (len(INJECTIONS) + 1) + 2 * STREAM_SEEDS * len(STREAMS)


def test_new_defaults_of_the_guard_are_run_anew(tmp_path, monkeypatch) -> None:
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(TroubleRun, "execute", lambda self: {"injection": self.injection.name})
    for run, count in ((quick("lr_spike", "guard"), 1), (quick("lr_spike", "guard"), 1)):
        run_all([run], path, bar=False)
        assert len(read_rows(path)) == count
    method = dataclasses.replace(METHODS["guard"], guard={"max_skips": 2})
    run_all([dataclasses.replace(quick("lr_spike", "guard"), method=method)], path, bar=False)
    assert len(read_rows(path)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "sound"], "no task 'sound'; known: image, text"),
        (["--methods", "magic"], "no method 'magic'; known: guard, none, greedy, plateau"),
        (["--seeds", "0"], "--seeds 0: at least 1"),
        (["--jobs", "0"], "--jobs 0: at least 1"),
        (["--quick", "--rows-dir", "model_cards/rows"], "--quick would mix its rows or page with the real ones"),
        (["--quick", "--page", "model_cards/GUARD.md"], "--quick would mix its rows or page with the real ones"),
    ],
)
def test_requests_that_cannot_be_carried_out_are_one_line(options, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert trouble.main(options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not re.search("Traceback", error) and list(tmp_path.iterdir()) == []


def test_ctrl_c_says_that_nothing_is_lost(tmp_path, capsys, monkeypatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trouble, "run_all", interrupted)
    assert run_command(tmp_path) == 130
    assert "finished runs are kept" in capsys.readouterr().err
