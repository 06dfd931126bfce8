"""Cadence, bounds, warm-up, hold, horizon: from answers to learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hf_adaptive_lr import (
    Constant,
    ControlledLR,
    Controller,
    Cosine,
    Envelope,
    Linear,
    Observation,
    Plateau,
    Replay,
    WarmupStableDecay,
)
from hf_adaptive_lr.controllers import CONTROLLERS
from hf_adaptive_lr.scheduler.config import SchedulerConfig
from hf_adaptive_lr.scheduler.runtime import ControllerRun
from tests.controllers_for_tests import LossOnly, Recurrent
from tests.tiny import batches, mlp


@dataclass(frozen=True, kw_only=True)
class Says(Controller):
    """Answers what it is told to."""

    controller_type = "says"
    answer: tuple[float, ...] = (1.0,)

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        values = torch.tensor(self.answer, dtype=torch.float64)
        return (values[0] if len(values) == 1 else values), state


@dataclass(frozen=True, kw_only=True)
class SaysLR(Says):
    """The same as a learning rate."""

    controller_type = "says_lr"
    answers = "lr"


def _lrs(controller: Controller, base: list[float], steps: int = 1, **settings) -> list[tuple[float, ...]]:
    controlled = ControllerRun(controller, base, SchedulerConfig(**settings))
    return [controlled.advance({}).lr for _ in range(steps)]


@dataclass(frozen=True, kw_only=True)
class Falling(SaysLR):
    """The same at every fourth update, and a straight line in between."""

    controller_type = "falling"
    linear_between = True

    def due(self, update: int, total_steps: int | None) -> bool | None:
        return update % 4 == 0


# --- bounds
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("controller", "base", "settings", "expected"),
    [
        (Says(answer=(0.5,)), [1.0, 3.0], {}, (0.5, 1.5)),
        (Says(answer=(9.0,)), [1.0, 3.0], {"max_factor": 2.0}, (2.0, 6.0)),
        (Says(answer=(0.1,)), [1.0, 3.0], {"min_factor": 0.5}, (0.5, 1.5)),
        (Says(answer=(0.0,)), [1.0, 3.0], {}, (1e-8, 3e-8)),
        (Says(answer=(1e9,)), [1.0, 3.0], {}, (10.0, 30.0)),
        (Says(answer=(1e9,)), [0.0, 2.0], {}, (0.0, 10.0)),
        (Says(answer=(1e9, 0.5)), [1.0, 3.0], {}, (10.0, 1.5)),
        (Says(answer=(0.5, 0.5)), [0.0, 3.0], {}, (0.0, 1.5)),
        (SaysLR(answer=(0.5,)), [1.0, 3.0], {}, (0.5, 1.5)),
        (SaysLR(answer=(99.0,)), [1.0, 3.0], {"max_lr": 2.0}, (2.0, 6.0)),
        (SaysLR(answer=(0.5, 0.25)), [1.0, 3.0], {}, (0.5, 0.25)),
        (SaysLR(answer=(0.0,)), [1.0, 0.0], {}, (1e-8, 0.0)),
    ],
)
def test_answers_are_bounded_and_groups_keep_their_ratio(controller, base, settings, expected) -> None:
    assert _lrs(controller, base, **settings)[0] == pytest.approx(expected)


def test_the_trace_says_what_was_proposed_bounded_and_applied() -> None:
    controlled = ControllerRun(Says(answer=(50.0,)), [1.0], SchedulerConfig(warmup_steps=4))
    row = controlled.advance({}).as_dict()
    assert row == {
        "step": 0,
        "lr": 2.5,
        "reason": "bounded",
        "ramp": 0.25,
        "proposed": 50.0,
        "bounded": 10.0,
        "detail": "lr bound",
    }


def test_bounds_leave_no_memory() -> None:
    """A factor that was cut off must not go on growing unseen and delay the way down."""
    from hf_adaptive_lr import Hypergradient

    controlled = ControllerRun(Hypergradient(beta=0.5), [1.0], SchedulerConfig(max_factor=2.0))
    up = [controlled.advance({"alignment": 1.0}).lr[0] for _ in range(20)]
    assert up[-1] == 2.0
    assert controlled.advance({"alignment": -1.0}).lr[0] == 1.0


# --- cadence and ramps
# ----------------------------------------------------------------------------------------------------


def test_cadence() -> None:
    assert [lr[0] for lr in _lrs(Linear(), [1.0], 6, total_steps=6, every=3)] == pytest.approx([1.0] * 3 + [0.5] * 3)
    controlled = ControllerRun(Linear(), [1.0], SchedulerConfig(total_steps=10, decisions=4))
    asked = [d.step for d in (controlled.advance({}) for _ in range(14)) if d.reason != "between"]
    assert asked == [0, 2, 5, 7, 10, 12]  # four in the planned run, and at the same pace after its end
    controlled = ControllerRun(Linear(), [1.0], SchedulerConfig(total_steps=3, decisions=20))
    assert [controlled.advance({}).reason for _ in range(3)] == ["decision"] * 3


def test_warmup_ramps_every_controller() -> None:
    assert [lr[0] for lr in _lrs(Constant(), [1.0], 5, warmup_steps=4)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert min(lr[0] for lr in _lrs(Constant(), [1e-7], 2, warmup_steps=1000)) == 1e-8


@pytest.mark.parametrize(
    ("controller", "expected"),
    [
        (Linear(), [1.0, 0.75, 0.5, 0.25]),
        (Linear(final_factor=0.5), [1.0, 0.875, 0.75, 0.625]),
        (Cosine(), [(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]),
        (WarmupStableDecay(decay_fraction=0.5), [1.0, 1.0, 1.0, 0.5]),
        (Replay(progress=(0.0, 0.5), factors=(1.0, 3.0)), [1.0, 2.0, 3.0, 3.0]),
        (Replay(), [1.0] * 4),
    ],
    ids=lambda c: getattr(c, "controller_type", ""),
)
def test_open_loop_schedules(controller, expected) -> None:
    assert [lr[0] for lr in _lrs(controller, [1.0], 4, total_steps=4)] == pytest.approx(expected)


def test_after_the_planned_end_the_rate_stays_positive() -> None:
    assert [lr[0] for lr in _lrs(Linear(), [1.0], 4, total_steps=2)] == [1.0, 0.5, 1e-8, 1e-8]


# --- hold
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_input_holds_the_rate_and_is_said_once(bad) -> None:
    controlled = ControllerRun(Recurrent(), [1.0], SchedulerConfig())
    before = [controlled.advance({"loss": 1.0}) for _ in range(3)][-1]
    count = controlled.state_dict()["controller_state"]["count"]
    with pytest.warns(UserWarning, match="learning rate kept: update 3: loss is") as caught:
        held = [controlled.advance({"loss": bad}) for _ in range(4)]
    assert len(caught) == 1
    assert {d.lr for d in held} == {before.lr}
    assert {d.reason for d in held} == {"held"}
    assert controlled.kept == 4
    assert controlled.state_dict()["controller_state"]["count"] == count
    assert controlled.advance({"loss": 1.0}).reason == "decision"


def test_a_non_finite_answer_holds_too() -> None:
    with pytest.warns(UserWarning, match="answer is nan"):
        assert _lrs(Says(answer=(math.nan,)), [1.0]) == [(1.0,)]


def test_no_new_evaluation_is_no_reason_to_hold() -> None:
    controlled = ControllerRun(Plateau(metric="eval_loss", window=2), [1.0], SchedulerConfig())
    assert controlled.advance({"eval_loss": math.nan}).reason == "decision"


# --- horizon
# -------------------------------------------------------------------------------------------------------------------


def _rates(run: ControllerRun, steps: int) -> list[float]:
    return [run.advance({}).lr[0] for _ in range(steps)]


def test_a_rate_that_falls_between_decisions() -> None:
    settings = SchedulerConfig(total_steps=8)
    run = ControllerRun(Falling(answer=(8.0,)), [1.0], settings)
    assert _rates(run, 3) == [8.0, 7.0, 6.0]  # to 0 at update 8
    saved = run.state_dict()
    assert _rates(run, 5) == [5.0, 8.0, 6.0, 4.0, 2.0]
    again = ControllerRun(Falling(answer=(8.0,)), [1.0], settings)
    again.load_state_dict(saved)
    assert _rates(again, 5) == [5.0, 8.0, 6.0, 4.0, 2.0]
    assert _lrs(Falling(answer=(8.0,)), [1.0], 3) == [(8.0,)] * 3  # no end, no line
    assert [d.lr[0] for d in ControllerRun(Falling(answer=(8.0,)), [1.0], settings).simulate(3)] == [8.0, 7.0, 6.0]
    warm = _lrs(Falling(answer=(8.0,)), [1.0], 3, total_steps=8, warmup_steps=2)
    assert warm == [(4.0,), (7.0,), (6.0,)]


def test_a_controllers_own_warm_up_holds_where_none_is_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Warms(SaysLR):
        controller_type = "warms"
        warmup = 0.2

    assert _lrs(Warms(answer=(8.0,)), [1.0], 3, total_steps=10) == [(4.0,), (8.0,), (8.0,)]
    assert _lrs(Warms(answer=(8.0,)), [1.0], 2, total_steps=10, warmup_steps=4) == [(2.0,), (4.0,)]
    assert _lrs(Warms(answer=(8.0,)), [1.0], 2) == [(8.0,), (8.0,)]  # a share of no known length
    assert _lrs(Warms(answer=(8.0,)), [1.0], 1, total_steps=10, warmup_steps=0) == [(8.0,)]
    run = ControllerRun(Warms(answer=(8.0,)), [1.0], SchedulerConfig(total_steps=10))
    _rates(run, 5)
    longer = ControllerRun(Warms(answer=(8.0,)), [1.0], SchedulerConfig(total_steps=1000))
    longer.load_state_dict(run.state_dict())
    assert _rates(longer, 1) == [8.0], "it has warmed up"


@pytest.mark.filterwarnings("ignore:learning rate kept:UserWarning")
def test_the_update_at_which_a_run_falls_back_is_still_on_the_line() -> None:
    settings = SchedulerConfig(total_steps=8, envelope=Envelope(patience=1))

    @dataclass(frozen=True, kw_only=True)
    class Hears(Falling):
        controller_type = "hears"
        needs = frozenset({"loss"})

    run = ControllerRun(Hears(answer=(8.0,)), [8.0], settings)
    with pytest.warns(UserWarning, match="falls back"):
        rates = [run.advance({"loss": math.nan if t == 4 else 1.0}).lr[0] for t in range(6)]
    assert run.fallen_back and rates[:5] == [8.0, 7.0, 6.0, 5.0, 4.0]


def test_a_rate_that_falls_between_decisions_goes_on_from_where_it_is() -> None:
    run = ControllerRun(Falling(answer=(8.0,)), [1.0], SchedulerConfig(total_steps=8))
    _rates(run, 2)
    run.cooldown(3)
    assert _rates(run, 3) == pytest.approx([6.0, 4.0, 2.0])  # of the 6 that it would have been
    run = ControllerRun(Falling(answer=(8.0,)), [1.0], SchedulerConfig(total_steps=8))
    _rates(run, 2)
    run.extend(8)
    assert [d.lr[0] for d in run.simulate(1)] == _rates(run, 1) == pytest.approx([6.0])
    assert _rates(run, 1) == pytest.approx([6.0 * 13 / 14])
    longer = ControllerRun(Falling(answer=(8.0,)), [1.0], SchedulerConfig(total_steps=80))
    short = ControllerRun(Falling(answer=(8.0,)), [1.0], SchedulerConfig(total_steps=8))
    _rates(short, 2)
    longer.load_state_dict(short.state_dict())
    assert _rates(longer, 1) == pytest.approx([6.0])
    _rates(short, 6)
    short.cooldown(2)  # at the planned end, where nothing is left of the line
    assert _rates(short, 1)[0] > 1.0
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Looks(Falling):
        controller_type = "looks"

        def decide(self, obs: Observation, state: dict, params=None) -> tuple[Tensor, dict]:
            seen.append((float(obs.lr), float(obs.last_lr)))
            return super().decide(obs, state, params)

    _rates(ControllerRun(Looks(answer=(8.0,)), [1.0], SchedulerConfig(total_steps=8)), 5)
    assert seen == [(1.0, 0.0), (4.0, 5.0)]  # in force now, and that of the update before


def test_extend_and_cooldown() -> None:
    controlled = ControllerRun(Linear(), [1.0], SchedulerConfig(total_steps=4))
    assert [controlled.advance({}).lr[0] for _ in range(2)] == [1.0, 0.75]
    controlled.extend(4)
    assert controlled.advance({}).lr[0] == 0.75
    controlled.cooldown(3)
    down = [controlled.advance({}) for _ in range(4)]
    assert [d.lr[0] for d in down] == pytest.approx([0.75, 0.5, 0.25, 1e-8])
    assert {d.reason for d in down} == {"cooldown"}
    controlled.extend(2)
    assert controlled.advance({}).reason == "decision"


def test_an_unknown_horizon() -> None:
    controlled = ControllerRun(Constant(), [1.0], SchedulerConfig())
    with pytest.raises(ValueError, match="no total_steps"):
        controlled.extend(3)
    controlled.cooldown(2)
    assert [controlled.advance({}).lr[0] for _ in range(2)] == [1.0, 0.5]
    for controller in (Linear(), Cosine(), WarmupStableDecay(), Replay()):
        with pytest.raises(ValueError, match="length of the run; pass total_steps="):
            ControllerRun(controller, [1.0], SchedulerConfig())


@pytest.mark.parametrize("call", ["extend", "cooldown"])
@pytest.mark.parametrize("steps", [0, -1, 1.5, True, None])
def test_horizon_changes_take_whole_numbers(call, steps) -> None:
    with pytest.raises(ValueError, match=f"{call}.*whole number of updates"):
        getattr(ControllerRun(Constant(), [1.0], SchedulerConfig(total_steps=3)), call)(steps)


def test_simulate_touches_nothing() -> None:
    optimizer = torch.optim.SGD(mlp().parameters(), lr=1.0)
    scheduler = ControlledLR(optimizer, Recurrent(), total_steps=5)
    before = str(scheduler.state_dict())
    rows = scheduler.simulate(5, lambda update, lr: {"loss": 1.0 / (update + 1)})
    assert [d.step for d in rows] == list(range(5))
    assert rows[0].lr[0] != rows[-1].lr[0]
    assert str(scheduler.state_dict()) == before
    assert optimizer.param_groups[0]["lr"] == 1.0
    with pytest.raises(ValueError, match=r"needs \['loss'\]; pass observe="):
        scheduler.simulate(1)


# --- bad input
# -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0 is outside"),
        ({"every": 1.5}, "every must be a whole number"),
        ({"total_steps": -3}, "total_steps=-3 is outside"),
        ({"decisions": 3}, "needs the length of the run"),
        ({"every": 2, "decisions": 3, "total_steps": 9}, "exclude each other"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"min_lr": 1.0, "max_lr": 0.1}, "min_lr=1.0 is above max_lr=0.1"),
        ({"min_factor": 2.0, "max_factor": 1.0}, "min_factor=2.0 is above"),
        ({"min_lr": math.nan}, "min_lr=nan is outside"),
        ({"max_factor": -1.0}, "max_factor=-1.0 is outside"),
        ({"max_lr": 0.5}, "learning rate 1.0 is outside .*max_lr=0.5"),
    ],
)
def test_settings_out_of_range_fail_fast_before_the_optimizer_is_touched(settings, message) -> None:
    optimizer = torch.optim.SGD(mlp().parameters(), lr=1.0)
    with pytest.raises((ValueError, TypeError), match=message):
        ControlledLR(optimizer, Constant(), **settings)
    assert not optimizer._optimizer_step_pre_hooks
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_other_bad_input_fails_fast_with_the_way_out() -> None:
    optimizer = torch.optim.SGD(mlp().parameters(), lr=1.0)
    with pytest.raises(TypeError, match="optimizer must be"):
        ControlledLR("adam", Constant())
    with pytest.raises(TypeError, match="a class needs parentheses"):
        ControlledLR(optimizer, Constant)
    with pytest.raises(ValueError, match="did you mean linear"):
        ControlledLR(optimizer, "liner")
    with pytest.raises(ValueError, match="pass min_lr and max_lr"):
        ControlledLR(optimizer, SaysLR(), max_factor=2.0)
    with pytest.raises(ValueError, match="one above 0"):
        ControlledLR(torch.optim.SGD(mlp().parameters(), lr=0.0), Constant())
    with pytest.raises(ValueError, match="group 0 has learning rate 0"):
        ControllerRun(SaysLR(), [0.0, 1.0], SchedulerConfig())
    with pytest.raises(ValueError, match=r"answered with shape \(3,\)"):
        _lrs(Says(answer=(1.0, 1.0, 1.0)), [1.0, 1.0])
    scheduler = ControlledLR(optimizer, LossOnly())
    with pytest.raises(ValueError, match=r"observe\(loss=...\) takes one number, got shape \(2,\)"):
        scheduler.observe(loss=torch.ones(2))


def test_a_loss_that_nobody_reported_fails_fast_before_the_update() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = ControlledLR(optimizer, LossOnly())
    before = [p.clone() for p in model.parameters()]
    x, y = batches(1)[0]
    torch.nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(ValueError, match="none was observed"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert scheduler.updates == 0


@pytest.mark.parametrize("name", ["hypergradient", "random_walk", "plrs"])
def test_a_first_group_that_is_not_trained_does_not_hold_the_others(name) -> None:
    controlled = ControllerRun(CONTROLLERS[name](), [0.0, 0.1], SchedulerConfig(total_steps=40, every=1))
    rows = [controlled.advance({"alignment": 0.5} if name == "hypergradient" else {}) for _ in range(3)]
    assert {row.reason for row in rows} == {"decision"}
    assert len({row.lr[1] for row in rows}) == 3
    assert {row.lr[0] for row in rows} == {0.0}
