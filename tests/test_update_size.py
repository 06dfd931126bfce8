"""Updates of a known size: where they begin and how they fall, what bounds and raises them, what is not looked at."""

from __future__ import annotations

import math

import pytest
import torch

from hf_adaptive_lr import ControlledLR
from hf_adaptive_lr.controllers import UpdateSize
from hf_adaptive_lr.observation import Observation

TOTAL = 200


def observed(
    share: float,
    *,
    step: int = 20,
    total: int | None = TOTAL,
    ratio: float = 1e-4,
    usual: float = 0.0,
    alignment: float = 0.0,
    ramp: float = 1.0,
) -> Observation:
    """A decision of a run at a rate of 1e-4, whose last update moved the weights by `ratio`."""
    lr = torch.tensor(1e-4, dtype=torch.float64)
    fields = {"pretrained": share, "update_ratio": ratio * ramp if step else 0.0, "usual_lr": usual}
    tensors = {
        name: torch.tensor(value, dtype=torch.float64) for name, value in {**fields, "alignment": alignment}.items()
    }
    return Observation(step=step, total_steps=total, lr=lr, base_lr=lr, last_lr=lr * ramp, **tensors)


def size(share: float, total: int | None = TOTAL, **config) -> float:
    """The relative update at the start: a rate of 1 moves the weights by all they are."""
    controller = UpdateSize(**config)
    answer, _ = controller.decide(observed(share, step=1, total=total), controller.init())
    return float(answer) / (1 if total is None else 1 - 1 / total)


def test_it_begins_by_what_the_weights_look_like_and_by_the_length() -> None:
    assert size(1.0) == pytest.approx(0.0012)
    assert size(0.0) == pytest.approx(0.016) and size(0.09) == pytest.approx(0.016)
    assert size(0.0, 3200) == pytest.approx(0.008) and size(0.0, 50) == pytest.approx(0.016 * 2**0.5)
    assert size(1.0, 50, length_power=0.5) == pytest.approx(0.0024)
    assert size(1.0, 50, length_power=0.0) == pytest.approx(0.0012)
    assert size(0.0, None) == pytest.approx(0.016 / 10**0.25)
    assert size(0.0, 2, fresh=1.0) == pytest.approx(1.0)  # never farther than the weights are long


def test_the_first_update_measures_and_the_rate_then_falls_along_a_line() -> None:
    controller = UpdateSize()
    answer, state = controller.decide(observed(1.0, step=0), controller.init())
    assert float(answer) == 1e-7
    for step in (20, 100, 199):
        answer, state = controller.decide(observed(1.0, step=step), state)
        assert float(answer) == pytest.approx(0.0012 * (1 - step / TOTAL))


def test_a_model_from_scratch_has_the_geometric_mean_of_its_rate_and_the_usual_one() -> None:
    def rates(share: float, rate: float, **config) -> list[float]:
        controller, answers = UpdateSize(**config), []
        state = controller.init()
        for step in (0, 20):
            answer, state = controller.decide(observed(share, step=step, usual=rate), state)
            answers.append(float(answer))
        return answers

    alone = rates(0.0, 0.0)
    assert alone == pytest.approx([1e-7, 0.016 * 0.9])
    assert rates(0.0, 0.001, usual=0.5) == pytest.approx([1e-7, (0.016 * 0.001) ** 0.5 * 0.9])
    assert rates(0.0, 0.001) == pytest.approx([1e-7, 0.016**0.4 * 0.001**0.6 * 0.9])
    assert rates(0.0, 0.001, usual=0.0) == alone
    assert rates(1.0, 0.001) == rates(1.0, 0.0)  # nothing is usual for pretrained weights


def test_pretrained_weights_that_are_unfrozen_later_are_moved_like_pretrained_ones() -> None:
    controller, answers = UpdateSize(length_power=0.0), []
    state = controller.init()
    for step, share in ((10, 0.0), (20, 0.9), (30, 0.0)):  # then frozen again: nothing is raised
        answer, state = controller.decide(observed(share, step=step), state)
        answers.append(float(answer) / (1 - step / TOTAL))
    assert answers == pytest.approx([0.016, 0.0012, 0.0012])


def test_a_run_that_is_made_longer_has_a_longer_runs_size() -> None:
    controller = UpdateSize()
    first, state = controller.decide(observed(0.0, step=10, total=50), controller.init())
    later, _ = controller.decide(observed(0.0, step=10, total=3200), state)
    assert float(first) == pytest.approx(0.016 * 2**0.5 * 0.8)
    assert float(later) == pytest.approx(0.008 * (1 - 10 / 3200))


def test_the_rate_is_bounded_where_gradients_vanish() -> None:
    controller = UpdateSize()
    answer, state = controller.decide(observed(0.0, step=1), controller.init())
    for step in range(10, 60, 10):
        last, state = controller.decide(observed(0.0, step=step, ratio=1e-12), state)
    assert 20 * float(answer) < float(last) <= 32 * float(answer)


def test_runs_side_by_side_are_decided_as_alone() -> None:
    both = Observation(
        step=20,
        total_steps=TOTAL,
        lr=torch.full((2,), 1e-4, dtype=torch.float64),
        base_lr=torch.full((2,), 1e-4, dtype=torch.float64),
        pretrained=torch.tensor([0.0, 1.0], dtype=torch.float64),
        update_ratio=torch.tensor([1e-3, 1e-4], dtype=torch.float64),
        usual_lr=torch.tensor([0.001, 0.001], dtype=torch.float64),
        alignment=torch.tensor([0.3, -0.1], dtype=torch.float64),
    )
    controller = UpdateSize()

    def answers(obs: Observation, shape: tuple[int, ...]) -> torch.Tensor:
        state = controller.init(shape)
        for _ in range(6):
            answer, state = controller.decide(obs, state)
        return answer

    alone = [
        float(answers(observed(share, ratio=ratio, usual=0.001, alignment=alignment), ()))
        for share, ratio, alignment in ((0.0, 1e-3, 0.3), (1.0, 1e-4, -0.1))
    ]
    assert answers(both, (2,)).tolist() == pytest.approx(alone, rel=1e-12)


def raises(alignments: list[float], ramps: list[float] | None = None, **config) -> list[float]:
    """How many times the answer without feedback every answer is."""
    with_it, without = UpdateSize(**config), UpdateSize(gain=0.0)
    states, factors = [with_it.init(), without.init()], []
    for step, alignment in enumerate(alignments, 10):
        ramp = ramps[step - 10] if ramps else 1.0
        obs = observed(1.0, step=step, alignment=alignment, ramp=ramp)
        answer, states[0] = with_it.decide(obs, states[0])
        plain, states[1] = without.decide(obs, states[1])
        factors.append(float(answer / plain))
    return factors


def test_the_rate_is_raised_while_gradients_point_along_the_updates() -> None:
    found = raises([0.07] * 9)
    # The first update is not known well; then every fourth reading moves: exp(gain * readings * (mean - dead zone)).
    move = math.exp(3.0 * 4 * (0.07 - 0.02))
    assert found == pytest.approx([1.0] * 4 + [move] * 4 + [move**2])
    assert raises([0.9] * 5)[-1] == pytest.approx(2.0)  # one move at most
    assert raises([0.9] * 60)[-1] == pytest.approx(32.0)  # all of them
    assert raises([0.07] * 9, gain=0.0) == [1.0] * 9


def test_noise_and_small_signs_of_too_long_updates_move_nothing() -> None:
    assert raises([0.3, -0.2, 0.1, -0.25] * 5) == [1.0] * 20  # less than a standard error above the dead zone
    assert raises([0.015] * 20) == [1.0] * 20
    raised = raises([0.1] * 5 + [-0.04] * 20)
    assert raised[-1] == raised[4] > 1.9


def test_a_raise_is_taken_back_where_updates_overshoot_and_never_more_than_that() -> None:
    raised = raises([0.1] * 5 + [-0.08] * 4 + [-0.9] * 8)
    assert 1.0 < raised[8] < raised[4]
    assert raised[-1] == 1.0


def test_nothing_is_read_from_updates_that_were_shorter_than_answered() -> None:
    assert raises([0.5] * 12, [0.1 * k for k in range(1, 9)] + [1.0] * 4) == [1.0] * 11 + [pytest.approx(2.0)]


def test_feedback_finds_a_rate_far_above_the_first_guess() -> None:
    def loss_of(gain: float) -> float:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
        ControlledLR(optimizer, UpdateSize(gain=gain), total_steps=300)
        rows = torch.rand(256, 2) * 4 - 2
        for _ in range(300):
            optimizer.zero_grad()
            loss = (model(rows).squeeze(1) - rows.prod(1)).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_of(3.0) < 0.3 * loss_of(0.0)


@pytest.mark.parametrize(
    "config",
    [
        {"fresh": 0.0},
        {"pretrained": 2.0},
        {"pretrained": math.nan},
        {"length_power": -0.5},
        {"usual": -0.1},
        {"gain": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(config) -> None:
    (name,) = config
    with pytest.raises(ValueError, match=name):
        UpdateSize(**config)


def test_who_knows_better_says_what_the_weights_are() -> None:
    assert size(0.0, start="pretrained") == pytest.approx(0.0012)
    assert size(1.0, start="fresh") == pytest.approx(0.016)
    with pytest.raises(ValueError, match="start='new' must be 'auto', 'pretrained' or 'fresh'"):
        UpdateSize(start="new")


def test_decisions_are_forty_a_run_and_two_updates_apart_or_more_and_denser_at_the_start() -> None:
    controller = UpdateSize()
    for total in (1, 7, 30, 60, 200, 10_000):
        due = [t for t in range(total) if controller.due(t, total)]
        even = [t for t in due if t >= total // max(1, min(40, total // 2))]
        assert len(even) <= 40 and all(b - a >= 2 for a, b in zip(even, even[1:], strict=False))
        assert due[0] == 0
    assert [t for t in range(200) if controller.due(t, 200)] == [0, 1, 3, *range(5, 200, 5)]
    assert [t for t in range(10_000) if controller.due(t, 10_000)][:8] == [0, 1, 3, 9, 27, 81, 243, 250]


def test_it_asks_for_no_loss_and_no_second_forward_pass() -> None:
    torch.manual_seed(0)
    model, passes = torch.nn.Linear(8, 1), 0

    def count(*_) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_hook(count)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    scheduler = ControlledLR(optimizer, UpdateSize(), total_steps=40)  # neither a model nor a loss is handed in
    rows, losses = torch.randn(64, 8), []
    for _ in range(40):
        loss = (model(rows) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert passes == 40 and losses[-1] < losses[0] and scheduler.updates == 40
    assert 1e-6 < scheduler.get_last_lr()[0] < max(scheduler.lr_history()) < 0.1
