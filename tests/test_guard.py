"""DivergenceGuard: false alarms are rare, planted events are found, damaged runs end where clean ones do."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import debug_launcher
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hf_adaptive_lr import ControlledLR, Linear
from hf_adaptive_lr.guard.detector import REASONS, Detector
from hf_adaptive_lr.guard.guard import DivergenceError, DivergenceGuard
from hf_adaptive_lr.guard.thresholds import Thresholds
from tests.tiny import batches, flat, mlp

# --- the detector on synthetic runs -----------------------------------------------------------------------------

SHAPES = {
    "decay": lambda x: 0.05 + 0.95 * math.exp(-4 * x),
    "plateau": lambda x: 1.0,
    "late start": lambda x: 1.0 if x < 0.6 else math.exp(-5 * (x - 0.6)),
    "warm-up rise": lambda x: (1 + 0.4 * math.sin(math.pi * min(1, 5 * x))) * math.exp(-2 * x),
    "memorised": lambda x: math.exp(-8 * x),
    "language model": lambda x: 0.25 + 0.75 * math.exp(-10 * x),
}
STEPS = 300


def _log_normal(rng: random.Random, shape, steps: int = STEPS, sigma: float | None = None) -> list[list[float]]:
    """Losses and norms that scatter by a factor, alike in part."""
    sigma = rng.choice([0.02, 0.1, 0.3, 0.6, 1.0]) if sigma is None else sigma
    start, rows = rng.choice([0.69, 2.3, 11.0]), []
    for t in range(steps):
        level, own = shape(t / steps), rng.gauss(0, 1)
        loss = start * level * math.exp(sigma * own - sigma**2 / 2)
        rows.append([loss, 3 * math.sqrt(level) * math.exp(0.8 * sigma * (own + rng.gauss(0, 1)))])
    return rows


def _small_batches(rng: random.Random, shape, steps: int = STEPS) -> list[list[float]]:
    """Means of few logistic losses, whose margins spread while they grow: mostly easy examples and a few hard ones."""
    size, start, rows = rng.choice([1, 2, 8]), rng.choice([0.69, 2.3]), []
    for t in range(steps):
        level = shape(t / steps)
        margin, spread = -math.log(math.expm1(max(start * level, 1e-4))), 3 - 2 * min(level, 1)
        losses = [math.log1p(math.exp(-margin - spread * rng.gauss(0, 1))) for _ in range(size)]
        rows.append([sum(losses) / size, 5 * sum(1 - math.exp(-x) for x in losses) / size + 1e-9])
    return rows


def _first_alarm(rows: list[list[float]]) -> tuple[int, str] | None:
    detector = Detector()
    for t, (loss, norm) in enumerate(rows):
        reason = detector.see(loss, norm)
        if reason is not None:
            return t, reason
    return None


@pytest.mark.parametrize("kind", [_log_normal, _small_batches])
def test_at_most_one_percent_of_healthy_runs_alarm(kind) -> None:
    runs = 400
    alarms = []
    for seed in range(runs):
        rng = random.Random(seed)
        name = rng.choice(sorted(SHAPES))
        alarm = _first_alarm(kind(rng, SHAPES[name]))
        if alarm is not None:
            alarms.append((seed, name, *alarm))
    assert len(alarms) <= 0.01 * runs, alarms


def _times(column: int, factor: float, at: int = 150):
    def plant(rows):
        rows[at][column] *= factor

    return plant


def _becomes(column: int, value: float, at: int = 150):
    def plant(rows):
        rows[at][column] = value

    return plant


def _rises_slowly(rows) -> None:
    for t in range(100, len(rows)):
        rows[t][0] *= 1.03 ** (t - 100)


def _stays_high(rows) -> None:
    """As with a far too large initial LR: everything after the first few losses is four times the first."""
    first = rows[0][0]
    for row in rows[4:]:
        row[0] *= 4 * first / max(first, 1e-9)


PLANTED = {
    "x100 loss": (_times(0, 100.0), "loss_spike"),
    "loss NaN": (_becomes(0, math.nan), "non_finite_loss"),
    "loss inf": (_becomes(0, math.inf), "non_finite_loss"),
    "loss NaN at once": (_becomes(0, math.nan, at=0), "non_finite_loss"),
    "gradient inf": (_becomes(1, math.inf), "non_finite_gradient"),
    "gradient NaN": (_becomes(1, math.nan), "non_finite_gradient"),
    "x1000 gradient": (_times(1, 1000.0), "gradient_explosion"),
    "slow rise": (_rises_slowly, ("loss_shift", "slow_divergence")),
    "high from the start": (_stays_high, "slow_divergence"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_events_are_found(name) -> None:
    plant, reason = PLANTED[name]
    found = 0
    for seed in range(60):
        rng = random.Random(seed)
        shape = "plateau" if plant is _stays_high else rng.choice(["decay", "plateau", "language model"])
        rows = _log_normal(rng, SHAPES[shape], sigma=rng.choice([0.02, 0.1, 0.3]))
        plant(rows)
        alarm = _first_alarm(rows)
        found += alarm is not None and alarm[1] in reason
    assert found >= 57, found


def test_a_language_model_spike_below_the_first_loss_is_found() -> None:
    rows = _log_normal(random.Random(0), SHAPES["language model"], sigma=0.02)
    rows[250][0] *= 3.5
    assert rows[250][0] < rows[0][0]
    assert _first_alarm(rows) == (250, "loss_spike")


def test_a_hard_batch_in_a_memorised_run_is_no_spike() -> None:
    rng = random.Random(0)
    rows = _log_normal(rng, SHAPES["memorised"], sigma=0.6)
    rows[-1] = [1.5 * rows[0][0], rows[0][1]]
    assert rows[-1][0] > 100 * rows[-2][0]
    assert _first_alarm(rows) is None


def test_lucky_batches_do_not_hide_a_shift(monkeypatch) -> None:
    def first_alarm(seed: int) -> tuple[int, str] | None:
        rng = random.Random(seed)
        # Most losses are near 0.8, and many are far below: their scatter, taken for both sides, would allow 5.
        rows = [[0.8 * math.exp(rng.gauss(0, 0.1) - rng.choice([0, 0, rng.expovariate(0.5)])), 1.0] for _ in range(90)]
        for row in rows[60:]:
            row[0] = 2.4 * math.exp(rng.gauss(0, 0.1))
        return _first_alarm(rows)

    assert [first_alarm(seed) for seed in range(10)] == [(63, "loss_shift")] * 10
    monkeypatch.setattr("hf_adaptive_lr.guard.levels.RANKED", 10**6)
    assert sum(first_alarm(seed) == (63, "loss_shift") for seed in range(10)) < 5


def test_losses_around_zero_and_constant_losses_do_not_alarm() -> None:
    rng = random.Random(0)
    assert _first_alarm([[rng.gauss(0, 1), 1.0] for _ in range(500)]) is None
    assert _first_alarm([[0.0, 0.0]] * 500) is None
    assert _first_alarm([[-3.0 + 0.01 * rng.gauss(0, 1), 1.0] for _ in range(500)]) is None


def test_an_alarm_says_which_numbers_it_saw() -> None:
    detector = Detector()
    for _ in range(30):
        detector.see(2.0, 1.0)
    assert detector.see(100.0, 1.0) == "loss_spike"
    assert detector.seen["typical"] == pytest.approx(2.0)
    assert detector.seen["limit"] == pytest.approx(6.0, rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"z": 0.5},
        {"z": math.nan},
        {"windows": ()},
        {"windows": (64, 16)},
        {"windows": (2,)},
        {"burn_in": 1},
        {"loss_rise": 1.0},
        {"gradient_rise": 0.0},
        {"floor": -1.0},
        {"slow_window": 0},
        {"slow_rise": 1.0},
        {"slow_far": 1.0},
        {"slow_patience": -1},
        {"slow_sigmas": 11},
    ],
    ids=str,
)
def test_thresholds_out_of_range_fail_by_name(change) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Thresholds(**change)
    with pytest.raises(TypeError, match="whole number"):
        Thresholds(burn_in=8.5)


NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0.0, 10.0),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e300, -1e300, 5e-324, 1.0]),
)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=60)
TIGHT = Thresholds(windows=(4, 8), burn_in=3, slow_window=3, slow_patience=4, slow_sigmas=0.0)


def _plain(value) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


@settings(max_examples=300, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 60))
def test_the_detector_takes_any_numbers_and_resumes_exactly(rows, cut) -> None:
    detector, twin = Detector(TIGHT), Detector(TIGHT)
    for t, (loss, norm) in enumerate(rows):
        if t == cut:
            twin.load_state_dict(json.loads(json.dumps(detector.state_dict())))
        reason = detector.see(loss, norm)
        assert reason in (None, *REASONS)
        assert (reason == "non_finite_loss") == (not math.isfinite(loss))
        assert all(math.isfinite(v) for v in detector.seen.values())
        if t >= cut:
            assert twin.see(loss, norm) == reason
        assert _plain(detector.state_dict())
    if len(rows) > cut:
        assert twin.state_dict() == detector.state_dict()


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 60))
def test_the_guard_is_bounded_for_any_numbers_and_resumes_exactly(rows, cut) -> None:
    def build():
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        options = {"snapshot_every": 3, "max_skips": 2, "max_rollbacks": 2, "raise_on_stop": False}
        return model, optimizer, DivergenceGuard(model, optimizer, detector=TIGHT, **options)

    model, optimizer, guard = build()
    twin = None
    actions: list[str] = []
    for t, (loss, norm) in enumerate(rows):
        if t == cut:
            twin_model, twin_optimizer, twin = build()
            twin_model.load_state_dict(model.state_dict())
            twin_optimizer.load_state_dict(optimizer.state_dict())
            twin.snapshots._states = [dict(s) for s in torch_copy(guard.snapshots._states)]
            twin.load_state_dict(json.loads(json.dumps(guard.state_dict())))
        action = guard.before_step(loss, norm)
        actions.append(action)
        if action == "apply":
            assert math.isfinite(loss)
            assert math.isfinite(norm)
            model.weight.data.add_(1.0)
            guard.after_step()
        if twin is not None:
            assert twin.before_step(loss, norm) == action
            if action == "apply":
                twin_model.weight.data.add_(1.0)
                twin.after_step()
            assert torch.equal(twin_model.weight, model.weight)
            assert twin_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert actions.count("rollback") <= 2
    cuts = sum(e["lr_after"] < 0.999 * e["lr_before"] for e in guard.events)
    assert cuts <= actions.count("rollback")
    assert 0.0 < guard.factor <= 1.0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(guard.factor, rel=1e-12)
    assert "stop" not in actions or set(actions[actions.index("stop") :]) == {"stop"}
    state = guard.state_dict()
    assert _plain(state)
    if twin is not None:
        assert twin.state_dict() == state


def torch_copy(value):
    import copy

    return copy.deepcopy(value)


# --- real models ------------------------------------------------------------------------------------------------

UPDATES = 240


class Run:
    """A loop as users write it, with a hook to do harm at one update."""

    def __init__(self, *, guarded=True, lr=0.1, scheduler=None, optimizer="sgd", seed=0, **options) -> None:
        self.model = mlp(seed=seed, batch_norm=True)
        make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
        self.optimizer = make(self.model.parameters(), lr=lr)
        self.scheduler = scheduler(self.optimizer) if scheduler else None
        options = {"snapshot_every": 20, **options}
        self.guard = DivergenceGuard(self.model, self.optimizer, scheduler=self.scheduler, **options)
        self.guarded = guarded
        self.actions: list[str] = []

    def train(self, data, harm=None, first=0) -> Run:
        for t, (x, y) in enumerate(data, start=first):
            scale = 1.0
            if harm is not None:
                x, y, scale = harm(t, self, x, y)
            loss = scale * nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            if harm is not None and hasattr(harm, "gradient"):
                harm.gradient(t, self)
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()])
            if isinstance(self.scheduler, ControlledLR):
                self.scheduler.observe(loss=loss, grad_norm=norm)
            self.actions.append(self.guard.before_step(loss, norm) if self.guarded else "apply")
            if self.actions[-1] == "apply":
                self.optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                if self.guarded:
                    self.guard.after_step()
            self.optimizer.zero_grad()
            if harm is not None and hasattr(harm, "after"):
                harm.after(t, self)
        return self

    def loss(self) -> float:
        x, y = batches(1, size=512, seed=99)[0]
        with torch.no_grad():
            return nn.functional.cross_entropy(self.model.eval()(x), y).item()


def _nan_batch(t, run, x, y):
    return (x * math.nan if t == 80 else x), y, 1.0


def _loss_times_100(t, run, x, y):
    return x, y, 100.0 if t == 80 else 1.0


def _noise(t, run, x, y):
    if t == 80:
        with torch.no_grad():
            for p in run.model.parameters():
                p.add_(30 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return x, y, 1.0


def _inf_gradient(t, run, x, y):
    return x, y, 1.0


def _poison(t, run) -> None:
    if t == 80:
        run.model[0].weight.grad[0, 0] = math.inf


_inf_gradient.gradient = _poison


def _lr_times_1000(t, run, x, y):
    if t in (80, 81):  # one update at a thousand times the rate; the model has batch norm and takes a hundred times
        run.optimizer.param_groups[0]["lr"] *= 1000.0 if t == 80 else 1e-3
    return x, y, 1.0


HARM = {
    "NaN batch": (_nan_batch, "skip", True),
    "inf gradient": (_inf_gradient, "skip", True),
    "x100 loss": (_loss_times_100, "skip", False),
    "x1000 LR": (_lr_times_1000, "rollback", False),
    "noise on weights": (_noise, "rollback", False),
}


@pytest.mark.parametrize("name", HARM)
def test_a_guarded_run_ends_where_the_clean_run_does(name) -> None:
    harm, expected, fatal = HARM[name]
    data = batches(UPDATES, size=32)
    clean = Run().train(data)
    assert set(clean.actions) == {"apply"}
    guarded = Run().train(data, harm)
    assert expected in guarded.actions
    assert guarded.loss() < clean.loss() + 0.1
    bare = Run(guarded=False).train(data, harm)
    if fatal:
        assert not math.isfinite(bare.loss())
    if name == "noise on weights":
        assert bare.loss() > guarded.loss()


def test_events_say_what_happened() -> None:
    told = []
    run = Run(on_event=told.append, recover=False).train(batches(UPDATES, size=32), _noise)
    assert told == run.guard.events
    assert json.loads(json.dumps(told)) == told
    assert [e["action"] for e in told] == ["skip"] * 2 + ["rollback"]
    last = told[-1]
    assert (last["update"], last["restored_update"], last["reason"]) == (82, 60, "loss_spike")
    assert (last["lr_before"], last["lr_after"], last["factor"]) == (0.1, 0.05, 0.5)
    assert last["loss"] > last["limit"] > last["typical"]
    assert run.optimizer.param_groups[0]["lr"] == 0.05


def test_a_snapshot_that_has_not_proved_itself_is_passed_over() -> None:
    run = Run(snapshot_every=20)
    run.train(batches(80, size=32))  # one was taken after update 79, the one before after 59
    with torch.no_grad():
        run.model[4].weight.mul_(300.0)
    run.guard._take()
    good = len(run.guard.snapshots)
    run.train(batches(10, size=32, seed=3), first=80)
    assert "rollback" in run.actions
    assert good == 2
    assert run.guard.events[-1]["restored_update"] == 80  # not the state taken a moment later, at damaged weights


def test_bounded_a_model_that_always_gives_nan_ends_in_a_clear_error(tmp_path) -> None:
    run = Run(folder=tmp_path, max_rollbacks=2)
    run.train(batches(90, size=32))
    run.guard.snapshots.restore(1)  # trouble that comes back at once makes the newest one suspicious
    good = flat(run.model).clone()
    run.guard.snapshots.restore(0)

    def always(t, run, x, y):
        return x * math.nan, y, 1.0

    message = "non_finite_loss at update .* after 2 rollbacks; the weights of update 60 are restored and written to"
    with pytest.raises(DivergenceError, match=message):
        run.train(batches(100, size=32), always)
    assert run.actions[90:].count("skip") == 5 + 10 + 20
    assert run.actions[90:].count("rollback") == 2
    assert torch.equal(flat(run.model), good)
    assert all(torch.isfinite(b).all() for b in run.model.buffers())
    with pytest.raises(DivergenceError, match="stopped before"):
        run.guard.before_step(0.1, 0.1)
    saved = torch.load(tmp_path / "snapshot.pt", weights_only=True)
    assert saved["states"][0]["meta"]["update"] == 60
    quiet = Run(raise_on_stop=False, max_skips=0, max_rollbacks=0)
    quiet.guard.start()
    quiet.train(batches(3), always)
    assert quiet.actions == ["stop"] * 3


@pytest.mark.parametrize("length", [4, 12, 20])
def test_a_burst_of_corrupted_labels_is_outlived(length) -> None:
    def burst(t, run, x, y):
        return x, ((y + 1) % 3 if 120 <= t < 120 + length else y), 1.0

    data = batches(UPDATES, size=64)
    clean = Run(lr=1.0).train(data)
    run = Run(lr=1.0, detector=Thresholds(loss_rise=2.0)).train(data, burst)
    assert run.actions[120 : 120 + length].count("apply") == 0
    assert run.guard.factor == 1.0  # good weights met the same trouble, so the learning rate had no part in it
    assert run.loss() < clean.loss() + 0.1


def test_data_that_changes_for_good_is_accepted() -> None:
    def harder(t, run, x, y):
        return x, ((y + 1) % 3 if t >= 120 else y), 1.0

    run = Run(lr=1.0).train(batches(UPDATES * 2, size=64), harder)
    acts = [event["action"] for event in run.guard.events]
    assert acts.count("accept") == 1 and acts.count("rollback") <= 1 and "stop" not in acts
    assert run.guard.factor == 1.0
    assert run.actions[-100:] == ["apply"] * 100


def test_the_first_cut_of_sudden_trouble_is_taken_back_and_the_second_is_not() -> None:
    data = batches(UPDATES * 2, size=32)
    run = Run().train(data, _noise)
    back = next(e for e in run.guard.events if e["action"] == "rollback")
    taken = next(e for e in run.guard.events if e["action"] == "recover")
    healthy = taken["update"] - back["update"]
    assert healthy >= back["update"] - back["restored_update"] + 4
    assert (taken["lr_before"], taken["lr_after"], run.guard.factor) == (0.05, 0.1, 1.0)

    def twice(t, run, x, y):
        return _noise(t if t != 250 else 80, run, x, y)

    again = Run().train(data, twice)
    assert [e["action"] for e in again.guard.events if e["action"] != "skip"][:3] == [
        "rollback",
        "recover",
        "rollback",
    ]
    assert again.guard.factor <= 0.5


def test_a_rate_thirty_times_too_large_is_found_at_once_and_cut_to_a_safe_one() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))

    def train(lr: float, guarded: bool) -> tuple[float, DivergenceGuard]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        guard = DivergenceGuard(model, optimizer, safe_drift=0.01)  # new weights
        guard.start()
        for t in range(150):
            rows = order[t * 10 % 1400 :][:64]
            loss = nn.functional.cross_entropy(model(pixels[rows].float() / 16), labels[rows])
            loss.backward()
            if not guarded or guard.before_step(loss.detach()) == "apply":
                optimizer.step()
                guard.after_step() if guarded else None
            optimizer.zero_grad()
        rest = order[1400:]
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(pixels[rest].float() / 16), labels[rest])), guard

    good, _ = train(1e-2, guarded=False)
    bad, _ = train(0.6, guarded=False)
    saved, guard = train(0.6, guarded=True)
    first = guard.events[0]
    assert (first["action"], first["reason"]) == ("rollback", "early_divergence") and first["update"] <= 12
    assert first["drift"] > 0.03 and first["restored_update"] == 0
    assert bad > good + 0.5 and saved < good + 0.25
    assert train(1e-2, guarded=True)[1].events == []


def test_every_other_update_bad_does_not_go_on_for_ever() -> None:
    def often(t, run, x, y):
        return (x * math.nan if t % 2 else x), y, 1.0

    with pytest.raises(DivergenceError):
        Run().train(batches(200), often)

    def rarely(t, run, x, y):
        return (x * math.nan if t % 10 == 0 else x), y, 1.0

    run = Run()
    run.guard.start()  # the very first batch is bad
    actions = run.train(batches(200), rarely).actions
    assert (actions.count("skip"), actions.count("apply")) == (20, 180)


PLAIN = {
    "none": None,
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 - t / 400),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 400),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=400, cycle_momentum=False),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=10),
            torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 - t / 400),
        ],
        milestones=[10],
    ),
    "controlled": lambda o: ControlledLR(o, Linear(), total_steps=400),
}


@pytest.mark.parametrize("rewind", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_a_rollback_cuts_what_any_scheduler_writes(name, rewind) -> None:
    scheduler = PLAIN[name]
    data = batches(UPDATES, size=16)
    run = Run(scheduler=scheduler, rewind_schedule=rewind, recover=False).train(data, _noise)
    assert run.actions.count("rollback") == 1
    applied = run.actions.count("apply")
    rewound = run.guard.events[-1]["update"] - 2 - run.guard.events[-1]["restored_update"]
    plain = Run(scheduler=scheduler, guarded=False).train(data[: applied - rewound] if rewind else data[:applied])
    got, expected = run.optimizer.param_groups[0]["lr"], plain.optimizer.param_groups[0]["lr"]
    assert run.guard.factor == 0.5
    assert got == pytest.approx(0.5 * expected)
    if name == "controlled":
        assert run.scheduler.updates == (applied - rewound if rewind else applied)


def test_a_controlled_rate_stays_cut_after_a_resume() -> None:
    run = Run(scheduler=PLAIN["controlled"], recover=False).train(batches(UPDATES, size=32), _noise)
    assert run.scheduler.run.scale == 0.5
    other = Run(scheduler=PLAIN["controlled"])
    other.guard.load_state_dict(run.guard.state_dict())
    assert other.scheduler.run.scale == 0.5
    third = Run(scheduler=PLAIN["controlled"])
    third.scheduler.load_state_dict(run.scheduler.state_dict())
    assert third.scheduler.run.scale == 0.5
    with pytest.raises(ValueError, match="scale=2.0 is outside"):
        third.scheduler.set_scale(2.0)


class _Duck:
    """A scheduler that is no ControlledLR but has the methods a guard asks for."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    can_fall_back = True

    def set_scale(self, scale: float) -> None:
        self.calls.append(("scale", scale))

    def fall_back(self, reason: str) -> None:
        self.can_fall_back = False
        self.calls.append(("fall back", reason))

    def note_loss(self, loss: float) -> None:
        self.calls.append(("loss", loss))

    def drop_pending(self) -> None:
        self.calls.append(("drop",))

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def test_any_scheduler_with_the_methods_of_the_protocol_is_guarded_like_a_controlled_one() -> None:
    model, duck = mlp(), _Duck()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = DivergenceGuard(model, optimizer, scheduler=duck, max_skips=1, recover=False)
    losses = [1.0, math.nan, 1.0, math.nan, math.nan, 1.0, math.nan, math.nan]
    actions = [guard.before_step(loss, 1.0) for loss in losses]
    assert actions == ["apply", "skip", "apply", "rollback", "skip", "apply", "rollback", "skip"]
    last = guard.events[-2]
    assert last["handed_over"] and (last["lr_before"], last["lr_after"]) == (0.1, 0.05)
    scales = [("scale", 0.5), ("scale", 1.0), ("scale", 0.5), ("scale", 1.0)]  # cut, undone, cut, undone
    fell_back = ("fall back", "non_finite_loss at update 6")
    assert [call for call in duck.calls if call[0] not in ("loss", "drop")] == [*scales[:3], fell_back, scales[3]]
    assert duck.calls.count(("loss", 1.0)) == 3 and duck.calls.count(("drop",)) == 5
    assert optimizer.param_groups[0]["lr"] == 0.1  # left to the scheduler


@pytest.mark.parametrize("cut", [30, 82, 100])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_exact_resume_also_in_the_middle_of_a_skip_series(optimizer, cut, tmp_path) -> None:
    data = batches(130, size=32)
    whole = Run(optimizer=optimizer).train(data[:cut], _noise)
    if cut == 82:
        assert whole.actions[80:] == ["skip"] * 2
    whole.guard.save(tmp_path)
    checkpoint = {"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}
    torch.save({**checkpoint, "rng": torch.get_rng_state()}, tmp_path / "run.pt")
    whole.train(data[cut:], _noise, first=cut)
    assert "rollback" in whole.actions

    resumed = Run(optimizer=optimizer, seed=5)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.guard.load(tmp_path)
    torch.set_rng_state(saved["rng"])
    resumed.train(data[cut:], _noise, first=cut)
    assert resumed.actions == whole.actions[cut:]
    assert torch.equal(flat(resumed.model), flat(whole.model))
    assert resumed.guard.state_dict() == whole.guard.state_dict()


def test_resume_without_snapshots_in_a_skip_series_cuts_and_goes_on() -> None:
    run = Run().train(batches(82, size=32), _noise)
    other = Run()
    other.guard.load_state_dict(run.guard.state_dict())
    assert [other.guard.before_step(math.nan, 1.0) for _ in range(4)] == ["skip"] * 3 + ["rollback"]
    assert other.guard.events[-1]["restored_update"] is None
    assert other.optimizer.param_groups[0]["lr"] == 0.05


def test_without_snapshots_the_caller_restores() -> None:
    model = mlp()
    model[0].weight.ds_id = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="only a part of the weights"):
        DivergenceGuard(model, optimizer)
    guard = DivergenceGuard(model, optimizer, snapshot_every=None, max_skips=0)
    assert guard.before_step(1.0, 1.0) == "apply"
    guard.after_step()
    assert guard.before_step(math.nan, 1.0) == "rollback"
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_overflows_are_left_to_the_scaler() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    guard = DivergenceGuard(model, optimizer, scaler=scaler)
    actions = []
    for _ in range(22):
        actions.append(guard.before_step(1.0, math.inf))
        guard.after_step()
    assert actions == ["apply"] * 20 + ["skip"] * 2
    assert guard.before_step(math.nan, 1.0) == "skip"


def test_training_is_not_disturbed_and_norms_are_measured_when_nobody_gives_them() -> None:
    clean, bare = Run().train(batches(60)), Run(guarded=False).train(batches(60))
    assert torch.equal(flat(clean.model), flat(bare.model))
    run = Run()
    x, y = batches(1)[0]
    nn.functional.cross_entropy(run.model(x), y).backward()
    run.model[4].weight.grad[0, 0] = math.nan
    assert run.guard.before_step(1.0) == "skip"
    assert run.model[4].weight.grad is None
    assert run.guard.events[0]["reason"] == "non_finite_gradient"
    assert run.guard.events[0]["grad_norm"] == "nan"


def test_weights_that_are_broken_from_the_start_are_named() -> None:
    run = Run()
    run.model[0].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinity before the first update"):
        run.guard.start()


@pytest.mark.parametrize(
    "change",
    [
        {"max_skips": -1},
        {"max_rollbacks": -1},
        {"snapshot_every": -3},
        {"snapshot_every": 0},
        {"lr_cut": 0.0},
        {"lr_cut": 2.0},
    ],
)
def test_settings_out_of_range_fail_by_name(change) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Run(**change)


# --- two processes ----------------------------------------------------------------------------------------------


def _on_a_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = dist.get_rank()
    model = mlp()
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    guard = DivergenceGuard(model, optimizer, snapshot_every=10, max_skips=2)
    actions = []
    for t, (x, y) in enumerate(batches(50, seed=rank)):
        loss = nn.functional.cross_entropy(ddp(x), y)
        loss.backward()
        seen = loss.detach()
        if rank == 1 and (t == 20 or 30 <= t < 33):  # only one rank sees it, once and then in a series
            seen = seen * math.nan
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        actions.append(guard.before_step(seen, norm))
        if actions[-1] == "apply":
            optimizer.step()
            guard.after_step()
        optimizer.zero_grad()
    torch.save({"actions": actions, "weights": flat(model), "state": guard.state_dict()}, folder / f"{rank}.pt")


def test_two_processes_where_one_sees_nan_act_alike(tmp_path) -> None:
    debug_launcher(_on_a_rank, (tmp_path,), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["actions"] == second["actions"]
    assert first["state"] == second["state"]
    assert first["actions"][20] == "skip"
    assert first["actions"][30:33] == ["skip", "skip", "rollback"]
    assert first["actions"].count("apply") == 46
    assert torch.equal(first["weights"], second["weights"])
