"""The gymnasium environments: declared spaces, seeds, autoreset, bounded rewards, one column equal to one run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from hf_adaptive_lr.controllers.gru import GRUController
from hf_adaptive_lr.meta.env import EnvConfig, LREnv, SingleLREnv
from hf_adaptive_lr.meta.episode import FALL, RISE, Episode, play_through, stretches
from hf_adaptive_lr.meta.inner import InnerOptimizer
from hf_adaptive_lr.meta.problem import Problem
from hf_adaptive_lr.meta.suites import SUITES, Suite
from hf_adaptive_lr.meta.tasks import make_task
from hf_adaptive_lr.meta.tasks.base import Task, TaskSpec
from hf_adaptive_lr.meta.vector_run import VectorRun

SHORT = EnvConfig(decisions=5)


def _short(generator: torch.Generator, seed: int, runs: int, *rest) -> Problem:
    return Problem(TaskSpec("quadratic", runs, seed, {"dims": 8}), total_steps=17)


def _shorter(generator: torch.Generator, seed: int, runs: int, *rest) -> Problem:
    return Problem(TaskSpec("quadratic", runs, seed, {"dims": 4}), InnerOptimizer("adamw"), total_steps=3)


SUITE = Suite("for tests", (_short, _shorter))


class Column(Task):
    """One run of a batch: draws for all of them, shows one."""

    def __init__(self, task: Task, index: int) -> None:
        self.task, self.index, self.runs, self.spec = task, index, 1, task.spec

    def init(self):
        return self.task.init()[[self.index]]

    def batch(self, split):
        return self.task.batch(split)

    def loss(self, weights, batch):
        return self.task.loss(weights.expand(self.task.runs, -1), batch)[[self.index]]

    def evaluate(self, weights, split):
        return self.task.evaluate(weights.expand(self.task.runs, -1), split)[[self.index]]


@dataclass(frozen=True)
class ColumnProblem:
    problem: Problem
    index: int

    def start(self) -> VectorRun:
        base_lr = self.problem.start().base_lr[[self.index]]
        task = Column(make_task(self.problem.task), self.index)
        return VectorRun(task, self.problem.optimizer, base_lr, self.problem.total_steps)


def close(found: np.ndarray, expected: np.ndarray, atol: float = 1e-6) -> None:
    """Within what other batch shapes, and hundreds of updates after them, make of float32's 1.2e-7."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=atol)


def _actions(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_stretches_are_even_and_add_up() -> None:
    assert stretches(200, 20) == [10] * 20
    for total in (1, 7, 19, 20, 39, 1999):
        parts = stretches(total, 20)
        assert sum(parts) == total and len(parts) == 20 and max(parts) - min(parts) <= 1
    with pytest.raises(ValueError, match="total_steps=0"):
        stretches(0, 20)


def test_single_env_passes_gymnasiums_checks() -> None:
    check_env(SingleLREnv(SUITE, SHORT), skip_render_check=True)


def test_spaces_hold_what_is_returned() -> None:
    env = LREnv(SUITE, runs=3, config=SHORT)
    assert env.num_envs == 6 and env.single_observation_space.shape == (12,)
    observation, _ = env.reset(seed=0)
    for k in range(12):
        assert observation in env.observation_space and observation.dtype == np.float32
        action = _actions((6, 1), k)
        assert action in env.action_space
        observation, reward, terminated, truncated, infos = env.step(action)
        assert reward.shape == terminated.shape == truncated.shape == infos["lr"].shape == (6,)


@pytest.mark.parametrize("index", [0, 3])
def test_one_run_equals_one_column(index) -> None:
    (problem,) = SUITES["quadratic"].problems("train", 5, 6)
    many, one = LREnv(runs=6), SingleLREnv()
    columns, _ = many.reset(options={"problems": [problem]})
    row, _ = one.reset(options={"problem": ColumnProblem(problem, index)})
    for k in range(20):
        close(columns[index], row, atol=5e-4)  # of order 1; one of them is a small difference of two losses
        actions = _actions((6, 1), k)
        columns, rewards, terminated, _, infos = many.step(actions)
        row, reward, done, _, info = one.step(actions[index])
        close(reward, rewards[index])
        assert done == terminated[index]
        if done:
            columns, infos = infos["final_obs"], infos["final_info"]
        assert info
        for name, value in info.items():
            close(infos[name][index], value)
    close(columns[index], row, atol=5e-4)
    assert done


def test_env_plays_what_the_controller_plays() -> None:
    controller = GRUController(hidden_size=8, params=GRUController.random_params(hidden_size=8, seed=3))
    (problem,) = SUITES["quadratic"].problems("train", 0, 4)
    episode = Episode(problem.start(), 20)
    final = play_through(controller, episode)
    env = LREnv(runs=4, config=EnvConfig(max_move=controller.max_move))
    observation, _ = env.reset(options={"problems": [problem]})
    hidden = torch.zeros(4, 8)
    for _ in range(20):
        raw, hidden = controller.policy(torch.from_numpy(observation), hidden, controller.params)
        observation, *_, infos = env.step(torch.tanh(raw)[:, None].numpy())
    close(infos["final_info"]["log_loss"], final.numpy())
    close(infos["final_info"]["lr"], episode.lr.numpy())


@pytest.mark.parametrize("end_weight", [0.0, 1.0, 2.5])
def test_rewards_telescope(end_weight) -> None:
    env = LREnv(SUITE, runs=4, config=EnvConfig(decisions=5, end_weight=end_weight))
    _, start = env.reset(seed=1)
    total = np.zeros(8)
    for k in range(5):
        _, reward, *_, infos = env.step(_actions((8, 1), k))
        total += reward
    change = start["log_loss"] - infos["final_info"]["log_loss"]
    assert np.abs(change).max() > 1e-3
    # Only the order of additions differs.
    np.testing.assert_allclose(total, (1 + end_weight) * change, rtol=0, atol=1e-12)


def test_seed_fixes_everything_that_follows() -> None:
    def play(env: LREnv, seed: int | None) -> list[np.ndarray]:
        out = [env.reset(seed=seed)[0]]
        for k in range(11):
            observation, reward, *_ = env.step(_actions((6, 1), k))
            out += [observation, reward]
        return out

    env = LREnv(SUITE, runs=3, config=SHORT)
    first, second, fresh = play(env, 7), play(env, 7), play(LREnv(SUITE, runs=3, config=SHORT), 7)
    assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(first, second, fresh, strict=True))
    assert not np.array_equal(play(env, 8)[1], first[1])
    assert not np.array_equal(play(env, None)[1], play(env, None)[1])
    single = SingleLREnv(SUITE, SHORT)
    assert np.array_equal(single.reset(seed=3)[0], single.reset(seed=3)[0])


def test_autoreset_is_in_the_same_step() -> None:
    env = LREnv(SUITE, runs=2, config=SHORT)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset(seed=0)
    for k in range(1, 11):
        observation, _, terminated, truncated, infos = env.step(_actions((4, 1), k))
        assert terminated.all() == terminated.any() == (k % 5 == 0) and not truncated.any()
        assert ("final_obs" in infos) == terminated.all()
        progress = 9  # feature "progress"
        if terminated.all():
            assert (infos["final_obs"][:, progress] == 1).all() and infos["_final_obs"].all()
            assert (observation[:, progress] == 0).all()
        else:
            assert (observation[:2, progress] > 0).all()


def test_gymnasiums_own_wrappers_accept_it() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(LREnv(SUITE, runs=2, config=SHORT))
    env.reset(seed=0)
    for k in range(5):
        *_, infos = env.step(_actions((4, 1), k))
    assert infos["episode"]["l"].tolist() == [5] * 4


def test_lost_runs_have_a_bounded_price() -> None:
    (problem,) = SUITES["quadratic"].problems("train", 0, 8)
    env = LREnv(runs=8, config=EnvConfig(max_move=5.0))
    _, start = env.reset(options={"problems": [problem]})
    rewards = []
    for _ in range(20):
        observation, reward, *_, infos = env.step(np.ones((8, 1), np.float32))
        assert np.isfinite(observation).all() and np.isfinite(reward).all()
        rewards.append(reward)
    last = infos["final_info"]
    assert last["lost"].all() and (last["lr"] == 10).all()
    np.testing.assert_allclose(last["log_loss"], start["log_loss"] + RISE)
    assert np.abs(rewards).max() <= 2 * (RISE + FALL)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="no suite 'nothing'; known: quadratic"):
        LREnv("nothing")
    with pytest.raises(ValueError, match="for the benchmark alone"):
        EnvConfig(split="test")
    with pytest.raises(ValueError, match="decisions must be at least 1"):
        EnvConfig(decisions=0)
    env = LREnv(SUITE, runs=2, config=SHORT)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((4, 1), np.float32))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not a finite number"):
        env.step(np.full((4, 1), np.nan, np.float32))
    with pytest.raises(ValueError, match="have 3 runs, this environment has 4"):
        env.reset(options={"problems": SUITES["quadratic"].problems("train", 0, 3)})
    single = SingleLREnv(SUITE, SHORT)
    with pytest.raises(RuntimeError, match="reset"):
        single.step(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="LREnv plays many"):
        single.reset(options={"problem": SUITES["quadratic"].problems("train", 0, 3)[0]})


def test_an_outside_ppo_learns_on_it() -> None:
    from stable_baselines3 import PPO

    # One short quadratic that starts far too slow, so that a few thousand decisions are enough to learn "up".
    def slow(generator: torch.Generator, seed: int, runs: int, *rest) -> Problem:
        return Problem(TaskSpec("quadratic", runs, 11, {"dims": 4}), total_steps=20, low_lr=1e-3, high_lr=1.001e-3)

    env = SingleLREnv(Suite("slow", (slow,)), EnvConfig(decisions=10))

    def mean_return(model: PPO) -> float:
        total = 0.0
        for seed in range(5):
            observation, _ = env.reset(seed=seed)
            done = False
            while not done:
                action, _ = model.predict(observation, deterministic=True)
                observation, reward, done, _, _ = env.step(action)
                total += reward / 5
        return total

    model = PPO("MlpPolicy", env, n_steps=512, batch_size=128, n_epochs=5, seed=0, device="cpu", learning_rate=1e-3)
    before = mean_return(model)
    model.learn(4096)
    after = mean_return(model)
    assert math.isfinite(after) and after > before + 1
