"""Losses at or below zero: densities and policy gradients; what a learned controller sees and reaches there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_adaptive_lr import AutoController, ControlledLR, MLRSNet, Observation
from hf_adaptive_lr.controllers._features import FEATURES, encode, encode_steering, init_history, init_steering


def _observation(step: int, loss: Tensor) -> Observation:
    one = torch.ones_like(loss)
    return Observation(
        step=step,
        total_steps=100,
        lr=one,
        base_lr=one,
        loss=loss,
        grad_norm=one,
        alignment=one / 10,
        update_ratio=one / 100,
        gain_ratio=one,
    )


def _features(losses: list[float]) -> list[dict[str, float]]:
    """Features of losses that are observed one after the other."""
    history, rows = init_history(()), []
    for step, loss in enumerate(losses):
        features, history = encode(_observation(step, torch.tensor(loss, dtype=torch.float64)), history)
        rows.append(dict(zip(FEATURES, features.tolist(), strict=True)))
    return rows


def test_losses_below_zero_are_told_apart() -> None:
    falling, rising = _features([0.5, -0.5, -1.0, -1.5, -2.0]), _features([-2.0, -1.5, -1.0, -0.5, 0.5])
    assert all(row["loss / fast average"] < -0.05 for row in falling[1:])  # 0 from the third on in version 0.1
    assert all(row["loss / fast average"] > 0.05 for row in rising[1:])
    assert all(row["fast average / best fast average"] == 0 for row in falling)
    assert all(abs(value) < 4 for rows in (falling, rising) for row in rows for value in row.values())


def test_noise_around_zero_is_no_trend() -> None:
    noise = (0.05 * torch.randn(60, generator=torch.Generator().manual_seed(0))).tolist()
    seen = torch.tensor([row["fast average / slow average"] for row in _features(noise)[10:]])
    assert seen.abs().max() < 1 and seen.mean().abs() < 0.1


def test_a_constant_below_zero_does_not_change_what_is_seen_for_long() -> None:
    """Once the range of the losses is known, features depend on differences alone."""
    losses = [3.0 * 0.9**step for step in range(30)]
    low, lower = (_features([loss - shift for loss in losses]) for shift in (2.0, 7.0))
    for a, b in zip(low[8:], lower[8:], strict=True):
        assert a["loss / fast average"] == pytest.approx(b["loss / fast average"], abs=0.1)


@pytest.mark.parametrize(
    "losses", [[2.0, 1.0, 0.5, 1e-9, 0.0, 3.0], [0.0, 0.0], [float("inf"), 1.0, float("nan"), 2.0]]
)
def test_without_a_negative_loss_the_numbers_are_those_of_version_0_1(losses) -> None:
    loss = torch.tensor(losses).nan_to_num(1e12, 1e12, 1e-12).clamp(1e-12, 1e12).log()
    rows = _features(losses)
    assert [row["loss / first loss"] for row in rows] == (loss - loss[0]).clamp(-4, 4).tolist()
    state = init_steering(()) | {name: torch.zeros(()) for name in ("unit", "first_unit", "shift")}
    for step, value in enumerate(losses):
        state |= encode_steering(_observation(step, torch.tensor(value)), state, rho=0.01, max_shift=3.0)[1]
    assert state["offset"] == 0


def test_a_history_of_version_0_1_goes_on() -> None:
    history = {name: value for name, value in init_history(()).items() if name not in ("low", "high", "offset")}
    features, after = encode(_observation(0, torch.tensor(2.0)), history)
    old = {name: value for name, value in after.items() if name in history}
    for loss in (1.0, -1.0):
        for state in (old, after):
            features, _ = encode(_observation(1, torch.tensor(loss)), state)
            assert torch.isfinite(features).all() and features[1] < 0


def test_many_runs_are_each_their_own() -> None:
    losses = torch.tensor([[2.0, 1.0, 0.5], [0.5, -0.5, -1.0], [-1.0, -2.0, -1.5]], dtype=torch.float64)
    history = init_history((3,))
    for step in range(3):
        features, history = encode(_observation(step, losses[:, step]), history)
        for run in range(3):
            alone = list(_features(losses[run, : step + 1].tolist())[-1].values())
            assert features[run].tolist() == pytest.approx(alone, abs=1e-6)


def _nll(plus: float, steps: int = 150) -> float:
    """Negative log-likelihood that `universal_1` reaches on a regression with a learned variance; `plus` is added."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    y = torch.sin(2 * x[:, :1]) + 0.02 * torch.randn(256, 1, generator=generator)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))

    def loss(rows: Tensor) -> Tensor:
        mean, log_variance = model(x[rows]).chunk(2, -1)
        return (log_variance / 2 + (y[rows] - mean).square() * (-log_variance).exp() / 2).mean() + plus

    scheduler = ControlledLR(
        torch.optim.AdamW(model.parameters()),
        AutoController.from_pretrained("universal_1"),
        model=model,
        hook=False,
        max_grad_norm=0,
        total_steps=steps,
    )
    for _ in range(steps):
        rows = torch.randint(256, (64,), generator=generator)
        scheduler.before_forward(lambda rows=rows: loss(rows))
        now = loss(rows)
        now.backward()
        scheduler.observe(loss=now)
        scheduler.optimizer.step()
        scheduler.optimizer.zero_grad()
    with torch.no_grad():
        return float(loss(torch.arange(256))) - plus


def test_mlr_snet_says_that_its_gamma_needs_a_positive_loss() -> None:
    controller = MLRSNet(classes=2, params=MLRSNet.random_params())
    obs = _observation(0, torch.tensor(-0.5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"gamma comes from the loss, which must be above 0 and is -0.5; give gamma="):
        controller.decide(obs, controller.init())
    assert MLRSNet(gamma=1.0, params=MLRSNet.random_params()).decide(obs, controller.init())[0] > 0


def test_a_negative_loss_of_one_of_many_runs_of_mlr_snet_is_its_own_matter() -> None:
    controller = MLRSNet(classes=2, params=MLRSNet.random_params())
    state = controller.init((3,))
    answers = []
    for losses in ((1.0, -0.5, 2.0), (0.9, 1.0, -2.0)):  # L is the first loss alone
        answer, state = controller.decide(_observation(0, torch.tensor(losses, dtype=torch.float64)), state)
        answers.append(answer.isfinite().tolist())
    assert answers == [[True, False, True]] * 2


def test_universal_trains_a_density_below_zero() -> None:
    """-0.07 in version 0.1, where the same loss + 4 reached -2.5: all losses below zero looked alike."""
    reached, shifted = _nll(0.0), _nll(4.0)
    assert shifted < -1.2 and reached < -1.0, (reached, shifted)
