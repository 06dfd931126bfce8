"""The safety envelope in real training, and with anything at all for losses, gradients, answers and calls."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from hf_adaptive_lr import ControlledLR, Controller, GRUController, Linear, MLRSNet, PPOSchedule
from hf_adaptive_lr.scheduler.envelope import Envelope
from tests.bad_controllers import Cycle, CycleLR, Fuzzed, FuzzedLR, ignored, through_a_file
from tests.tiny import batches, mlp

NAN, INF = math.nan, math.inf

# --- real training ----------------------------------------------------------------------------------------------


def _wild(cls: type[Controller], size: float, seed: int) -> Controller:
    """Random weights, `size` times as large as one would begin with."""
    return cls(params={name: size * w for name, w in cls.random_params(seed=seed).items()})


BAD: dict[str, Any] = {
    "nan": lambda kind, seed: kind(say=(NAN,)),
    "huge": lambda kind, seed: kind(say=(1e9,)),
    "zero": lambda kind, seed: kind(say=(0.0,)),
    "swing": lambda kind, seed: kind(say=(0.0, 1e9)),
}
RANDOM: dict[str, Any] = {
    f"{cls.controller_type} x{size}": lambda seed, cls=cls, size=size: _wild(cls, size, seed)
    for cls in (GRUController, MLRSNet, PPOSchedule)  # those that steer around the base learning rate
    for size in (1, 10, 100)
}


def _train(
    model: nn.Module, controller: Controller, data: list[tuple[Tensor, Tensor]], lr: float, **options: Any
) -> ControlledLR:
    """Training as a user writes it, with all that any controller may want to see."""
    optimizer = AdamW(model.parameters(), lr=lr)
    scheduler = ControlledLR(
        optimizer, controller, model=model, hook=False, total_steps=len(data), max_grad_norm=0.0, **options
    )
    criterion = nn.CrossEntropyLoss()
    for x, y in data:
        if "eval_loss" in scheduler.controller.needs and scheduler.due():
            scheduler.observe(eval_loss=criterion(model(data[0][0]), data[0][1]).detach())
        scheduler.before_forward(lambda x=x, y=y: criterion(model(x), y))
        logits = model(x)
        loss = criterion(logits, y)
        loss.backward()
        scheduler.observe(loss=loss, logits=logits)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return scheduler


def _check_rates(scheduler: ControlledLR, lr: float, envelope: Envelope) -> None:
    rates = scheduler.lr_history()
    assert all(math.isfinite(rate) for rate in rates)
    assert max(rates) <= envelope.high * lr
    assert min(rates) >= min(envelope.low * lr / len(rates), lr / len(rates)) * (1 - 1e-9)
    moves = [row for row in scheduler.trace if row.reason in ("decision", "bounded")]
    was = lr
    for row in moves:
        assert 1 / envelope.max_ratio - 1e-9 <= row.bounded / was <= envelope.max_ratio + 1e-9
        was = row.bounded


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("kind", [Cycle, CycleLR])
@pytest.mark.parametrize("name", BAD)
@ignored
def test_a_tiny_training_survives_bad_controllers(name, kind, every) -> None:
    data, held_out = batches(100), batches(1, size=256, seed=5)[0]

    def final_loss(controller: Controller, envelope: Envelope | None) -> tuple[float, ControlledLR]:
        model = mlp()
        scheduler = _train(model, controller, data, 0.02, every=every, envelope=envelope)
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model.eval()(held_out[0]), held_out[1])), scheduler

    good, _ = final_loss(Linear(), None)
    loss, scheduler = final_loss(BAD[name](kind, 0), Envelope())
    _check_rates(scheduler, 0.02, Envelope())
    assert scheduler.fallen_back
    assert [row.reason for row in scheduler.trace].index("handed_over") == 7 * every + 1
    assert loss < good + 0.1
    if name in ("huge", "swing"):  # what it is good for
        assert final_loss(BAD[name](kind, 0), None)[0] > good + 0.3


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, ...]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.from_numpy(pixels).float()[order] / 16, torch.from_numpy(labels)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def _digits_accuracy(
    digits: tuple[Tensor, ...], controller: Controller, seed: int, envelope: Envelope | None, **options
):
    x, y, held_out, answers = digits
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    rows = torch.randint(len(y), (200, 64), generator=torch.Generator().manual_seed(seed + 100))
    scheduler = _train(model, controller, [(x[row], y[row]) for row in rows], 1e-2, envelope=envelope, **options)
    with torch.no_grad():
        return 100 * float((model(held_out).argmax(-1) == answers).double().mean()), scheduler


@pytest.fixture(scope="module")
def digits_linear(digits) -> float:
    return sum(_digits_accuracy(digits, Linear(), seed, None)[0] for seed in range(3)) / 3


@pytest.mark.parametrize("name", [*(f"{n} {k}" for n in BAD for k in ("factor", "lr")), *RANDOM])
@ignored
def test_digits_are_learned_under_any_controller(digits, digits_linear, name) -> None:
    """Within two points of the linear schedule, over three seeds, though the controller is asked 20 times only."""
    found = []
    for seed in range(3):
        if name in RANDOM:
            controller, options = RANDOM[name](seed), {}
        else:
            bad, kind = name.split()
            controller, options = BAD[bad](Cycle if kind == "factor" else CycleLR, seed), {"every": 10}
        accuracy, scheduler = _digits_accuracy(digits, controller, seed, Envelope(), **options)
        _check_rates(scheduler, 1e-2, Envelope())
        assert bool(scheduler.fallen_back) or name in RANDOM
        found.append(accuracy)
    # 96.1 for linear and at least 95.5 here; of three times 597 rows, one standard error is 0.5.
    assert digits_linear > 94
    assert sum(found) / 3 > digits_linear - 2


# --- anything at all --------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, 1e9, -1e9, 1e308, 5e-324]),
    st.floats(),
    st.floats(1e-3, 1e3),
)
events = st.sampled_from(
    ["", "", "", "", "", "scale", "full", "none", "fall back", "cooldown", "extend", "note", "skip"]
)
factors = st.floats(0.0, 1.0)
runs = st.lists(st.tuples(numbers, numbers, numbers, events), min_size=2, max_size=9)


@dataclass
class Case:
    """One drawn run: two groups, the second perhaps not trained."""

    answers_lr: bool
    per_group: bool
    base: tuple[float, float]
    known: tuple[float, float] | None
    settings: dict[str, Any]
    steps: list[tuple[float, float, float, str]]

    def build(self) -> tuple[Optimizer, ControlledLR]:
        weights = [nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2)]
        groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, self.base, strict=True)]
        optimizer = SGD(groups)
        say = tuple((step[0], step[1]) if self.per_group else step[0] for step in self.steps)
        controller = FuzzedLR(say=say, lr_range=self.known) if self.answers_lr else Fuzzed(say=say)
        return optimizer, ControlledLR(optimizer, controller, **self.settings)

    def play(self, optimizer: Optimizer, scheduler: ControlledLR, first: int, last: int) -> list[tuple[float, ...]]:
        rates = []
        for _, loss, norm, what in self.steps[first:last]:
            _act(scheduler, what, loss)
            self.extended |= what == "extend"
            scheduler.observe(loss=loss, grad_norm=norm)
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None if what == "skip" else torch.full((), norm, dtype=torch.float64)
            was = _in_force(scheduler)
            optimizer.step()
            scheduler.step()
            rates.append(tuple(group["lr"] for group in optimizer.param_groups))
            if what != "skip":
                self.check(scheduler, rates[-1], was)
        return rates

    def check(self, scheduler: ControlledLR, rates: tuple[float, ...], was: float) -> None:
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
        assert self.base[1] > 0 or rates[1] == 0
        low, high = scheduler.run.config.min_lr, scheduler.run.config.max_lr
        assert low * (1 - 1e-9) <= rates[0] <= high * (1 + 1e-9)
        row, envelope = scheduler.trace[-1], self.settings["envelope"]
        assert rates == row.lr
        # One step in, however far out it was, and never further out.
        total = scheduler.run.total_steps
        line = self.base[0] * (1.0 if total is None else max(0.0, 1 - row.step / total))
        if row.reason in ("decision", "bounded"):
            assert self.known is None or row.bounded <= max(self.known[1], was / envelope.max_ratio) * (1 + 1e-9)
            assert self.known is None or row.bounded >= min(self.known[0], was * envelope.max_ratio) * (1 - 1e-9)
            lowest, highest = self.known or (low, high)
            assert row.bounded <= max(envelope.high * line, was / envelope.max_ratio, low, lowest) * (1 + 1e-9)
            assert row.bounded >= min(envelope.low * line, was * envelope.max_ratio, high, highest) * (1 - 1e-9)
            if not self.extended:
                assert row.bounded <= was * envelope.max_ratio * (1 + 1e-9)
                assert row.bounded >= was / envelope.max_ratio * (1 - 1e-9)
            self.extended = False
        elif row.reason == "held":
            assert row.lr[0] <= was * (1 + 1e-9)
        elif row.reason == "handed_over":
            assert scheduler.fallen_back
            assert not scheduler.due()

    extended: bool = False
    """Whether the next move is measured against the reference schedule."""


def _in_force(scheduler: ControlledLR) -> float:
    return scheduler.run.state_dict()["answer"][0]


def _act(scheduler: ControlledLR, what: str, loss: float) -> None:
    if what in ("scale", "full", "none"):
        scheduler.set_scale({"scale": 0.3, "full": 1.0, "none": 0.0}[what])
    elif what == "fall back":
        scheduler.fall_back("drawn")
    elif what == "cooldown":
        scheduler.cooldown(3)
    elif what == "extend" and scheduler.run.total_steps is not None:
        scheduler.extend(4)
    elif what == "note":
        scheduler.note_loss(loss)


@st.composite
def cases(draw: Any) -> Case:
    base = 10.0 ** draw(st.floats(-6, 0.9))
    # Bounds around the base, and a range of the controller's that may leave it out.
    below, above, ratio = draw(st.tuples(factors, factors, factors))
    settings = {
        "min_lr": base * 0.1 ** (6 * below) if below < 0.9 else 0.0,
        "max_lr": base * 10 ** (6 * above),
        "total_steps": draw(st.sampled_from([None, 1, 5, 12])),
        "every": draw(st.sampled_from([1, 1, 2, 3])),
        "warmup_steps": draw(st.sampled_from([0, 0, 2])),
        "envelope": Envelope(
            low=below,
            high=1 + 99 * above**3,
            max_ratio=1.01 + 20 * ratio**2,
            patience=draw(st.integers(1, 4)),
            fallback=draw(st.sampled_from(["base", "auto"])),
        ),
    }
    answers_lr = draw(st.booleans())
    known = None
    if answers_lr and draw(st.booleans()):
        edge = min(max(base * 10 ** (4 * ratio - 2), settings["min_lr"]), settings["max_lr"])
        known = (edge * 0.1 ** draw(factors), edge)
    other = draw(st.sampled_from([0.0, 0.5, 3.0]))
    return Case(answers_lr, draw(st.booleans()), (base, base * other), known, settings, draw(runs))


@settings(max_examples=5000, deadline=None, derandomize=True, database=None)
@given(case=cases(), share=st.floats(0, 1), as_json=st.booleans())
def test_whatever_happens_the_learning_rate_is_sane_and_resumes(case, share, as_json) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        at, end = int(share * len(case.steps)), len(case.steps)
        optimizer, scheduler = case.build()
        case.play(optimizer, scheduler, 0, at)
        saved, extended = through_a_file(scheduler.state_dict(), as_json), case.extended
        groups = copy.deepcopy(optimizer.state_dict())
        whole = case.play(optimizer, scheduler, at, end)
        optimizer, scheduler = case.build()
        optimizer.load_state_dict(groups)
        scheduler.load_state_dict(saved)
        case.extended = extended
        assert whole == case.play(optimizer, scheduler, at, end)
    event("fell back" if scheduler.fallen_back else "in charge")
