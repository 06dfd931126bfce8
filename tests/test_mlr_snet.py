"""MLR-SNet: the authors' cell and numbers, meta-gradients equal to autograd, snapshots, exact resume."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hf_adaptive_lr import Observation
from hf_adaptive_lr.controllers.mlr_snet import MLRSNet
from hf_adaptive_lr.meta.bilevel import BilevelConfig, BilevelTrainer
from hf_adaptive_lr.meta.evolution import EvolutionConfig, EvolutionTrainer
from hf_adaptive_lr.meta.suites import SUITES
from hf_adaptive_lr.observation import Outcome
from hf_adaptive_lr.scheduler.config import SchedulerConfig
from hf_adaptive_lr.scheduler.runtime import ControllerRun

F64 = torch.float64
LOSSES = [2.2, 2.0, 2.1, 1.7, 1.9, 1.2, 1.4, 0.9, 0.6, 0.7]
INNER = [-3.0, 1.0, 0.5, 2.0, -1.0, 4.0, 0.1, -0.2, 1.5, 0.3]


class Cell(nn.Module):
    """The authors' module, gate by gate."""

    def __init__(self, inner: int, hidden: int, gates: str) -> None:
        super().__init__()
        self.hidden, self.gates = hidden, gates
        self.fc_i2h = nn.Sequential(nn.Linear(1, inner), nn.ReLU(), nn.Linear(inner, 4 * hidden))
        self.fc_h2h = nn.Sequential(nn.Linear(hidden, inner), nn.ReLU(), nn.Linear(inner, 4 * hidden))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        gates = (self.fc_i2h(x) + self.fc_h2h(h)).split(self.hidden, 1)
        if self.gates == "train":
            enter, forget = torch.sigmoid(gates[0]), torch.sigmoid(gates[1] - 1)
            leave, new = torch.sigmoid(gates[2]), torch.tanh(gates[3])
        else:
            enter, forget = torch.sigmoid(gates[0]), torch.sigmoid(gates[1])
            new, leave = torch.tanh(gates[2]), torch.sigmoid(gates[3])
        c = forget * c + enter * new
        return leave * torch.tanh(c), c


class Reference(nn.Module):
    """The whole network; keeps its state itself, without a graph."""

    def __init__(self, params: dict[str, Tensor], gates: str = "train", inner: int = 25, hidden: int = 50) -> None:
        super().__init__()
        self.layer1, self.layer3 = Cell(inner, hidden, gates), nn.Linear(hidden, 1)
        self.to(next(iter(params.values())).dtype)
        self.load_state_dict(params)
        self.h = self.c = torch.zeros(1, hidden, dtype=self.layer3.weight.dtype)

    def forward(self, loss: float) -> Tensor:
        x = torch.full((1, 1), loss, dtype=self.layer3.weight.dtype)
        h, c = self.layer1(x, (self.h, self.c))
        self.h, self.c = h.detach(), c.detach()
        return torch.sigmoid(self.layer3(h)).squeeze()


def _gamma(loss: float, classes: float) -> float:
    return abs(loss**0.5 * math.log(loss * classes) / classes**0.25) / 4


def _double(**config: object) -> dict[str, Tensor]:
    return {name: value.double() for name, value in MLRSNet.random_params(**config).items()}


def _observe(step: int, loss: float | Tensor, total: int | None = 10, base: float = 0.1, **fields: Tensor):
    loss = torch.as_tensor(loss, dtype=F64)
    lr = torch.full(loss.shape, base, dtype=F64)
    return Observation(step=step, total_steps=total, lr=lr, base_lr=lr, loss=loss, **fields)


def _outcome(step: int, inner: float | Tensor) -> Outcome:
    return Outcome(step=step, meta_inner=torch.as_tensor(inner, dtype=F64))


def _run(controller: MLRSNet, state: dict, steps: range, total: int | None = 10) -> tuple[list[float], dict]:
    """Decisions on the losses above, and a meta-step wherever the controller wants one."""
    out = []
    for step in steps:
        factor, state = controller.decide(_observe(step, LOSSES[step], total), state)
        out.append(float(factor))
        if controller.wants_outcome(step, total):
            state = controller.learn(_outcome(step, INNER[step]), state)
    return out, state


# --- the equations ---


@pytest.mark.parametrize(("classes", "expected"), [(10, 0.6691), (100, 1.0404), (200, 1.066), (1000, 1.033)])
def test_gamma_at_the_loss_of_a_uniform_guess(classes, expected) -> None:
    controller = MLRSNet(params=MLRSNet.random_params())
    obs = _observe(0, math.log(classes), classes=torch.tensor(float(classes), dtype=F64))
    _, state = controller.decide(obs, controller.init())
    assert float(state["gamma"]) == pytest.approx(expected, abs=6e-4 if classes > 100 else 5e-5)


def test_gamma_takes_the_absolute_value_and_the_given_numbers() -> None:
    params = MLRSNet.random_params()
    for config, expected in (
        ({"classes": 10}, _gamma(0.02, 10)),
        ({"classes": 10, "initial_loss": 2.5}, _gamma(2.5, 10)),
        ({"gamma": 0.3}, 0.3),
    ):
        controller = MLRSNet(params=params, **config)
        _, state = controller.decide(_observe(0, 0.02), controller.init())
        assert float(state["gamma"]) == pytest.approx(expected, rel=1e-12) and expected > 0
        _, state = controller.decide(_observe(1, 7.0), state)
        assert float(state["gamma"]) == pytest.approx(expected, rel=1e-12)
    controller = MLRSNet(params=params, classes=10)
    measured = controller.with_initial_loss(controller.init((2,)), 2.5)
    _, state = controller.decide(_observe(0, torch.tensor([0.02, 3.0])), measured)
    assert state["gamma"].tolist() == pytest.approx([_gamma(2.5, 10)] * 2, rel=1e-12)


def test_sizes_are_the_authors() -> None:
    assert sum(p.numel() for p in MLRSNet.random_params().values()) == 11_776
    assert sum(p.numel() for p in MLRSNet.random_params(network="scalar").values()) == 1
    assert {k: tuple(v.shape) for k, v in MLRSNet.random_params(inner_size=50).items()} == {
        k: tuple(v.shape) for k, v in Reference(MLRSNet.random_params(inner_size=50), inner=50).state_dict().items()
    }


@pytest.mark.parametrize("gates", ["train", "test"])
def test_cell_equals_modules(gates) -> None:
    params = _double(seed=3)
    controller, reference = MLRSNet(params=params, classes=7, gates=gates), Reference(params, gates)
    found, _ = _run(controller, controller.init(), range(10))
    expected = [_gamma(LOSSES[0], 7) * float(reference(loss).detach()) for loss in LOSSES]
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(set(found)) == 10


def test_weights_of_one_layout_are_noise_in_the_other() -> None:
    params = {name: 3 * value for name, value in MLRSNet.random_params(seed=1).items()}
    train, test = (MLRSNet(params=params, gates=gates, gamma=1.0) for gates in ("train", "test"))
    a, b = (_run(c, c.init(), range(10))[0] for c in (train, test))
    assert max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-2


def test_three_steps_by_hand() -> None:
    """A cell of one unit with all weights one half and all biases zero, so that relu(0.5 l) / 2 is every gate."""
    shapes = MLRSNet(inner_size=1, hidden_size=1, meta_learn=True)._shapes
    params = {k: torch.full(s, 0.5 if "weight" in k else 0.0, dtype=F64) for k, s in shapes.items()}
    controller = MLRSNet(params=params, inner_size=1, hidden_size=1, classes=10)
    sigmoid, h, c, expected = (lambda x: 1 / (1 + math.exp(-x))), 0.0, 0.0, []
    for loss in LOSSES[:3]:
        gate = 0.25 * loss + 0.25 * h
        c = sigmoid(gate - 1) * c + sigmoid(gate) * math.tanh(gate)
        h = sigmoid(gate) * math.tanh(c)
        expected.append(sigmoid(0.5 * h) * 2.2**0.5 * math.log(22) / 10**0.25 / 4)
    found, _ = _run(controller, controller.init(), range(3))
    assert found == pytest.approx(expected, rel=1e-12)


def test_fresh_weights_are_nn_linear_s_and_start_near_a_half() -> None:
    params = MLRSNet.random_params()
    bounds = {"layer1.fc_i2h.0": 1, "layer1.fc_i2h.2": 25, "layer1.fc_h2h.0": 50, "layer1.fc_h2h.2": 25, "layer3": 50}
    for layer, inputs in bounds.items():
        values = torch.cat([params[f"{layer}.weight"].flatten(), params[f"{layer}.bias"]])
        assert 0.8 < float(values.abs().max() * inputs**0.5) <= 1
        assert abs(float(values.mean() * inputs**0.5)) < 0.25
    for bias, expected in ((None, 0.5), (1.0, 0.73)):
        controller = MLRSNet(params=MLRSNet.random_params(bias=bias), gamma=1.0)
        factor, _ = controller.decide(_observe(0, 2.3), controller.init())
        assert float(factor) == pytest.approx(expected, abs=0.06)


# --- learning inside the run ---


@pytest.mark.parametrize("gates", ["train", "test"])
def test_meta_gradient_equals_autograd_through_the_update(gates) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 32, 4, dtype=F64), torch.randint(0, 3, (2, 32))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    weights = {name: value.detach() for name, value in model.named_parameters()}
    base, decay = 0.4, 5e-4

    def loss_of(w: dict[str, Tensor], batch: int) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, w, (x[batch],)), y[batch])

    params = _double(seed=2)
    learning = MLRSNet(params=params, classes=3, gates=gates, meta_learn=True, meta_weight_decay=0.0)
    state = learning.init()
    for step in range(3):  # so that h and c have a history
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        loss = loss_of(leaves, 0)
        direction = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        direction = {name: direction[name] + decay * weights[name] for name in weights}
        before, obs = state, _observe(step, loss.detach(), base=base)
        factor, state = learning.decide(obs, state)
        after = {name: weights[name] - base * factor * direction[name] for name in weights}
        if step < 2:
            weights = after
    theta = {name: value.clone().requires_grad_() for name, value in params.items()}
    alpha = base * learning.decide(obs, before, theta)[0]
    meta_loss = loss_of({name: weights[name] - alpha * direction[name] for name in weights}, 1)
    whole = torch.autograd.grad(meta_loss, list(theta.values()))

    at_end = {name: value.clone().requires_grad_() for name, value in after.items()}
    slopes = torch.autograd.grad(loss_of(at_end, 1), list(at_end.values()))
    inner = sum((g * d).sum() for g, d in zip(slopes, direction.values(), strict=True))
    learned = learning.learn(_outcome(2, inner), state)
    # With betas (0.9, 0.999) and no decay the first moments are a tenth of the gradient.
    expected = torch.cat([g.flatten() for g in whole])
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(learned["exp_avg"] * 10, expected, rtol=1e-10, atol=1e-16)


def test_meta_steps_are_torch_s_adam_on_the_scalar_objective() -> None:
    params = _double(seed=5, bias=1.0)  # the same sums in another order: 1e-16 each, where a step is 1e-3
    controller = MLRSNet(params=params, classes=10, meta_learn=True, meta_every=2)
    reference = Reference(params)
    adam = torch.optim.Adam(reference.parameters(), lr=1e-3, weight_decay=1e-4)
    state, scale = controller.init(), 0.1 * _gamma(LOSSES[0], 10)
    for step, (loss, inner) in enumerate(zip(LOSSES, INNER, strict=True)):
        factor, state = controller.decide(_observe(step, loss), state)
        p = reference(loss)
        assert float(factor) == pytest.approx(10 * scale * float(p.detach()), rel=1e-10)
        assert controller.wants_outcome(step, None) == (step % 2 == 1)
        if controller.wants_outcome(step, None):
            state = controller.learn(_outcome(step, inner), state)
            adam.zero_grad()
            (-scale * inner * p).backward()
            adam.step()
    sizes = [math.prod(shape) for shape in controller.param_shapes().values()]
    named = dict(zip(controller.param_shapes(), torch.split(state["theta"], sizes), strict=True))
    for name, value in reference.named_parameters():
        torch.testing.assert_close(named[name], value.detach().flatten(), rtol=0, atol=1e-10)
    assert float(state["meta_steps"]) == 5


def test_the_rate_moves_where_the_meta_loss_falls() -> None:
    for inner, grows in ((5.0, True), (-5.0, False)):  # <g_meta, d> above zero: a longer step lowers the meta loss
        controller = MLRSNet(meta_learn=True, gamma=1.0, meta_every=1, meta_lr=1e-2)
        state, factors = controller.init(), []
        for step in range(20):
            factor, state = controller.decide(_observe(step, 1.0, None), state)
            state = controller.learn(_outcome(step, inner), state)
            factors.append(float(factor))
        assert (factors[-1] > factors[0] + 0.1) if grows else (factors[-1] < factors[0] - 0.1)


@pytest.mark.parametrize("network", ["lstm", "scalar"])
def test_a_batch_of_runs_equals_its_columns(network) -> None:
    params = _double(network=network)
    controller = MLRSNet(params=params, network=network, classes=10, meta_learn=True, meta_every=2)
    runs = 3
    state, alone = controller.init((runs,)), [controller.init() for _ in range(runs)]
    for step in range(6):
        losses = torch.tensor([LOSSES[step], 1.0 + step, 0.3 / (1 + step)], dtype=F64)
        inner = torch.tensor([INNER[step], -1.0, 0.01], dtype=F64)
        factors, state = controller.decide(_observe(step, losses), state)
        assert factors.shape == (runs,)
        state = controller.learn(_outcome(step, inner), state) if controller.wants_outcome(step, 10) else state
        for run in range(runs):
            single, alone[run] = controller.decide(_observe(step, losses[run]), alone[run])
            assert single.shape == () and float(single) == pytest.approx(float(factors[run]), rel=1e-10)
            if controller.wants_outcome(step, 10):
                alone[run] = controller.learn(_outcome(step, inner[run]), alone[run])
    for run in range(runs):
        torch.testing.assert_close(state["theta"][run], alone[run]["theta"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(state["saved"][run], alone[run]["saved"], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(state["theta"][0], state["theta"][1], rtol=0, atol=1e-4)


def test_a_run_that_learns_resumes_bit_for_bit(tmp_path) -> None:
    controller = MLRSNet(classes=10, meta_learn=True, meta_every=3)
    start = controller.init(seed=4)
    whole, end = _run(controller, start, range(10))
    first, state = _run(controller, start, range(4))
    torch.save(state, tmp_path / "state.pt")
    second, resumed = _run(controller, torch.load(tmp_path / "state.pt", weights_only=True), range(4, 10))
    assert first + second == whole
    assert all(torch.equal(resumed[name], end[name]) for name in end)
    assert not torch.equal(end["theta"], start["theta"])
    assert float(end["meta_steps"]) == 3


def test_decide_and_learn_leave_their_input_alone() -> None:
    controller = MLRSNet(classes=10, meta_learn=True, meta_every=1)
    _, state = _run(controller, controller.init(), range(2))
    copy = {name: value.clone() for name, value in state.items()}
    controller.learn(_outcome(2, 1.0), controller.decide(_observe(2, 1.0), state)[1])
    controller.learn(_outcome(2, 1.0), state)
    assert all(torch.equal(state[name], copy[name]) for name in copy)


def test_fresh_weights_come_from_the_seed() -> None:
    controller = MLRSNet(meta_learn=True)
    assert torch.equal(controller.init(seed=1)["theta"], controller.init((2,), seed=1)["theta"][1])
    assert not torch.equal(controller.init(seed=1)["theta"], controller.init(seed=2)["theta"])
    biased = MLRSNet(meta_learn=True, bias=1.0).init()["theta"]
    assert float(biased[-1]) == 1.0
    params = MLRSNet.random_params(seed=9)
    assert torch.equal(
        MLRSNet(meta_learn=True, params=params).init(seed=1)["theta"],
        torch.cat([value.flatten() for value in params.values()]),
    )


def test_scalar_ablation_by_hand() -> None:
    config = {"bias": 0.5, "gamma": 0.8, "meta_learn": True, "meta_every": 1, "meta_weight_decay": 0.0}
    controller = MLRSNet(network="scalar", params=_double(network="scalar", bias=0.5), **config)
    theta = torch.tensor([0.5], dtype=F64, requires_grad=True)
    adam, state = torch.optim.Adam([theta], lr=1e-3), controller.init()
    for step in range(4):
        factor, state = controller.decide(_observe(step, LOSSES[step]), state)
        p = torch.sigmoid(theta).squeeze()
        assert float(factor) == pytest.approx(0.8 * float(p.detach()), rel=1e-12)
        state = controller.learn(_outcome(step, INNER[step]), state)
        theta.grad = (-0.1 * 0.8 * INNER[step] * p * (1 - p)).detach().reshape(1)
        adam.step()
    assert float(state["theta"]) == pytest.approx(float(theta.detach()), abs=1e-12) != pytest.approx(0.5, abs=1e-3)


def test_a_live_run_goes_on_and_resumes(tmp_path) -> None:
    controller = MLRSNet(classes=10, meta_learn=True, meta_every=2)
    settings = SchedulerConfig(total_steps=10)

    def play(controlled: ControllerRun, steps: range) -> list[float]:
        out = []
        for step in steps:
            out.append(controlled.advance({"loss": LOSSES[step]}).lr[0])
            if controller.wants_outcome(step, 10):
                controlled.learn(_outcome(step, INNER[step]))
        return out

    whole = play(ControllerRun(controller, [0.5], settings), range(10))
    half = ControllerRun(controller, [0.5], settings)
    first = play(half, range(5))
    torch.save(half.state_dict(), tmp_path / "run.pt")
    rest = ControllerRun(controller, [0.5], settings)
    rest.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    assert first + play(rest, range(5, 10)) == whole


# --- snapshots ---


def _stacked(count: int) -> dict[str, Tensor]:
    sets = [_double(seed=seed) for seed in range(count)]
    return {name: torch.stack([params[name] for params in sets]) for name in sets[0]}


def test_snapshots_take_turns_and_gamma_is_taken_anew() -> None:
    params = _stacked(3)
    controller = MLRSNet(params=params, snapshots=3, classes=10)
    references = [Reference({name: value[k] for name, value in params.items()}) for k in range(3)]
    found, _ = _run(controller, controller.init(), range(9), total=9)
    average, h, c, expected = LOSSES[0], references[0].h, references[0].c, []
    for step, loss in enumerate(LOSSES[:9]):
        average = 0.9 * average + 0.1 * loss if step else loss
        if step % 3 == 0:
            gamma = _gamma(average, 10)
        reference = references[step // 3]
        reference.h, reference.c = h, c  # carried over the switch
        expected.append(gamma * float(reference(loss).detach()))
        h, c = reference.h, reference.c
    assert found == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="total_steps"):
        ControllerRun(controller, [0.1], SchedulerConfig())


def test_every_run_has_its_own_third() -> None:
    controller = MLRSNet(params=_stacked(3), snapshots=3, classes=10)
    lr = torch.full((3,), 0.1, dtype=F64)
    obs = Observation(
        step=torch.tensor([0, 5, 9]), total_steps=torch.tensor([10, 10, 10]), lr=lr, base_lr=lr, loss=lr + 1
    )
    factors, state = controller.decide(obs, controller.init((3,)))
    assert state["snapshot"].tolist() == [0, 1, 2]
    for run in range(3):
        single, _ = controller.decide(_observe(int(obs.step[run]), 1.1), controller.init())
        assert float(factors[run]) == pytest.approx(float(single), rel=1e-12)
    with pytest.raises(ValueError, match="weights per run"):
        controller.decide(obs, controller.init((3,)), {k: v.expand(3, *v.shape) for k, v in controller.params.items()})


def test_harvest_gives_the_thetas_of_the_run(tmp_path) -> None:
    controller = MLRSNet(classes=10, meta_learn=True, meta_every=1, initial_loss=2.0)
    state, thetas = controller.init(), []
    for step in range(10):
        _, state = controller.decide(_observe(step, LOSSES[step]), state)
        state = controller.learn(_outcome(step, INNER[step]), state)
        thetas.append(state["theta"])
    frozen = controller.harvest(state)
    assert (frozen.snapshots, frozen.meta_learn, frozen.classes, frozen.initial_loss) == (3, False, None, None)
    flat = torch.cat([value.flatten(1) for value in frozen.params.values()], 1)
    # Progress passes 1/200 before update 1 and 1/2 before update 5.
    assert torch.equal(flat, torch.stack([thetas[0], thetas[4], thetas[9]]))
    frozen.save_pretrained(tmp_path)
    loaded = MLRSNet.from_pretrained(tmp_path)
    assert loaded == frozen and all(torch.equal(loaded.params[k], v) for k, v in frozen.params.items())
    assert loaded.needs == {"loss", "classes"} and loaded.needs_horizon


def test_harvest_early_or_without_a_horizon() -> None:
    controller = MLRSNet(classes=10, meta_learn=True, meta_every=1)
    _, state = _run(controller, controller.init(), range(4))  # 3/10 of the run
    flat = torch.cat([value.flatten(1) for value in controller.harvest(state).params.values()], 1)
    assert torch.equal(flat[1], state["theta"]) and torch.equal(flat[2], state["theta"])
    assert not torch.equal(flat[0], state["theta"])
    _, endless = _run(controller, controller.init(), range(4), total=None)
    frozen = controller.harvest(endless)
    assert frozen.snapshots == 1 and not frozen.needs_horizon
    assert torch.equal(torch.cat([value.flatten() for value in frozen.params.values()]), endless["theta"])
    for wrong in (MLRSNet(gamma=1.0, params=frozen.params).init(), controller.init((2,))):
        with pytest.raises(ValueError, match="harvest takes the state of one run"):
            controller.harvest(wrong)


# --- meta-training elsewhere, config ---


@pytest.mark.parametrize("suite", ["quadratic", "mlp"])
def test_bilevel_training_moves_the_weights(suite) -> None:
    controller = MLRSNet(params=MLRSNet.random_params(), classes=10)
    trainer = BilevelTrainer(controller, BilevelConfig(decisions=4))
    for iteration in range(2):
        trainer.iterate(SUITES[suite].problems("train", iteration, runs=3), iteration)
    after = trainer.controller().params
    assert all(torch.isfinite(value).all() for value in after.values())
    assert all(not torch.equal(after[name], value) for name, value in controller.params.items())


def test_evolution_gives_every_run_its_own_weights() -> None:
    controller = MLRSNet(params=MLRSNet.random_params(), classes=10)
    trainer = EvolutionTrainer(controller, EvolutionConfig(decisions=4))
    trainer.iterate(SUITES["quadratic"].problems("train", 0, runs=3), 0)
    assert not torch.equal(trainer.weights["layer3.bias"], controller.params["layer3.bias"])
    sets = [_double(seed=seed) for seed in range(3)]
    losses = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    stacked = {name: torch.stack([params[name] for params in sets]) for name in sets[0]}
    factors, _ = controller.decide(_observe(0, losses), controller.init((3,)), stacked)
    for run in range(3):
        single, _ = controller.decide(_observe(0, losses[run]), controller.init(), sets[run])
        assert float(factors[run]) == pytest.approx(float(single), rel=1e-12)


def test_needs_follow_the_config() -> None:
    params = MLRSNet.random_params()
    assert MLRSNet(params=params).needs == {"loss", "classes"}
    assert MLRSNet(params=params, classes=10).needs == MLRSNet(params=params, gamma=1.0).needs == {"loss"}
    learning = MLRSNet(meta_learn=True, gamma=1.0)
    assert learning.needs == {"loss", "meta_inner"}
    assert [t for t in range(900) if learning.wants_outcome(t, None)] == [299, 599, 899]
    assert not any(MLRSNet(params=params).wants_outcome(t, None) for t in range(900))
    assert not MLRSNet(params=params).needs_horizon and MLRSNet(params=_stacked(2), snapshots=2).needs_horizon
    for name in MLRSNet.presets:
        MLRSNet.from_preset(name, params=params)
    assert MLRSNet.from_preset("released", params=params).gates == "test"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "tensor 'layer1.fc_i2h.0.weight' is missing"),
        ({"snapshots": 3, "params": MLRSNet.random_params()}, r"expected \(3, 25, 1\)"),
        ({"meta_learn": True, "snapshots": 3}, "snapshots=3 must be 1"),
        ({"gates": "both"}, "gates='both' must be one of"),
        ({"network": "gru"}, "network='gru' must be one of"),
        ({"gamma": 0.0}, r"gamma=0.0 is outside .* default: None"),
        ({"classes": 1}, "classes=1"),
        ({"initial_loss": -1.0}, "initial_loss=-1.0"),
        ({"bias": math.nan}, "bias=nan"),
        ({"meta_every": 0}, "meta_every=0 is outside .* default: 300"),
        ({"meta_lr": 0.0}, "meta_lr=0.0"),
        ({"meta_weight_decay": -1.0}, "meta_weight_decay=-1.0"),
        ({"inner_size": 0}, "inner_size=0"),
    ],
)
def test_bad_configs_are_refused(config, message) -> None:
    with pytest.raises(ValueError, match=message):
        MLRSNet(**config)


def test_an_outcome_without_the_inner_product_is_refused() -> None:
    controller = MLRSNet(meta_learn=True, gamma=1.0)
    with pytest.raises(ValueError, match="meta_inner"):
        controller.learn(Outcome(step=0), controller.init())
