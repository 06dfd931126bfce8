"""The trust region of relative updates: where it begins, what lets it grow, what makes it shrink."""

from __future__ import annotations

import math

import pytest
import torch

from hf_adaptive_lr.controllers import TrustRegion
from hf_adaptive_lr.observation import Observation

TOTAL, EVERY = 200, 10


def run(
    losses, gains, *, pretrained: float = 1.0, total: int | None = TOTAL, error: float = 0.01, **config
) -> list[float]:
    """Radii after decisions at which the mean loss and the gain ratio were these."""
    controller = TrustRegion(**config)
    state, radii = controller.init(), []
    for k, (loss, gain) in enumerate(zip(losses, gains, strict=True)):
        lr = torch.tensor(1e-4, dtype=torch.float64)
        fields = {
            "mean_loss": loss,
            "mean_loss_error": error if k else 0.0,
            "gain_ratio": gain,
            "pretrained": pretrained,
            "usual_lr": 0.0,
        }
        obs = Observation(
            step=k * EVERY,
            total_steps=total,
            lr=lr,
            base_lr=lr,
            last_lr=lr,
            update_ratio=torch.tensor(1e-4 if k else 0.0, dtype=torch.float64),
            **{name: torch.tensor(value, dtype=torch.float64) for name, value in fields.items()},
        )
        answer, state = controller.decide(obs, state)
        radii.append(float(state["radius"].exp()))
        if k and total is not None:  # one measured update: a rate of 1 moves the weights by all they are
            assert float(answer) == pytest.approx(radii[-1] * (1 - k * EVERY / total), rel=1e-9)
    return radii


def test_it_begins_by_what_the_weights_look_like_and_by_the_length() -> None:
    assert run([1.0], [1.0], pretrained=1.0) == pytest.approx([0.001])
    assert run([1.0], [1.0], pretrained=0.0) == pytest.approx([0.016])
    assert run([1.0], [1.0], pretrained=0.0, total=800) == pytest.approx([0.008])
    assert run([1.0], [1.0], pretrained=0.0, total=50) == pytest.approx([0.032])
    assert run([1.0], [1.0], pretrained=1.0, total=50) == pytest.approx([0.002])
    assert run([1.0], [1.0], pretrained=0.0, total=None) == pytest.approx([0.016 / 10**0.5])


def test_a_falling_loss_on_a_straight_line_lets_pretrained_weights_move_farther() -> None:
    falling = [1.0 - 0.05 * k for k in range(12)]
    radii = run(falling, [0.99] * 12)
    assert radii[0] == pytest.approx(0.001) and radii[-1] == pytest.approx(0.004)  # `most` is the end
    assert all(later >= earlier for earlier, later in zip(radii, radii[1:], strict=False))
    assert run(falling, [0.99] * 12, pretrained=0.0) == pytest.approx([0.016] * 12)


@pytest.mark.parametrize(
    ("losses", "gains"),
    [
        ([1.0] * 12, [0.99] * 12),  # a flat loss
        ([1.0 - 0.05 * k for k in range(12)], [0.8] * 12),  # a bent one
        ([1.0 - 0.05 * k for k in range(12)], [1.0] * 12),  # a gain ratio that was not measured
    ],
)
def test_without_evidence_nothing_grows(losses, gains) -> None:
    assert run(losses, gains) == pytest.approx([0.001] * 12)


def test_late_in_the_run_nothing_grows() -> None:
    losses = [1.0] * 12 + [1.0 - 0.05 * k for k in range(8)]
    assert max(run(losses, [0.99] * 20)) == pytest.approx(0.001)


def test_it_shrinks_where_the_step_overshoots_and_never_grows_beyond_that() -> None:
    falling = [1.0 - 0.05 * k for k in range(6)]
    radii = run(
        [*falling, *([0.75] * 4), *(0.75 - 0.05 * k for k in range(1, 6))],
        [0.99] * 6 + [-0.5] * 4 + [1.5] * 5,
        until=1.0,
    )
    peak, low = max(radii), min(radii[6:])
    assert peak > 0.0014 and low < 0.7 * peak
    assert radii[-1] == pytest.approx(low)


@pytest.mark.parametrize("pretrained", [0.0, 1.0])
def test_a_loss_that_rises_beyond_its_scatter_shrinks_it_unless_the_loss_is_a_straight_line(pretrained) -> None:
    rising = [1.0, 1.0, 1.0, 1.2, 1.4]
    first = run([1.0], [1.0], pretrained=pretrained)[0]
    assert run(rising, [0.5] * 5, pretrained=pretrained)[-1] < 0.5 * first
    assert run(rising, [1.5] * 5, pretrained=pretrained)[-1] == pytest.approx(first)  # harder batches, no step too far


def test_one_batch_that_says_the_contrary_changes_nothing() -> None:
    radii = run([1.0] * 6, [0.9, 0.9, 0.9, -40.0, 0.9, 0.9])
    assert radii == pytest.approx([0.001] * 6)


@pytest.mark.parametrize(
    "config",
    [
        {"fresh": 0.0},
        {"pretrained": 2.0},
        {"growth": 0.5},
        {"until": 1.5},
        {"usual": -0.1},
        {"most": 0.5},
        {"high": math.nan},
        {"low": 0.95},
    ],
)
def test_settings_out_of_range_are_refused(config) -> None:
    (name,) = config
    with pytest.raises(ValueError, match=name):
        TrustRegion(**config)


def test_decisions_are_ten_a_run_and_four_updates_apart_or_more_and_denser_at_the_start() -> None:
    controller = TrustRegion()
    for total in (1, 7, 30, 60, 200, 10_000):
        due = [t for t in range(total) if controller.due(t, total)]
        even = [t for t in due if t >= total // max(1, min(10, total // 4))]
        assert len(even) <= 10 and all(b - a >= 4 for a, b in zip(even, even[1:], strict=False))
        assert due[0] == 0
    assert [t for t in range(200) if controller.due(t, 200)] == [0, 1, 3, 9, *range(20, 200, 20)]
    assert [t for t in range(10_000) if controller.due(t, 10_000)][:8] == [0, 1, 3, 9, 27, 81, 243, 729]


def test_a_model_from_scratch_has_the_geometric_mean_of_its_rate_and_the_usual_one() -> None:
    def rates(share: float, rate: float, **config) -> list[float]:
        controller, answers = TrustRegion(**config), []
        state = controller.init()
        for step in (0, 20):
            ratio = 1e-4 if step else 0.0
            answer, state = controller.decide(observed(1.0, share, step=step, ratio=ratio, usual=rate), state)
            answers.append(float(answer))
        return answers

    alone = rates(0.0, 0.0)
    assert alone == pytest.approx([1e-7, 0.016 * 0.9])  # one measured update: a rate of 1 moves them by all they are
    assert rates(0.0, 0.001, usual=0.5) == pytest.approx([1e-7, (0.016 * 0.001) ** 0.5 * 0.9])
    assert rates(0.0, 0.001) == pytest.approx([1e-7, 0.016**0.4 * 0.001**0.6 * 0.9])
    assert rates(0.0, 0.001, usual=0.0) == alone
    assert rates(1.0, 0.001) == rates(1.0, 0.0)  # nothing is usual for pretrained weights


def test_a_window_without_scatter_decides_nothing() -> None:
    assert run([1.0 - 0.05 * k for k in range(12)], [0.99] * 12, error=0.0) == pytest.approx([0.001] * 12)


def test_no_update_is_longer_than_the_weights() -> None:
    assert run([1.0], [1.0], pretrained=0.0, total=1, fresh=1.0)[0] == 1.0  # never farther than the weights are long


def observed(
    loss: float, share: float, *, step: int, total: int = TOTAL, ratio: float = 1e-4, usual: float = 0.0
) -> Observation:
    """A decision of a run at a rate of 1e-4."""
    lr = torch.tensor(1e-4, dtype=torch.float64)
    fields = {
        "mean_loss": loss,
        "mean_loss_error": 0.01,
        "gain_ratio": 0.5,
        "pretrained": share,
        "update_ratio": ratio,
        "usual_lr": usual,
    }
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in fields.items()}
    return Observation(step=step, total_steps=total, lr=lr, base_lr=lr, last_lr=lr, **tensors)


def test_pretrained_weights_that_are_unfrozen_later_are_moved_like_pretrained_ones() -> None:
    controller = TrustRegion()
    _, state = controller.decide(observed(1.0, 0.0, step=0), controller.init())
    assert float(state["radius"].exp()) == pytest.approx(0.016)
    _, state = controller.decide(observed(1.0, 0.9, step=10), state)
    assert float(state["radius"].exp()) == pytest.approx(0.001)
    _, state = controller.decide(observed(1.0, 0.0, step=20), state)  # frozen again: nothing is raised
    assert float(state["radius"].exp()) == pytest.approx(0.001)


def test_a_run_that_is_made_longer_has_a_longer_runs_radius() -> None:
    controller = TrustRegion()
    _, state = controller.decide(observed(1.0, 0.0, step=0, total=50), controller.init())
    assert float(state["radius"].exp()) == pytest.approx(0.032)
    _, state = controller.decide(observed(1.0, 0.0, step=10, total=800), state)
    assert float(state["radius"].exp()) == pytest.approx(0.008)


def test_the_rate_is_bounded_where_gradients_vanish() -> None:
    controller = TrustRegion()
    answer, state = controller.decide(observed(1.0, 0.0, step=1), controller.init())
    for step in range(10, 60, 10):
        last, state = controller.decide(observed(1.0, 0.0, step=step, ratio=1e-12), state)
    assert 20 * float(answer) < float(last) <= 32 * float(answer)


def test_who_knows_better_says_what_the_weights_are() -> None:
    for start, share, radius in (("pretrained", 0.0, 0.001), ("fresh", 1.0, 0.016)):
        controller = TrustRegion(start=start)
        _, state = controller.decide(observed(1.0, share, step=0), controller.init())
        assert float(state["radius"].exp()) == pytest.approx(radius)
    with pytest.raises(ValueError, match="start='new' must be 'auto', 'pretrained' or 'fresh'"):
        TrustRegion(start="new")
