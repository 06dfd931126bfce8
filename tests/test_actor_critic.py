"""Actor-critic: equal to a plain implementation with modules and torch's Adam, no leaks, bounds, exact resume."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hf_adaptive_lr import Observation
from hf_adaptive_lr.bench.rows import read_rows
from hf_adaptive_lr.bench.studies.papers import survival
from hf_adaptive_lr.controllers.actor_critic import ActorCritic
from hf_adaptive_lr.observation import Outcome
from hf_adaptive_lr.scheduler.config import SchedulerConfig
from hf_adaptive_lr.scheduler.runtime import ControllerRun

F64 = torch.float64
LEARNED = ("theta", "theta_m", "theta_v", "phi", "phi_m", "phi_v")


def _observe(step: int, loss: float | Tensor, base: float | Tensor = 0.05) -> Observation:
    loss = torch.as_tensor(loss, dtype=F64)
    lr = torch.as_tensor(base, dtype=F64).expand(loss.shape)
    return Observation(step=step, total_steps=None, lr=lr, base_lr=lr, loss=loss)


def _outcome(step: int, before: float | Tensor, after: float | Tensor, other: float | Tensor | None) -> Outcome:
    seen = {"loss_before": before, "loss_after": after, "loss_other": other}
    return Outcome(step=step, **{k: torch.as_tensor(v, dtype=F64) for k, v in seen.items() if v is not None})


def _losses(steps: int, seed: int = 0) -> list[list[float]]:
    """Per step: s_t, the last micro-batch before and after, another batch."""
    noise = torch.rand(steps, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    level = 2.3 * torch.exp(-torch.arange(steps) / 20)[:, None]
    return (level * (1 + 0.3 * noise) - torch.tensor([0, 0, 0.1, 0]) * noise).tolist()


def _run(controller: ActorCritic, state: dict, rows: list[list[float]], first: int = 0) -> tuple[list[float], dict]:
    out = []
    for step, (loss, before, after, other) in enumerate(rows, first):
        factor, state = controller.decide(_observe(step, loss), state)
        state = controller.learn(_outcome(step, before, after, other), state)
        out.append(float(factor))
    return out, state


class Reference:
    """The paper's algorithm, straight down the page."""

    def __init__(self, controller: ActorCritic, state: dict, offset: float) -> None:
        h, k = controller.hidden_size, controller.critic_size
        self.config, self.offset = controller, offset
        self.lstm, self.head = nn.LSTM(1, h, num_layers=2), nn.Linear(h, 1)
        self.critic = nn.Sequential(nn.Linear(2, k), nn.Tanh(), nn.Linear(k, 1))
        nn.utils.vector_to_parameters(state["theta"].clone(), self.actor_parameters())
        nn.utils.vector_to_parameters(state["phi"].clone(), self.critic.parameters())
        self.actor_adam = torch.optim.Adam(self.actor_parameters(), lr=controller.actor_lr)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), lr=controller.critic_lr)
        self.memory = (torch.zeros(2, 1, h), torch.zeros(2, 1, h))
        self.past: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

    def actor_parameters(self) -> list[Tensor]:
        return [*self.lstm.parameters(), *self.head.parameters()]

    def flat(self) -> tuple[Tensor, Tensor]:
        parameters = nn.utils.parameters_to_vector
        return parameters(self.actor_parameters()).detach(), parameters(self.critic.parameters()).detach()

    def pi(self, losses: list[Tensor], memory: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, memory = self.lstm(torch.stack(losses).reshape(-1, 1, 1), memory)
        return (self.head(out[-1]) + self.offset).abs().squeeze(), memory

    def bounded(self, action: Tensor) -> Tensor:
        ratio = self.config.max_ratio
        return action.detach().clamp(self.offset / ratio, self.offset * (self.config.ceiling or ratio))

    def q(self, loss: Tensor, action: Tensor) -> Tensor:
        return self.critic(torch.stack([loss, action])).squeeze()

    def decide(self, loss: float) -> float:
        self.s = torch.tensor(loss)
        self.past = [*self.past, (self.s, self.memory)][1 - self.config.window :]
        with torch.no_grad():
            action, self.memory = self.pi([self.s], self.memory)
        self.a = self.bounded(action)
        return float(self.a)

    def learn(self, before: float, after: float, other: float) -> None:
        next_s, other_s = torch.tensor(after), torch.tensor(other)
        with torch.no_grad():
            value = self.q(next_s, self.bounded(self.pi([next_s], self.memory)[0]))
            delta = (before - after) + self.config.gamma * value - self.q(self.s, self.a)
        self.critic_adam.zero_grad()
        (-delta * self.q(self.s, self.a)).backward()
        self.critic_adam.step()

        raw, _ = self.pi([*(s for s, _ in self.past), other_s], self.past[0][1])
        action = self.bounded(raw).requires_grad_()
        (slope,) = torch.autograd.grad(self.q(other_s, action), action)
        outside = (raw > action and slope > 0) or (raw < action and slope < 0)
        self.actor_adam.zero_grad()
        (-raw * (0.0 if outside else slope)).backward()
        self.actor_adam.step()


# --- the equations ---


def test_the_actor_s_network_is_torch_s_lstm_of_two_layers() -> None:
    controller = ActorCritic()
    state = controller.init(seed=3)
    theta = state["theta"] + 0.1 * torch.randn(len(state["theta"]), generator=torch.Generator().manual_seed(0))
    lstm, head = nn.LSTM(1, 20, num_layers=2), nn.Linear(20, 1)
    nn.utils.vector_to_parameters(theta.clone(), [*lstm.parameters(), *head.parameters()])
    losses = torch.rand(7, generator=torch.Generator().manual_seed(1))
    found, memory = controller._pi(theta, losses, state["memory"], torch.tensor(1.0))
    with torch.no_grad():
        out, (h, c) = lstm(losses.reshape(7, 1, 1))
        expected = (head(out[-1]) + 1.0).abs().squeeze()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(memory, torch.stack([h[:, 0], c[:, 0]]), rtol=1e-6, atol=1e-7)
    assert len(theta) == 80 * (1 + 20 + 2) + 80 * (20 + 20 + 2) + 21


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"window": 4, "gamma": 0.5},
        {"unit": 0.1, "actor_lr": 1e-2, "critic_lr": 1e-2},
        {"actor_lr": 0.05, "critic_lr": 0.05, "max_ratio": 1.05, "ceiling": 1.0, "window": 3},
        {"actor_lr": 0.05, "critic_lr": 0.05, "max_ratio": 1.05, "window": 3},  # at the bounds most of the time
    ],
)
def test_equal_to_modules_autograd_and_torch_s_adam(config) -> None:
    controller, base = ActorCritic(**config), 0.05
    state = controller.init(seed=2)
    offset = base / controller.unit if controller.unit else 1.0
    reference, bounds_met = Reference(controller, state, offset), 0
    for step, (loss, before, after, other) in enumerate(_losses(25)):
        factor, state = controller.decide(_observe(step, loss, base), state)
        # |output + offset| cancels where the factor is small, so its error in float32 is some eps of 1, not of itself;
        # a decision moves it by about the actor's learning rate, at least a hundred times as much.
        assert float(factor) == pytest.approx(reference.decide(loss) / offset, rel=1e-5, abs=1e-5)
        state = controller.learn(_outcome(step, before, after, other), state)
        reference.learn(before, after, other)
        theta, phi = reference.flat()
        torch.testing.assert_close(state["phi"], phi, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state["theta"], theta, rtol=1e-5, atol=2e-6)
        highest = controller.ceiling or controller.max_ratio
        bounds_met += not 1.001 / controller.max_ratio < float(factor) < highest / 1.001
        assert float(factor) <= highest * (1 + 1e-6)
    assert float(state["steps"]) == 25
    assert (bounds_met > 5) == (controller.max_ratio < 2)


def test_one_critic_step_by_hand() -> None:
    """With gamma 0 and Q(s, a) = tanh(0) w2 + b2 the error is r - b2, and b2 moves by Adam's first step."""
    controller = ActorCritic(gamma=0.0, critic_lr=0.01)
    _, state = controller.decide(_observe(0, 2.0), controller.init())
    state["phi"] = torch.zeros_like(state["phi"])
    state["phi"][-1] = 0.3
    after = controller.learn(_outcome(0, 2.0, 1.9, 2.5), state)
    # delta = 0.1 - 0.3 < 0: the bias goes down by critic_lr; the other weights have gradient zero as w2 = 0.
    assert float(after["phi"][-1]) == pytest.approx(0.29, abs=1e-6)
    assert abs(float(after["phi_m"][-1])) == pytest.approx(0.1 * 0.2, rel=1e-5)
    assert torch.equal(after["phi"][:-1], state["phi"][:-1])
    assert torch.equal(after["theta"], state["theta"])  # a critic that is flat in a pushes nowhere


@pytest.mark.parametrize("config", [{}, {"unit": 1.0}, {"unit": 1e-4}])
@pytest.mark.parametrize("base", [1e-5, 0.05])
def test_the_first_action_is_the_base_lr(config, base) -> None:
    controller = ActorCritic(**config)
    for seed in range(3):
        factor, _ = controller.decide(_observe(0, 2.3, base), controller.init(seed=seed))
        assert float(factor) == 1.0


def test_one_step_moves_the_rate_by_a_thousandth_in_units_of_the_base_lr() -> None:
    controller = ActorCritic()
    factors, _ = _run(controller, controller.init(), _losses(2))
    assert 5e-4 < abs(factors[1] - 1) < 5e-3


# --- who learns from what ---


def _after_some_steps(controller: ActorCritic) -> dict:
    _, state = _run(controller, controller.init(seed=1), _losses(5))
    return controller.decide(_observe(5, 1.8), state)[1]


def test_the_actor_learns_from_the_other_batch_and_the_critic_does_not() -> None:
    controller = ActorCritic()
    state = _after_some_steps(controller)
    one, two = (controller.learn(_outcome(5, 1.8, 1.7, other), state) for other in (1.9, 3.0))
    assert torch.equal(one["phi"], two["phi"]) and torch.equal(one["phi_m"], two["phi_m"])
    assert not torch.equal(one["theta"], two["theta"])
    for before, after in ((1.9, 1.7), (1.8, 1.5)):
        changed = controller.learn(_outcome(5, before, after, 1.9), state)
        assert not torch.equal(changed["phi"], one["phi"])


def test_nothing_of_the_critic_s_error_leaks_into_the_actor() -> None:
    controller = ActorCritic(critic_lr=1e-12)  # a critic that stays where it is in float32
    state = _after_some_steps(controller)
    one, two = (controller.learn(_outcome(5, before, before - 0.1 * before, 1.9), state) for before in (1.8, 9.0))
    assert not torch.equal(one["phi_m"], two["phi_m"])
    assert torch.equal(one["theta"], two["theta"]) and torch.equal(one["theta_m"], two["theta_m"])


def test_same_batch_takes_the_loss_after_the_update() -> None:
    controller = ActorCritic(same_batch=True)
    assert controller.needs == {"loss", "loss_before", "loss_after"}
    assert ActorCritic().needs == {"loss", "loss_before", "loss_after", "loss_other"}
    state = _after_some_steps(controller)
    same = controller.learn(_outcome(5, 1.8, 1.7, None), state)
    other = ActorCritic().learn(_outcome(5, 1.8, 1.7, 1.7), state)
    assert all(torch.equal(same[name], other[name]) for name in LEARNED)
    with pytest.raises(ValueError, match="loss_other"):
        ActorCritic().learn(_outcome(5, 1.8, 1.7, None), state)


def test_only_a_decision_advances_the_lstm_and_neither_changes_its_input() -> None:
    controller = ActorCritic()
    state = _after_some_steps(controller)
    copy = {name: value.clone() for name, value in state.items()}
    learned = controller.learn(_outcome(5, 1.8, 1.7, 1.9), state)
    for name in ("memory", "inputs", "starts", "seen", "action"):
        assert torch.equal(learned[name], state[name])
    decided = controller.decide(_observe(6, 1.0), learned)[1]
    assert not torch.equal(decided["memory"], state["memory"])
    assert torch.equal(decided["theta"], learned["theta"])
    assert all(torch.equal(state[name], copy[name]) for name in copy)


def test_the_window_bounds_how_far_back_the_gradient_goes() -> None:
    moments = {}
    for window in (2, 4, 20, 40):
        controller = ActorCritic(window=window)
        state = _after_some_steps(controller)
        moments[window] = controller.learn(_outcome(5, 1.8, 1.7, 1.9), state)["theta_m"]
    assert torch.equal(moments[20], moments[40])  # six inputs so far: both see them all
    assert not torch.allclose(moments[2], moments[4], rtol=1e-3, atol=0)
    assert not torch.allclose(moments[4], moments[20], rtol=1e-3, atol=0)


# --- bounds, batches, resume ---


def _play(controller: ActorCritic, state: dict, steps: int) -> tuple[list[float], dict]:
    return _run(controller, state, [[1.0, 1.0, 0.9, 1.1]] * steps)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_bounds_hold_and_do_not_wind_up(sign) -> None:
    controller = ActorCritic(max_ratio=2.0, actor_lr=0.01, critic_lr=1e-12)
    state = controller.init()
    inputs, out = state["phi"][:20].view(10, 2), state["phi"][30:40]
    inputs[:, 1] = 0.1
    out[:] = 0.1 * sign  # Q rises, or falls, with a wherever it is

    def raw(state: dict) -> float:
        return float(controller._pi(state["theta"], torch.tensor([1.0]), state["memory"], state["offset"])[0])

    factors, state = _play(controller, state, 60)
    assert all(0.5 - 1e-6 <= f <= 2 + 1e-6 for f in factors)
    assert factors[-1] == pytest.approx(2.0**sign, rel=1e-5)
    held = raw(state)
    factors, state = _play(controller, state, 70)
    assert set(factors) == {factors[0]}
    assert raw(state) == pytest.approx(held, rel=0.1)
    state["phi"][30:40] *= -1
    factors, state = _play(controller, state, 70)
    assert factors[-1] == pytest.approx(0.5**sign, rel=1e-5)


def test_a_batch_of_runs_equals_its_columns() -> None:
    controller, runs, base = ActorCritic(unit=0.1, window=3), 3, torch.tensor([0.01, 0.05, 0.3], dtype=F64)
    rows = torch.tensor([_losses(6, seed) for seed in range(runs)], dtype=F64)
    state, alone = controller.init((runs,), seed=5), [controller.init(seed=5) for _ in range(runs)]
    for step in range(6):
        columns = rows[:, step].unbind(1)
        factors, state = controller.decide(_observe(step, columns[0], base), state)
        assert factors.shape == (runs,)
        state = controller.learn(_outcome(step, *columns[1:]), state)
        for run in range(runs):
            single, alone[run] = controller.decide(_observe(step, columns[0][run], base[run]), alone[run])
            # A run within a batch lies elsewhere in memory, which may change the order of its float32 sums.
            assert single.shape == () and float(single) == pytest.approx(float(factors[run]), rel=1e-5, abs=1e-5)
            alone[run] = controller.learn(_outcome(step, *(c[run] for c in columns[1:])), alone[run])
    for run in range(runs):
        for name, value in alone[run].items():
            torch.testing.assert_close(state[name][run], value, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(state["theta"][0], state["theta"][1], rtol=1e-2, atol=1e-4)


def test_a_run_resumes_bit_for_bit(tmp_path) -> None:
    controller, rows = ActorCritic(window=5), _losses(16)
    whole, end = _run(controller, controller.init(seed=1), rows)
    first, state = _run(controller, controller.init(seed=1), rows[:9])
    torch.save(state, tmp_path / "state.pt")
    second, resumed = _run(controller, torch.load(tmp_path / "state.pt", weights_only=True), rows[9:], 9)
    assert first + second == whole and len(set(whole)) == len(whole)
    assert all(torch.equal(resumed[name], end[name]) for name in end)


def test_a_run_resumes_and_a_controller_comes_back_from_its_file(tmp_path) -> None:
    controller = ActorCritic(unit=1.0, actor_lr=1e-2)
    controller.save_pretrained(tmp_path)
    assert ActorCritic.from_pretrained(tmp_path) == controller

    def play(controlled: ControllerRun, rows: list[list[float]]) -> list[float]:
        out = []
        for loss, *outcome in rows:
            out.append(controlled.advance({"loss": loss}).lr[0])
            controlled.learn(_outcome(controlled.updates - 1, *outcome))
        return out

    rows, new = _losses(10), lambda: ControllerRun(controller, [0.05], SchedulerConfig(seed=3))
    whole, half = play(new(), rows), new()
    first = play(half, rows[:4])
    torch.save(half.state_dict(), tmp_path / "run.pt")
    rest = new()
    rest.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    assert first + play(rest, rows[4:]) == whole
    assert whole[0] == pytest.approx(0.05, rel=1e-6)


def test_initial_weights_come_from_the_seed_within_torch_s_bounds() -> None:
    controller = ActorCritic()
    one, two, batch = controller.init(seed=1), controller.init(seed=2), controller.init((4,), seed=1)
    assert not torch.equal(one["theta"], two["theta"]) and not torch.equal(one["phi"], two["phi"])
    assert all(torch.equal(batch[name][3], value) for name, value in one.items())
    assert 0.95 < float(one["theta"][:-21].abs().max() * 20**0.5) <= 1.0
    assert not one["theta"][-21:].any()
    assert float(one["phi"][:30].abs().max()) <= 2**-0.5 and float(one["phi"][30:].abs().max()) <= 10**-0.5


def test_a_noisy_quadratic_keeps_a_finite_rate_that_moves() -> None:
    generator = torch.Generator().manual_seed(0)
    curvature = torch.tensor([0.1, 0.3, 1.0, 2.0, 4.0], dtype=F64)

    def loss(w: Tensor, noise: Tensor) -> Tensor:
        return 0.5 * (curvature * (w - noise) ** 2).sum()

    base, weights = 0.05, torch.full((5,), 2.0, dtype=F64)
    start, quiet = loss(weights, torch.zeros(5)), torch.zeros(5)
    controller = ActorCritic(max_ratio=5.0)
    state, factors = controller.init(), []
    for step in range(300):
        mine, other = 0.3 * torch.randn(2, 5, generator=generator, dtype=F64)
        before = loss(weights, mine)
        factor, state = controller.decide(_observe(step, before, base), state)
        weights = weights - base * factor * curvature * (weights - mine)
        state = controller.learn(_outcome(step, before, loss(weights, mine), loss(weights, other)), state)
        factors.append(float(factor))
    assert all(0.2 - 1e-6 <= f <= 5 + 1e-6 for f in factors)
    assert max(factors) / min(factors) > 1.2
    assert loss(weights, quiet) < 0.1 * start


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gamma": 1.5}, r"gamma=1.5 is outside \[0.0, 1.0\]"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"window": 1}, "window=1"),
        ({"max_ratio": 1.0}, "max_ratio=1.0"),
        ({"ceiling": 0.9}, r"ceiling=0.9 is outside \[1.0, 100.0\]; 1 never exceeds the base LR"),
        ({"ceiling": 3.0, "max_ratio": 2.0}, "ceiling=3.0 is outside"),
        ({"unit": 0.0}, "unit=0.0"),
        ({"actor_lr": 0.0}, "actor_lr=0.0"),
        ({"critic_lr": -1.0}, "critic_lr=-1.0"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"critic_size": 0}, "critic_size=0"),
    ],
)
def test_bad_configs_are_refused(config, message) -> None:
    with pytest.raises(ValueError, match=message):
        ActorCritic(**config)


# --- the preset that loses no run ---


def test_the_presets_are_the_published_rule_and_one_that_never_exceeds_the_base_lr() -> None:
    assert ActorCritic.from_preset("paper") == ActorCritic()
    safe = ActorCritic.from_preset("safe", actor_lr=0.05)
    highest, lowest = 0.0, 1.0
    for seed in range(8):
        factors, _ = _run(safe, safe.init(seed=seed), _losses(30, seed))
        highest, lowest = max(highest, *factors), min(lowest, *factors)
    assert highest == 1.0 and lowest == pytest.approx(0.1)


def test_the_ceiling_is_what_saves_runs() -> None:
    """Twenty perceptrons at the base LR that is best for a constant rate; an actor ten times the paper's speed."""

    def lost(config: dict | None) -> int:
        start, end, _ = survival.play(config, 1.0, 20, 60)
        return int((~(end < start / 2)).sum())

    fast = {"actor_lr": 0.01, "window": 3}
    assert lost(None) == 0
    assert lost(fast) >= 4
    assert lost({**ActorCritic.presets["safe"], **fast}) == 0


def test_the_survival_study_s_rows_are_the_section_s_numbers(tmp_path, monkeypatch) -> None:
    work = [(survival.AT_ONCE, name, 0.3) for name in ("constant", "paper", "safe")]
    monkeypatch.setattr(survival, "WORK", [*work, (survival.THROUGH_TRAINER, "safe", 0.3)])
    monkeypatch.setattr(survival, "RUNS", {survival.AT_ONCE: 3, survival.THROUGH_TRAINER: 1})
    monkeypatch.setattr(survival, "UPDATES", 40)
    assert survival.section(tmp_path) == ""
    for _ in range(2):  # the second time nothing is missing
        assert survival.main(["--output-dir", str(tmp_path)]) == 0
    header, constant, paper, safe, real = read_rows(tmp_path / survival.NAME)
    assert header["updates"] == 40
    assert [len(row["test_losses"]) for row in (constant, paper, safe, real)] == [3, 3, 3, 1]
    assert None not in safe["test_losses"] and paper["on_first_side"] <= 3
    mean = sum(constant["test_losses"]) / 3
    lines = survival.section(tmp_path).splitlines()
    assert any(line.startswith(f"| at once | constant | 0.3 | 0 of 3 | {mean:.4f} ±") for line in lines)
    assert any(line.startswith("| through Trainer | safe | 0.3 | 0 of 1 | - | - |") for line in lines)
