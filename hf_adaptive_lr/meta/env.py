"""Learning-rate control as a gymnasium environment: one vectorised environment, and the same code with one run.

An episode is one training run. An action moves the log learning rate, which then stays until the next decision:

    lr <- clip(lr * exp(max_move * a))            a in [-1, 1]
    reward_k = log L_{k-1} - log L_k              L: loss on `outer_valid` at decision k, within [L_0 e^-20, L_0 e^3]
    and with the last reward: end_weight * (log L_0 - log L_K)

So the undiscounted return is (1 + end_weight) times the improvement of log loss over the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

try:
    import gymnasium as gym
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the environment needs gymnasium; pip install 'hf_adaptive_lr[train]'") from error
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from ..controllers._features import FEATURES, encode, init_history
from ..controllers.gru import GRUController
from .episode import Episode
from .problem import Problem
from .suites import SUITES, Suite, TaskSplit

Floats: TypeAlias = NDArray[np.float32]
Rewards: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class EnvConfig:
    """Settings of the environment."""

    decisions: int = 20  # moves per episode, spread evenly over the run, at least 1
    max_move: float = GRUController.max_move  # change of the log learning rate at action 1, above 0
    end_weight: float = 1.0  # additional weight of the whole run's improvement in the last reward, at least 0
    split: TaskSplit = "train"  # which problems are drawn

    def __post_init__(self) -> None:
        if self.decisions < 1 or not self.max_move > 0 or not self.end_weight >= 0:
            raise ValueError(f"decisions must be at least 1, max_move above 0, end_weight at least 0: {self}")
        if self.split == "test":
            raise ValueError("split='test' is for the benchmark alone; train on 'train', choose by 'valid'")


class _Play:
    """The runs of one problem, each in its episode, for both environments."""

    def __init__(self, problem: Problem, config: EnvConfig) -> None:
        self.config = config
        self.episode = Episode(problem.start(), config.decisions)
        self.history = init_history((self.episode.run.task.runs,))

    def features(self) -> Floats:
        """Observation of shape (runs, 12); counts as a decision in the encoder's history."""
        features, self.history = encode(self.episode.observe(), self.history)
        return features.numpy()

    def step(self, action: Floats) -> Rewards:
        """Rewards of shape (runs,) for actions of shape (runs, 1)."""
        if not np.isfinite(action).all():
            raise ValueError("an action is not a finite number")
        move = self.config.max_move * torch.from_numpy(np.clip(np.asarray(action, np.float32)[:, 0], -1, 1))
        self.history = {**self.history, "move": move}
        reward = self.episode.play(self.episode.lr * move.double().exp())
        if self.episode.done:
            reward = reward + self.config.end_weight * (self.episode.start - self.episode.value)
        return _numpy(reward)

    def info(self) -> dict[str, Any]:
        """Learning rates in force, log losses on `outer_valid` and which runs are lost, each of shape (runs,)."""
        values = {"lr": self.episode.lr, "log_loss": self.episode.value}
        return {**{k: _numpy(v) for k, v in values.items()}, "lost": self.episode.lost.numpy()}


def _numpy(values: Tensor) -> Rewards:
    out: Rewards = values.double().numpy().copy()
    return out


def _spaces() -> tuple[Any, Any]:
    observation = gym.spaces.Box(-4.0, 4.0, (len(FEATURES),), np.float32)
    return observation, gym.spaces.Box(-1.0, 1.0, (1,), np.float32)


def _suite(suite: Suite | str) -> Suite:
    if isinstance(suite, Suite):
        return suite
    if suite not in SUITES:
        raise ValueError(f"no suite '{suite}'; known: {', '.join(SUITES)}")
    return SUITES[suite]


def _draw(random: np.random.Generator, suite: Suite, split: TaskSplit, runs: int) -> list[Problem]:
    return suite.problems(split, int(random.integers(2**48)), runs)


class LREnv(VectorEnv[Floats, Floats, NDArray[Any]]):
    """Many training runs at once, in step.

    Autoreset is `SAME_STEP`: all episodes have `decisions` steps, so all end together; the step that ends them returns
    the first observations of the next ones, and their last observations and infos in `infos["final_obs"]` and
    `infos["final_info"]`. Episodes end by `terminated`, never by `truncated`: the end of the run is part of the task
    and the observation knows how much is left.

    `reset(seed=s)` fixes everything that is drawn from there on; `reset()` goes on to the next problems, and
    `reset(options={"problems": [...]})` plays those problems.

    Args:
        suite: a suite or its name.
        runs: runs of each of the suite's families; `num_envs` is `runs` times their number, family after family.
        config: settings.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, suite: Suite | str = "quadratic", runs: int = 64, config: EnvConfig | None = None) -> None:
        self.suite, self.runs, self.config = _suite(suite), runs, config or EnvConfig()
        self.num_envs = runs * len(self.suite.draws)
        self.single_observation_space, self.single_action_space = _spaces()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._plays: list[_Play] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start new episodes in all runs."""
        super().reset(seed=seed)
        problems = (options or {}).get("problems") or _draw(self.np_random, self.suite, self.config.split, self.runs)
        plays = [_Play(problem, self.config) for problem in problems]
        count = sum(play.episode.run.task.runs for play in plays)
        if count != self.num_envs:
            raise ValueError(f"the problems have {count} runs, this environment has {self.num_envs}")
        self._plays = plays
        return self._features(), self._infos()

    def step(self, actions: Floats) -> tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One decision in every run; `actions` of shape (num_envs, 1) are clipped to [-1, 1]."""
        if not self._plays:
            raise RuntimeError("call reset() before step()")
        counts = [play.episode.run.task.runs for play in self._plays]
        parts = np.split(np.asarray(actions, np.float32).reshape(self.num_envs, 1), np.cumsum(counts)[:-1])
        rewards = np.concatenate([play.step(part) for play, part in zip(self._plays, parts, strict=True)])
        done = self._plays[0].episode.done
        observation, infos = self._features(), self._infos()
        if done:
            every = np.ones(self.num_envs, np.bool_)
            last = {"final_obs": observation, "_final_obs": every, "final_info": infos, "_final_info": every}
            observation, infos = self.reset()
            infos |= last
        return observation, rewards, np.full(self.num_envs, done), np.zeros(self.num_envs, np.bool_), infos

    def _features(self) -> Floats:
        return np.concatenate([play.features() for play in self._plays])

    def _infos(self) -> dict[str, Any]:
        rows = [play.info() for play in self._plays]
        every = np.ones(self.num_envs, np.bool_)
        return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]} | {f"_{k}": every for k in rows[0]}


class SingleLREnv(gym.Env[Floats, Floats]):
    """One training run; the same code as [`LREnv`] with one run, and the same `suite` and `config`.

    Of a suite with several families each episode draws one. `reset(options={"problem": problem})` plays that one,
    which must have one run.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, suite: Suite | str = "quadratic", config: EnvConfig | None = None) -> None:
        self.suite, self.config = _suite(suite), config or EnvConfig()
        self.observation_space, self.action_space = _spaces()
        self._play: _Play | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start the next episode."""
        super().reset(seed=seed)
        problem = (options or {}).get("problem")
        if problem is None:
            problems = _draw(self.np_random, self.suite, self.config.split, 1)
            problem = problems[int(self.np_random.integers(len(problems)))]
        play = _Play(problem, self.config)
        if play.episode.run.task.runs != 1:
            raise ValueError(f"the problem has {play.episode.run.task.runs} runs; LREnv plays many, this plays one")
        self._play = play
        return play.features()[0], self._info(play)

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """One decision; `action` of shape (1,) is clipped to [-1, 1]."""
        play = self._play
        if play is None or play.episode.done:
            raise RuntimeError("the episode is over or none was started; call reset()")
        reward = float(play.step(np.asarray(action, np.float32).reshape(1, 1))[0])
        return play.features()[0], reward, play.episode.done, False, self._info(play)

    @staticmethod
    def _info(play: _Play) -> dict[str, Any]:
        return {k: v[0].item() for k, v in play.info().items()}
