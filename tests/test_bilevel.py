"""Meta-gradients: equal to finite differences, the cheap form equal to autograd; training resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from hf_adaptive_lr.controller import Controller
from hf_adaptive_lr.controllers.constant import Constant
from hf_adaptive_lr.controllers.gru import GRUController
from hf_adaptive_lr.meta.bilevel import BilevelConfig, BilevelTrainer, Windows
from hf_adaptive_lr.meta.episode import Episode, play_through
from hf_adaptive_lr.meta.inner import InnerOptimizer
from hf_adaptive_lr.meta.problem import Problem
from hf_adaptive_lr.meta.suites import SUITES
from hf_adaptive_lr.meta.tasks import FAMILIES
from hf_adaptive_lr.meta.tasks.base import TaskSpec
from hf_adaptive_lr.meta.tasks.quadratic import Quadratic

OPTIMIZERS = {
    "sgd": InnerOptimizer("sgd"),
    "momentum": InnerOptimizer("sgd", momentum=0.9, weight_decay=0.1),
    "adamw": InnerOptimizer("adamw", weight_decay=0.1, max_grad_norm=1.0),
}
LOOSE = 1e9  # a bound that is never met


class DoubleQuadratic(Quadratic):
    """In float64, so that finite differences are exact to many digits."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self.curvature, self.noise, self.start = self.curvature.double(), self.noise.double(), self.start.double()


@dataclass(frozen=True, kw_only=True)
class Smooth(Controller):
    """A recurrent controller in float64 that reads every sensor."""

    controller_type = "smooth_for_tests"
    answers = "lr"
    needs = frozenset({"loss", "grad_norm", "alignment", "update_ratio", "gain_ratio"})

    def param_shapes(self):
        return {"w": (7,)}

    def init(self, batch_shape=(), *, n_groups=1, seed=0, device=None):
        return {"hidden": torch.zeros(batch_shape, dtype=torch.float64)}

    def decide(self, obs, state, params=None):
        w = (self.params if params is None else params)["w"]
        seen = [obs.loss.log(), obs.grad_norm.log(), obs.alignment, obs.update_ratio, obs.gain_ratio, state["hidden"]]
        hidden = torch.tanh(sum(w[i] * x for i, x in enumerate(seen)) + w[6])
        return obs.lr * hidden.exp(), {"hidden": hidden}


SMOOTH = Smooth(params={"w": torch.tensor([0.1, 0.2, -0.3, 0.4, 0.15, 0.5, -0.2], dtype=torch.float64)})


@pytest.fixture
def doubles(monkeypatch) -> None:
    monkeypatch.setitem(FAMILIES, "double", DoubleQuadratic)


def _problem(
    optimizer: str = "sgd", *, family: str = "double", runs: int = 3, steps: int = 12, seed: int = 0
) -> Problem:
    spec = TaskSpec(family, runs, seed, {"dims": 6})
    return Problem(spec, OPTIMIZERS[optimizer], total_steps=steps, low_lr=0.05, high_lr=0.3)


def _after(controller: Controller, problem: Problem, config: BilevelConfig, params, *, windows: int, at: int):
    """Objective and gradients of the last of `windows` windows; `at`: from which on `params` decide."""
    play = Windows(problem, controller, config)
    fixed = {k: v.clone().requires_grad_() for k, v in controller.params.items()}
    for number in range(windows):
        out = play.gradients(params if number >= at else fixed)
    return out


def _leaves(params) -> dict[str, Tensor]:
    return {k: v.detach().clone().requires_grad_() for k, v in params.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("decisions", "window", "unroll"),
    [(12, 1, 1), (4, 1, 1), (4, 1, 3), (12, 3, 1), (4, 2, 2), (4, 4, 3)],
    ids=["cheap", "cheap with rest", "one decision", "three decisions", "two decisions", "whole run"],
)
def test_gradient_equals_finite_differences(doubles, optimizer, decisions, window, unroll) -> None:
    config = BilevelConfig(decisions=decisions, window=window, unroll=unroll, limit=LOOSE)
    problem = _problem(optimizer)
    windows = 1 if window == decisions else 2  # the second starts from weights and a state with a history
    _, gradients = _after(SMOOTH, problem, config, _leaves(SMOOTH.params), windows=windows, at=windows - 1)
    w, step = SMOOTH.params["w"], 1e-5

    def objective(values: Tensor) -> float:
        return float(_after(SMOOTH, problem, config, _leaves({"w": values}), windows=windows, at=windows - 1)[0])

    eye = torch.eye(len(w), dtype=torch.float64) * step
    differences = torch.stack([torch.tensor((objective(w + e) - objective(w - e)) / (2 * step)) for e in eye])
    assert gradients["w"].abs().max() > 1e-3
    # Central differences: truncation of about step^2, rounding of about 1e-16 / step.
    torch.testing.assert_close(gradients["w"], differences.double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("limit", [LOOSE, 0.01])
def test_cheap_form_equals_the_general_one(doubles, optimizer, limit) -> None:
    problem, out = _problem(optimizer), {}
    for cheap in (True, False):
        config = BilevelConfig(decisions=12, cheap=cheap, limit=limit)
        out[cheap] = _after(SMOOTH, problem, config, _leaves(SMOOTH.params), windows=3, at=2)
    # Of float64, by other operations: the last bits are the processor's.
    torch.testing.assert_close(out[True][0], out[False][0], rtol=1e-13, atol=0.0)
    # The inner product <g, d> is summed before it meets dlr/dtheta instead of after.
    torch.testing.assert_close(out[True][1], out[False][1], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("window", "unroll", "cheap"), [(1, 1, True), (1, 1, False), (3, 2, False)])
def test_universal_in_float32_agrees_along_the_gradient(doubles, window, unroll, cheap) -> None:
    params = GRUController.random_params(hidden_size=6, seed=2)
    controller = GRUController(hidden_size=6, params={**params, "head_weight": 10 * params["head_weight"]})
    config = BilevelConfig(decisions=6, window=window, unroll=unroll, cheap=cheap, limit=LOOSE)
    problem = _problem(runs=64)

    def at(params) -> tuple[Tensor, dict[str, Tensor]]:
        return _after(controller, problem, config, _leaves(params), windows=2, at=1)

    _, gradients = at(controller.params)
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    step = 1e-2 / norm
    high, low = ({k: v + s * step * gradients[k] for k, v in controller.params.items()} for s in (1, -1))
    slope = (at(high)[0] - at(low)[0]) / (2 * step * norm)
    # Weights and features are float32, so the difference quotient has three digits.
    assert float(slope) == pytest.approx(float(norm), rel=5e-3)


def test_a_run_that_blows_up_does_not_spoil_the_others(doubles) -> None:
    problem = Problem(TaskSpec("quadratic", 16, 0), total_steps=20, low_lr=1e-3, high_lr=10.0)
    for config in (BilevelConfig(decisions=4), BilevelConfig(decisions=4, window=2, unroll=5)):
        params = GRUController.random_params(hidden_size=4, seed=0)
        play = Windows(problem, GRUController(hidden_size=4, params=params), config)
        while play.left:
            _, gradients = play.gradients(_leaves(params))
            assert all(torch.isfinite(g).all() for g in gradients.values())
        assert (play.run.evaluate("outer_valid") > 1e3).any() and (play.run.evaluate("outer_valid") < 1e3).any()


def _universal(hidden: int = 8) -> GRUController:
    return GRUController(hidden_size=hidden, params=GRUController.random_params(hidden_size=hidden, seed=0))


def _play(trainer: BilevelTrainer, first: int, last: int) -> BilevelTrainer:
    for iteration in range(first, last):
        problems = [_problem(o, family="quadratic", seed=10 * iteration + i) for i, o in enumerate(OPTIMIZERS)]
        trainer.iterate(problems, iteration)
    return trainer


@pytest.mark.parametrize("config", [BilevelConfig(decisions=5), BilevelConfig(decisions=6, window=3, unroll=2)])
def test_training_repeats_and_resumes_bit_for_bit(config, tmp_path) -> None:
    whole = _play(BilevelTrainer(_universal(), config), 0, 4).controller().params
    again = _play(BilevelTrainer(_universal(), config), 0, 4).controller().params
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    torch.save(_play(BilevelTrainer(_universal(), config), 0, 2).state_dict(), tmp_path / "state.pt")
    resumed = BilevelTrainer(_universal(), config)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed_weights = _play(resumed, 2, 4).controller().params
    assert all(torch.equal(whole[k], resumed_weights[k]) for k in whole)


def _on_a_rank(folder: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index
    trainer = BilevelTrainer(_universal(), BilevelConfig(decisions=5))
    # Horizons differ, one is shorter than the number of decisions; the collectives must match all the same.
    trainer.iterate([_problem(family="quadratic", seed=rank, steps=12 if rank else 3)], 0)
    torch.save(trainer.state_dict()["weights"], f"{folder}/{rank}.pt")


def test_two_processes_end_with_equal_weights(tmp_path) -> None:
    debug_launcher(_on_a_rank, args=(str(tmp_path),), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["head_bias"], _universal().params["head_bias"])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="Constant has no weights to train"):
        BilevelTrainer(Constant())
    with pytest.raises(ValueError, match="at least 1"):
        BilevelConfig(window=0)


def test_it_learns_on_quadratics() -> None:
    suite = SUITES["quadratic"]
    (held_out,) = suite.problems("valid", 0, 100)

    def log_final(controller) -> float:
        return float(play_through(controller, Episode(held_out.start(), 20)).mean())

    trainer = BilevelTrainer(_universal(16), BilevelConfig(unroll=10))
    for i in range(30):
        trainer.iterate(suite.problems("train", i, 32), i)
    # Measured with three seeds: 1.24 to 1.56 less than untrained.
    assert log_final(trainer.controller()) < log_final(_universal(16)) - 1.0
