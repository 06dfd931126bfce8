"""The schedule of Xu et al. 2019: its map, rhythm, nine numbers and nets, its trainer, and what tasks show it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import debug_launcher
from torch import Tensor, nn

from hf_adaptive_lr import Observation
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.controllers.ppo_schedule import FEATURES, PPOSchedule
from hf_adaptive_lr.demo.data import DemoDataError
from hf_adaptive_lr.distributed import generator
from hf_adaptive_lr.meta.driver import DriverConfig, run
from hf_adaptive_lr.meta.inner import InnerOptimizer
from hf_adaptive_lr.meta.problem import Problem
from hf_adaptive_lr.meta.schedule_ppo import (
    Played,
    ScheduleConfig,
    SchedulePPOTrainer,
    beside_others,
    density,
    play,
)
from hf_adaptive_lr.meta.suites import SUITES
from hf_adaptive_lr.meta.tasks import FAMILIES, SPLITS, TaskSpec, make_task
from hf_adaptive_lr.meta.tasks.images import images
from hf_adaptive_lr.meta.tasks.mlp import MLPTask
from hf_adaptive_lr.meta.trainers import make_trainer
from hf_adaptive_lr.meta.vector_run import VectorRun
from hf_adaptive_lr.scheduler.config import SchedulerConfig
from hf_adaptive_lr.scheduler.runtime import ControllerRun
from tests.test_demo_data import put_fashion_mnist

SMALL_PHOTOS = {"data": "mnist-5000", "n_train": 64, "eval_size": 32, "channels": 4, "width": 16, "batch_size": 16}
KINDS = [
    pytest.param({}, id="mlp"),
    pytest.param({"recurrent": True}, id="lstm"),
    pytest.param({"recurrent": True, "memory": False}, id="lstm-without-memory"),
]


def build(seed: int = 0, bias: float = 0.0, **config: Any) -> PPOSchedule:
    shape = {name: config[name] for name in ("hidden_size", "recurrent") if name in config}
    return PPOSchedule(**config, params=PPOSchedule.random_params(**shape, seed=seed, bias=bias))


def observation(step: int = 0, lr: float = 0.02, shape: tuple[int, ...] = (), **fields: float) -> Observation:
    known = dict.fromkeys(PPOSchedule.needs, 0.5) | fields
    tensors = {name: torch.full(shape, value, dtype=torch.float64) for name, value in known.items()}
    base = torch.full(shape, 0.01, dtype=torch.float64)
    return Observation(step=step, total_steps=100, lr=base * lr / 0.01, base_lr=base, **tensors)


def small_problem(runs: int = 3, seed: int = 0, steps: int = 7, lr: float = 0.01, **config: Any) -> Problem:
    spec = TaskSpec("mlp", runs, seed, {"n_train": 64, "eval_size": 32, "width": 8, "depth": 1, **config})
    return Problem(spec, InnerOptimizer("adamw"), total_steps=steps, low_lr=lr, high_lr=lr)


def joined(params: Any) -> Tensor:
    return torch.cat([value.detach().flatten() for _, value in sorted(params.items())])


# --- the controller --------------------------------------------------------------------------------------------------


def test_an_action_becomes_a_factor_as_in_the_authors_code() -> None:
    actions = torch.tensor([0.15, -0.2, -5.0, 0.5, 5.0, 0.25], dtype=torch.float64)
    expected = [1.0, 0.965, 0.965, 1.035, 1.035, 1.01]
    assert build().multiplier(actions).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("total", "every", "count"), [(1000, 10, 109), (100, 5, 24), (1000, 1, 1000), (7, 10, 7)])
def test_it_decides_every_k_th_update_and_at_each_of_the_last(total, every, count) -> None:
    controller = build(every_steps=every)
    due = [t for t in range(total) if controller.due(t, total)]
    assert due == [t for t in range(total) if t % every == 0 or t > total - every]
    assert len(due) == count
    assert [t for t in range(40) if controller.due(t, None)] == list(range(0, 40, every))
    assert not controller.due(total + 3, total) or (total + 3) % every == 0


def test_a_live_run_follows_its_rhythm_unless_the_user_names_one() -> None:
    def decisions(**cadence: int) -> int:
        controlled = ControllerRun(build(), [0.01], SchedulerConfig(total_steps=1000, **cadence))
        return sum(controlled.due(update) for update in range(1000))

    assert decisions() == 109
    assert decisions(every=100) == 10
    assert decisions(decisions=20) == 20


def test_it_sees_nine_numbers_in_the_order_of_the_authors_code() -> None:
    controller = build()
    seen = [
        {"eval_loss": 2.3, "loss": 2.2, "prediction_variance": 0.01, "prediction_change": 0.01 + 1 / 12},
        {"eval_loss": 1.9, "loss": 1.8, "prediction_variance": 0.04, "prediction_change": 0.03},
        {"eval_loss": 1.5, "loss": 1.4, "prediction_variance": 0.06, "prediction_change": 0.02},
    ]
    weights = {"penultimate_mean": 0.1, "penultimate_variance": 0.2, "head_mean": -0.3, "head_variance": 0.4}
    state, rows = controller.init(), []
    for step, fields in enumerate(seen):
        kept, before = dict(state), state
        features, state = controller.encode(observation(step, lr=0.02 + step, **fields, **weights), before)
        assert before == kept
        rows.append(features)
    assert torch.equal(rows[0], torch.ones(9))

    def log(value: float) -> Tensor:
        return torch.tensor(value + 1e-10, dtype=torch.float64).log()

    variance, change = log(0.01), log(0.01 + 1 / 12)
    for row, fields, step in zip(rows[1:], seen[1:], (1, 2), strict=True):
        variance = 0.8 * variance + 0.2 * log(fields["prediction_variance"])
        change = 0.8 * change + 0.2 * log(fields["prediction_change"])
        expected = [fields["eval_loss"], variance, change, fields["loss"], 0.1, 0.2, -0.3, 0.4, 0.02 + step]
        assert row.tolist() == pytest.approx([float(x) for x in expected], rel=1e-6)
    assert len(FEATURES) == 9


def test_without_an_evaluation_the_last_one_counts_and_before_any_it_is_one() -> None:
    controller, nan = build(), float("nan")
    state, found = controller.init(), []
    for step, loss in enumerate([nan, nan, 1.7, nan, 1.6]):
        features, state = controller.encode(observation(step, eval_loss=loss), state)
        found.append(float(features[0]))
    assert found == pytest.approx([1.0, 1.0, 1.7, 1.7, 1.6])


def test_a_run_that_blew_up_gets_an_answer() -> None:
    controller = build()
    _, state = controller.decide(observation(), controller.init())
    lost = observation(1, loss=float("inf"), prediction_variance=float("nan"), penultimate_variance=1e30)
    answer, state = controller.decide(lost, state)
    assert 0.965 <= float(answer) / 2 <= 1.035


def torch_twin(controller: PPOSchedule) -> tuple[nn.Module, nn.Linear]:
    """The same nets made of torch's modules."""
    params, width = controller.params, controller.hidden_size
    head = nn.Linear(width, 1)
    head.load_state_dict({"weight": params["output_weight"], "bias": params["output_bias"]})
    if controller.recurrent:
        cell = nn.LSTMCell(9, width)
        cell.load_state_dict({name: params[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")})
        return cell, head
    hidden = nn.Linear(9, width)
    hidden.load_state_dict({"weight": params["hidden_weight"], "bias": params["hidden_bias"]})
    return nn.Sequential(hidden, nn.ReLU()), head


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize("shape", [(), (4,)])
def test_its_net_equals_torchs_modules(config, shape) -> None:
    controller = build(seed=3, **config)
    body, head = torch_twin(controller)
    state, memory = controller.init(shape), None
    for x in torch.randn(5, *shape, 9):
        mean, state = controller.policy(x, state, controller.params)
        if controller.recurrent:
            memory = body(x, memory if controller.memory else None)
            hidden = memory[0]
        else:
            hidden = body(x)
        torch.testing.assert_close(mean, head(hidden).squeeze(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", KINDS)
def test_weights_of_each_run_give_what_each_gives_alone(config) -> None:
    alone = [build(seed=seed, **config) for seed in range(3)]
    stacked = {name: torch.stack([c.params[name] for c in alone]) for name in alone[0].params}
    state, states = alone[0].init((3,)), [c.init() for c in alone]
    for step in range(3):
        answer, state = alone[0].decide(observation(step, shape=(3,)), state, stacked)
        for i, controller in enumerate(alone):
            single, states[i] = controller.decide(observation(step), states[i])
            torch.testing.assert_close(answer[i], single, rtol=1e-6, atol=0)


def test_the_answer_is_relative_to_the_learning_rate_in_force() -> None:
    controller = build(bias=100.0)
    answer, _ = controller.decide(observation(lr=0.03), controller.init())
    assert controller.answers == "factor"
    assert float(answer) == pytest.approx(3 * 1.035)


def test_samples_come_from_the_state_and_nothing_else() -> None:
    controller = build(sample=True, bias=0.15)
    assert controller.random and not build().random
    state = controller.init((2,), seed=5)
    first, after = controller.decide(observation(shape=(2,)), state)
    again, _ = controller.decide(observation(shape=(2,)), state)
    other, _ = controller.decide(observation(shape=(2,)), controller.init((2,), seed=6))
    assert torch.equal(first, again)
    assert first[0] != first[1] and not torch.equal(first, other)
    assert not torch.equal(after["generator"], state["generator"])
    still, _ = controller.replace(sample=False).decide(observation(shape=(2,)), build().init((2,)))
    # One net and one input for both, but two rows of a product may be summed in two orders; the noise is 1e-2.
    torch.testing.assert_close(still[0], still[1], rtol=1e-6, atol=0)


def test_samples_have_the_standard_deviation_of_the_config() -> None:
    controller = build(sample=True, bias=0.15).replace(params={k: 0 * v for k, v in build().params.items()})
    controller = controller.replace(params={**controller.params, "output_bias": torch.tensor([0.15])}, std=0.05)
    answer, _ = controller.decide(observation(lr=0.01, shape=(4000,)), controller.init((4000,)))
    assert float((answer - 1).std()) == pytest.approx(0.1 * 0.05, rel=0.05)
    assert float((answer - 1).mean()) == pytest.approx(0, abs=3e-4)


def test_presets_differ_where_paper_and_code_do() -> None:
    paper = PPOSchedule.from_preset("paper", params=PPOSchedule.random_params())
    code = PPOSchedule.from_preset("released", params=PPOSchedule.random_params())
    assert (paper.every_steps, paper.memory, paper.sample) == (10, True, False)
    assert (code.every_steps, code.memory, code.sample) == (1, False, True)
    assert (ScheduleConfig.from_preset("paper").critic_lr, ScheduleConfig.from_preset("paper").ratio_bug) == (
        5e-3,
        False,
    )
    assert (ScheduleConfig.from_preset("released").critic_lr, ScheduleConfig.from_preset("released").ratio_bug) == (
        0.01,
        True,
    )
    with pytest.raises(ValueError, match="no preset 'best'; known: paper, released, paired"):
        ScheduleConfig.from_preset("best")


@pytest.mark.parametrize("config", KINDS)
def test_untrained_weights_are_tensorflows_defaults(config) -> None:
    params = build(bias=0.15, **config).params
    assert params["output_bias"].tolist() == pytest.approx([0.15])
    for name, value in params.items():
        if value.ndim == 2:
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.8 * bound < float(value.abs().max()) <= bound
        elif name not in ("output_bias", "bias_ih"):
            assert not value.any()
    if "recurrent" in config:
        assert params["bias_ih"].view(4, -1).mean(1).tolist() == [0, 1, 0, 0]
    assert torch.equal(joined(build(seed=1, **config).params), joined(build(seed=1, **config).params))


def test_a_first_policy_can_start_close_to_a_constant_rate() -> None:
    seen = 2 * torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    spread = {}
    for gain in (0.01, 1.0):
        means = [
            PPOSchedule(params=params).policy(seen, {}, params)[0]
            for params in (PPOSchedule.random_params(bias=0.15, gain=gain, seed=seed) for seed in range(10))
        ]
        spread[gain] = float((torch.stack(means) - 0.15).abs().quantile(0.9))
    assert spread[0.01] < 0.05 < 0.35 < spread[1.0]  # actions below -0.2 are all alike


@pytest.mark.parametrize("config", KINDS)
def test_it_survives_a_folder_and_a_checkpoint(config, tmp_path) -> None:
    controller = build(seed=2, every_steps=5, sample=True, **config)
    loaded = PPOSchedule.from_pretrained(controller.save_pretrained(tmp_path))
    assert loaded == controller and torch.equal(joined(loaded.params), joined(controller.params))
    _, state = controller.decide(observation(), controller.init())
    torch.save(state, tmp_path / "state.pt")
    kept = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(controller.decide(observation(1), state)[0], loaded.decide(observation(1), kept)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"hidden_size": 0}, "hidden_size=0"), ({"every_steps": 0}, "every_steps=0"), ({"std": 0.0}, "std=0.0")],
)
def test_bad_configs_are_refused(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        build().replace(**change)


@pytest.mark.parametrize("change", [{"gamma": 1.5}, {"passes": 0}, {"clip": -0.2}, {"worst_loss": 0.0}, {"plays": 0}])
def test_bad_settings_of_the_trainer_are_refused(change) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be"):
        ScheduleConfig(**change)


# --- what vectorised runs show ---------------------------------------------------------------------------------------


def test_a_vectorised_run_shows_predictions_and_weights() -> None:
    lr = torch.full((3,), 0.01, dtype=torch.float64)
    runs = VectorRun(make_task(small_problem().task), InnerOptimizer("adamw"), lr, 10)
    wanted = PPOSchedule.needs | {"classes", "slope", "group_slope", "alignment", "group_alignment"}
    before = None
    for _ in range(3):
        obs, usual = runs.observe(lr, wanted), runs.observe(lr)
        chances = runs.task.net(runs.task.params(runs.weights), runs.batch[0]).softmax(-1)
        params = runs.task.net.layout.views(runs.weights)
        for r in range(3):
            p, w1, w2 = chances[r], params["layer0.weight"][r], params["head.weight"][r]
            change = p.var(correction=0) + 1 / 12 if before is None else (p - before[r]).var(correction=0)
            expected = {
                "prediction_variance": p.var(correction=0),
                "prediction_change": change,
                "penultimate_mean": w1.mean(),
                "penultimate_variance": w1.var(correction=0),
                "head_mean": w2.mean(),
                "head_variance": w2.var(correction=0),
                "eval_loss": runs.task.evaluate(runs.weights, "inner_valid")[r],
                "loss": runs.loss[r],
                "classes": torch.tensor(4.0),
                "slope": (runs._grads[r] * runs._direction[r]).sum(),
            }
            for name, value in expected.items():
                # Means of float32 weights of size 0.1 that cancel: 0.1 * 1.2e-7 times a few.
                assert float(obs.require(name)[r]) == pytest.approx(float(value), rel=1e-4, abs=5e-7), name
        assert torch.equal(obs.alignment, usual.alignment)
        assert torch.equal(obs.group_alignment, obs.alignment.unsqueeze(-1))
        assert torch.equal(obs.group_slope, obs.slope.unsqueeze(-1))
        assert {n for n in wanted if getattr(obs, n) is not None} == wanted
        assert obs.grad_norm is None and usual.eval_loss is None and usual.prediction_change is None
        before = chances
        runs.advance(lr, 2, gain=False)
    assert float(obs.slope.abs().min()) > 0


def test_looking_changes_nothing_in_the_run() -> None:
    looked, plain = (small_problem().start() for _ in range(2))
    for _ in range(3):
        looked.observe(looked.base_lr, PPOSchedule.needs)
        looked.advance(looked.base_lr, 2, gain=False)
        plain.advance(plain.base_lr, 2)
    assert torch.equal(looked.weights, plain.weights)


def test_with_one_matrix_the_heads_bias_is_the_second() -> None:
    task = make_task(TaskSpec("conv", 2, 0, {"n_train": 64}))
    weights = torch.randn_like(task.init())
    matrix, bias = task.last_matrices(weights)
    params = task.net.layout.views(weights)
    assert torch.equal(matrix, params["head.weight"]) and torch.equal(bias, params["head.bias"])


def test_adapters_count_as_matrices_and_frozen_weights_do_not() -> None:
    config = {"body": "mlp", "rank": 2, "bodies": 1, "pretrain_steps": 1}
    task = make_task(TaskSpec("finetune", 2, 0, config))
    shapes = [tuple(m.shape) for m in task.last_matrices(task.init())]
    assert shapes == [(2, 2, 16), (2, 16, 3)]


def test_tasks_without_classes_say_so() -> None:
    (problem,) = SUITES["quadratic"].problems("train", 0, 2)
    for field in ("classes", "prediction_variance", "head_mean"):
        with pytest.raises(ValueError, match="family 'quadratic'.* have no .* to observe"):
            problem.start().observe(torch.ones(2), frozenset({field}))
    with pytest.raises(ValueError, match="family 'quadratic'"):
        SchedulePPOTrainer(build()).iterate([problem], 0)


# --- the trainer -----------------------------------------------------------------------------------------------------


def test_an_episode_is_played_as_it_says() -> None:
    controller = build(every_steps=3, bias=0.15)
    played = play(controller, controller.params, small_problem().start(), torch.Generator().manual_seed(1))
    grid = [0, 3, 5, 6]  # of 7 updates
    assert played.actions.shape == played.multipliers.shape == (4, 3)
    assert played.features.shape == (5, 3, 9) and played.losses.shape == (5, 3)
    assert torch.equal(played.features[0], torch.ones(3, 9))
    assert torch.equal(played.multipliers, controller.multiplier(played.actions))
    again, lr = small_problem().start(), torch.full((3,), 0.01, dtype=torch.float64)
    for k, (now, following) in enumerate(pairwise([*grid, 7])):
        torch.testing.assert_close(again.evaluate("inner_valid").double(), played.losses[k], rtol=1e-5, atol=0)
        if k:
            torch.testing.assert_close(played.features[k, :, 8], lr.float(), rtol=1e-5, atol=0)
        lr = lr * played.multipliers[k]
        again.advance(lr, following - now)
    torch.testing.assert_close(again.evaluate("inner_valid").double(), played.losses[-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(played.lr_ratio, lr / 0.01, rtol=1e-6, atol=0)


def reference_update(trainer: SchedulePPOTrainer, played: Played, config: dict[str, Any]) -> tuple[dict, dict]:
    """One episode's update as papers.md has it, with torch's modules and optimizers."""
    start = trainer.controller()
    body, head = torch_twin(start)
    critic = nn.Sequential(nn.Linear(9, 32), nn.ReLU(), nn.Linear(32, 1))
    critic.load_state_dict(trainer.critic.state_dict())
    actor_parameters = [*body.parameters(), *head.parameters()]
    actor_adam = torch.optim.Adam(actor_parameters, lr=1e-3)
    critic_adam = torch.optim.Adam(critic.parameters(), lr=config["critic_lr"])

    def mean() -> Tensor:
        if not start.recurrent:
            return head(body(played.features[:-1])).squeeze(-1)
        memory, out = None, []
        for x in played.features[:-1]:
            memory = body(x, memory if start.memory else None)
            out.append(head(memory[0]).squeeze(-1))
        return torch.stack(out)

    def chance(mu: Tensor) -> Tensor:
        at = played.multipliers if config["ratio_bug"] else played.actions
        return torch.distributions.Normal(mu, 0.1).log_prob(at).exp()

    with torch.no_grad():
        value = critic(played.features).squeeze(-1)
        y = (2.0 - played.losses[1:]).float() + 0.9 * value[1:]
        advantage = y - value[:-1]
        old = chance(mean())
    for _ in range(10):
        w = (chance(mean()) + 1e-10) / (old + 1e-10)
        actor_adam.zero_grad()
        (-torch.minimum(w * advantage, w.clamp(0.8, 1.2) * advantage).mean()).backward()
        for parameter in actor_parameters:
            norm = float(parameter.grad.norm())
            parameter.grad *= 5 / max(5.0, norm)
        actor_adam.step()
        critic_adam.zero_grad()
        (y - critic(played.features[:-1]).squeeze(-1)).square().mean().backward()
        critic_adam.step()
    own = dict(body.named_parameters()) if start.recurrent else {}
    if not start.recurrent:
        own = {"hidden_weight": body[0].weight, "hidden_bias": body[0].bias}
    return {**own, "output_weight": head.weight, "output_bias": head.bias}, critic.state_dict()


def close_after_adam(found: Tensor, expected: Tensor) -> None:
    """A few elements may be off by part of one of the ten steps of 1e-3.

    Adam's step is as long for a gradient that is nothing but rounding as for any other; a wrong formula moves all.
    """
    off = (found - expected).abs() > 2e-6 + 1e-4 * expected.abs()
    assert off.sum() <= max(1, 0.02 * off.numel())  # one element of a short vector is more than a few percent
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("shape", KINDS)
def test_one_update_equals_an_independent_implementation(shape, preset) -> None:
    config = dict(ScheduleConfig.presets[preset])
    # Means near 1, so that the released code's densities are above the floor there, too.
    trainer = SchedulePPOTrainer(build(seed=4, bias=0.8, every_steps=2, **shape), ScheduleConfig(**config), seed=7)
    start, noise = trainer.controller(), torch.Generator().manual_seed(0)
    played = play(start, start.params, small_problem(steps=12).start(), noise)
    # Some reward that is large, so that gradients are clipped and ratios leave [0.8, 1.2].
    losses = played.losses.clone()
    losses[3:6] += 60 * torch.rand(3, 3, generator=noise, dtype=torch.float64)
    played = replace(played, losses=losses)
    actor, critic = reference_update(trainer, played, config)
    before = joined(trainer.actor)
    trainer.improve([played])
    assert not torch.allclose(joined(trainer.actor), before, atol=1e-4)
    for name, value in trainer.actor.items():
        close_after_adam(value.detach(), actor[name].detach())
    for name, value in trainer.critic.state_dict().items():
        close_after_adam(value, critic[name])


def test_the_released_ratio_learns_nothing_far_from_one() -> None:
    zero = torch.tensor(0.0)
    numbers = {d: float(density(torch.tensor(d), zero, 0.1)) for d in (1.0, 0.7, 0.5)}
    assert numbers == pytest.approx({1.0: 7.7e-22, 0.7: 9.1e-11, 0.5: 1.5e-5}, rel=0.03)

    start = build(every_steps=1)
    still = start.replace(params={**{k: 0 * v for k, v in start.params.items()}, "output_bias": torch.tensor([-0.2])})
    moved = {}
    for bug in (True, False):
        trainer = SchedulePPOTrainer(still, ScheduleConfig(ratio_bug=bug), seed=0)
        trainer.iterate([small_problem()], 0)
        moved[bug] = float((joined(trainer.actor) - joined(still.params)).abs().max())
    assert moved[True] < 1e-7
    assert moved[False] > 1e-3


def test_pairs_are_judged_by_how_each_ended() -> None:
    rewards = [torch.tensor([[9.0, 9.0], end]) for end in ([1.0, 4.0], [3.0, 4.0], [2.0, 1.0], [2.0, 0.0])]
    found = beside_others(rewards, 2)
    expected = [[-2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    assert [a[0].tolist() for a in found] == expected and [a[1].tolist() for a in found] == expected
    three = beside_others(rewards[:3], 3)
    assert [float(a[0, 0]) for a in three] == pytest.approx([1 - 2.5, 3 - 1.5, 2 - 2.0])


def test_the_paired_preset_plays_each_run_twice_and_learns_from_the_better_play() -> None:
    start = build(every_steps=1)
    still = {**{k: 0 * v for k, v in start.params.items()}, "output_bias": torch.tensor([0.15])}
    trainer = SchedulePPOTrainer(start.replace(params=still), ScheduleConfig.from_preset("paired"), seed=0)
    plays = [play(trainer.controller(), still, small_problem().start(), generator(0, str(i))) for i in range(2)]
    assert torch.equal(plays[0].losses[0], plays[1].losses[0])
    assert not torch.equal(plays[0].losses[-1], plays[1].losses[-1])
    better, worse = (
        replace(p, actions=torch.full_like(p.actions, a)) for p, a in zip(plays, (0.25, 0.05), strict=True)
    )
    ends = [
        torch.cat([p.losses[:-1], torch.full_like(p.losses[-1:], end)])
        for p, end in zip(plays, (1.0, 2.0), strict=True)
    ]
    trainer.improve([replace(better, losses=ends[0]), replace(worse, losses=ends[1])])
    assert float(trainer.controller().params["output_bias"]) > 0.155
    assert trainer.iterate([small_problem()], 0)["inner_steps"] == 2 * 3 * 7


class Twins(MLPTask):
    """Runs that differ in nothing but the learning rate."""

    def setup(self) -> None:
        super().setup()
        self.start = self.start[:1].repeat(self.runs, 1)
        first = torch.zeros(self.runs, dtype=torch.int64)
        self.splits = {k: replace(e, index=e.index[first], labels=e.labels[first]) for k, e in self.splits.items()}

    def batch(self, split: Any) -> Any:
        rows = torch.randint(len(self.splits[split]), (1, self.batch_size), generator=self.generator)
        return self.splits[split].pick(rows.repeat(self.runs, 1))


def test_it_learns_to_raise_a_learning_rate_that_is_too_small(monkeypatch) -> None:
    monkeypatch.setitem(FAMILIES, "twins", Twins)
    shape = {"n_train": 128, "eval_size": 64, "dims": 8, "width": 16, "depth": 1, "batch_size": 16}
    problem = Problem(TaskSpec("twins", 128, 0, shape), InnerOptimizer("adamw"), 15, low_lr=0.01, high_lr=0.01)
    start = build(bias=0.15, every_steps=5, std=0.3)
    start = start.replace(params={**start.params, "output_weight": 0 * start.params["output_weight"]})
    trainer = SchedulePPOTrainer(start, ScheduleConfig(gamma=0.0, actor_lr=3e-3), seed=0)
    figures = [trainer.iterate([problem], i) for i in range(35)]
    first, last = ({k: sum(f[k] for f in part) / 5 for k in part[0]} for part in (figures[:5], figures[-5:]))
    assert first["action"] == pytest.approx(0.15, abs=0.08)
    assert last["action"] > first["action"] + 0.15
    assert last["lr_ratio"] > 1.05 > first["lr_ratio"]
    assert last["return"] > first["return"] + 0.003
    assert last["value_loss"] < 0.15 * figures[0]["value_loss"]  # a tenth


def test_figures_are_what_happened() -> None:
    problem = small_problem(runs=2, steps=9)
    trainer = SchedulePPOTrainer(build(every_steps=4), seed=3)
    figures = trainer.iterate([problem, small_problem(runs=3, steps=5)], 0)
    assert figures["inner_steps"] == 2 * 9 + 3 * 5
    assert figures["diverged"] == 0 and figures["return"] > 0
    assert 0.965**6 <= figures["lr_ratio"] <= 1.035**6


def test_a_lost_run_leaves_the_weights_finite() -> None:
    trainer = SchedulePPOTrainer(build(every_steps=2), seed=0)
    problem = replace(
        small_problem(steps=12, loss_scale=1.0), optimizer=InnerOptimizer("sgd"), low_lr=9.0, high_lr=9.0
    )
    wild = replace(problem, task=replace(problem.task, config={**problem.task.config, "rescale": 1e4}))
    figures = [trainer.iterate([wild], i) for i in range(3)]
    assert max(f["diverged"] for f in figures) > 0
    assert all(torch.isfinite(v).all() for v in (joined(trainer.actor), joined(trainer.critic.state_dict())))
    assert all(abs(value) < 1e6 for f in figures for value in f.values())


class Sealed(MLPTask):
    """A task that does not give its test data away."""

    def batch(self, split: Any) -> Any:
        assert split == "train"
        return super().batch(split)

    def evaluate(self, weights: Tensor, split: Any) -> Tensor:
        assert split == "inner_valid"
        return super().evaluate(weights, split)


def test_training_reads_the_training_data_and_what_the_controller_may_see(monkeypatch) -> None:
    monkeypatch.setitem(FAMILIES, "mlp", Sealed)
    assert SchedulePPOTrainer(build(), seed=0).iterate([small_problem()], 0)["inner_steps"] == 21


# --- the driver and the command --------------------------------------------------------------------------------------


def tiny_suite(monkeypatch) -> None:
    def draw(generator: torch.Generator, seed: int, runs: int, *rest: Any) -> Problem:
        return small_problem(runs, seed)

    monkeypatch.setitem(SUITES, "tiny", replace(SUITES["mlp"], name="tiny", draws=(draw,)))


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_resumed_training_equals_one_that_went_on(recurrent, tmp_path, monkeypatch) -> None:
    tiny_suite(monkeypatch)

    def drive(folder: str, iterations: int, *, seed: int = 0, resume: bool = False) -> SchedulePPOTrainer:
        trainer = make_trainer("schedule_ppo", hidden_size=6, seed=seed, every_steps=3, recurrent=recurrent)
        config = DriverConfig(suite="tiny", output_dir=tmp_path / folder, runs=2, iterations=iterations, seed=seed)
        run(trainer, config, resume=resume, bar=False)
        return trainer

    whole = drive("whole", 4)
    drive("parts", 2)
    parts = drive("parts", 4, resume=True)
    other = drive("other", 4, seed=1)
    assert torch.equal(joined(parts.actor), joined(whole.actor))
    assert torch.equal(joined(parts.critic.state_dict()), joined(whole.critic.state_dict()))
    assert not torch.equal(joined(other.actor), joined(whole.actor))
    written = PPOSchedule.from_pretrained(tmp_path / "parts")
    assert torch.equal(joined(written.params), joined(whole.actor)) and written.every_steps == 3
    record = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert record["method"] == "schedule_ppo" and len(record["curves"]) == 4
    assert {"return", "diverged", "lr_ratio"} <= set(record["curves"][0])


def on_a_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    trainer = SchedulePPOTrainer(build(hidden_size=4), seed=0)
    for i in range(2):
        trainer.iterate([small_problem(seed=10 * i + dist.get_rank())], i)
    torch.save(joined(trainer.actor), folder / f"{dist.get_rank()}.pt")


def test_two_processes_end_with_the_same_weights(tmp_path) -> None:
    debug_launcher(on_a_rank, args=(tmp_path,), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, joined(build(hidden_size=4).params))


LINE = ["train", "schedule_ppo", "--suite", "tiny", "--runs", "2", "--hidden-size", "4", "--iterations", "1"]


def test_the_command_trains_and_resumes_with_the_same_options_only(tmp_path, monkeypatch, capsys) -> None:
    tiny_suite(monkeypatch)
    line = [*LINE, "--output-dir", str(tmp_path / "out")]
    assert main([*line, "--preset", "released", "--recurrent"]) == 0
    written = PPOSchedule.from_pretrained(tmp_path / "out")
    assert (written.every_steps, written.sample, written.recurrent, written.hidden_size) == (1, True, True, 4)
    capsys.readouterr()
    assert main([*line, "--preset", "released", "--resume"]) == 2
    assert "resume with the same options" in capsys.readouterr().err
    more = [*line[: line.index("--iterations")], "--iterations", "2", *line[line.index("--iterations") + 2 :]]
    assert main([*more, "--preset", "released", "--recurrent", "--resume"]) == 0


@pytest.mark.parametrize(("options", "every"), [([], 5), (["--every-steps", "2"], 2)])
def test_the_command_decides_every_five_updates_unless_told(options, every, tmp_path, monkeypatch) -> None:
    tiny_suite(monkeypatch)
    assert main([*LINE, *options, "--output-dir", str(tmp_path / "out")]) == 0
    assert PPOSchedule.from_pretrained(tmp_path / "out").every_steps == every


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["schedule_ppo", "--suite", "quadratic", "--runs", "2"], "family 'quadratic', which have no classes"),
        (
            ["schedule_ppo", "--suite", "full", "--runs", "2"],
            "use one of: mlp, coffee, strangers, newcomers, fashion, mnist, perceptrons",
        ),
        (["schedule_ppo", "--suite", "mlp", "--runs", "2", "--every-steps", "0"], "every_steps=0"),
        (["ppo", "--recurrent"], "--recurrent is for schedule_ppo, not for ppo"),
        (["bilevel", "--every-steps", "3"], "--every-steps is for schedule_ppo, not for bilevel"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(line, message, tmp_path, capsys) -> None:
    assert main(["train", *line, "--iterations", "1", "--output-dir", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- the paper's own trainee -----------------------------------------------------------------------------------------


def test_it_trains_on_real_images() -> None:
    spec = TaskSpec("lenet", 1, 0, SMALL_PHOTOS)
    problem = Problem(spec, InnerOptimizer("adamw"), total_steps=12, low_lr=1e-3, high_lr=1e-3)
    figures = SchedulePPOTrainer(build(every_steps=5, bias=0.15), seed=0).iterate([problem], 0)
    assert figures["return"] > 0 and figures["diverged"] == 0 and figures["inner_steps"] == 12


@pytest.mark.parametrize(("name", "data", "rows"), [("fashion", "fashion-mnist", 4000), ("mnist", "mnist-5000", 2000)])
def test_the_suites_of_real_images_are_the_papers_setting_in_small(name, data, rows) -> None:
    (problem,) = SUITES[name].problems("train", 0, 1)
    assert problem.task.config == {"data": data, "n_train": rows, "batch_size": 100}
    assert (problem.optimizer, problem.total_steps) == (InnerOptimizer("adamw"), 100)
    assert problem.low_lr == problem.high_lr == 1e-3
    assert (problem.optimizer.betas, problem.optimizer.eps, problem.optimizer.weight_decay) == ((0.9, 0.999), 1e-8, 0)
    assert sum(build(every_steps=5).due(t, 100) for t in range(100)) == 24


def test_the_small_suite_is_the_papers_perceptron() -> None:
    (problem,) = SUITES["perceptrons"].problems("train", 0, 2)
    task = make_task(replace(problem.task, config={**problem.task.config, "data": "mnist-5000", "n_train": 50}))
    assert task.net.layout.shapes == {"dense.weight": (49, 32), "dense.bias": (32,)} | {
        "head.weight": (32, 10),
        "head.bias": (10,),
    }
    whole = make_task(TaskSpec("lenet", 2, problem.task.seed, {**task.config, "side": 28}))
    rows = torch.arange(5).expand(2, -1)
    small, large = (t.splits["test"].pick(rows)[0] for t in (task, whole))
    torch.testing.assert_close(small, F.avg_pool2d(large.flatten(0, 1), 4).view_as(small), rtol=0, atol=0.51 / 255)
    assert sum(build(every_steps=2).due(t, problem.total_steps) for t in range(problem.total_steps)) == 51


def test_the_net_is_the_papers() -> None:
    task = make_task(TaskSpec("lenet", 1, 0, {"data": "mnist-5000", "n_train": 8, "eval_size": 8}))
    shapes = task.net.layout.shapes
    assert shapes["conv0.weight"] == (32, 1, 5, 5) and shapes["conv1.weight"] == (64, 32, 5, 5)
    assert shapes["dense.weight"] == (3136, 512) and shapes["head.weight"] == (512, 10)
    params = task.net.layout.views(task.init())
    for name, fans in (("conv0", 25 * 33), ("conv1", 25 * 96), ("dense", 3648), ("head", 522)):
        bound = (6 / fans) ** 0.5
        assert 0.97 * bound < float(params[f"{name}.weight"].abs().max()) <= bound
        assert not params[f"{name}.bias"].any()
    assert [tuple(m.shape) for m in task.last_matrices(task.init())] == [(1, 3136, 512), (1, 512, 10)]


def test_no_image_is_in_two_splits_whatever_the_seed() -> None:
    tasks = [make_task(TaskSpec("lenet", 3, seed, {**SMALL_PHOTOS, "n_train": 1500})) for seed in (1, 2)]
    rows = [{i for t in tasks for i in t.splits[s].index.flatten().tolist()} for s in SPLITS]
    assert all(not a & b for a, b in combinations(rows, 2))
    assert all(len(set(own.tolist())) == 1500 for own in tasks[0].splits["train"].index)
    inputs, labels = tasks[0].batch("train")
    assert inputs.shape == (3, 16, 1, 28, 28) and inputs.dtype == torch.float32
    assert float(inputs.min()) == 0 and 0.9 < float(inputs.max()) <= 1
    assert labels.unique().tolist() == list(range(10))
    assert tasks[0].splits["test"].pool is tasks[1].splits["train"].pool


def test_fashion_mnist_is_read_through_the_demos_reader(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_ADAPTIVE_LR_FASHION_MNIST", str(tmp_path))
    with pytest.raises(DemoDataError, match="apt-get install dataset-fashion-mnist"):
        make_task(TaskSpec("lenet", 1, 0))
    put_fashion_mnist(tmp_path, 60_000, 10_000)  # images of one shade: the row number, 100 more in the test rows
    splits = images(torch.Generator().manual_seed(0), 2, "fashion-mnist", 40, 20)
    firsts = {"train": 0, "inner_valid": 50_000, "outer_valid": 55_000, "test": 60_000}
    for (name, first), last in zip(firsts.items(), (50_000, 55_000, 60_000, 70_000), strict=True):
        index = splits[name].index
        assert first <= int(index.min()) and int(index.max()) < last
        pictures, labels = splits[name].pick(torch.arange(20).expand(2, -1))
        row = index[:, :20] - (60_000 if name == "test" else 0)
        assert torch.equal(labels, row % 10)
        shade = (row + (100 if name == "test" else 0)) % 256
        assert torch.equal(pictures, (shade / 255).view(2, 20, 1, 1, 1).expand(-1, -1, 1, 28, 28))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "cats"}, "no data 'cats'; known: fashion-mnist, mnist-5000"),
        ({"n_train": 2001}, r"n_train=2001 must be within \[1, 2000\]"),
        ({"eval_size": 0}, r"eval_size=0 must be within \[1, 1000\]"),
        ({"side": 10}, "side=10 must be 28, 14 or 7"),
    ],
)
def test_bad_image_settings_are_refused(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        make_task(TaskSpec("lenet", 1, 0, {**SMALL_PHOTOS, **change}))
