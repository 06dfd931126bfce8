"""Steering the relative update: updates are as large as was asked for, and the user's learning rate is not heard."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from hf_adaptive_lr import AutoController, ControlledLR, Envelope, Observation, Relative, Universal
from hf_adaptive_lr.auto import _caution, resolve_controller
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.controllers import UpdateSize
from hf_adaptive_lr.controllers._features import STEERING_FEATURES
from hf_adaptive_lr.controllers._relative_update import FIRST_LR, due
from hf_adaptive_lr.meta.episode import Episode, play_through, stretches_of
from hf_adaptive_lr.meta.ppo import PPOConfig, PPOTrainer, Rollout, gae
from hf_adaptive_lr.meta.problem import Problem
from hf_adaptive_lr.meta.suites import SUITES
from tests.tiny import batches, mlp

OPTIMIZERS = {
    "adamw": lambda params, lr: AdamW(params, lr=lr),
    "sgd": lambda params, lr: SGD(params, lr=lr),
    "momentum": lambda params, lr: SGD(params, lr=lr, momentum=0.9),
}


def _still(**config) -> Universal:
    zeros = {name: 0 * w for name, w in Universal.random_params(hidden_size=4).items()}
    return Universal(hidden_size=4, params=zeros, **config)


def _norm(weights: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(w.double().square().sum()) for w in weights))


def _train(controller, kind: str, *, lr: float = 0.1, steps: int = 60, change=None, **options):
    """The relative sizes of all updates, the scheduler and the final weights."""
    model, sizes = mlp(), []
    optimizer = OPTIMIZERS[kind](model.parameters(), lr)
    scheduler = ControlledLR(optimizer, controller, model=model, hook=False, max_grad_norm=0.0, **options)
    for step, (x, y) in enumerate(batches(steps)):
        if change is not None:
            change(step, scheduler)
        scheduler.before_forward(lambda x=x, y=y: nn.functional.cross_entropy(model(x), y))
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        scheduler.observe(loss=loss)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
        sizes.append(_norm(moved) / _norm(before))
    return sizes, scheduler, [p.detach().clone() for p in model.parameters()]


# --- the rhythm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [24, 40, 60, 77, 240, 600, 10_000])
def test_decisions_are_early_and_then_even(total) -> None:
    moments = [t for t in range(total) if due(t, total, 20)]
    even = [k * total // 20 for k in range(20)]
    early = [2**k for k in range(14) if 2**k < total // 20]
    assert moments == sorted({*even, *early}) and moments[0] == 0


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 9, 23])
def test_short_runs_have_at_most_one_decision_per_update(total) -> None:
    controller = Relative()
    assert sum(stretches_of(controller, total, 20)) == total
    assert all(part >= 1 for part in stretches_of(controller, total, 20))


def test_vectorised_runs_refuse_a_rate_that_falls_between_decisions() -> None:
    with pytest.raises(ValueError, match="cannot play 'update_size': its rate moves"):
        stretches_of(UpdateSize(), 100, 20)


def test_decisions_go_on_past_the_end_and_without_one() -> None:
    assert [t for t in range(100, 131) if due(t, 100, 20)] == list(range(100, 131, 5))
    assert [t for t in range(20) if due(t, None, 20)] == [0, 1, 2, 4, 8, 12, 16]
    assert [t for t in range(60, 100) if due(t, None, 20)] == [60, 64, 72, 80, 88, 96]


# --- the size of an update ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_updates_have_the_size_that_was_asked_for(kind) -> None:
    """Within half: between decisions Adam's direction shrinks and momentum grows."""
    sizes, scheduler, _ = _train(Relative(rho=0.01), kind, total_steps=60)
    assert scheduler.log_values()["adaptive_lr/update_ratio"] > 0
    assert sizes[0] < 1e-4 and scheduler.lr_history()[0] == FIRST_LR
    asked = [0.01 * (1 - t / 60) for t in range(60)]
    ratios = [size / want for size, want in zip(sizes[6:57], asked[6:57], strict=True)]
    assert sorted(ratios)[len(ratios) // 2] == pytest.approx(1.0, abs=0.35)
    assert max(ratios) < 2.8 and min(ratios) > 0.2  # the largest is 2.3, of momentum


def test_the_bundled_one_warns_once_when_it_is_attached(caplog) -> None:
    _caution.cache_clear()
    AutoController.from_pretrained("universal_1")  # looking at it is no use of it
    resolve_controller(Universal(params=Universal.random_params()))  # nor are somebody's own weights the bundled ones
    resolve_controller("relative")
    assert not caplog.records
    resolve_controller("universal_1")
    resolve_controller(AutoController.from_pretrained("universal_1"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "experimental on pretrained encoders" in caplog.text and "'universal' took its place" in caplog.text


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("make", [Relative, lambda: Universal(params=Universal.random_params())])
def test_the_users_learning_rate_changes_no_bit(kind, make) -> None:
    runs = [_train(make(), kind, lr=lr, total_steps=60)[2] for lr in (1e-7, 1e-3, 1.0)]
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_groups_keep_their_ratio() -> None:
    model = mlp()
    groups = [{"params": list(model.parameters())[:2]}, {"params": list(model.parameters())[2:], "lr": 0.02}]
    optimizer = AdamW(groups, lr=0.1)
    scheduler = ControlledLR(optimizer, Relative(), total_steps=30)
    for x, y in batches(30):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(row.lr[1] == pytest.approx(row.lr[0] / 5) for row in scheduler.trace)
    assert max(scheduler.lr_history()) > 100 * FIRST_LR


def test_a_guards_cut_and_a_warm_up_are_not_undone() -> None:
    def cut(step, scheduler) -> None:
        if step == 20:
            scheduler.set_scale(0.1)

    usual, *_ = _train(Relative(rho=0.01), "adamw", total_steps=60)
    after, *_ = _train(Relative(rho=0.01), "adamw", total_steps=60, change=cut)
    assert after[:20] == usual[:20]
    assert sum(after[21:]) < 0.2 * sum(usual[21:])
    ramped, *_ = _train(Relative(rho=0.01), "adamw", total_steps=60, warmup_steps=30)
    assert ramped[10] < 0.6 * usual[10] and ramped[45] == pytest.approx(usual[45], rel=0.5)


def test_an_update_that_does_not_show_makes_the_next_one_larger() -> None:
    controller, lr = Relative(), torch.tensor(1e-7, dtype=torch.float64)
    obs = Observation(step=1, total_steps=60, lr=lr, base_lr=lr, update_ratio=torch.tensor(0.0), last_lr=lr)
    assert float(controller.decide(obs, controller.init())[0]) == pytest.approx(1e-6)


# --- universal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [-0.7, 0.0])
def test_a_net_that_says_nothing_is_the_straight_line(start) -> None:
    still, line = _still(start=start), Relative(rho=0.008 * math.exp(start))
    weights = [_train(controller, "adamw", total_steps=60)[2] for controller in (still, line)]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("size", [1, 10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_random_nets_stay_within_the_shift(size, seed) -> None:
    params = {name: size * w for name, w in Universal.random_params(seed=seed).items()}
    sizes, scheduler, weights = _train(Universal(params=params), "adamw", total_steps=60)
    assert max(sizes) < 2.5 * 0.008 * math.exp(3.0)
    assert all(math.isfinite(lr) for lr in scheduler.lr_history()) and all(w.isfinite().all() for w in weights)


def test_features_do_not_trust_the_gain_of_an_invisible_update() -> None:
    controller = _still()
    at = STEERING_FEATURES.index("gain ratio")

    def feature(ratio: float) -> float:
        numbers = {"loss": 1.0, "grad_norm": 1.0, "alignment": 0.1, "update_ratio": ratio, "gain_ratio": -2.0}
        fields = {name: torch.tensor(value) for name, value in numbers.items()}
        lr = torch.tensor(1e-7, dtype=torch.float64)
        obs = Observation(step=1, total_steps=60, lr=lr, base_lr=lr, last_lr=lr, **fields)
        return float(controller.encode(obs, controller.init())[0][at])

    assert feature(1e-6) == 0.0 and feature(1e-3) == -3.0


def test_inside_an_envelope_only_its_own_range_binds() -> None:
    plain = _train(_still(), "adamw", lr=1.0, total_steps=60)
    inside = _train(_still(), "adamw", lr=1.0, total_steps=60, envelope=Envelope())
    assert all(torch.equal(a, b) for a, b in zip(plain[2], inside[2], strict=True))
    assert inside[1].fallen_back is None
    narrow = _still(lr_range=(0.1, 0.2))
    with pytest.warns(UserWarning, match="falls back"):
        scheduler = _train(narrow, "adamw", lr=1.0, total_steps=60, envelope=Envelope(patience=3))[1]
    assert scheduler.fallen_back and max(scheduler.lr_history()) <= 0.2


def test_when_the_run_falls_back_the_line_begins_at_a_rate_that_worked() -> None:
    def fall_back(step, scheduler) -> None:
        if step == 30:
            scheduler.fall_back("told to")

    *_, scheduler, _ = _train(_still(), "adamw", lr=1.0, total_steps=60, envelope=Envelope(), change=fall_back)
    rates = scheduler.lr_history()
    assert rates[30] <= max(rates[:30]) * (1 + 1e-9)  # and not at the base LR of 1, of which nobody knows anything


def test_without_the_gain_ratio_nothing_measures_it() -> None:
    blind = Universal(params=Universal.random_params(), without_gain=True)
    assert "gain_ratio" not in blind.needs and "gain_ratio" in Universal(params=Universal.random_params()).needs
    scheduler = _train(blind, "adamw", total_steps=60)[1]
    seen = [row.observation for row in scheduler.trace if row.observation]
    assert seen and all("gain_ratio" not in fields for fields in seen)


def test_without_probing_the_first_update_lasts_an_interval() -> None:
    rates = _train(_still(probing=False), "adamw", total_steps=60)[1].lr_history()
    assert rates[:3] == [FIRST_LR] * 3 and rates[3] > 100 * FIRST_LR


def test_the_placebo_walks_the_same_way_for_the_same_seed() -> None:
    rates = [_train(Relative(walk=0.3), "adamw", total_steps=60, seed=s)[1].lr_history() for s in (0, 0, 1)]
    assert rates[0] == rates[1] != rates[2]
    assert _train(Relative(), "adamw", total_steps=60)[1].lr_history() != rates[0]


# --- training it --------------------------------------------------------------------------------------------------


def test_scattered_starts_are_seeded_and_leave_a_quarter() -> None:
    controller = _still()
    state = controller.init((400,))
    shifts = [controller.scattered(state, torch.Generator().manual_seed(s), 2.0)["shift"] for s in (0, 0, 1)]
    assert torch.equal(shifts[0], shifts[1]) and not torch.equal(shifts[0], shifts[2])
    assert 0.15 < float((shifts[0] == torch.tensor(-0.7)).float().mean()) < 0.35
    assert float(shifts[0].min()) >= -2.7 and float(shifts[0].max()) <= 1.3


def test_ballast_makes_weights_look_larger_and_is_no_part_of_old_problems() -> None:
    (plain,) = SUITES["mlp"].problems("train", 0, 6)
    assert "ballast" not in plain.to_json()
    heavy = Problem.from_json(json.dumps(json.loads(plain.to_json()) | {"ballast": [2.0, 8.0]}))
    assert Problem.from_json(heavy.to_json()) == heavy
    seen = []
    for problem in (plain, heavy):
        run = problem.start()
        run.advance(run.base_lr, 1)
        seen.append(run.observe(run.base_lr).update_ratio)
    assert ((seen[0] / seen[1] > 2) & (seen[0] / seen[1] < 8)).all()


def test_a_hidden_length_is_not_observed_and_episodes_of_any_length_are_learned_from() -> None:
    (problem,) = SUITES["mlp"].problems("train", 0, 4)
    shown, hidden = (dataclasses.replace(problem, total_steps=40 + 30 * h, hidden=bool(h)) for h in (0, 1))
    assert Problem.from_json(hidden.to_json()) == hidden and "hidden" not in shown.to_json()
    assert hidden.start().observe(hidden.start().base_lr).total_steps is None
    params = Universal.random_params(hidden_size=4)
    trainer = PPOTrainer(Universal(hidden_size=4, params=params), PPOConfig(epochs=1, even=True), seed=0)
    lengths = [len(Episode(p.start(), 20, controller=trainer.agent.controller).stretches) for p in (shown, hidden)]
    assert lengths[0] != lengths[1]
    figures = trainer.iterate([shown, hidden], 0)
    assert all(math.isfinite(value) for value in figures.values())
    alone = PPOTrainer(Universal(hidden_size=4, params=params), PPOConfig(epochs=1, even=True), seed=0)
    assert alone.iterate([shown], 0)["value_loss"] != figures["value_loss"]


def test_what_is_padded_is_not_learned_from() -> None:
    rollout = Rollout(*(torch.ones(3, 2) for _ in range(6)))
    longer = rollout.padded(5)
    assert longer.played.sum() == 6 and longer.rewards.shape == (5, 2)
    advantages, _ = gae(longer.rewards, longer.values, 1.0, 0.95)
    assert torch.equal(advantages[:3], gae(rollout.rewards, rollout.values, 1.0, 0.95)[0])


def test_ppo_in_parts_is_deterministic_and_resumes() -> None:
    config = PPOConfig(epochs=2, minibatches=3, scatter=2.0, even=True)

    def play(trainer: PPOTrainer, first: int, last: int) -> PPOTrainer:
        for i in range(first, last):
            trainer.iterate(SUITES["mlp"].problems("train", i, 7), i, i / 3)
        return trainer

    def start() -> PPOTrainer:
        params = Universal.random_params(hidden_size=4, seed=1)
        return PPOTrainer(Universal(hidden_size=4, params=params), config, seed=2)

    whole, half, resumed = play(start(), 0, 2), play(start(), 0, 1), start()
    resumed.load_state_dict(half.state_dict())
    ours, theirs = whole.controller().params, play(resumed, 1, 2).controller().params
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["head_weight"], start().controller().params["head_weight"])


def test_the_command_trains_one_that_loads_and_plays(tmp_path) -> None:
    folder = tmp_path / "out"
    words = ["train", "universal", "--suite", "mlp", "--runs", "3", "--iterations", "1", "--hidden-size", "4"]
    assert main([*words, "--output-dir", str(folder)]) == 0
    controller = AutoController.from_pretrained(folder)
    assert isinstance(controller, Universal)
    assert json.loads((folder / "training.json").read_text())["method"] == "universal"
    (problem,) = SUITES["mlp"].problems("valid", 0, 3)
    episode = Episode(problem.start(), 20, controller=controller)
    assert torch.isfinite(play_through(controller, episode)).all() and len(episode.stretches) == 24
