"""The guard leaves healthy runs alone whose losses swing around zero, or change with the season or the source."""

from __future__ import annotations

import json
import logging
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import TrainerCallback

from hf_adaptive_lr import GuardCallback
from hf_adaptive_lr.guard.detector import Detector
from hf_adaptive_lr.guard.guard import STATE, DivergenceGuard
from hf_adaptive_lr.guard.thresholds import Thresholds
from tests import integrations
from tests.tiny import Tokens, bert, mlp

# --- constant scatter, wherever it lies ------------------------------------------------------------------------------


def _heavy(rng: random.Random) -> float:
    """Student's t with five degrees of freedom."""
    return rng.gauss(0, 1) / math.sqrt(rng.gammavariate(2.5, 2.0) / 5)


SCATTER: dict[str, Callable[[random.Random], float]] = {
    "normal": lambda rng: rng.gauss(0, 1),
    "laplace": lambda rng: rng.choice([-1, 1]) * rng.expovariate(1),
    "uniform": lambda rng: rng.uniform(-1.7, 1.7),
    "right tail": lambda rng: rng.expovariate(1),
    "left tail": lambda rng: -rng.expovariate(1),
    "heavy tails": _heavy,
    "mostly zero": lambda rng: rng.gauss(0, 1) if rng.random() < 0.3 else 0.0,
    "nothing": lambda rng: 0.0,
}
UPDATES = 500


def _alarm(rng: random.Random, family: str, centre: float, scale: float) -> tuple[int, str] | None:
    """First alarm of a run whose losses lie `centre` scatters from zero."""
    detector = Detector()
    for t in range(UPDATES):
        reason = detector.see(scale * (centre + SCATTER[family](rng)), 1.0 + 0.1 * rng.random())
        if reason is not None:
            return t, reason
    return None


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(sorted(SCATTER)),
    centre=st.one_of(st.just(0.0), st.floats(-1, 1), st.floats(-30, 30)),
    exponent=st.floats(-8, 6),
    seed=st.integers(0, 2**32),
)
def test_losses_of_constant_scatter_do_not_alarm(family, centre, exponent, seed) -> None:
    runs = [_alarm(random.Random(seed + i), family, centre, 10.0**exponent) for i in range(10)]
    assert sum(run is not None for run in runs) <= 1, runs


def test_at_most_one_percent_of_runs_around_zero_alarm() -> None:
    runs, alarms = 300, []
    families = sorted(SCATTER)
    for seed in range(runs):
        rng = random.Random(seed)
        family, centre = families[seed % len(families)], rng.choice([0.0, 0.0, 0.5, -0.5, 2.0, -3.0])
        alarm = _alarm(rng, family, centre, 10.0 ** rng.uniform(-4, 3))
        if alarm is not None:
            alarms.append((seed, family, centre, *alarm))
    assert len(alarms) <= 0.01 * runs, alarms


def test_losses_around_zero_that_diverge_do_alarm() -> None:
    for seed in range(20):
        rng, detector = random.Random(seed), Detector()
        losses = [rng.gauss(0, 0.05) + (0.05 * 1.5 ** (t - 150) if t > 150 else 0.0) for t in range(170)]
        reasons = [detector.see(loss, 1.0) for loss in losses]
        assert set(reasons[:151]) == {None} and "loss_shift" in reasons[151:]


def test_a_run_that_had_learnt_and_unlearns_slowly_is_found_before_it_is_as_bad_as_at_first() -> None:
    for seed in range(10):
        rng, detector = random.Random(seed), Detector(Thresholds(creep_updates=0))
        found = None
        for t in range(600):
            level = math.exp(-t / 40) if t < 100 else 0.08 * 1.007 ** (t - 100)
            if detector.see(2.0 * level * math.exp(rng.gauss(0, 0.1)), 1.0) is not None:
                found = level
                break
        assert found is not None and found < 1.0


def test_a_single_hard_row_in_a_run_that_has_memorised_is_no_spike() -> None:
    rng, detector = random.Random(0), Detector()
    for t in range(200):
        assert detector.see(max(1.47 * math.exp(-t / 20), 0.004) * math.exp(rng.gauss(0, 0.2)), 1.0) is None
    assert detector.see(0.65, 1.0) is None
    assert detector.see(4.0, 1.0) == "loss_spike"


# --- streams that move -----------------------------------------------------------------------------------------------


def _decay(t: int) -> float:
    return 0.3 + 0.7 * math.exp(-t / 60)


def _blocks(length: int, factor: float) -> Callable[[int], float]:
    return lambda t: _decay(t) * (factor if t // length % 2 else 1.0)


STREAMS = {
    "blocks of 5": _blocks(5, 4.0),
    "blocks of 10": _blocks(10, 2.0),
    "blocks of 10, mild": _blocks(10, 1.5),
    "blocks of 20": _blocks(20, 4.0),
    "blocks of 50": _blocks(50, 2.0),
    "season": lambda t: _decay(t) * (1 + 0.6 * math.sin(t / 3)),
    "long season": lambda t: _decay(t) * (1 + 0.9 * math.sin(t / 6)),
    "change": lambda t: _decay(t) if t < 100 else 1.0 + math.exp(-(t - 100) / 60),
    "large change": lambda t: _decay(t) if t < 100 else 10.0,
}


def _guarded(stream: Callable[[int], float], seed: int, updates: int = 300, scatter: float = 0.1) -> DivergenceGuard:
    """A guard whose losses are those of a stream, whatever it does to the weights."""
    rng, model = random.Random(seed), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    guard = DivergenceGuard(model, optimizer, snapshot_every=15, raise_on_stop=False)
    guard.start()
    for t in range(updates):
        loss = stream(t) * math.exp(rng.gauss(0, scatter))
        if guard.before_step(loss, 1.0 + 0.1 * rng.random()) == "apply":
            guard.after_step()
    return guard


@pytest.mark.parametrize("name", STREAMS)
def test_a_restless_stream_is_not_stopped_and_goes_back_once_at_most(name) -> None:
    for seed in range(3):
        guard = _guarded(STREAMS[name], seed)
        acts = Counter(event["action"] for event in guard.events)
        assert not guard.stopped and guard.rollbacks <= 1 and guard.factor == 1.0, acts
        assert acts["skip"] <= 25, acts


@pytest.mark.parametrize(
    ("factor", "length", "expected"),
    [
        (2.0, 4, [("rollback", 43), ("accept", 54)]),
        (20.0, 3, [("rollback", 42), ("rollback", 54)]),  # a spike again may well be a divergence
        (20.0, 5, [("rollback", 42)]),  # the fourth has met good weights: the data brings it
    ],
)
def test_the_same_trouble_again_at_the_same_snapshot(factor, length, expected) -> None:
    def stream(t: int) -> float:
        return factor if 40 <= t < 40 + length or 52 <= t < 52 + length else 1.0

    guard = _guarded(stream, 0, updates=80, scatter=0.02)
    events = [event for event in guard.events if event["action"] in ("rollback", "accept")]
    assert [(event["action"], event["update"]) for event in events] == expected
    assert events[0]["restored_update"] == 30
    assert expected[-1][0] != "accept" or events[-1]["factor"] == 1.0  # the cut is taken back: it was not the rate


def test_a_loss_that_explodes_still_ends_the_run() -> None:
    guard = _guarded(lambda t: 1.0 if t < 50 else min(1.2 ** (t - 50), 1e300), 0, updates=400)
    assert guard.stopped and guard.rollbacks == 3


def test_a_few_bad_batches_now_and_then_do_not_end_the_run() -> None:
    guard = _guarded(lambda t: 20.0 if t % 100 > 96 else 1.0, 0, updates=600, scatter=0.05)
    assert guard.rollbacks == 3 and not guard.stopped


def test_what_the_data_has_brought_is_forgotten_in_the_long_run() -> None:
    detector, rng = Detector(), random.Random(0)
    for t in range(4000):
        detector.see(0.1 * math.exp(rng.gauss(0, 0.1)), 1.0)
        if t == 60:
            detector.blame_data(5.0, 1.0)
            detector.tolerate()
            assert [detector.see(4.0, 1.0) for _ in range(3)] == [None] * 3
            for _ in range(80):
                detector.see(0.1, 1.0)
    assert [detector.see(4.0, 1.0) for _ in range(3)] == ["loss_spike"] * 3


def test_the_memory_of_the_data_survives_a_rollback_and_a_resume() -> None:
    detector = Detector()
    for _ in range(30):
        detector.see(1.0, 1.0)
    before = json.loads(json.dumps(detector.state_dict()))
    detector.blame_data(5.0, 1.0)
    detector.tolerate()
    detector.go_back(before)
    assert detector.see(5.0, 1.0) is None
    other = Detector()
    other.load_state_dict(json.loads(json.dumps(detector.state_dict())))
    assert other.see(5.0, 1.0) is None


# --- weights that begin or cease to train ----------------------------------------------------------------------------


def _trained(change: Callable[[nn.Module, torch.optim.Optimizer], None]) -> tuple[nn.Module, DivergenceGuard]:
    """Thirty updates, a change of what trains, five more, and then trouble that makes the guard go back."""
    model = mlp()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    guard = DivergenceGuard(model, optimizer, snapshot_every=10, max_skips=0)
    guard.start()
    for t in range(36):
        if t == 30:
            change(model, optimizer)
        model(torch.randn(4, model[0].in_features)).square().mean().backward()
        loss = math.nan if t == 35 else 1.0
        if guard.before_step(loss) == "apply":
            optimizer.step()
            guard.after_step()
        optimizer.zero_grad()
    return model, guard


def _unfreeze(model, optimizer) -> None:
    model[0].weight.requires_grad_(True)
    optimizer.add_param_group({"params": [model[0].weight]})


def _freeze(model, optimizer) -> None:
    model[0].bias.requires_grad_(False)


@pytest.mark.parametrize("change", [_unfreeze, _freeze])
def test_the_guard_goes_back_to_where_the_trained_set_changed(change) -> None:
    model, guard = _trained(change)
    assert guard.rollbacks == 1
    assert guard.events[-1]["restored_update"] == 30
    assert torch.isfinite(torch.cat([p.flatten() for p in model.parameters()])).all()


def test_snapshots_of_a_checkpoint_do_not_fit_a_model_that_trains_otherwise(tmp_path) -> None:
    _, guard = _trained(_freeze)
    guard.save(tmp_path)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    other = DivergenceGuard(model, optimizer, snapshot_every=10, max_skips=0)
    other.load(tmp_path)
    assert other.before_step(math.nan, 1.0) == "rollback"
    assert other.events[-1]["restored_update"] == guard.updates


class _Freeze(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 17:
            kwargs["model"].bert.embeddings.requires_grad_(False)


def test_a_trainer_that_freezes_a_part_in_mid_run_goes_back_to_where_it_did(tmp_path) -> None:
    from transformers import Trainer

    args = integrations.arguments(tmp_path, max_steps=30, learning_rate=1e-3, logging_strategy="no")
    watch = GuardCallback(snapshot_every=5)
    Trainer(model=bert(), args=args, train_dataset=Tokens(), callbacks=[_Freeze(), _Noise(), watch]).train()
    (back,) = (event for event in watch.guard.events if event["action"] == "rollback")
    assert back["restored_update"] == 17


# --- damage that the loss does not show ------------------------------------------------------------------------------


def test_infinite_optimizer_state_is_found_at_the_next_snapshot() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    guard = DivergenceGuard(model, optimizer, snapshot_every=10)
    guard.start()
    for t in range(40):
        model(torch.randn(4, model[0].in_features)).square().mean().backward()
        if t == 15:
            optimizer.state[model[0].weight]["exp_avg_sq"].fill_(math.inf)
        if guard.before_step(1.0) == "apply":
            optimizer.step()
            guard.after_step()
        optimizer.zero_grad()
    (event,) = guard.events
    assert (event["action"], event["reason"], event["restored_update"]) == ("rollback", STATE, 10)
    assert event["update"] == 20 and guard.factor == 1.0
    assert all(torch.isfinite(s["exp_avg_sq"]).all() for s in optimizer.state.values())


# --- what is told of it ----------------------------------------------------------------------------------------------


class _Noise(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 18:
            with torch.no_grad():
                for p in kwargs["model"].parameters():
                    p.add_(20 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))


def test_each_kind_of_event_has_a_sentence_of_its_own(tmp_path: Path, caplog) -> None:
    from transformers import Trainer

    args = integrations.arguments(tmp_path, max_steps=60, learning_rate=1e-3, logging_strategy="no")
    watch = GuardCallback(snapshot_every=5)
    logger = logging.getLogger("hf_adaptive_lr.trainer.guard_callback")
    logger.addHandler(caplog.handler)
    try:
        Trainer(model=bert(), args=args, train_dataset=Tokens(), callbacks=[_Noise(), watch]).train()
    finally:
        logger.removeHandler(caplog.handler)
    acts = [event["action"] for event in watch.guard.events if event["action"] != "skip"]
    said = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert acts == ["rollback", "recover"] and len(said) == 2
    assert "back to update" in said[0] and "the cut of the learning rate is taken back" in said[1]
    assert not any("nothing to go back to" in text for text in said)


GROWING: dict[str, tuple[float, Callable[..., torch.optim.Optimizer]]] = {
    "SGD": (32.0, lambda weights: torch.optim.SGD(weights, lr=0.1)),
    "momentum": (16.0, lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9)),
    "AdamW": (64.0, lambda weights: torch.optim.AdamW(weights, lr=2e-3)),
}


def _with_a_growing_rate(name: str, seed: int) -> tuple[float, list[str]]:
    """Accuracy and the guard's actions of a small net whose learning rate grows over updates 200 to 400."""
    torch.manual_seed(seed)
    growth, make = GROWING[name]
    centres, labels = torch.randn(10, 64), torch.randint(10, (2000,))
    inputs = centres[labels] + 1.5 * torch.randn(2000, 64)
    sizes = ((64, 64), (64, 64), (64, 10))
    layers = [layer for a, b in sizes for layer in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = make(model.parameters())
    guard = DivergenceGuard(model, optimizer)
    for t in range(600):
        if 200 <= t < 400:
            optimizer.param_groups[0]["lr"] *= growth ** (1 / 200)
        rows = torch.randint(2000, (32,))
        loss = torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        if guard.before_step(loss) == "apply":
            optimizer.step()
            guard.after_step()
    accuracy = (model(inputs).argmax(1) == labels).double().mean().item()
    return accuracy, [event["action"] for event in guard.events]


@pytest.mark.parametrize("name", GROWING)
def test_a_rate_that_grows_too_large_is_found_in_time_and_not_taken_for_the_data(name) -> None:
    runs = [_with_a_growing_rate(name, seed) for seed in range(4)]
    assert all("rollback" in actions and "accept" not in actions for _, actions in runs)
    assert sorted(accuracy for accuracy, _ in runs)[1] > 0.9  # one of four may have been cut too late


def test_an_accident_in_a_warm_up_takes_its_cut_back() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min((t + 1) / 60, 1.0))
    guard = DivergenceGuard(model, optimizer, scheduler=scheduler, snapshot_every=10)
    inputs = torch.randn(2000, 20)
    labels = (inputs @ torch.randn(20, 5)).argmax(1)
    for t in range(120):
        rows = torch.randint(2000, (16,))
        loss = torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        if 30 <= t < 36:
            loss = loss * torch.nan
        loss.backward()
        if guard.before_step(loss) == "apply":
            optimizer.step()
            scheduler.step()
            guard.after_step()
    assert [e["action"] for e in guard.events if e["action"] != "skip"] == ["rollback", "recover"]
    assert guard.factor == 1.0 and scheduler.get_last_lr() == pytest.approx([3e-3])


def test_data_that_gets_harder_while_the_rate_grows_never_ends_a_run() -> None:
    stops = rollbacks = 0
    for seed in range(100):
        rng, detector, high = random.Random(seed), Detector(), 0
        for t in range(400):
            level = 0.2 + 0.8 * min(1.0, t / 120)  # a curriculum, under a cyclic rate
            rate = 1e-3 * (1 + 9 * (1 - abs(t % 80 - 40) / 40))
            if detector.see(level * math.exp(rng.gauss(0, 0.2)), 1.0, rate) == "slow_divergence":
                high += 1
                if detector.lr_has_grown:
                    detector.blame_rate()
                detector.go_back(None)  # the weights were good, and the losses come again
        rollbacks = max(rollbacks, high)
        stops += high > 3
    assert stops == 0 and 0 < rollbacks <= 2


def test_healthy_runs_whose_learning_rate_grows_do_not_alarm() -> None:
    alarms = []
    for seed in range(200):
        rng, detector = random.Random(seed), Detector()
        scatter, growth, fall = rng.choice([0.1, 0.3, 0.6, 1.0]), rng.choice([4.0, 64.0]), rng.choice([0.0, 2.0, 6.0])
        for t in range(UPDATES):
            share = t / UPDATES
            loss = math.exp(rng.gauss(0, scatter) - fall * share)
            if (reason := detector.see(loss, 1.0, 1e-3 * growth**share)) is not None:
                alarms.append((seed, scatter, growth, fall, t, reason))
                break
    assert len(alarms) <= 2, alarms


def test_a_warm_up_from_the_first_update_is_calm() -> None:
    detector = Detector()
    for t in range(30):  # nothing is known of the losses yet when the rate has already grown
        assert detector.see(2.0 - 0.02 * t, 1.0, 1e-4 * (t + 1)) is None
        assert detector.calm


def test_no_snapshot_is_due_while_a_grown_rate_may_do_harm() -> None:
    detector = Detector()
    for t in range(200):
        detector.see(1.0 if t < 50 else 0.01, 1.0, 1e-3)
    assert detector.calm
    for t in range(40):  # too little for an alarm: the loss is a tenth of the first one
        assert detector.see(0.01 * 10 ** min(1.0, t / 20), 1.0, 1e-3 * 1.02**t) is None
    assert detector.lr_has_grown and not detector.calm
