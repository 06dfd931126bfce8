"""The guard study: every trouble does what it says, when it says, and the page says what the rows do."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_adaptive_lr.bench.data import Parts, Rows, collate
from hf_adaptive_lr.bench.method import EVALUATIONS
from hf_adaptive_lr.bench.record import evaluate
from hf_adaptive_lr.bench.rows import append_row, read_rows
from hf_adaptive_lr.bench.studies.guard import __main__ as study
from hf_adaptive_lr.bench.studies.guard import pages, run
from hf_adaptive_lr.bench.studies.guard.figures import Figures, first_alarm, read_figures
from hf_adaptive_lr.bench.studies.guard.injections import CLEAN, INJECTIONS, STREAMS, TROUBLES, Moment, strikes
from hf_adaptive_lr.bench.studies.guard.methods import METHODS, guard_settings
from hf_adaptive_lr.bench.studies.guard.run import DisturbedRun
from hf_adaptive_lr.bench.studies.guard.tasks import QUICK_TASKS, TASKS
from hf_adaptive_lr.guard import guard
from hf_adaptive_lr.hub.card import notes_of
from tests.tiny import bert

CARDS = Path(__file__).parent.parent / "model_cards"


def vectors(size: int, seed: int) -> Rows:
    """Noise that is larger where the label says."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (size,), generator=generator)
    pixels = torch.randn(size, 64, generator=generator)
    pixels[torch.arange(size), 2 * labels] += 3.0
    return Rows({"pixel_values": pixels, "labels": labels})


PARTS = Parts(vectors(200, 1), vectors(40, 2), vectors(1, 4), vectors(60, 3), 0.0, 0.0)
TASK = dataclasses.replace(QUICK_TASKS["image"], data="digits", model="mlp")


@pytest.fixture(autouse=True)
def parts(monkeypatch) -> None:
    for module in (study, run):
        monkeypatch.setattr(module, "load", lambda task: PARTS)


def quick(injection: str, method: str = "none") -> DisturbedRun:
    return of(TASK, injection, method, 0)


def of(task: Any, injection: str, method: str, seed: int) -> DisturbedRun:
    return DisturbedRun(task, METHODS[method], seed, task.lr, injection=INJECTIONS[injection])


class Spy(TrainerCallback):
    """What the model is given in training, the weights before each forward pass and update, and gradients' sizes."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.forwards: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []
        self.norms: list[float] = []
        self.evaluations = 0
        self.without_gradients: tuple[int, ...] = ()

    def _flat(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()]).clone()

    def _forward(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if model.training:
            self.batches.append(kwargs)
            self.forwards.append(self._flat())

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.model = kwargs["model"]
        self.model.register_forward_pre_hook(self._forward, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.weights.append(self._flat())

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.norms.append(float(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm()))
        if state.global_step in self.without_gradients:
            self.model.zero_grad()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.weights.append(self._flat())

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self.evaluations += 1


@dataclasses.dataclass
class Watched:
    spy: Spy
    trainer: Any
    losses: list[float]

    @property
    def first(self) -> int:
        return self.trainer.strikes.start


@pytest.fixture
def watch(monkeypatch) -> Any:
    """Trains a run, with a spy."""

    def watched(asked: DisturbedRun, **settings: Any) -> Watched:
        spy, build = Spy(), run.build_trainer
        vars(spy).update(settings)

        def spied(*args: Any) -> Any:
            trainer = build(*args)
            trainer.args.max_grad_norm = 0.0  # so that the spy sees gradients as they were
            trainer.add_callback(spy)
            return trainer

        monkeypatch.setattr(run, "build_trainer", spied)
        trainer = asked.train()
        monkeypatch.setattr(run, "build_trainer", build)
        return Watched(spy, trainer, torch.stack(trainer.record.losses).tolist())

    return watched


@pytest.fixture
def clean(watch) -> Watched:
    """A clean run, which the others are compared with; it is the same for all."""
    if not _CLEAN:
        _CLEAN.append(watch(quick("clean")))
    return _CLEAN[0]


_CLEAN: list[Watched] = []


# --- when -----------------------------------------------------------------------------------------------------------


def test_trouble_begins_at_two_fifths_of_the_run_give_or_take_a_tenth() -> None:
    for name in TROUBLES.keys() - {"high_lr"}:
        found = [strikes(INJECTIONS[name], 200, seed) for seed in range(50)]
        assert found == [strikes(INJECTIONS[name], 200, seed) for seed in range(50)]
        assert all(60 <= at.start <= 100 for at in found) and len({at.start for at in found}) > 15
        assert {len(at) for at in found} == {{"label_burst": 20, "growing_lr": 40}.get(name, 1)}
    assert all(strikes(injection, 1, 0).start == 0 for injection in TROUBLES.values())
    assert strikes(INJECTIONS["high_lr"], 7, 0) == range(7) and not strikes(CLEAN, 7, 0)


# --- what -----------------------------------------------------------------------------------------------------------


def test_the_study_changes_no_bit_of_a_clean_run(clean, tmp_path) -> None:
    asked = quick("clean")
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=asked.updates, per_device_train_batch_size=asked.task.batch_size,
        learning_rate=asked.lr, max_grad_norm=0.0, seed=0, data_seed=0, use_cpu=True, save_strategy="no",
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    model = run.build_model(asked.task, 0)
    Trainer(model=model, args=arguments, train_dataset=PARTS.train, data_collator=collate).train()
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), clean.spy.weights[-1])
    assert not torch.equal(clean.spy.weights[0], clean.spy.weights[-1])


@pytest.mark.parametrize("name", sorted(TROUBLES.keys() - {"high_lr"}))
def test_a_troubled_run_is_the_clean_one_up_to_the_strike(name, clean, watch) -> None:
    struck = watch(quick(name))
    first = struck.first
    assert 0 < first < 20
    assert struck.losses[:first] == clean.losses[:first] and struck.spy.norms[:first] == clean.spy.norms[:first]
    assert struck.losses[first:] != clean.losses[first:]
    spy, usual, at = struck.spy, clean.spy, list(struck.trainer.strikes)
    disturbed = {
        what: [k for k, (a, b) in enumerate(zip(one, other, strict=False)) if not torch.equal(a, b)]
        for what, one, other in (
            ("weights", spy.weights, spy.forwards),
            ("labels", [b["labels"] for b in spy.batches], [b["labels"] for b in usual.batches]),
            ("pixels", [b["pixel_values"] for b in spy.batches], [b["pixel_values"] for b in usual.batches]),
        )
    }
    expected = {"weight_noise": {"weights": at}, "label_burst": {"labels": at}, "nan_batch": {"pixels": at}}.get(
        name, {}
    )
    if name not in ("nan_batch", "inf_gradient"):  # after which all weights are NaN, which are not equal to themselves
        assert disturbed == {"weights": [], "labels": [], "pixels": [], **expected}
    moves = [(b - a).norm() for a, b in zip(spy.weights[first:], spy.weights[first + 1 :], strict=False)]
    normal = [(b - a).norm() for a, b in zip(usual.weights[first:], usual.weights[first + 1 :], strict=False)]
    if name == "nan_batch":
        assert math.isnan(struck.losses[first]) and spy.batches[first]["pixel_values"].isnan().all()
        assert not evaluate(struck.trainer.model, PARTS.test, "classes")["metric"]
    if name == "inf_gradient":
        assert not math.isfinite(spy.norms[first]) and struck.losses[first] == clean.losses[first]
    if name == "loss_spike":
        assert struck.losses[first] == pytest.approx(100 * clean.losses[first], rel=1e-6)
        assert spy.norms[first] == pytest.approx(100 * usual.norms[first], rel=1e-4)
    if name == "lr_spike":
        assert moves[0] / normal[0] == pytest.approx(100.0, rel=1e-3) and moves[1] < 3 * normal[1]
        assert struck.trainer.optimizer.param_groups[0]["lr"] == clean.trainer.optimizer.param_groups[0]["lr"]
    if name == "growing_lr":
        factors = [struck.trainer.lrs[k] / clean.trainer.lrs[k] for k in range(20)]
        grown = [30 ** (k / len(at)) for k in range(1, len(at) + 1)]
        assert factors == pytest.approx([1.0] * first + grown + [30.0] * (20 - first - len(at)))
    if name == "label_burst":
        assert len(at) == 2 and max(int(batch["labels"].max()) for batch in spy.batches) < 10


def test_high_lr_is_thirty_times_as_high_all_along(clean, watch) -> None:
    struck = watch(quick("high_lr"))
    assert struck.trainer.lrs == pytest.approx({k: 30 * lr for k, lr in clean.trainer.lrs.items()})
    assert struck.losses[0] == clean.losses[0] and struck.losses[2:] != clean.losses[2:]


def test_lr_spike_waits_for_an_update_that_is_applied(watch) -> None:
    first = strikes(INJECTIONS["lr_spike"], 20, 0).start
    struck = watch(quick("lr_spike"), without_gradients=(first,))
    moves = [float((b - a).norm()) for a, b in zip(struck.spy.weights, struck.spy.weights[1:], strict=False)]
    assert moves[first] == 0 and moves[first + 1] > 30 * moves[first - 1]


def test_nan_of_texts_is_in_the_loss_and_noise_and_infinity_in_what_is_trained() -> None:
    texts, now = (
        {"input_ids": torch.ones(2, 6).long(), "labels": torch.tensor([0, 1])},
        Moment(0, 2, torch.Generator()),
    )
    given = INJECTIONS["nan_batch"].disturb_batch(texts, now)
    assert torch.equal(given["input_ids"], texts["input_ids"])
    model = bert()
    for weight in model.bert.embeddings.parameters():
        weight.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in trained]
    INJECTIONS["weight_noise"].disturb_weights(trained, now)
    large = 0
    for weight, old in zip(trained, before, strict=True):
        change, size = ((t.square().mean().sqrt().item()) for t in (weight.detach() - old, old))
        large += weight.numel() > 200
        assert change == pytest.approx(size, rel=0.2) or weight.numel() <= 200
    assert large > 5
    loss = model(**texts).loss
    assert INJECTIONS["nan_batch"].disturb_loss(loss, now).isnan()
    loss.backward()
    INJECTIONS["inf_gradient"].disturb_gradients(trained, now)
    assert [bool(p.grad.isinf().all()) for p in trained if p.grad is not None and p.grad.isinf().any()] == [True]


# --- healthy but restless streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_what_it_says(name, clean, watch) -> None:
    struck = watch(quick(name))
    assert all(map(math.isfinite, struck.losses))
    pairs = [(a, b) for a, b in zip(struck.spy.batches, clean.spy.batches, strict=True)]
    other = [not torch.equal(a["labels"], b["labels"]) for a, b in pairs]
    if name == "alternating":
        assert not any(other[:10]) and all(other[10:])
        same = torch.cat([(a["labels"] == b["labels"]).float() for a, b in pairs[10:]])
        assert 0.4 < same.mean() < 0.7  # half of them are drawn, a tenth of these as they were
    if name == "change":
        assert 6 <= struck.first <= 10 and struck.trainer.strikes.stop == 20
        assert not any(other[: struck.first]) and all(other[struck.first :])
    if name == "same_batch":
        assert all(torch.equal(a["pixel_values"], pairs[0][1]["pixel_values"]) for a, _ in pairs)
    if name == "around_zero":
        assert abs(sum(struck.losses)) / 20 < 0.05 and 0.02 < torch.tensor(struck.losses).std() < 0.1
        assert struck.spy.norms == pytest.approx(clean.spy.norms, rel=1e-4)
    if name == "seasonal":
        assert struck.losses[0] == pytest.approx(clean.losses[0])
        assert struck.losses[1] / clean.losses[1] == pytest.approx(1 + 0.6 * math.sin(1 / 3), rel=0.05)


# --- methods and measures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "scheduler"), [("greedy", "GreedyLR"), ("plateau", "ReduceLROnPlateau")])
def test_schedules_that_need_evaluations_get_twenty_of_the_validation_rows(method, scheduler, watch) -> None:
    found = watch(quick("clean", method))
    assert type(found.trainer.lr_scheduler).__name__ == scheduler
    assert found.spy.evaluations == EVALUATIONS == found.trainer.lr_scheduler.last_epoch
    assert found.trainer.eval_dataset is PARTS.valid


def test_the_guard_sees_what_is_injected_and_the_row_says_what_it_did() -> None:
    row = quick("nan_batch", "guard").execute()
    assert row["actions"] == {"skip": 1} and row["reasons"] == {"non_finite_loss": 1}
    assert row["events"][0]["step"] == row["strike"] and first_alarm(row) == 0
    assert row["factor"] == 1.0 and not row["diverged"] and row["test_metric"] > 0
    assert row["setting"]["rows"] == {"train": 200, "valid": 40, "test": 60}
    assert {"torch", "transformers", "hf_adaptive_lr"} <= row["versions"].keys()
    alone = quick("nan_batch").execute()
    assert "actions" not in alone and alone["diverged"] and alone["strike"] == row["strike"]


def test_a_guarded_clean_run_without_alarms_is_the_unguarded_one(clean, watch) -> None:
    guarded = watch(quick("clean", "guard"))
    assert guarded.trainer.guard_callback.guard.events == [] and guarded.losses == clean.losses


def test_other_settings_of_the_guard_are_another_method(monkeypatch) -> None:
    settings = guard_settings({})
    assert {"thresholds", "snapshot_every", "max_skips", "lr_cut", "constants"} <= settings.keys()
    usual = quick("clean", "guard").method_digest
    other = dataclasses.replace(METHODS["guard"], guard={"snapshot_every": 7})
    assert dataclasses.replace(quick("clean"), method=other).method_digest != usual
    assert len({quick(i, m).method_digest for i in INJECTIONS for m in METHODS}) == len(INJECTIONS) * len(METHODS)
    monkeypatch.setattr(guard, "_NEW", 9, raising=False)
    assert quick("clean", "guard").method_digest != usual


def test_answers_that_are_nan_are_wrong() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=x)

    logits = torch.tensor([[2.0, 1.0], [torch.nan, 1.0], [torch.nan, torch.nan], [0.0, 1.0]])
    found = evaluate(Half(), Rows({"x": logits, "labels": torch.tensor([0, 0, 0, 0])}), "classes")
    assert found["metric"] == 0.25 and found["loss"] != found["loss"]


def test_the_first_weights_are_as_wide_as_the_task_says() -> None:
    first = run.build_model(TASKS["image"], 0).vit.embeddings.patch_embeddings.projection.weight
    assert float(first.detach().std()) == pytest.approx(TASKS["image"].init_std, rel=0.1)


# --- figures --------------------------------------------------------------------------------------------------------


def row(injection: str, method: str, seed: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """A row as the runs write it."""
    made = of(TASKS["image"], injection, method, seed)
    guarded = {"actions": {}, "reasons": {}, "events": [], "factor": 1.0} if method == "guard" else {}
    setting = {**made.task.spec(), "rows": {"train": 7, "valid": 8, "test": 9}}
    setting |= {"parameters": 1000, "trained_parameters": 900}
    return {
        **{"task": "image", "method": made.key.method, "seed": seed, "lr": made.task.lr},
        **{"task_digest": made.task_digest, "method_digest": made.method_digest, "injection": injection},
        **{"test_metric": accuracy, "test_loss": 0.5, "diverged": False, "updates": 200, "strike": 70},
        **{"setting": setting, "method_spec": run.spec(made.method), "versions": {"torch": "2"}},
        **guarded,
        **more,
    }


EVENTS = ((60, "loss_spike"), (70, None), (71, "loss_shift"))
SPIKE = [{"step": 73, "reason": "loss_spike"}]
ROWS = [
    *(row("clean", "none", seed, accuracy) for seed, accuracy in enumerate((0.70, 0.72, 0.74))),
    *(row("clean", "guard", seed, accuracy) for seed, accuracy in enumerate((0.70, 0.72, 0.74))),
    row("lr_spike", "guard", 0, 0.66, actions={"skip": 5, "rollback": 1}, events=SPIKE),
    row("lr_spike", "guard", 1, 0.659, actions={"skip": 2}, events=[{"step": s, "reason": r} for s, r in EVENTS]),
    row("lr_spike", "none", 0, 0.1, test_loss=None, diverged=True),
    row("clean", "greedy", 0, 0.60),
    row("lr_spike", "greedy", 0, 0.59),
]


def page_of(rows: list[dict[str, Any]], notes: str = "") -> str:
    return pages.render({"image": Figures(rows), "text": Figures([])}, notes)


def test_the_tolerance_is_two_points_or_twice_the_spread() -> None:
    assert Figures([]).tolerance == Figures(ROWS[:1]).tolerance == 0.02
    assert Figures([row("clean", "none", 0, 0.70), row("clean", "none", 1, 0.71)]).tolerance == 0.02
    assert Figures(ROWS).tolerance == pytest.approx(0.04)
    just = [row("high_lr", "guard", 0, 0.66), row("high_lr", "guard", 1, 0.6799), row("high_lr", "guard", 2, 1.0)]
    assert Figures([*ROWS, *just]).cell("high_lr", "guard").outside == [1]


def test_runs_are_judged_against_the_clean_run_of_their_seed() -> None:
    figures = Figures(ROWS)
    cell = figures.cell("lr_spike", "guard")
    assert (cell.within, cell.judged) == (1, 2)
    assert cell.differences == pytest.approx({0: -0.04, 1: -0.061})
    own = figures.cell("lr_spike", "greedy").differences
    assert own == pytest.approx({0: -0.01})  # against its own clean run, not that of `none`
    assert figures.overall(TROUBLES, "guard") == (1, 2) and figures.overall(TROUBLES, "none") == (0, 1)
    assert figures.false_alarms() == (0, 600, 3)
    assert [first_alarm(r) for r in cell.runs.values()] == [3, 1]


def test_a_run_that_raised_is_not_within_and_one_without_a_clean_run_is_not_judged() -> None:
    head = ("task", "method", "lr", "task_digest", "method_digest")
    raised = {**{name: ROWS[6][name] for name in head}, "seed": 2, "error": "ValueError: no"}
    cell = Figures([*ROWS, raised, row("lr_spike", "guard", 9, 0.9)]).cell("lr_spike", "guard")
    assert (cell.within, cell.judged, len(cell.runs)) == (1, 3, 4)
    assert "- image, lr_spike, seed 2: ended in an error (ValueError: no)." in page_of([*ROWS, raised])


def test_rows_of_older_settings_are_left_out() -> None:
    older = [{**r, "method_digest": "old", "test_metric": 0.0} for r in ROWS if r["method"] == "lr_spike/guard"]
    assert Figures([*older, *ROWS]).cell("lr_spike", "guard").within == 1
    assert Figures([*({**r, "task_digest": "old"} for r in ROWS), *ROWS[:1]]).all == ROWS[:1]


def test_a_stream_is_compared_with_its_own_unguarded_run() -> None:
    rows = [*ROWS, *(row("seasonal", "none", seed, 0.5) for seed in range(4))]
    rows += [row("seasonal", "guard", 0, 0.48, actions={"rollback": 1}), row("seasonal", "guard", 1, 0.479)]
    rows += [row("seasonal", "guard", 2, 0.6), row("seasonal", "guard", 3, 0.5, actions={"rollback": 2, "stop": 1})]
    cell = Figures(rows).cell("seasonal", "guard")
    assert cell.left_alone == 2
    cells = "2 of 4 | 1 of 4 | 2 | 0.75 rollback, 0.25 stop | +1.5 | -2.1"
    assert f"| image | seasonal | {cells} |" in page_of(rows).splitlines()


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_figures_of_the_page_are_those_of_the_rows() -> None:
    page = page_of(ROWS, "Mine.")
    goal = "**Within tolerance with the guard: 1 of 2 (50 %). Goal of 95 %: not met.**"
    assert f"{goal} image 1 of 2 (50 %); text -." in page
    assert "- image: 0 of 600 updates, in 3 clean guarded runs." in page
    assert "accuracy 72.0 %, standard deviation 2.0 points over 3 seeds. **Tolerance: 4.0 points.**" in page
    lines = page.splitlines()
    cells = "1 of 2 (50 %) | -5.0 | -6.1 | 66.0 % | 0.500 | 0 of 2 | 0.5 rollback, 3.5 skip | 2 (in 2)"
    assert f"| lr_spike | guard | {cells} |" in lines
    assert "|  | none | 0 of 1 (0 %) | -60.0 | -60.0 | 10.0 % | - (1 not finite) | 1 of 1 | - | - |" in lines
    assert "| clean | guard | 3 of 3 (100 %) | +0.0 | +0.0 | 72.0 % | 0.500 | 0 of 3 | none | - |" in lines
    assert "- image, lr_spike, seed 1: -6.1 (2 skip)." in lines
    assert f"{pages.COMMAND} --jobs 2" in page and '"loss_rise"' in page and notes_of(page) == "Mine."
    changed = [{**r, "test_metric": 0.67} if r["seed"] == 1 and "lr_spike" in r["method"] else r for r in ROWS]
    assert page_of(changed) != page


def test_a_share_that_only_rounds_to_the_goal_is_not_shown_as_it() -> None:
    assert pages.share(18994, 20000) == "18994 of 20000 (94.9 %)"
    assert pages.share(19, 20) == "19 of 20 (95 %)"


def test_without_rows_there_is_no_verdict_and_mixed_settings_are_said() -> None:
    page = page_of([])
    assert "**No guarded runs yet.**" in page and page.count("No runs yet.") == 3
    other = {**ROWS[3], "method_spec": {"guard": {"snapshot_every": 1}}}
    assert "mixed" in page_of([*ROWS[:3], *ROWS[4:], other]) and "mixed" not in page_of(ROWS)


def test_the_committed_page_is_what_its_rows_say() -> None:
    page, found = (CARDS / "GUARD.md").read_text(), read_figures(CARDS / "rows")
    assert pages.render(found, notes_of(page) or "") == page
    runs = [row for figures in found.values() for row in figures.runs("clean", "guard").values()]
    now = guard_settings({})
    assert runs and all(r["method_spec"]["guard"] == now for r in runs), "the guard's defaults changed: run it again"


# --- the command ----------------------------------------------------------------------------------------------------


def run_command(tmp_path: Path, *options: str) -> int:
    return study.main(["--quick", "--output-dir", str(tmp_path), *options])


def test_the_command_goes_on_where_it_was_and_keeps_the_notes(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(study, "TROUBLES", {name: TROUBLES[name] for name in ("lr_spike", "nan_batch")})
    monkeypatch.setattr(study, "STREAMS", {})
    monkeypatch.setattr(study, "METHODS", {name: METHODS[name] for name in ("guard", "none")})
    monkeypatch.setattr(study, "QUICK_TASKS", {"image": TASK})
    assert run_command(tmp_path) == 0
    path, page = tmp_path / "rows" / "guard_image.jsonl", tmp_path / "GUARD.md"
    rows, text = read_rows(path), page.read_text()
    assert len(rows) == 6 and str(page) in capsys.readouterr().out
    assert "worth nothing" in text and str(tmp_path) not in text.replace(str(page), "") + str(rows)
    path.with_name(f"{path.name}.gz").unlink()
    for kept in rows[:4]:
        append_row(path, kept)
    page.write_text(text.replace("<!-- notes -->", "<!-- notes -->\nMine."))
    assert run_command(tmp_path) == 0
    assert read_rows(path)[:4] == rows[:4]
    assert [{**r, "seconds": 0} for r in read_rows(path)] == [{**r, "seconds": 0} for r in rows]
    assert page.read_text().replace("Mine.\n", "") == text
    monkeypatch.setattr(DisturbedRun, "execute", None)
    assert run_command(tmp_path, "--render-only") == 0 == run_command(tmp_path)


def test_the_plan_has_ten_seeds_of_what_counts_and_three_of_the_rest() -> None:
    runs = study.plan(TASKS["image"], 10)
    counts: dict[tuple[str, str], int] = {}
    for r in runs:
        key = (r.injection.name, r.method.name)
        counts[key] = counts.get(key, 0) + 1
    assert len({r.key for r in runs}) == len(runs)
    expected = {(i, m): 10 if m == "guard" else 3 for i in ("clean", *TROUBLES) for m in METHODS}
    expected |= {(stream, m): study.STREAM_SEEDS for stream in STREAMS for m in ("guard", "none")}
    assert counts == expected | {("clean", "none"): 10}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "argument --jobs: 0 must be at least 1"),
        (["--quick", "--output-dir", "model_cards"], "--quick would mix its rows and pages with the real ones"),
    ],
)
def test_requests_that_cannot_be_carried_out_are_refused(options, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        study.main(options)
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_ctrl_c_says_that_nothing_is_lost(tmp_path, capsys, monkeypatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_all", interrupted)
    assert run_command(tmp_path) == 130
    assert "finished runs are kept" in capsys.readouterr().err
