"""DSA: hand-computed steps, the derivative against autograd, every promise of its docstring."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState, GradientState
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW, Optimizer
from transformers import Trainer

from hf_adaptive_lr import ControlledLR, Hypergradient
from hf_adaptive_lr.optimizers import DSA
from tests import integrations
from tests.tiny import Tokens, batches, bert, flat

GRANULARITIES = ["element", "tensor", "scalar"]
BASES: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.2, weight_decay=0.01),
    "momentum": lambda p: SGD(p, lr=0.2, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: AdamW(p, lr=0.02, weight_decay=0.1),
    "fused": lambda p: AdamW(p, lr=0.02, weight_decay=0.1, fused=True),
}


def _net(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).to(dtype)


def _data(steps: int, dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.to(dtype), y) for x, y in batches(steps)]


def _closure(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        model.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return closure


def _train(model: torch.nn.Module, optimizer: Optimizer, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for x, y in data:
        closure = _closure(model, x, y)
        closure()
        optimizer.step(closure if isinstance(optimizer, DSA) else None)


def _us(optimizer: DSA) -> list[torch.Tensor]:
    return [state["dsa_u"] for state in optimizer.state.values() if "dsa_u" in state]


# --- the equations ---


@pytest.mark.parametrize("redo", [True, False])
@pytest.mark.parametrize("normalise", ["sign", "rms"])
def test_three_steps_by_hand(normalise, redo) -> None:
    """The loss sum(c w^2) / 2 in plain Python; the third weight overshoots, so that its factor falls."""
    lr, beta, bound, curvature, w = 0.2, 0.3, 4.0, [1.0, 3.0, 9.0], [1.0, -2.0, 0.5]
    weights = torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))
    optimizer = DSA(SGD([weights], lr=lr), beta=beta, max_factor=bound, normalise=normalise, redo=redo)
    u = [-math.log(bound - 1)] * 3  # in the paper's way: what the sigmoid sees

    def m(v: float) -> float:
        return bound / (1 + math.exp(-v))

    for _ in range(3):
        delta = [-lr * c * x for c, x in zip(curvature, w, strict=True)]
        trial = [x + m(v) * d for x, v, d in zip(w, u, delta, strict=True)]
        signal = [-c * x * d for c, x, d in zip(curvature, trial, delta, strict=True)]
        rms = math.sqrt(sum(s * s for s in signal) / 3)
        unit = [math.copysign(1.0, s) if normalise == "sign" else s / rms for s in signal]
        u = [v + beta * n * m(v) * (1 - m(v) / bound) for v, n in zip(u, unit, strict=True)]
        w = [x + m(v) * d for x, v, d in zip(w, u, delta, strict=True)] if redo else trial

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (torch.tensor(curvature) * weights**2).sum() / 2
            loss.backward()
            return loss

        closure()
        returned = optimizer.step(closure)
        # u is kept in float32
        assert weights.tolist() == pytest.approx(w, rel=1e-6)
        assert _us(optimizer)[0].tolist() == pytest.approx([v + math.log(bound - 1) for v in u], abs=1e-6)
        assert returned.item() == pytest.approx(
            sum(c * x * x for c, x in zip(curvature, trial, strict=True)) / 2, rel=1e-6
        )
    assert optimizer.factors()[0][0] < 1 < optimizer.factors()[0][2]


class _Raw(DSA):
    """Without normalisation, so that a step of u shows the derivative itself."""

    def _normalise(self, signal: torch.Tensor) -> torch.Tensor:
        return signal


@pytest.mark.parametrize("base", ["sgd", "nesterov", "adamw"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_step_of_u_is_minus_the_derivative_of_the_trial_loss(granularity, base) -> None:
    model = _net(dtype=torch.float64)
    data = _data(3, torch.float64)
    optimizer = _Raw(BASES[base](model.parameters()), beta=1.0, granularity=granularity)
    _train(model, optimizer, data[:2])  # momentum and second moments are no longer zero
    for u in _us(optimizer):
        u.copy_(torch.randn(u.shape))
    x, y = data[2]
    closure = _closure(model, x, y)
    closure()

    twin, twin_base = copy.deepcopy((model, optimizer.base))
    for p, original in zip(twin.parameters(), model.parameters(), strict=True):
        p.grad = original.grad.clone()
    twin_base.step()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    delta = {name: p.detach() - start[name] for name, p in twin.named_parameters()}
    us = [u.double().requires_grad_() for u in _us(optimizer)]
    of = dict(zip(start, us * 4 if granularity == "scalar" else us, strict=True))
    stretched = {name: w + 10 * torch.sigmoid(of[name] - math.log(9)) * delta[name] for name, w in start.items()}
    loss = cross_entropy(torch.func.functional_call(model, stretched, (x,)), y)
    expected = [u - d for u, d in zip(us, torch.autograd.grad(loss, us), strict=True)]

    optimizer.step(closure)
    for u, wanted in zip(_us(optimizer), expected, strict=True):
        assert torch.allclose(u.double(), wanted, rtol=1e-6, atol=1e-7)
    assert len(us) == (1 if granularity == "scalar" else 4)
    assert any(((u - wanted).abs() > 1e-3).any() for u, wanted in zip(us, expected, strict=True))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("max_factor", [10.0, 1.1, 33.3])
def test_with_beta_zero_it_is_the_wrapped_optimizer_bit_for_bit(granularity, base, max_factor) -> None:
    plain, wrapped = _net(), _net()
    _train(plain, BASES[base](plain.parameters()), _data(5))
    optimizer = DSA(BASES[base](wrapped.parameters()), beta=0.0, granularity=granularity, max_factor=max_factor)
    _train(wrapped, optimizer, _data(5))
    assert torch.equal(flat(plain), flat(wrapped))
    assert optimizer.factors() == [(1.0, 1.0, 1.0)]


@pytest.mark.parametrize("bound", [1.1, 10.0, 1000.0])
def test_factors_stay_between_zero_and_the_bound_and_come_back(bound) -> None:
    """Many looks that agree, then few that do not: near the bound m' is small, and u must not run off."""
    w = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = DSA(SGD([w], lr=1e-4), beta=1.0, max_factor=bound)

    def factor_after(looks: int, slope: float) -> float:
        for _ in range(looks):
            w.grad = torch.ones(1)
            optimizer.step(lambda: (slope * w).sum().backward())
        low, mean, high = optimizer.factors()[0]
        assert low == mean == high
        return mean

    # The ends of u are where m = sigmoid(4) = 0.982 of the bound and u = -6: numbers, not a training.
    assert 0.98 * bound < factor_after(450, 1.0) < 0.99 * bound
    assert factor_after(100, -1.0) < 1
    assert 0 < factor_after(450, -1.0) < 0.03
    assert factor_after(450, 1.0) > 0.98 * bound


# --- what the closure may be ---


def test_a_closure_of_two_half_batches_equals_one_of_the_whole() -> None:
    whole, halves = _net(dtype=torch.float64), _net(dtype=torch.float64)
    optimizer = DSA(BASES["momentum"](halves.parameters()), normalise="rms")
    _train(whole, DSA(BASES["momentum"](whole.parameters()), normalise="rms"), _data(4, torch.float64))
    for x, y in _data(4, torch.float64):

        def closure(x=x, y=y) -> None:
            for part in (slice(0, 4), slice(4, 8)):
                (cross_entropy(halves(x[part]), y[part]) / 2).backward()

        optimizer.zero_grad()
        closure()
        optimizer.step(closure)  # which does not zero gradients and returns no loss
    # sums in another order
    assert torch.allclose(flat(whole), flat(halves), rtol=1e-6)


def test_fed_and_passed_closures_are_the_same_and_a_fed_one_is_used_once() -> None:
    passed, fed = _net(), _net()
    first, second = DSA(BASES["adamw"](passed.parameters())), DSA(BASES["adamw"](fed.parameters()))
    for x, y in _data(3):
        closure = _closure(passed, x, y)
        closure()
        losses = [first.step(closure)]
        closure = _closure(fed, x, y)
        closure()
        second.feed(lambda: pytest.fail("a new one takes its place"))
        second.feed(closure)
        losses.append(second.step())
        assert torch.equal(*losses)
        with pytest.raises(RuntimeError, match="looks at each batch twice"):
            second.step()
    assert torch.equal(flat(passed), flat(fed))
    second.feed(lambda: pytest.fail("the passed one wins"))
    second.step(closure)
    with pytest.raises(RuntimeError, match="looks at each batch twice"):
        second.step()


@pytest.mark.parametrize("accept", ["always", "if_lower"])
def test_gradients_are_the_first_ones_afterwards(accept) -> None:
    model = _net()
    optimizer = DSA(BASES["sgd"](model.parameters()), accept=accept)
    (x, y), seen = _data(1)[0], []

    def closure() -> torch.Tensor:
        seen.append([p.grad for p in model.parameters()])
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    closure()
    before = [(p.grad, p.grad.clone()) for p in model.parameters()]
    optimizer.step(closure)
    for p, (grad, value) in zip(model.parameters(), before, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, value)
    assert all(grad is None for look in seen for grad in look)
    assert len(seen) == 1 + (1 if accept == "always" else 3)


def test_a_closure_that_fails_leaves_gradients_and_the_trial_step() -> None:
    model, twin = _net(), _net()
    _train(twin, BASES["sgd"](twin.parameters()), _data(1))
    optimizer = DSA(BASES["sgd"](model.parameters()))
    _closure(model, *_data(1)[0])()
    grads = [p.grad for p in model.parameters()]

    def closure() -> None:
        raise KeyError("no batch")

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(flat(model), flat(twin))


def test_closures_get_gradients_under_no_grad() -> None:
    here, there = _net(), _net()
    _train(here, DSA(BASES["sgd"](here.parameters())), _data(2))
    optimizer = DSA(BASES["sgd"](there.parameters()))
    for x, y in _data(2):
        closure = _closure(there, x, y)
        closure()
        with torch.no_grad():
            optimizer.step(closure)
    assert torch.equal(flat(here), flat(there))


# --- parameters of all kinds ---


def test_only_parameters_with_a_gradient_move() -> None:
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.head, self.unused = torch.nn.Linear(4, 3), torch.nn.Parameter(torch.ones(2))
            self.frozen, self.empty = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(0))
            self.frozen.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x) * self.frozen)) + self.empty.sum()

    torch.manual_seed(0)
    model = Shared()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = DSA(AdamW(model.parameters(), lr=0.1), normalise="rms")
    _train(model, optimizer, _data(2))
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {"unused", "frozen", "empty"}
    assert {name for name, p in model.named_parameters() if "dsa_u" in optimizer.state.get(p, {})} == {
        name for name, _ in model.named_parameters() if name not in still
    }


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_parameter_whose_gradient_comes_late_is_set_up_by_the_base(granularity) -> None:
    early, late = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = DSA(AdamW([late, early], lr=0.1), granularity=granularity)
    for step in range(3):

        def closure(step=step) -> torch.Tensor:
            loss = early.square().sum() + (late.square().sum() if step else 0)
            optimizer.zero_grad()
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)
    assert [float(optimizer.state[p]["step"]) for p in (early, late)] == [3, 2]
    assert len(_us(optimizer)) == (1 if granularity == "scalar" else 2)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_step_of_length_zero_teaches_nothing(granularity) -> None:
    model = _net()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.1}]
    before = flat(model[0]).clone()
    optimizer = DSA(SGD(groups), granularity=granularity, normalise="rms")
    _train(model, optimizer, _data(3))
    assert torch.equal(flat(model[0]), before)
    frozen, moving = optimizer.factors()
    assert frozen == ((1.0, 1.0, 1.0) if granularity != "scalar" else moving)
    assert moving != (1.0, 1.0, 1.0)


@pytest.mark.parametrize("normalise", ["sign", "rms"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_leaves_its_u_alone(bad, normalise) -> None:
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = DSA(SGD([w], lr=0.1), normalise=normalise)

    def closure() -> None:
        w.grad = torch.tensor([1.0, bad, -1.0])

    w.grad = torch.ones(3)
    optimizer.step(closure)
    u = _us(optimizer)[0]
    assert u[1] == 0
    assert u[0] > 0 > u[2]
    assert torch.isfinite(w).all()


@pytest.mark.parametrize("normalise", ["sign", "rms"])
def test_a_constant_factor_on_the_loss_of_the_closure_changes_nothing(normalise) -> None:
    """Down to products whose squares vanish in float32; powers of two, so that no rounding differs."""
    models = []
    for scale in (1.0, 2.0**16, 2.0**-80):
        model = _net()
        models.append(model)
        optimizer = DSA(BASES["sgd"](model.parameters()), normalise=normalise)
        for x, y in _data(3):
            _closure(model, x, y)()
            optimizer.step(lambda model=model, x=x, y=y, s=scale: (s * cross_entropy(model(x), y)).backward())
    # Gradients of the tiny scale lose bits in the softmax's backward, not the sign.
    assert torch.equal(flat(models[0]), flat(models[1]))
    assert torch.allclose(flat(models[0]), flat(models[2]), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype) -> None:
    model = _net(dtype=dtype)
    optimizer = DSA(BASES["adamw"](model.parameters()))
    closure = _closure(model, *_data(1, dtype)[0])
    before = closure().item()
    for _ in range(10):
        closure()
        optimizer.step(closure)
    assert closure().item() < before
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {u.dtype for u in _us(optimizer)} == {torch.float32}


# --- the optimizer that it is ---


def test_groups_state_and_defaults_are_the_bases_whatever_happens() -> None:
    model = _net()
    base = SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    keys = set(base.param_groups[0])
    optimizer = DSA(base)

    def same() -> bool:
        return (
            optimizer.param_groups is base.param_groups
            and optimizer.state is base.state
            and optimizer.defaults is base.defaults
        )

    assert same()
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.2})
    assert same()
    assert [group["lr"] for group in base.param_groups] == [0.1, 0.2]
    _train(model, optimizer, _data(2))
    for load in (optimizer.load_state_dict, base.load_state_dict):
        load(copy.deepcopy(optimizer.state_dict()))
        assert same()
        _train(model, optimizer, _data(1))
    assert all(set(group) == keys for group in base.param_groups)
    SGD(model.parameters(), lr=0.1).load_state_dict(
        {"state": {}, "param_groups": [{**base.state_dict()["param_groups"][0], "params": [0, 1, 2, 3]}]}
    )


def test_a_torch_scheduler_steers_the_base() -> None:
    model, twin = _net(), _net()
    optimizer = DSA(SGD(model.parameters(), lr=0.4))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    by_hand = DSA(SGD(twin.parameters(), lr=0.4))
    for step, batch in enumerate(_data(3)):
        by_hand.base.param_groups[0]["lr"] = 0.4 * 0.5**step
        _train(twin, by_hand, [batch])
        _train(model, optimizer, [batch])
        scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == 0.05
    assert torch.equal(flat(model), flat(twin))


def test_hooks_fire_once_per_step_and_controlled_lr_works_on_it() -> None:
    model = _net()
    optimizer = DSA(SGD(model.parameters(), lr=1.0))
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    scheduler = ControlledLR(optimizer, "linear", total_steps=4)
    lrs = []
    for batch in _data(4):
        _train(model, optimizer, [batch])
        lrs.append(optimizer.base.param_groups[0]["lr"])
    assert calls == ["before", "after"] * 4
    assert lrs == scheduler.lr_history() == [1.0, 0.75, 0.5, 0.25]
    with pytest.raises(ValueError, match="alignment.*DSA sets a learning rate of its own"):
        ControlledLR(optimizer, Hypergradient())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("base", "dtype"), [("momentum", torch.float32), ("adamw", torch.float32)])
def test_resume_is_bit_for_bit(granularity, base, dtype) -> None:
    _resume(granularity, base, dtype)


def test_resume_keeps_u_in_float32_where_the_weights_are_not() -> None:
    _resume("element", "momentum", torch.bfloat16)


def _resume(granularity: str, base: str, dtype: torch.dtype) -> None:
    def fresh() -> tuple[torch.nn.Module, DSA]:
        model = _net(dtype=dtype)
        return model, DSA(BASES[base](model.parameters()), granularity=granularity, normalise="rms", beta=0.3)

    data = _data(7, dtype)
    model, optimizer = fresh()
    _train(model, optimizer, data)
    for stop in (1, 4):
        first, first_optimizer = fresh()
        _train(first, first_optimizer, data[:stop])
        file = io.BytesIO()
        torch.save((first.state_dict(), first_optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        second, second_optimizer = fresh()
        second.load_state_dict(weights)
        second_optimizer.load_state_dict(state)
        _train(second, second_optimizer, data[stop:])
        assert torch.equal(flat(model), flat(second))
        assert all(torch.equal(a, b) for a, b in zip(_us(optimizer), _us(second_optimizer), strict=True))
        assert all(a.dtype is torch.float32 for a in _us(second_optimizer))


def test_a_state_of_another_granularity_or_of_the_base_alone() -> None:
    model = _net()
    saved = DSA(BASES["momentum"](model.parameters()))
    _train(model, saved, _data(2))
    for other in ("tensor", "scalar"):
        optimizer = DSA(BASES["momentum"](model.parameters()), granularity=other)
        with pytest.raises(ValueError, match=rf"not of granularity='{other}'"):
            optimizer.load_state_dict(saved.state_dict())
        assert not optimizer.state
    plain = BASES["momentum"](model.parameters())
    _train(model, plain, _data(1))
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.factors() == [(1.0, 1.0, 1.0)]
    assert len(optimizer.state) == 4


def test_copies_and_pickles_go_on_alike() -> None:
    model = _net()
    optimizer = DSA(BASES["adamw"](model.parameters()), beta=0.2, granularity="tensor")
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)  # which patches step
    _train(model, optimizer, _data(2))
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    _train(model, optimizer, _data(3))
    for twin, twin_optimizer in copies:
        fired = []
        twin_optimizer.register_step_post_hook(lambda *_, fired=fired: fired.append(1))
        _train(twin, twin_optimizer, _data(3))
        assert torch.equal(flat(model), flat(twin))
        assert len(fired) == 3


def test_factors_say_what_the_groups_have() -> None:
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(1))
    optimizer = DSA(SGD([{"params": [a, b]}, {"params": []}], lr=0.1), max_factor=4.0)
    assert optimizer.factors() == [(1.0, 1.0, 1.0)] * 2
    a.grad, b.grad = torch.ones(3), torch.ones(1)
    optimizer.step(lambda: (a.sum() - b.sum()).backward())
    optimizer.state[a]["dsa_u"][0] = 2.0
    ms = [4 / (1 + 3 * math.exp(-u)) for u in (2.0, 0.05 * 0.75, 0.05 * 0.75, -0.05 * 0.75)]
    assert optimizer.factors()[0] == pytest.approx((min(ms), sum(ms) / 4, max(ms)), rel=1e-6)


# --- accept ---


@pytest.mark.parametrize("redo", [True, False])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_if_lower_never_raises_the_loss_of_the_batch(granularity, redo) -> None:
    model = _net()
    optimizer = DSA(SGD(model.parameters(), lr=8.0), granularity=granularity, redo=redo, accept="if_lower")
    kept = undone = 0
    for x, y in _data(40):
        closure = _closure(model, x, y)
        before, weights = closure(), flat(model).clone()
        optimizer.step(closure)
        if torch.equal(flat(model), weights):
            undone += 1
        else:
            kept += 1
            assert closure() < before
    assert kept > 3
    assert undone > 3


def test_if_lower_counts_its_looks_and_takes_back_a_step_to_nowhere() -> None:
    w = torch.nn.Parameter(torch.tensor([3.0]))
    calls: list[float] = []

    def closure() -> torch.Tensor:
        calls.append(w.item())
        loss = (w.square() if w.item() == 3.0 else w * math.nan).sum()
        loss.backward()
        return loss

    for redo, looks in ((True, 3), (False, 2)):
        optimizer = DSA(SGD([w], lr=0.1), accept="if_lower", redo=redo)
        w.grad = torch.tensor([6.0])
        calls.clear()
        optimizer.step(closure)
        assert len(calls) == looks
        assert w.item() == calls[0] == 3.0
    with pytest.raises(TypeError, match="closure returned None"):
        optimizer.step(lambda: None)
    assert w.item() == 3.0


# --- refusals ---


def test_a_step_without_a_closure_changes_nothing() -> None:
    model = _net()
    optimizer = DSA(BASES["momentum"](model.parameters()))
    _closure(model, *_data(1)[0])()
    weights, grads = flat(model).clone(), [p.grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"step\(closure\).*feed\(closure\).*\.base"):
        optimizer.step()
    assert torch.equal(flat(model), weights)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert not optimizer.state
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"no parameter has a gradient.*backward"):
        optimizer.step(lambda: pytest.fail("not called"))
    with pytest.raises(TypeError, match="takes a function"):
        optimizer.feed(1.0)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"beta": -0.1}, ValueError, r"beta=-0.1 is outside \[0.0, 1.0\]; 0 never"),
        ({"beta": math.nan}, ValueError, "beta=nan"),
        ({"beta": "much"}, TypeError, "beta must be a number"),
        ({"max_factor": 1.0}, ValueError, r"max_factor=1.0 is outside \[1.1, 1000.0\]"),
        ({"max_factor": 1e4}, ValueError, "max_factor"),
        ({"granularity": "layer"}, ValueError, "granularity='layer' is unknown; .*'tensor'"),
        ({"normalise": "max"}, ValueError, "normalise='max' is unknown; .*'rms'"),
        ({"accept": "lower"}, ValueError, "accept='lower' is unknown; .*'if_lower'"),
        ({"redo": "yes"}, ValueError, "redo='yes' is unknown"),
    ],
)
def test_settings_out_of_range(changes, error, match) -> None:
    with pytest.raises(error, match=match):
        DSA(SGD(_net().parameters(), lr=0.1), **changes)


def test_bases_that_cannot_be_wrapped() -> None:
    params = list(_net().parameters())
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got list"):
        DSA(params)
    with pytest.raises(ValueError, match="cannot wrap LBFGS"):
        DSA(torch.optim.LBFGS(params))
    with pytest.raises(ValueError, match="cannot wrap DSA"):
        DSA(DSA(SGD(params, lr=0.1)))
    prepared = Accelerator(cpu=True).prepare(SGD(params, lr=0.1))
    with pytest.raises(ValueError, match="cannot wrap AcceleratedOptimizer: it takes a plain optimizer"):
        DSA(prepared)
    with pytest.raises(ValueError, match="maximize=True; negate the loss"):
        DSA(Adam(params, lr=0.1, maximize=True))
    with pytest.raises(ValueError, match="dense real gradients"):
        DSA(SGD([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1))


def test_what_comes_later_fails_fast_before_the_update() -> None:
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = DSA(SGD(table.parameters(), lr=0.1))
    before = flat(table).clone()
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step(lambda: pytest.fail("not called"))
    optimizer.zero_grad()
    table.weight.grad = torch.ones(4, 2)
    optimizer.param_groups[0]["maximize"] = True
    with pytest.raises(ValueError, match="maximize=True"):
        optimizer.step(lambda: pytest.fail("not called"))
    assert torch.equal(flat(table), before)


# --- through Accelerate, Trainer, processes ---


@pytest.mark.parametrize("fed", [True, False])
def test_prepared_by_accelerate(fed) -> None:
    plain, model = _net(), _net()
    _train(plain, DSA(BASES["adamw"](plain.parameters())), _data(4))
    accelerator = Accelerator(cpu=True)
    inner = DSA(BASES["adamw"](model.parameters()))
    model, optimizer = accelerator.prepare(model, inner)
    assert optimizer.param_groups is inner.base.param_groups
    for x, y in _data(4):

        def closure(x=x, y=y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            accelerator.backward(loss)
            return loss

        closure()
        if fed:
            inner.feed(closure)
            optimizer.step()
        else:
            optimizer.step(closure)
    assert torch.equal(flat(plain), flat(model))


def test_under_a_gradient_scaler_a_skipped_update_is_none() -> None:
    """A real scaler; the overflow is put into the gradient by hand, as float16 would."""
    plain, model = _net(), _net()
    optimizer = DSA(BASES["fused"](model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    data = _data(4)
    for step, (x, y) in enumerate(data):

        def closure(x=x, y=y) -> torch.Tensor:
            loss = cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            return loss

        optimizer.zero_grad()
        closure()
        if step == 1:
            next(model.parameters()).grad.fill_(math.inf)
        before = flat(model).clone()
        optimizer.feed(closure)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(flat(model), before) == (step == 1)
    _train(plain, DSA(BASES["fused"](plain.parameters())), [data[i] for i in (0, 2, 3)])
    assert torch.allclose(flat(plain), flat(model), rtol=1e-5)


class _FeedingTrainer(Trainer):
    """The documented way through Trainer: what computes the batch's gradient computes it again."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        def look() -> torch.Tensor:
            return Trainer.training_step(self, model, dict(inputs), num_items_in_batch)

        self.optimizer.optimizer.feed(look)
        return look()


def test_trainer_feeds_it_and_resumes(tmp_path: Path) -> None:
    def trained(folder: Path, resume: bool, **changes) -> torch.nn.Module:
        model = bert(dropout=0.0)
        optimizer = DSA(integrations.optimizer_for(model), beta=0.3)
        args = integrations.arguments(folder, save_strategy="steps", save_steps=2, **changes)
        trainer = _FeedingTrainer(model=model, args=args, train_dataset=Tokens(), optimizers=(optimizer, None))
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resume else None)
        assert optimizer.factors()[0][2] > 1.2
        return model

    whole = trained(tmp_path, False)
    assert torch.equal(flat(whole), flat(trained(tmp_path, True)))


def _fresh(function: Callable[..., None], *args: object) -> None:
    # A forked process inherits the one-process state of Accelerate that earlier tests left in the parent.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    function(*args)


def _on_a_rank(folder: Path, settings: dict[str, str], lr: float) -> None:
    torch.set_num_threads(1)
    model = torch.nn.parallel.DistributedDataParallel(_net())
    optimizer = DSA(SGD(model.parameters(), lr=lr, momentum=0.5), **settings)
    stood = 0
    for x, y in _data(12):
        mine = slice(dist.get_rank(), None, 2)
        closure = _closure(model, x[mine], y[mine])
        closure()
        before = flat(model).clone()
        optimizer.step(closure)
        stood += torch.equal(flat(model), before)
    torch.save({"weights": flat(model), "us": _us(optimizer), "stood": stood}, folder / f"{dist.get_rank()}.pt")


@pytest.mark.parametrize(
    ("settings", "lr"),
    [({"normalise": "rms"}, 0.2), ({"granularity": "scalar"}, 0.2), ({"accept": "if_lower"}, 4.0)],
    ids=["element", "scalar", "if_lower"],
)
def test_two_processes_stay_bit_equal_and_equal_one(settings, lr, tmp_path) -> None:
    debug_launcher(_fresh, args=(_on_a_rank, tmp_path, settings, lr), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    assert all(torch.equal(a, b) for a, b in zip(first["us"], second["us"], strict=True))
    assert first["stood"] == second["stood"]
    if settings.get("accept") == "if_lower":
        assert 0 < first["stood"] < 12  # although each rank sees another loss
        return
    alone = _net()
    _train(alone, DSA(SGD(alone.parameters(), lr=lr, momentum=0.5), **settings), _data(12))
    # float32 sums in another order
    assert torch.allclose(flat(alone), first["weights"], atol=1e-4)


def _on_a_shard(folder: Path, granularity: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    model = _net()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = DSA(AdamW(model.parameters(), lr=0.02), granularity=granularity, normalise="rms", beta=0.3)
    rank = dist.get_rank()
    _train(model, optimizer, [(x[rank::2], y[rank::2]) for x, y in _data(6)])
    weights = [p.full_tensor().detach().flatten() for p in model.parameters()]
    torch.save((torch.cat(weights), optimizer.factors()), folder / f"{rank}.pt")


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_sharded_parameters_are_summed_over_all_shards(granularity, tmp_path) -> None:
    debug_launcher(_fresh, args=(_on_a_shard, tmp_path, granularity), num_processes=2)
    alone = _net()
    optimizer = DSA(AdamW(alone.parameters(), lr=0.02), granularity=granularity, normalise="rms", beta=0.3)
    _train(alone, optimizer, _data(6))
    for rank in (0, 1):
        weights, factors = torch.load(tmp_path / f"{rank}.pt")
        # float32 sums in another order
        assert torch.allclose(weights, flat(alone), atol=1e-5)
        assert factors[0] == pytest.approx(optimizer.factors()[0], rel=1e-3)
