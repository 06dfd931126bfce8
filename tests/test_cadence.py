"""When a decision is due: the rule in all its forms, and the plan of an update."""

from __future__ import annotations

import ast
import re
import typing
from dataclasses import asdict, dataclass

import pytest
import torch

from hf_adaptive_lr import ControlledLR
from hf_adaptive_lr.cadence import Cadence, decision_updates, evenly
from hf_adaptive_lr.controllers import Constant, MLRSNet
from hf_adaptive_lr.meta.episode import stretches
from hf_adaptive_lr.scheduler.config import SchedulerConfig, SchedulerOptions
from hf_adaptive_lr.scheduler.envelope import Envelope
from hf_adaptive_lr.scheduler.runtime import ControllerRun


@pytest.mark.parametrize("total", [1, 2, 7, 40, 97])
def test_all_forms_of_the_rule_agree(total) -> None:
    for decisions in range(1, 110):
        updates = {k * total // decisions for k in range(decisions)}
        assert set(decision_updates(total, decisions)) == updates
        assert {t for t in range(total) if evenly(t, total, decisions)} == updates
        assert {t for t in range(total) if Cadence(total, decisions=decisions).due(t)} == updates
        starts = [0]
        for length in stretches(total, decisions):
            starts.append(starts[-1] + length)
        assert starts.pop() == total and set(starts) - {total} == updates


def test_own_rhythm_goes_first_and_sees_the_length_as_known_now() -> None:
    seen = []

    def own(update: int, total: int | None) -> bool | None:
        seen.append(total)
        return None if update == 3 else update == 1

    cadence = Cadence(10, every=3, rule=own)
    assert [cadence.due(update, 12) for update in range(5)] == [False, True, False, True, False]
    assert seen == [12] * 5 and cadence.due(3) and seen[-1] == 10


@dataclass(frozen=True, kw_only=True)
class Counted(Constant):
    """Counts how often it is asked whether a decision is due."""

    controller_type = "counted"

    def due(self, update: int, total_steps: int | None) -> bool:
        asked.append(update)
        return update % 2 == 0


asked: list[int] = []


def test_the_cadence_is_asked_once_for_each_update_however_many_micro_batches_there_are() -> None:
    asked.clear()
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Counted(), model=model, total_steps=6)
    for _ in range(6):
        for _ in range(4):
            scheduler.before_forward()
            loss = model(torch.ones(1, 2)).square().mean()
            scheduler.observe(loss=loss)
            loss.backward()
        assert scheduler.due() == (scheduler.updates % 2 == 0)
        optimizer.step()
        optimizer.zero_grad()
    assert asked == [t for update in range(6) for t in (update, update + 1)]  # of the update, and of the next


def test_whatever_changes_the_plan_is_seen_at_once() -> None:
    def run(**settings) -> ControllerRun:
        return ControllerRun(Constant(), [1.0], SchedulerConfig(total_steps=9, every=1, **settings))

    controlled = run()
    assert controlled.plan() == (True, True, False)
    controlled.cooldown(3)
    assert controlled.plan() == (False, False, False)
    controlled.extend(3)
    assert controlled.plan() == (True, True, False)
    watched = run(envelope=Envelope())
    assert watched.plan().decides
    watched.fall_back("test")
    assert not watched.plan().decides
    fresh = run(envelope=Envelope())
    assert fresh.plan().decides
    fresh.load_state_dict(watched.state_dict())
    assert not fresh.plan().decides
    learner = ControllerRun(
        MLRSNet(classes=10, meta_learn=True, meta_every=2), [1.0], SchedulerConfig(total_steps=9, every=1)
    )
    plans = []
    for _ in range(4):
        plans.append(learner.plan().outcome)
        learner.advance({"loss": 1.0})
    assert plans == [learner.controller.wants_outcome(t, 9) for t in range(4)] and any(plans)


def test_keyword_arguments_and_config_are_the_same() -> None:
    assert list(SchedulerOptions.__annotations__) == list(asdict(SchedulerConfig()))
    assert typing.get_type_hints(SchedulerOptions) == typing.get_type_hints(SchedulerConfig)
    lines = (ControlledLR.__doc__ or "").partition("**settings:")[2].partition("Raises:")[0]
    for name, default in asdict(SchedulerConfig()).items():
        written = re.search(rf"`{name}`(?:, `\w+`)? \(([^)]+)\)", lines)
        assert written is not None and ast.literal_eval(written[1]) == default, name


@pytest.mark.parametrize(
    ("word", "meant"), [("warmup", "warmup_steps"), ("total_step", "total_steps"), ("modle", "model")]
)
def test_an_unknown_setting_names_the_nearest(word, meant) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(TypeError, match=f"ControlledLR: unknown setting {word}; did you mean {meant}\\?"):
        ControlledLR(optimizer, "constant", **{word: 3})
