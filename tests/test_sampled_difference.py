"""Above a memory budget the size of an update is measured on a seeded sample of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_adaptive_lr import AutoController, ControlledLR
from hf_adaptive_lr.sensors import difference
from hf_adaptive_lr.sensors.difference import DifferenceSensor
from hf_adaptive_lr.sensors.lora import find_adapters
from tests.controllers_for_tests import Watcher
from tests.optimizers import Lion
from tests.sharded import lora
from tests.tiny import flat

WIDE = 320  # a matrix of this width is large


class Wide(nn.Module):
    """One large matrix, whose columns have very different weights and updates, and small ones around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.large, self.head = nn.Linear(8, WIDE), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 3)
        with torch.no_grad():
            self.large.weight.mul_(torch.logspace(-2, 1, WIDE))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.large(torch.tanh(self.first(x))))
        return {"loss": nn.functional.cross_entropy(self.head(hidden), labels)}


def _run(budget: int, *, controller=None, seed: int = 0, steps: int = 6, state=None, first: int = 0):
    model = Wide()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    controller = Watcher(fields=("grad_norm", "update_ratio")) if controller is None else controller
    settings = {"seed": seed, "copy_budget": budget, "max_grad_norm": 0, "total_steps": 6}
    scheduler = ControlledLR(optimizer, controller, model=model, **settings)
    if state is not None:
        scheduler.load_state_dict(state["scheduler"])
    true = []
    for step in range(first, steps):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        model(x, x[:, :3].argmax(-1))["loss"].backward()
        before = flat(model)
        optimizer.step()
        optimizer.zero_grad()
        true.append(float((flat(model) - before).double().norm() / flat(model).double().norm()))
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return scheduler, true, saved


def _seen(scheduler: ControlledLR, name: str) -> list[float]:
    return [row.observation[name] for row in scheduler.trace]


def test_a_sample_of_five_percent_is_near_and_said_in_the_trace() -> None:
    whole, true, _ = _run(2**31)
    sampled, _, _ = _run(0)
    assert _seen(whole, "update_ratio")[1:] == pytest.approx(true[:-1], rel=1e-4)
    assert _seen(sampled, "update_ratio")[1:] == pytest.approx(true[:-1], rel=2e-2)
    assert _seen(sampled, "update_ratio") != _seen(whole, "update_ratio")
    assert _seen(sampled, "grad_norm") == _seen(whole, "grad_norm")  # never of a sample
    assert all(row.sampled == 1.0 and "sampled" not in row.as_dict() for row in whole.trace)
    assert sampled.trace[0].sampled == 1.0  # nothing was measured yet
    assert all(
        0.05 <= row.sampled < 0.1 and row.as_dict()["sampled"] == row.sampled for row in list(sampled.trace)[1:]
    )


def test_the_seed_draws_the_sample_and_a_resumed_run_draws_the_same() -> None:
    one, _, _ = _run(0)
    again, _, _ = _run(0)
    other, _, _ = _run(0, seed=1)
    assert _seen(one, "update_ratio") == _seen(again, "update_ratio") != _seen(other, "update_ratio")
    _, _, saved = _run(0, steps=3)
    resumed, _, _ = _run(0, state=saved, first=3)
    assert [row.as_dict() for row in resumed.trace] == [row.as_dict() for row in list(one.trace)[3:]]


def test_a_controller_of_sizes_does_nearly_the_same_with_a_sample() -> None:
    rates = []
    for budget in (2**31, 0):
        scheduler, _, _ = _run(budget, controller=AutoController.from_pretrained("relative"))
        rates.append(scheduler.lr_history())
    assert min(decision.sampled or 1.0 for decision in scheduler.trace) < 1
    assert len(set(rates[0])) == 6 and rates[1] == pytest.approx(rates[0], rel=3e-2)


@pytest.mark.parametrize("budget", [0, 60_000, 200_000, 2**31])
def test_the_copy_keeps_to_the_budget_as_far_as_five_percent_allow(budget) -> None:
    model = Wide()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    sensor = DifferenceSensor(Lion(model.parameters(), lr=1e-3), frozenset({"update_ratio"}), budget=budget, seed=0)
    sensor.before_step(0, lambda: ())
    whole = {id(p) for p in model.parameters()} - {id(model.large.weight)} if budget < 2**31 else set(sensor.before)
    assert set(sensor.before) == whole
    copied = 4 * (sum(c.numel() for c in sensor.before.values()) + sum(len(s) for s, _ in sensor._samples.values()))
    assert copied <= max(budget, 4 * (WIDE * 14 + 3 + WIDE * WIDE // 20))


def test_angles_are_measured_on_all_coordinates() -> None:
    fields = frozenset({"alignment", "update_ratio"})
    model = Wide()
    sensor = DifferenceSensor(Lion(model.parameters(), lr=1e-3), fields, budget=0, seed=0)
    sensor.before_step(0, lambda: ())
    assert set(sensor.before) == {id(p) for p in model.parameters()} and not sensor._samples


def test_factors_of_adapters_are_copied_whole(monkeypatch) -> None:
    """Their product needs all of them."""
    monkeypatch.setattr(difference, "_SMALL", 8)
    model = lora()
    trained = [p for p in model.parameters() if p.requires_grad]
    adapters = find_adapters(model)
    sensor = DifferenceSensor(Lion(trained, lr=1e-3), frozenset({"update_ratio"}), budget=0, seed=0)
    sensor.before_step(0, lambda: adapters)
    assert adapters and all(id(factor) in sensor.before for a in adapters for factor in (a.a, a.b))
    assert sensor._samples  # the head's matrix


def test_the_estimate_has_no_bias() -> None:
    """The mean of many draws is the value itself, also where columns differ and their number divides the stride."""
    weight = nn.Parameter(torch.zeros(400, 200))
    optimizer = Lion([weight], lr=1e-3)
    change = torch.linspace(0, 1, 200).square().expand(400, 200)
    found = []
    for seed in range(40):
        with torch.no_grad():
            weight.fill_(1.0)
        weight.grad = torch.ones_like(weight)
        sensor = DifferenceSensor(optimizer, frozenset({"update_ratio"}), budget=0, seed=seed)
        sensor.before_step(0, lambda: ())
        with torch.no_grad():
            weight.add_(change)
        sensor.after_step(lambda: (), lambda: None, lambda terms: [float(term) for term in terms])
        found.append(sensor.ratio)
    true = float(change.norm() / weight.detach().norm())
    errors = torch.tensor(found) / true - 1
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / 40**0.5
    assert 0 < float(errors.std()) < 0.02


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_below_zero_is_refused(budget) -> None:
    optimizer = Lion(Wide().parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="copy_budget=.* is outside"):
        ControlledLR(optimizer, "universal", copy_budget=budget)
