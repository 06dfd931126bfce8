"""PPO: its two formulas against hand-worked numbers and TorchRL, determinism, and the known answer in short."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from hf_adaptive_lr import GRUController
from hf_adaptive_lr.meta.episode import Episode
from hf_adaptive_lr.meta.ppo import Agent, PPOConfig, PPOTrainer, clipped_loss, gae, rollout
from hf_adaptive_lr.meta.suites import SUITES


def _start(hidden: int = 8, seed: int = 0) -> GRUController:
    return GRUController(hidden_size=hidden, params=GRUController.random_params(hidden_size=hidden, seed=seed))


def _problems(index: int, runs: int = 8) -> list:
    return SUITES["quadratic"].problems("train", index, runs)


def test_gae_of_a_hand_worked_episode() -> None:
    """Rewards 1, 0, 2; values 0.5, 1, 1.5; gamma 0.9, lambda 0.5; the value after the end is 0."""
    rewards, values = torch.tensor([[1.0], [0.0], [2.0]]), torch.tensor([[0.5], [1.0], [1.5]])
    advantages, returns = gae(rewards, values, 0.9, 0.5)
    # deltas: 1 + 0.9 - 0.5 = 1.4; 0 + 1.35 - 1 = 0.35; 2 - 1.5 = 0.5
    expected = [1.4 + 0.45 * (0.35 + 0.45 * 0.5), 0.35 + 0.45 * 0.5, 0.5]
    assert advantages.flatten().tolist() == pytest.approx(expected)
    assert returns.flatten().tolist() == pytest.approx([a + v for a, v in zip(expected, [0.5, 1.0, 1.5], strict=True)])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0)])
def test_gae_equals_torchrl(gamma, lam) -> None:
    rewards, values = torch.randn(7, 5), torch.randn(7, 5)
    mine, _ = gae(rewards, values, gamma, lam)
    following = torch.cat((values[1:], torch.zeros(1, 5)))
    done = torch.zeros(7, 5, dtype=torch.bool)
    done[-1] = True
    columns = [x.T.unsqueeze(-1) for x in (values, following, rewards, done)]  # torchrl: (batch, time, 1)
    theirs, _ = generalized_advantage_estimate(gamma, lam, *columns[:3], columns[3], columns[3])
    assert torch.allclose(mine, theirs.squeeze(-1).T, atol=1e-6)


def test_the_clipped_loss_equals_torchrl() -> None:
    class Policy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            loc = self.net(x)
            return loc, torch.full_like(loc, 0.5)

    policy = Policy()
    module = TensorDictModule(policy, in_keys=["observation"], out_keys=["loc", "scale"])
    actor = ProbabilisticActor(
        module, in_keys=["loc", "scale"], distribution_class=torch.distributions.Normal, return_log_prob=True
    )
    critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"])
    loss = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_bonus=False, normalize_advantage=False)
    x, action = torch.randn(64, 3), torch.randn(64, 1)
    old, advantage = torch.randn(64, 1) - 1.0, torch.randn(64, 1)
    names = {"observation": x, "action": action, "action_log_prob": old, "advantage": advantage}
    theirs = loss(TensorDict({**names, "value_target": torch.zeros(64, 1)}, 64))["loss_objective"]
    loc, scale = policy(x)
    mine = clipped_loss(torch.distributions.Normal(loc, scale).log_prob(action), old, advantage, 0.2)
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_log_probabilities_are_of_the_sampled_number() -> None:
    """Before the first step of an iteration the ratio is 1 everywhere, through the whole recurrent net."""
    agent = Agent(_start(), 0.5)
    played = rollout(agent, Episode(_problems(0)[0].start(), 6), torch.Generator().manual_seed(0))
    again = agent.log_prob(played.raw, agent.means(played.features))
    assert torch.allclose(again, played.logp, atol=1e-5)


def _train(trainer: PPOTrainer, iterations: range) -> PPOTrainer:
    for i in iterations:
        trainer.iterate(_problems(i), i, i / 6)
    return trainer


def _weights(trainer: PPOTrainer) -> torch.Tensor:
    return torch.cat([p.flatten() for p in trainer.controller().params.values()])


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    config = PPOConfig(decisions=4)
    first, second, other = (_weights(_train(PPOTrainer(_start(), config, seed), range(3))) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_resumed_training_equals_one_that_went_on(tmp_path) -> None:
    config = PPOConfig(decisions=4)
    whole = _train(PPOTrainer(_start(), config, 0), range(6))
    part = _train(PPOTrainer(_start(), config, 0), range(3))
    torch.save(part.state_dict(), tmp_path / "state.pt")
    resumed = PPOTrainer(_start(seed=5), config, 0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(_weights(_train(resumed, range(3, 6))), _weights(whole))


def test_the_value_net_stays_out_of_the_published_weights() -> None:
    controller = _train(PPOTrainer(_start(), PPOConfig(decisions=4), 0), range(1)).controller()
    assert controller.params.keys() == controller.param_shapes().keys()


def test_a_short_training_comes_near_the_known_answer() -> None:
    """The full bar is 1.3 in minutes (`python -m hf_adaptive_lr.bench.studies.known_answer quadratic`).

    This is its two-minute version. Untrained the ratio is about 10; one linear peak shared by all problems is 1.85;
    here it comes to 1.45, and the bar is a tenth above, for other processors.
    """
    from hf_adaptive_lr.bench.studies.known_answer import held_out, judge, linear_rows
    from hf_adaptive_lr.meta.tasks.quadratic import Quadratic

    problem = held_out(100)
    task = Quadratic(problem.task)
    log_best = task.best_schedule(problem.total_steps, iterations=150)[1].log()
    own, _, _, shared = (row["ratio"] for row in linear_rows(task, problem.total_steps, log_best))
    assert own < 1.2 < shared
    start = GRUController(params=GRUController.random_params())
    trainer, iterations = PPOTrainer(start, seed=0), 120
    untrained = judge(start, problem, log_best)["ratio"]
    for i in range(iterations):
        trainer.iterate(_problems(i, 96), i, i / iterations)
    trained = judge(trainer.controller(), problem, log_best)["ratio"]
    assert untrained > 5
    assert trained < 1.6 < 0.9 * shared
