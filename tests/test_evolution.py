"""Evolution strategies: pairs share their run, training repeats and resumes bit for bit, and it learns."""

from __future__ import annotations

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState, GradientState

from hf_adaptive_lr.controllers.constant import Constant
from hf_adaptive_lr.controllers.gru import GRUController
from hf_adaptive_lr.meta.episode import Episode, play_through
from hf_adaptive_lr.meta.evolution import EvolutionConfig, EvolutionTrainer, Paired, shaped
from hf_adaptive_lr.meta.inner import InnerOptimizer
from hf_adaptive_lr.meta.problem import Problem
from hf_adaptive_lr.meta.suites import SUITES
from hf_adaptive_lr.meta.tasks.base import TaskSpec


def _controller(hidden: int = 8) -> GRUController:
    return GRUController(hidden_size=hidden, params=GRUController.random_params(hidden_size=hidden, seed=0))


def _problems(iteration: int, *, runs: int = 6, first_seed: int = 0) -> list[Problem]:
    seed = first_seed + 10 * iteration
    slow = Problem(TaskSpec("quadratic", runs, seed, {"dims": 8}), total_steps=20)
    adam = InnerOptimizer("adamw", weight_decay=0.01, max_grad_norm=1.0)
    return [slow, Problem(TaskSpec("quadratic", runs, seed + 1, {"dims": 5}), adam, total_steps=7)]


def _equal(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("index", [0, 1])
def test_both_members_of_a_pair_see_the_same_run(index) -> None:
    problem = _problems(3)[index]
    run = Paired.start(problem)
    assert run.task.runs == 12 and torch.equal(run.base_lr[:6], run.base_lr[6:])
    alone = problem.start()
    for _ in range(problem.total_steps):
        # Other rows of a batch, and batches of other sizes, may be summed in other orders: some eps of float32 each,
        # a hundred (1e-5) after twenty updates, and ten times that is allowed. Other noise would move all by a tenth.
        for values in (run.weights, run.loss, run.grad_norm, run.evaluate("outer_valid"), run.gain_ratio):
            torch.testing.assert_close(*values.chunk(2), rtol=1e-4, atol=1e-4)
        # And it is the run that everybody else plays.
        torch.testing.assert_close(run.weights[:6], alone.weights, rtol=1e-4, atol=1e-4)
        outer = run.evaluate("outer_valid")[:6]
        torch.testing.assert_close(outer, alone.evaluate("outer_valid"), rtol=1e-4, atol=1e-4)
        run.advance(run.base_lr, 1)
        alone.advance(alone.base_lr, 1)
    assert not torch.allclose(run.weights[0], run.weights[1], rtol=1e-2, atol=1e-2)


def test_each_run_decides_with_its_own_weights() -> None:
    controller, problem = _controller(), _problems(0)[0]
    noise = {k: torch.randn(6, *v.shape) for k, v in controller.params.items()}
    params = {k: v + torch.cat([noise[k], -noise[k]]) for k, v in controller.params.items()}
    together = play_through(controller, Episode(Paired.start(problem), 5), params)
    for member in (2, 8):
        alone = controller.replace(params={k: v[member] for k, v in params.items()})
        mine = play_through(alone, Episode(Paired.start(problem), 5))[member]
        # One batched product per run against one matrix product for all: the order of the sums differs.
        torch.testing.assert_close(together[member], mine, rtol=1e-4, atol=1e-4)


def test_shaping_is_odd_and_bounded() -> None:
    differences = torch.tensor([3.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    for shape in ("rank", "scale"):
        assert torch.equal(shaped(-differences, shape), -shaped(differences, shape))
    assert shaped(differences, "rank").tolist() == [1.0, -0.75, 0.0, 0.5]
    assert torch.isfinite(shaped(torch.zeros(3), "scale")).all()


def test_the_step_follows_the_estimate() -> None:
    # Every pair on one problem where a larger bias is better: the bias goes up, by Adam's first step.
    controller = GRUController(hidden_size=4, params={k: 0 * v for k, v in _controller(4).params.items()})
    problem = Problem(TaskSpec("quadratic", 64, 0, {"dims": 4}), total_steps=10, low_lr=1e-4, high_lr=1e-3)
    trainer = EvolutionTrainer(controller, EvolutionConfig(decisions=5, lr=0.01))
    figures = trainer.iterate([problem], 0)
    assert trainer.controller().params["head_bias"].item() == pytest.approx(0.01, rel=1e-4)
    assert figures["inner_steps"] == 2 * 64 * 10 and figures["diverged"] == 0 and figures["return"] > 0


def _play(trainer: EvolutionTrainer, first: int, last: int) -> EvolutionTrainer:
    for iteration in range(first, last):
        trainer.iterate(_problems(iteration), iteration)
    return trainer


@pytest.mark.parametrize("shape", ["rank", "scale"])
def test_same_seed_same_weights_and_exact_resume(shape, tmp_path) -> None:
    config = EvolutionConfig(decisions=5, decay_over=6, shape=shape)
    whole = _play(EvolutionTrainer(_controller(), config, seed=1), 0, 6)
    again = _play(EvolutionTrainer(_controller(), config, seed=1), 0, 6)
    other = _play(EvolutionTrainer(_controller(), config, seed=2), 0, 6)
    assert _equal(whole.controller().params, again.controller().params)
    assert not _equal(whole.controller().params, other.controller().params)

    half = _play(EvolutionTrainer(_controller(), config, seed=1), 0, 3)
    torch.save(half.state_dict(), tmp_path / "state.pt")
    kept = half.state_dict()
    _play(half, 3, 6)  # going on does not change what was handed out
    assert not _equal(kept["weights"], half.state_dict()["weights"])
    for state in (kept, torch.load(tmp_path / "state.pt", weights_only=True)):
        resumed = EvolutionTrainer(_controller(), config, seed=1)
        resumed.load_state_dict(state)
        assert _equal(_play(resumed, 3, 6).controller().params, whole.controller().params)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="Constant has no weights to train"):
        EvolutionTrainer(Constant())
    with pytest.raises(ValueError, match="above 0"):
        EvolutionConfig(sigma=0.0)
    with pytest.raises(ValueError, match="another controller"):
        EvolutionTrainer(_controller()).load_state_dict(EvolutionTrainer(_controller(4)).state_dict())


def test_it_learns_on_quadratics() -> None:
    suite = SUITES["quadratic"]
    (held_out,) = suite.problems("valid", 0, 100)

    def log_final_over_start(controller) -> float:
        episode = Episode(held_out.start(), 20)
        return float((play_through(controller, episode) - episode.start).mean())

    trainer = EvolutionTrainer(_controller(16), EvolutionConfig(decay_over=80))
    seen = [trainer.iterate(suite.problems("train", i, 64), i)["return"] for i in range(80)]
    trained = trainer.controller()
    assert sum(seen[-10:]) > sum(seen[:10])
    # Measured with three seeds: the geometric mean of final over start falls by a factor of 10 to 13.
    assert log_final_over_start(trained) < log_final_over_start(_controller(16)) - 2.0


def _on_a_rank(folder: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index
    trainer = EvolutionTrainer(_controller(), EvolutionConfig(decisions=5, shape="scale"), seed=1)
    for iteration in range(3):
        trainer.iterate(_problems(iteration, first_seed=1000 * rank), iteration)
    seed = _problems(0, first_seed=1000 * rank)[0].task.seed
    torch.save({"state": trainer.state_dict(), "seed": seed}, f"{folder}/{rank}.pt")


def test_two_processes_end_with_equal_weights(tmp_path) -> None:
    debug_launcher(_on_a_rank, args=(str(tmp_path),), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["seed"] != second["seed"]
    assert _equal(first["state"]["weights"], second["state"]["weights"])
    alone = EvolutionTrainer(_controller(), EvolutionConfig(decisions=5, shape="scale"), seed=1)
    assert not _equal(_play(alone, 0, 3).state_dict()["weights"], first["state"]["weights"])
