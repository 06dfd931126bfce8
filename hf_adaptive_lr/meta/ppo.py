"""Proximal policy optimisation for recurrent controllers (Schulman et al. 2017, arXiv:1707.06347), in one file.

One iteration: every run of the batch is one episode of `decisions` moves; then a few epochs of the clipped objective
over whole episodes, back through the recurrent net. The policy is a Gaussian on the move before it is squashed, so
log-probabilities are of the sampled number itself. The value net has the policy's inputs and stays out of the
published weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..controllers._recurrent import RecurrentController
from ..distributed import average_tensors, generator
from .episode import Episode
from .problem import Problem
from .weights import check_settings, settings_of


@dataclass(frozen=True)
class PPOConfig:
    """Settings of the trainer."""

    decisions: int = 20  # moves per episode
    epochs: int = 4  # passes over each batch of episodes
    minibatches: int = 1  # parts of the episodes that a pass is made in, each with a step of its own; 1 takes all
    clip: float = 0.2  # of the probability ratio; the paper's
    gamma: float = 1.0  # discount; 1 because the rewards telescope to the whole run
    lam: float = 0.95  # lambda of generalised advantage estimation
    lr: float = 3e-3  # Adam's learning rate at the start; decays linearly to zero over the training
    value_weight: float = 0.5  # of the value loss
    entropy: float = 1e-3  # weight of the entropy bonus
    std: float = 0.5  # of the move before squashing, at the start; learned
    max_grad_norm: float = 0.5  # clipping of the trainer's own gradients
    # Largest log of the factor, up and down, between the first update of three quarters of the runs and the usual one;
    # for controllers that choose it themselves.
    scatter: float = 0.0
    # Whether to divide the rewards of each problem by their standard deviation over the runs, so that a family whose
    # losses fall by much does not outweigh the others.
    even: bool = False

    @classmethod
    def for_universal(cls) -> PPOConfig:
        """The settings that `universal` is trained with."""
        return cls(epochs=5, minibatches=4, lr=1e-3, scatter=2.0, even=True)


_LEAST_SPREAD = 0.05  # of log losses over runs: below it the learning rate made no difference worth learning from


@dataclass(frozen=True)
class Rollout:
    """A batch of played episodes, time first: every tensor is (decisions, runs) or (decisions, runs, features).

    `played` is 1 where there was a decision and 0 where an episode was over before the longest one was.
    """

    features: Tensor
    raw: Tensor
    logp: Tensor
    values: Tensor
    rewards: Tensor
    played: Tensor

    def padded(self, decisions: int) -> Rollout:
        """The rollout with zeros up to this many decisions."""
        missing, columns = decisions - len(self.rewards), (getattr(self, f.name) for f in fields(self))
        return Rollout(*(torch.cat((values, values.new_zeros(missing, *values.shape[1:]))) for values in columns))


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (steps, runs), by GAE (Schulman et al. 2016, eq. 16); 0 follows the end."""
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[0])
    following = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * following - values[t]
        running = delta + gamma * lam * running
        advantages[t], following = running, values[t]
    return advantages, advantages + values


def clipped_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The clipped surrogate, to be minimised (PPO, eq. 7 with the sign turned)."""
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


class Agent(nn.Module):
    """The controller's weights as parameters, the noise, and a recurrent value net of its own."""

    def __init__(self, controller: RecurrentController, std: float) -> None:
        super().__init__()
        self.controller = controller
        self.policy = nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in controller.params.items()})
        self.log_std = nn.Parameter(torch.tensor(float(std)).log())
        self.value_rnn = nn.GRU(controller.n_features, controller.hidden_size)
        self.value_head = nn.Linear(controller.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)

    def means(self, features: Tensor) -> Tensor:
        """Mean moves before squashing for whole episodes: (steps, runs, features) to (steps, runs)."""
        hidden = torch.zeros(*features.shape[1:-1], self.controller.hidden_size)
        weights, out = dict(self.policy.items()), []
        for x in features:
            raw, hidden = self.controller.policy(x, hidden, weights)
            out.append(raw)
        return torch.stack(out)

    def values(self, features: Tensor) -> Tensor:
        """Values for whole episodes: (steps, runs, features) to (steps, runs)."""
        out, _ = self.value_rnn(features)
        values: Tensor = self.value_head(out).squeeze(-1)
        return values

    def log_prob(self, raw: Tensor, mean: Tensor) -> Tensor:
        """Log-density of the moves before squashing."""
        scaled = (raw - mean) / self.log_std.exp()
        return -0.5 * scaled.square() - self.log_std - 0.5 * math.log(2 * math.pi)


@torch.no_grad()
def rollout(agent: Agent, episode: Episode, noise: torch.Generator, scatter: float = 0.0) -> Rollout:
    """Play an episode, before its first decision, in every run, with noise on the moves; `scatter`: [`PPOConfig`]."""
    controller, weights = agent.controller, dict(agent.policy.items())
    state, rows = controller.init((episode.run.task.runs,)), []
    if scatter:
        state = controller.scattered(state, noise, scatter)
    while not episode.done:
        obs = episode.observe(controller.needs)
        features, state = controller.encode(obs, state)
        mean, hidden = controller.policy(features, state["hidden"], weights)
        raw = mean + agent.log_std.exp() * torch.randn(mean.shape, generator=noise)
        lr, state = controller.act(raw, obs, {**state, "hidden": hidden})
        rows.append((features, raw, agent.log_prob(raw, mean), episode.play(lr).float()))
    features, raw, logp, rewards = (torch.stack(column) for column in zip(*rows, strict=True))
    return Rollout(features, raw, logp, agent.values(features), rewards, torch.ones_like(rewards))


class PPOTrainer:
    """Trains a recurrent controller, one batch of episodes per iteration; seeded, and resumes bit for bit.

    `seed` is of the value net and the exploration noise; ranks share it and draw noise of their own.
    """

    method = "ppo"

    def __init__(self, controller: RecurrentController, config: PPOConfig | None = None, seed: int = 0) -> None:
        if not controller.params:
            raise ValueError("PPOTrainer needs a controller with weights; start from its random_params(...)")
        self.config = config or PPOConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.agent = Agent(controller, self.config.std)
        self._optimizer = torch.optim.Adam(self.agent.parameters(), lr=self.config.lr)
        self._seed = seed

    def iterate(self, problems: Sequence[Problem], iteration: int, progress: float = 0.0) -> dict[str, float]:
        """Play and learn from one batch of problems; see `driver.Trainer`.

        Exploration follows from `iteration`; the learning rate falls linearly with `progress`. Figures also have
        `policy_loss` and `value_loss`.
        """
        noise = generator(self._seed, "ppo", iteration)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.lr * (1 - min(progress, 1.0))
        config, controller = self.config, self.agent.controller
        episodes = [Episode(problem.start(), config.decisions, controller=controller) for problem in problems]
        played = [rollout(self.agent, episode, noise, config.scatter) for episode in episodes]
        if config.even:
            scales = (each.rewards.sum(0).std().clamp_min(_LEAST_SPREAD) for each in played)
            played = [replace(each, rewards=each.rewards / scale) for each, scale in zip(played, scales, strict=True)]
        figures = self._improve(played, noise)
        figures["return"] = float(torch.cat([e.start - e.value for e in episodes]).mean())
        figures["diverged"] = float(torch.cat([e.lost for e in episodes]).double().mean())
        figures["inner_steps"] = float(sum(e.run.step * e.run.task.runs for e in episodes))
        return figures

    def _improve(self, played: list[Rollout], noise: torch.Generator) -> dict[str, float]:
        config = self.config
        names, longest = [f.name for f in fields(Rollout)], max(len(each.rewards) for each in played)
        played = [each.padded(longest) for each in played]
        batch = Rollout(*(torch.cat([getattr(r, name) for r in played], 1) for name in names))
        advantages, returns = gae(batch.rewards, batch.values, config.gamma, config.lam)
        real = advantages[batch.played > 0]
        advantages = (advantages - real.mean()) / (real.std() + 1e-8)
        runs, figures = advantages.shape[1], {}
        for _ in range(config.epochs):
            parts = [torch.arange(runs)]
            if config.minibatches > 1:
                parts = list(torch.randperm(runs, generator=noise).chunk(config.minibatches))
            for part in parts:
                some = Rollout(*(getattr(batch, name)[:, part] for name in names))
                figures = self._descend(some, advantages[:, part], returns[:, part])
        return figures

    def _descend(self, batch: Rollout, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        agent, config = self.agent, self.config
        mean = agent.means(batch.features)
        real, logp = batch.played > 0, agent.log_prob(batch.raw, mean)
        policy_loss = clipped_loss(logp[real], batch.logp[real], advantages[real], config.clip)
        value_loss = (agent.values(batch.features) - returns)[real].square().mean()
        loss = policy_loss + config.value_weight * value_loss - config.entropy * agent.log_std
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        average_tensors([p.grad for p in agent.parameters() if p.grad is not None])
        nn.utils.clip_grad_norm_(agent.parameters(), config.max_grad_norm)
        self._optimizer.step()
        return {"policy_loss": float(policy_loss.detach()), "value_loss": float(value_loss.detach())}

    def controller(self) -> RecurrentController:
        """The controller with its current weights."""
        return self.agent.controller.replace(params={k: v.detach().clone() for k, v in self.agent.policy.items()})

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to continue bit for bit: tensors and numbers."""
        return {
            "agent": self.agent.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "settings": settings_of(self.agent.controller, self.config),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; ValueError for one of a trainer with other settings."""
        check_settings(state["settings"], settings_of(self.agent.controller, self.config))
        self.agent.load_state_dict(state["agent"])
        self._optimizer.load_state_dict(state["optimizer"])
