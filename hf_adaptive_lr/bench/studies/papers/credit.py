"""How much an episode of `ppo_schedule` tells about its actions: signal over noise of the policy's gradient.

The same runs are played again and again with other actions alone, so that what an advantage owes to the actions stands
beside what it owes to weights, data and batches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....distributed import generator
from ....meta.problem import Problem
from ....meta.schedule_ppo import SchedulePPOTrainer, beside_others, play
from ...rows import Row


def credit(trainer: SchedulePPOTrainer, problem: Problem, plays: int) -> list[Row]:
    """How much a policy's episodes tell about its actions, by each way of judging them; the critic is taught.

    Every problem is played again and again with other actions alone. A push is the sum over an episode of advantage
    times action's noise, in standard deviations: how far it moves a policy whose means are all raised together. The
    published advantages get a critic that was taught on these very episodes until it stood still.
    """
    controller, noise = trainer.controller(), generator(0, "credit")
    played = [play(controller, controller.params, problem.start(), noise) for _ in range(plays)]
    features = torch.stack([p.features for p in played])  # (plays, decisions + 1, runs, 9)
    rewards = torch.stack([2 - p.losses[1:].float() for p in played])
    means = controller.policy(features[:, :-1], {}, controller.params)[0]
    drawn = (torch.stack([p.actions for p in played]) - means) / controller.std
    last = rewards[:, -1]
    whole = (last - last.mean()).unsqueeze(1).expand_as(rewards)
    ways = {
        "published: one-step TD errors": _td_errors(trainer.critic, features, rewards, trainer.config.gamma),
        "whole run, beside the mean of all": whole,
        "whole run, beside plays of the same run": torch.stack(beside_others(list(rewards), plays)),
    }
    rows = [{"row": "credit", "way": way, **_pushes(advantage * drawn)} for way, advantage in ways.items()]
    returns = rewards.sum(1)
    within = torch.stack([(x - x.mean(0)).flatten() for x in (returns, last)])
    spread = {
        "return_and_end": round(float(torch.corrcoef(within)[0, 1]), 3),
        "between_problems": round(float(last.mean(0).var() / last.flatten().var()), 3),
    }
    return [*rows, {"row": "spread", "episodes": problem.task.runs * plays, **spread}]


def _td_errors(critic: nn.Module, features: Tensor, rewards: Tensor, gamma: float) -> Tensor:
    adam = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for _ in range(100):
        with torch.no_grad():
            target = rewards + gamma * critic(features[:, 1:]).squeeze(-1)
        for _ in range(10):
            adam.zero_grad()
            (target - critic(features[:, :-1]).squeeze(-1)).square().mean().backward()
            adam.step()
    with torch.no_grad():
        values: Tensor = critic(features).squeeze(-1)
    return rewards + gamma * values[:, 1:] - values[:, :-1]


def _pushes(pushes: Tensor) -> dict[str, float]:
    """Mean over standard deviation of an episode's push, (plays, decisions, runs), by half of the run."""
    half = pushes.shape[1] // 2
    parts = {"all": pushes, "first_half": pushes[:, :half], "second_half": pushes[:, half:]}
    sums = {name: part.sum(1).flatten() for name, part in parts.items()}
    return {name: round(float(s.mean() / s.std()), 4) for name, s in sums.items()}
