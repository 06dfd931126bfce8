"""Draws of PLRS and of the random walk: what the paper says of them, one for all groups, reproducible, resumable."""

from __future__ import annotations

import math

import pytest
import torch

from hf_adaptive_lr import Constant, ControlledLR, Observation
from hf_adaptive_lr.bench.rows import read_rows
from hf_adaptive_lr.bench.stats import mean_interval
from hf_adaptive_lr.bench.studies.papers import saddle
from hf_adaptive_lr.controller import Controller
from hf_adaptive_lr.controllers.plrs import PLRS
from hf_adaptive_lr.controllers.random_walk import RandomWalk
from hf_adaptive_lr.scheduler.config import SchedulerConfig
from hf_adaptive_lr.scheduler.runtime import ControllerRun
from tests.tiny import batches, flat, mlp

F64 = torch.float64


def _observation(lr: torch.Tensor | float, base: torch.Tensor | float = 1.0) -> Observation:
    return Observation(
        step=0, total_steps=None, lr=torch.as_tensor(lr, dtype=F64), base_lr=torch.as_tensor(base).to(F64)
    )


def _answers(controller: Controller, count: int, seed: int = 0, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """Answers of `count` decisions at a learning rate that stays where it was, of shape (count, *shape)."""
    state, out = controller.init(shape, seed=seed), []
    for _ in range(count):
        answer, state = controller.decide(_observation(torch.ones(shape)), state)
        out.append(answer)
    return torch.stack(out)


class Run:
    """A tiny training under a controller, with two parameter groups of different learning rates."""

    def __init__(self, controller: Controller, **settings: object) -> None:
        self.model = mlp().eval()  # no dropout, whose draws the checkpoint would have to carry too
        weights, biases = list(self.model.parameters())[::2], list(self.model.parameters())[1::2]
        groups = [{"params": weights, "lr": 0.1}, {"params": biases, "lr": 0.02}]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.scheduler = ControlledLR(self.optimizer, controller, **settings)

    def train(self, first: int, last: int) -> Run:
        for x, y in batches(last)[first:]:
            loss = torch.nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            self.scheduler.observe(loss=loss)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return self

    @property
    def lrs(self) -> list[tuple[float, ...]]:
        return [decision.lr for decision in self.scheduler.trace]


def _uniforms(count: int, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return [float(torch.rand((), generator=generator, dtype=F64)) for _ in range(count)]


# --- the draws ---


def test_three_draws_by_hand() -> None:
    expected = [0.7 + (1.0 - 0.7) * u for u in _uniforms(3, seed=7)]
    assert _answers(PLRS(), 3, seed=7).tolist() == expected
    assert len(set(expected)) == 3


def test_draws_are_uniform_and_independent() -> None:
    stats = pytest.importorskip("scipy.stats")
    plrs, count = PLRS(low=0.5, high=1.0), 4000
    drawn = _answers(plrs, count)
    assert plrs.low <= drawn.min() < drawn.max() <= plrs.high
    width = plrs.high - plrs.low
    assert plrs.mean_factor == 0.75
    assert plrs.variance == pytest.approx(width**2 / 12, rel=1e-12)
    assert abs(drawn.mean() - plrs.mean_factor) < 4 * math.sqrt(plrs.variance / count)
    # The fourth central moment of a uniform is width^4 / 80.
    assert abs(drawn.var() - plrs.variance) < 4 * width**2 * math.sqrt((1 / 80 - 1 / 144) / count)
    centred = drawn - drawn.mean()
    for lag in (1, 2, 5):
        correlation = (centred[lag:] * centred[:-lag]).mean() / centred.square().mean()
        assert abs(correlation) < 4 / math.sqrt(count), lag
    assert stats.kstest(drawn.numpy(), "uniform", args=(plrs.low, width)).pvalue > 1e-3


def test_runs_of_a_batch_draw_for_themselves() -> None:
    drawn = _answers(PLRS(), 50, shape=(40,))
    assert drawn.shape == (50, 40)
    assert drawn.unique().numel() == drawn.numel()
    correlations = torch.corrcoef(drawn.T) - torch.eye(40, dtype=F64)
    assert correlations.abs().max() < 5 / math.sqrt(50)


def test_mean_and_second_moment_on_a_quadratic_are_what_independence_implies() -> None:
    # w <- (1 - eta k) w with eta = c + u: E w_T = (1 - c k)^T and E w_T^2 = ((1 - c k)^2 + k^2 E u^2)^T
    plrs, curvature, steps, runs = PLRS(low=0.2, high=1.8), 0.6, 5, 20_000
    w = (1 - curvature * _answers(plrs, steps, shape=(runs,))).prod(0)
    contraction = 1 - plrs.mean_factor * curvature
    for power, exact in (
        (w, contraction**steps),
        (w.square(), (contraction**2 + curvature**2 * plrs.variance) ** steps),
    ):
        assert abs(power.mean() - exact) < 4 * power.std() / math.sqrt(runs)


def test_decide_is_pure_and_leaves_the_global_generator_alone() -> None:
    for controller in (PLRS(), RandomWalk()):
        state, before = controller.init(seed=1), torch.get_rng_state()
        kept = state["generator"].clone()
        first, after = controller.decide(_observation(1.0), state)
        again, _ = controller.decide(_observation(1.0), state)
        assert torch.equal(first, again)
        assert torch.equal(state["generator"], kept)
        assert not torch.equal(after["generator"], kept)
        assert torch.equal(torch.get_rng_state(), before)


def test_bounds_of_the_paper_become_factors() -> None:
    assert PLRS.from_bounds(0.1, 0.07, 0.1).low == pytest.approx(PLRS().low, rel=1e-15)
    assert PLRS.from_bounds(0.1, 0.07, 0.1).high == PLRS().high
    for bounds, low in (((0.1, 0.2), 0.5), ((0.35, 0.4), 0.875), ((2e-5, 3e-5), 2 / 3), ((1.5e-4, 4.5e-4), 1 / 3)):
        assert PLRS.from_bounds(bounds[1], *bounds).config() == {"low": pytest.approx(low), "high": 1.0}
    elsewhere = PLRS.from_bounds(0.05, 0.07, 0.1)
    assert elsewhere.config() == {"low": pytest.approx(1.4), "high": pytest.approx(2.0)}


def test_controls_have_the_same_mean() -> None:
    plrs = PLRS(low=0.6, high=1.0)
    constant = Constant(factor=plrs.mean_factor)
    assert float(_answers(constant, 1)) == pytest.approx(0.8)
    wide = plrs.widened(3)
    assert (wide.mean_factor, wide.variance) == (pytest.approx(0.8), pytest.approx(9 * plrs.variance))
    narrow = plrs.widened(0)
    assert narrow.low == narrow.high == plrs.mean_factor
    assert set(_answers(narrow, 5).tolist()) == {plrs.mean_factor}
    with pytest.raises(ValueError, match=r"low=-0.1999\d* is outside .* L_min is above 0"):
        plrs.widened(5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PLRS(low=0.0), r"low=0.0 is outside \[1e-06, 1.0\]; L_min is above 0"),
        (lambda: PLRS(low=-0.7), "low=-0.7 is outside"),
        (lambda: PLRS(low=1.1), "low=1.1 is outside"),
        (lambda: PLRS(high=0.0), "high=0.0 is outside"),
        (lambda: PLRS(high=math.inf), "high=inf is outside"),
        (lambda: PLRS(low=math.nan), "low=nan is outside"),
        (lambda: PLRS.from_bounds(0.0, 0.07, 0.1), "base_lr=0.0 must be above 0"),
        (lambda: PLRS.from_bounds(0.1, 0.1, 0.07), "low=1.0 is outside"),
        (lambda: RandomWalk(step=-0.1), "step=-0.1 is outside"),
        (lambda: RandomWalk(step=math.nan), "step=nan is outside"),
        (lambda: RandomWalk(span=0.0), "span=0.0 is outside"),
        (lambda: Constant(factor=-1.0), "factor=-1.0 is outside .* 1 is the base LR"),
        (lambda: Constant(factor=math.inf), "factor=inf is outside"),
        (lambda: Constant(factor=math.nan), "factor=nan is outside"),
    ],
)
def test_bad_values_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_value_that_is_no_number_is_refused() -> None:
    for make in (lambda: PLRS(low="0.7"), lambda: RandomWalk(step=True), lambda: Constant(factor=None)):
        with pytest.raises(TypeError, match="must be a number"):
            make()


def test_constant_answers_its_factor() -> None:
    assert torch.equal(_answers(Constant(), 2, shape=(3,)), torch.ones(2, 3, dtype=F64))
    assert torch.equal(_answers(Constant(factor=0.85), 1, shape=(2,)), torch.full((1, 2), 0.85, dtype=F64))
    assert Run(Constant(factor=0.5)).train(0, 3).lrs == [(0.05, 0.01)] * 3


# --- in a training ---


def test_every_update_draws_once_for_all_groups() -> None:
    run = Run(PLRS(), seed=5).train(0, 8)
    expected = [0.7 + (1.0 - 0.7) * u for u in _uniforms(8, seed=5)]
    assert run.lrs == [(0.1 * f, 0.02 * f) for f in expected]
    assert [decision.reason for decision in run.scheduler.trace] == ["decision"] * 8
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.1 * expected[-1], 0.02 * expected[-1]]


def test_once_per_epoch() -> None:
    run = Run(PLRS(), seed=5, every=4).train(0, 12)
    expected = [0.1 * (0.7 + (1.0 - 0.7) * u) for u in _uniforms(3, seed=5) for _ in range(4)]
    assert [lrs[0] for lrs in run.lrs] == expected


def test_warm_up_multiplies_the_draws() -> None:
    run = Run(PLRS(), seed=5, warmup_steps=4).train(0, 8)
    draws = [0.7 + (1.0 - 0.7) * u for u in _uniforms(8, seed=5)]
    ramp = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [lrs[0] for lrs in run.lrs] == [0.1 * f * r for f, r in zip(draws, ramp, strict=True)]


@pytest.mark.parametrize("make", [PLRS, RandomWalk], ids=["plrs", "random_walk"])
def test_a_seed_gives_one_run_and_another_seed_another(make) -> None:
    first, second, other = (Run(make(), seed=seed).train(0, 6) for seed in (1, 1, 2))
    assert first.lrs == second.lrs
    assert torch.equal(flat(first.model), flat(second.model))
    assert not {lrs[0] for lrs in first.lrs} & {lrs[0] for lrs in other.lrs}


@pytest.mark.parametrize("make", [PLRS, RandomWalk], ids=["plrs", "random_walk"])
def test_ranks_agree_whatever_they_see(make) -> None:
    ranks = [ControllerRun(make(), [0.1, 0.02], SchedulerConfig(total_steps=40, seed=3)) for _ in range(2)]
    torch.manual_seed(0)
    left = [ranks[0].advance({}).lr for _ in range(40)]
    torch.manual_seed(99)  # ranks differ in everything but the controller's seed
    assert [ranks[1].advance({}).lr for _ in range(40)] == left


@pytest.mark.parametrize("make", [PLRS, lambda: RandomWalk(span=0.3)], ids=["plrs", "random_walk"])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_resumed_run_equals_one_that_was_never_stopped(make, stop, tmp_path) -> None:
    settings = {"seed": 2, "total_steps": 10, "every": 2}
    whole = Run(make(), **settings).train(0, 10)
    half = Run(make(), **settings).train(0, stop)
    parts = {"model": half.model, "optimizer": half.optimizer, "scheduler": half.scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "checkpoint.pt")
    resumed = Run(make(), **settings)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.scheduler.load_state_dict(saved["scheduler"])
    resumed.train(stop, 10)
    assert half.lrs + resumed.lrs == whole.lrs
    assert torch.equal(flat(resumed.model), flat(whole.model))


# --- a strict saddle, the setting of theorem 2 ---


_VARIANCES = (0.0, *[saddle.PAPER.variance] * 2, *[saddle.WIDEST.variance] * 2)


@pytest.mark.parametrize(("name", "variance"), [*zip(saddle.RATES, _VARIANCES, strict=True)])
def test_near_a_saddle_runs_spread_as_the_rate_s_first_two_moments_say(name, variance) -> None:
    # y <- (1 + eta) y - eta Q, independent: E y^2 <- E (1 + eta)^2 E y^2 + E eta^2 sigma^2
    l_max, sigma, runs, steps = 0.4, 1e-6, 20_000, 8  # so near that y^3 is nothing
    mean, square, exact = l_max * 0.85, l_max**2 * variance, 0.0
    noise, factors = torch.Generator().manual_seed(5), saddle.RATES[name](runs, 6)
    w = torch.zeros(runs, 2, dtype=F64)
    for _ in range(steps):
        gradient = saddle.slope(w) + sigma * torch.randn(runs, 2, generator=noise, dtype=F64)
        w = w - l_max * next(factors)[:, None] * gradient
        exact = ((1 + mean) ** 2 + square) * exact + (mean**2 + square) * sigma**2
    found = w[:, 1].square()
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(runs)


def test_the_gradient_at_a_saddle_is_that_of_its_function() -> None:
    w = torch.tensor([[0.3, -0.7]], dtype=F64, requires_grad=True)
    x, y = w.unbind(1)
    ((x**2 - y**2) / 2 + y**4 / 4).sum().backward()
    torch.testing.assert_close(saddle.slope(w.detach()), w.grad)


def test_random_rates_leave_a_saddle_no_sooner_than_their_mean_but_where_they_are_wide_and_small() -> None:
    """A thousand runs each; none of the differences is as large as a twentieth of the time."""

    def gap(name: str, l_max: float) -> tuple[float, float, float]:
        still, mine = (saddle.leave(saddle.RATES[rate], l_max) for rate in ("constant", name))
        found = mean_interval((mine - still).tolist())
        assert abs(found.value) < 0.05 * float(still.mean())
        return found.low, found.value, found.high

    for name in ("uniform, the paper's width", "Gaussian of that variance"):
        low, _, high = gap(name, 0.2)
        assert low < 0 < high and high - low < 0.5  # of 38 updates
    assert gap("uniform, the widest", 0.05)[2] < 0  # its kicks are larger, and time is long
    assert gap("uniform, the widest", 0.4)[0] > 0  # its growth is slower, by Jensen's inequality
    assert gap("Gaussian of the widest's variance", 0.4)[0] > 0


def test_without_gradient_noise_no_random_rate_leaves_a_saddle() -> None:
    for name in saddle.RATES:
        assert saddle.leave(saddle.RATES[name], 0.4, sigma=0.0, runs=10, limit=200).isnan().all()


def test_the_saddle_study_s_rows_are_the_section_s_numbers(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(saddle, "L_MAX", (0.4,))
    monkeypatch.setattr(saddle, "LIMIT", 100)
    assert saddle.section(tmp_path) == ""
    assert saddle.main(["--output-dir", str(tmp_path)]) == 0
    header, *rows, quiet = read_rows(tmp_path / saddle.NAME)
    assert header["sigma"] == saddle.SIGMA and quiet["left"] == 0
    assert [row["rate"] for row in rows] == [*saddle.RATES]
    first = rows[0]
    line = f"| 0.4 | constant | 1,000 of 1,000 | {first['updates']:.1f} ± {first['half_width']:.1f} | - |"
    assert line in saddle.section(tmp_path)


# --- the random walk ---


def test_three_moves_by_hand() -> None:
    generator, lr, expected = torch.Generator().manual_seed(7), torch.tensor(0.1, dtype=F64), []
    for _ in range(3):
        lr = 0.1 * (lr / 0.1 * (0.2 * torch.randn((), generator=generator, dtype=F64)).exp())
        expected.append(float(lr))
    controlled = ControllerRun(RandomWalk(step=0.2), [0.1], SchedulerConfig(seed=7))
    assert [controlled.advance({}).lr[0] for _ in range(3)] == expected


def test_it_decides_twenty_times_a_run() -> None:
    controlled = ControllerRun(RandomWalk(), [0.1, 0.4], SchedulerConfig(total_steps=100))
    decisions = [controlled.advance({}) for _ in range(100)]
    assert [d.step for d in decisions if d.reason == "decision"] == list(range(0, 100, 5))
    assert len({d.lr for d in decisions}) == 20
    assert all(d.lr[1] == pytest.approx(4 * d.lr[0], rel=1e-15) for d in decisions)


def _walk(controller: RandomWalk, moves: int, runs: int) -> torch.Tensor:
    """Log factors after each move, of shape (moves, runs)."""
    state, lr, out = controller.init((runs,)), torch.full((runs,), 0.1, dtype=F64), []
    for _ in range(moves):
        factor, state = controller.decide(_observation(lr, torch.full((runs,), 0.1, dtype=F64)), state)
        lr = 0.1 * factor
        out.append(factor.log())
    return torch.stack(out)


def test_moves_of_the_log_rate_are_normal_and_independent() -> None:
    runs = 4000
    logs = _walk(RandomWalk(step=0.1), 20, runs)
    assert abs(logs[-1].mean()) < 4 * 0.1 * math.sqrt(20 / runs)
    assert float(logs[-1].std()) == pytest.approx(0.1 * math.sqrt(20), rel=4 / math.sqrt(2 * runs))
    moves = logs.diff(dim=0)
    assert abs((moves[1:] * moves[:-1]).mean()) < 4 * 0.01 / math.sqrt(moves[1:].numel())
    assert _walk(RandomWalk(step=0.0), 3, 5).abs().max() == 0


def test_the_walk_is_reflected_at_its_span() -> None:
    span, start = 0.5, 0.45
    state = RandomWalk(step=0.4).init((200,), seed=3)
    lr = torch.full((200,), math.exp(start), dtype=F64)
    free, _ = RandomWalk(step=0.4).decide(_observation(lr, torch.ones(200)), state)
    kept, _ = RandomWalk(step=0.4, span=span).decide(_observation(lr, torch.ones(200)), state)

    def mirrored(x: float) -> float:
        while abs(x) > span:
            x = math.copysign(2 * span, x) - x
        return x

    assert kept.log().tolist() == pytest.approx([mirrored(x) for x in free.log().tolist()], abs=1e-12)
    assert bool((free.log() > span).any()) and bool((free.log() < span).any())


def test_a_reflected_walk_fills_its_span_evenly() -> None:
    logs = _walk(RandomWalk(step=0.3, span=0.5), 60, 2000)
    assert logs.abs().max() <= 0.5 + 1e-12
    end = logs[-1]  # by then every run has forgotten where it began: uniform on [-0.5, 0.5]
    assert abs(end.mean()) < 4 * math.sqrt(1 / 12 / 2000)
    assert float(end.std()) == pytest.approx(math.sqrt(1 / 12), rel=0.06)


def test_bounds_of_the_scheduler_leave_no_memory() -> None:
    controlled = ControllerRun(RandomWalk(step=0.5), [1.0], SchedulerConfig(seed=0, max_lr=1.0))
    generator, lr, at_bound = torch.Generator().manual_seed(0), 1.0, 0
    for _ in range(50):
        lr = min(1.0, lr * math.exp(0.5 * float(torch.randn((), generator=generator, dtype=F64))))
        at_bound += lr == 1.0
        assert controlled.advance({}).lr[0] == pytest.approx(lr, rel=1e-12)
    assert 0 < at_bound < 50
