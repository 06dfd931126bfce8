"""Trains `ppo_schedule` as its paper does (Xu, Dai, Kemp, Metz 2019, arXiv:1909.09712): PPO on one-step TD errors.

One iteration: every run plays one whole episode with the stochastic policy; then one update from all transitions
(s_t, a_t, r_t, s_{t+1}), with V the critic and m the actor's mean as they were when the episode ended:

    r_t = 2 - validation loss          y_t = r_t + 0.9 V(s_{t+1})          A_t = y_t - V(s_t)
    ten times, on the full batch:      w_t = (N(a_t; m_new(s_t), 0.1) + 1e-10) / (N(a_t; m(s_t), 0.1) + 1e-10)
        actor                          maximise mean min(w_t A_t, clip(w_t, 0.8, 1.2) A_t)
        critic                         minimise mean (y_t - V(s_t))^2

The value of the state after the last decision counts too, as in the authors' code: no end is marked. Nothing is
normalised; there is neither entropy bonus nor generalised advantage estimation. Reward is the paper's "Fixed" variant.

Departs from the paper: a reward is measured at the end of its interval, where the next decision needs the validation
loss anyway, and not after the interval's first update (with K = 1 the two are one). A validation loss counts as at
most `worst_loss`, so that a run that blew up has a price. An iteration may play many runs; the paper plays one.

The preset `paired` is not the paper's. Every run is played `plays` times, from the same weights and with the same
batches, so that only the drawn actions differ, and all actions of an episode are judged by how it ended beside the
others (leave-one-out baseline: Kool, van Hoof & Welling 2019, https://openreview.net/forum?id=r1lgTGL5DE):

    A = R - mean of R over the other episodes of that run           R = 2 - last validation loss

All else is as above. The critic is taught and not asked.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..controllers.ppo_schedule import FEATURES, PPOSchedule
from ..distributed import average_tensors, generator
from .episode import FALL, MAX_LR, MIN_LR, RISE, as_lr
from .problem import Problem
from .vector_run import VectorRun
from .weights import check_settings, settings_of


@dataclass(frozen=True)
class ScheduleConfig:
    """Settings of the trainer; the defaults are the paper's, and the authors' code's where the paper names none.

    `ratio_bug` evaluates both densities of w at the multiplier m(a), which is near 1, instead of at the sampled a
    (near the mean), as the authors' code does. Where the mean is more than about 0.7 away from 1 both are below 1e-10
    (7.7e-22 at a distance of 1), so w is 1 and nothing is learned; elsewhere the mean is pushed to or from 1 whatever
    was drawn. Only to reproduce the authors' results.
    """

    gamma: float = 0.9  # discount, in [0, 1]
    clip: float = 0.2  # of the probability ratio, above 0
    passes: int = 10  # full-batch updates per iteration
    actor_lr: float = 1e-3  # learning rate of the policy's Adam
    critic_lr: float = 5e-3  # learning rate of the critic's Adam; 0.005 in the paper, 0.01 in the code
    critic_width: int = 32  # of the critic's hidden layer
    max_grad_norm: float = 5.0  # each tensor of the policy's gradient is clipped to this L2 norm
    worst_loss: float = 100.0  # validation losses count as at most this (not in the paper)
    ratio_bug: bool = False
    plays: int = 1  # episodes of every run; above 1 the advantage is the whole run's, beside the others

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"critic_lr": 0.005, "ratio_bug": False},
        "released": {"critic_lr": 0.01, "ratio_bug": True},
        "paired": {"critic_lr": 0.005, "plays": 2},
    }

    def __post_init__(self) -> None:
        above = ["clip", "passes", "actor_lr", "critic_lr", "critic_width", "max_grad_norm", "worst_loss", "plays"]
        wrong = next((name for name in above if not getattr(self, name) > 0), None)
        if wrong is not None:
            raise ValueError(f"{wrong}={getattr(self, wrong)} must be above 0")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma} must be within [0, 1]; 0.9 is the paper's")

    @classmethod
    def from_preset(cls, preset: str) -> Self:
        """The settings of one of `presets`, by its name; ValueError for an unknown one."""
        if preset not in cls.presets:
            raise ValueError(f"no preset '{preset}'; known: {', '.join(cls.presets)}")
        return cls(**cls.presets[preset])


@dataclass(frozen=True)
class Played:
    """The episodes of one problem, time first."""

    features: Tensor  # (decisions + 1, runs, 9); the last are of the end of the run
    actions: Tensor  # (decisions, runs), as they were drawn
    multipliers: Tensor  # (decisions, runs), of the learning rate
    losses: Tensor  # validation losses, (decisions + 1, runs)
    lr_ratio: Tensor  # last learning rate over the first, (runs,)
    alive: Tensor  # which runs still have a finite loss, (runs,)


@torch.no_grad()
def play(controller: PPOSchedule, weights: Mapping[str, Tensor], run: VectorRun, noise: torch.Generator) -> Played:
    """Play an episode in every run, before its first update, with the stochastic policy of these weights."""
    state, lr, rows = controller.init((run.task.runs,)), run.base_lr, []
    grid = [t for t in range(run.total_steps) if controller.due(t, run.total_steps)]
    for now, following in zip(grid, [*grid[1:], run.total_steps], strict=True):
        obs = run.observe(lr, controller.needs)
        features, state = controller.encode(obs, state)
        mean, state = controller.policy(features, state, weights)
        action = mean + controller.std * torch.randn(mean.shape, generator=noise)
        lr = as_lr(controller, controller.act(action, obs), run.base_lr).clamp(MIN_LR, MAX_LR)
        rows.append((features, action, controller.multiplier(action), obs.require("eval_loss")))
        run.advance(lr, following - now, gain="gain_ratio" in controller.needs)
    end = run.observe(lr, controller.needs)
    seen, actions, multipliers, losses = zip(*rows, strict=True)
    return Played(
        features=torch.stack([*seen, controller.encode(end, state)[0]]),
        actions=torch.stack(actions),
        multipliers=torch.stack(multipliers),
        losses=torch.stack([*losses, end.require("eval_loss")]),
        lr_ratio=lr / run.base_lr,
        alive=run.alive,
    )


def density(at: Tensor, mean: Tensor, std: float) -> Tensor:
    """Density of normal distributions with these means and one standard deviation above 0, elementwise."""
    return (-0.5 * ((at - mean) / std).square()).exp() / (std * math.sqrt(2 * math.pi))


class SchedulePPOTrainer:
    """Trains a `PPOSchedule`, one batch of episodes per iteration; seeded, and resumes bit for bit.

    The controller explores with its own `std`, whatever `sample` says. `seed` is of the critic and the exploration
    noise; ranks share it and draw noise of their own.
    """

    method = "schedule_ppo"

    def __init__(self, controller: PPOSchedule, config: ScheduleConfig | None = None, seed: int = 0) -> None:
        if not controller.params:
            raise ValueError("SchedulePPOTrainer needs a controller with weights; see PPOSchedule.random_params(...)")
        self.config = config or ScheduleConfig()
        self._start, self._seed = controller, seed
        self.actor = {k: v.detach().clone().requires_grad_() for k, v in controller.params.items()}
        layers = nn.Linear(len(FEATURES), self.config.critic_width), nn.Linear(self.config.critic_width, 1)
        draws = torch.Generator().manual_seed(seed)
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight, generator=draws)
            nn.init.zeros_(layer.bias)
        self.critic = nn.Sequential(layers[0], nn.ReLU(), layers[1])
        self._actor_optimizer = torch.optim.Adam(list(self.actor.values()), lr=self.config.actor_lr)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=self.config.critic_lr)

    def iterate(self, problems: Sequence[Problem], iteration: int, progress: float = 0.0) -> dict[str, float]:
        """Play and learn from one batch of problems; see `driver.Trainer`.

        One run of one problem is the paper's episode. The exploration noise follows from `iteration`; `progress` is
        not used, as the learning rates are constant. The figures also have `reward` and `action` (means), `lr_ratio`
        (mean of the last learning rate over the first), `policy_loss` and `value_loss`.
        """
        noise = generator(self._seed, "schedule_ppo", iteration)
        again = [problem for problem in problems for _ in range(self.config.plays)]
        played = [play(self._start, self.actor, problem.start(), noise) for problem in again]
        figures = self.improve(played)
        change = torch.cat([(p.losses[0].clamp_min(1e-30) / p.losses[-1].clamp_min(1e-30)).log() for p in played])
        lost = ~torch.cat([p.alive for p in played]) | (change <= -RISE)
        figures["return"] = float(change.clamp(-RISE, FALL).mean())
        figures["diverged"] = float(lost.double().mean())
        figures["inner_steps"] = float(sum(p.task.runs * p.total_steps for p in again))
        figures["lr_ratio"] = float(torch.cat([p.lr_ratio for p in played]).mean())
        figures["action"] = float(torch.cat([p.actions.flatten() for p in played]).mean())
        return figures

    def improve(self, played: Sequence[Played]) -> dict[str, float]:
        """One update from at least one batch of episodes: `reward`, and both losses of the last pass.

        Plays of one problem follow one another.
        """
        config, std = self.config, self._start.std
        rewards = [2.0 - p.losses[1:].clamp(max=config.worst_loss).float() for p in played]
        with torch.no_grad():
            values = [self.critic(p.features).squeeze(-1) for p in played]
            targets = _joined([r + config.gamma * v[1:] for r, v in zip(rewards, values, strict=True)])
            advantages = targets - _joined([v[:-1] for v in values])
            if config.plays > 1:
                advantages = _joined(beside_others(rewards, config.plays))
            judged = _joined([p.multipliers if config.ratio_bug else p.actions for p in played])
            old = density(judged, self._means(played), std)
        for _ in range(config.passes):
            ratio = (density(judged, self._means(played), std) + 1e-10) / (old + 1e-10)
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
            estimates = _joined([self.critic(p.features[:-1]).squeeze(-1) for p in played])
            value_loss = (targets - estimates).square().mean()
            self._step(policy_loss, value_loss)
        return {
            "reward": float(_joined(rewards).mean()),
            "policy_loss": float(policy_loss.detach()),
            "value_loss": float(value_loss.detach()),
        }

    def _means(self, played: Sequence[Played]) -> Tensor:
        """Mean actions at every decision, of shape (transitions,)."""
        return _joined([self._means_of(p.features[:-1]) for p in played])

    def _means_of(self, features: Tensor) -> Tensor:
        controller = self._start
        if not (controller.recurrent and controller.memory):
            return controller.policy(features, {}, self.actor)[0]
        state, out = controller.init(tuple(features.shape[1:-1])), []
        for x in features:
            mean, state = controller.policy(x, state, self.actor)
            out.append(mean)
        return torch.stack(out)

    def _step(self, policy_loss: Tensor, value_loss: Tensor) -> None:
        actor, critic = list(self.actor.values()), list(self.critic.parameters())
        gradients = list(torch.autograd.grad(policy_loss + value_loss, [*actor, *critic]))
        average_tensors(gradients)
        for gradient in gradients[: len(actor)]:  # each on its own, as TensorFlow's `clip_by_norm` does
            norm = self.config.max_grad_norm
            gradient.mul_(norm / gradient.norm().clamp(min=norm))
        for parameter, gradient in zip([*actor, *critic], gradients, strict=True):
            parameter.grad = gradient
        self._actor_optimizer.step()
        self._critic_optimizer.step()

    def controller(self) -> PPOSchedule:
        """The controller with its current weights."""
        return self._start.replace(params={k: v.detach().clone() for k, v in self.actor.items()})

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to continue bit for bit: tensors, numbers and strings."""
        return {
            "settings": settings_of(self._start, self.config),
            "actor": {k: v.detach().clone() for k, v in self.actor.items()},
            "critic": copy.deepcopy(self.critic.state_dict()),
            "actor_optimizer": copy.deepcopy(self._actor_optimizer.state_dict()),
            "critic_optimizer": copy.deepcopy(self._critic_optimizer.state_dict()),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; ValueError for one of a trainer with other settings."""
        # Checkpoints from before there were `plays` do not name them.
        saved = json.dumps({"plays": 1, **json.loads(state["settings"])}, sort_keys=True)
        check_settings(saved, settings_of(self._start, self.config))
        for name, value in self.actor.items():
            value.copy_(state["actor"][name])
        self.critic.load_state_dict(state["critic"])
        self._actor_optimizer.load_state_dict(copy.deepcopy(state["actor_optimizer"]))
        self._critic_optimizer.load_state_dict(copy.deepcopy(state["critic_optimizer"]))


def beside_others(rewards: Sequence[Tensor], plays: int) -> list[Tensor]:
    """Advantages of every decision, (decisions, runs) each: the last reward less its mean over the run's other plays.

    `plays` rewards of a kind, (decisions, runs), follow one another.
    """
    advantages = []
    for first in range(0, len(rewards), plays):
        group = rewards[first : first + plays]
        last = torch.stack([r[-1] for r in group])
        judged = (last - last.mean(0)) * (plays / (plays - 1))
        advantages += [a.expand_as(r) for a, r in zip(judged, group, strict=True)]
    return advantages


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
