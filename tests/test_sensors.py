"""Every field against a direct computation in float64, on live optimizers and with a batch dimension."""

from __future__ import annotations

import warnings

import pytest
import torch

from hf_adaptive_lr import ControlledLR, Hypergradient
from hf_adaptive_lr.sensors.gradients import adam_direction, cosine, inner, measure_previous_update, sgd_direction
from hf_adaptive_lr.sensors.readable import steps_like_torch
from tests.controllers_for_tests import Everything, Watcher
from tests.tiny import Tokens, batches, bert, flat, mlp

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "nesterov foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "sgd maximize": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, amsgrad=True),
    "adam maximize": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True),
}


def _vector(tensors) -> torch.Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_previous_update_and_norm_against_a_direct_computation(name) -> None:
    model = mlp()
    model[3].weight = torch.nn.Parameter(model[3].weight.detach().T.contiguous().T)  # not contiguous
    optimizer = OPTIMIZERS[name](model.parameters())
    fields = ("alignment", "update_ratio", "grad_norm")
    scheduler = ControlledLR(optimizer, Watcher(fields=fields), max_grad_norm=0)
    moved = None
    for step, (x, y) in enumerate(batches(5)):
        torch.nn.functional.cross_entropy(model(x), y).backward()
        gradient, weights = _vector(p.grad for p in model.parameters()), _vector(model.parameters())
        if optimizer.param_groups[0]["maximize"]:
            gradient = -gradient
        optimizer.step()
        seen = scheduler.trace[-1].observation
        assert seen["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
        if step == 0:
            assert seen["alignment"] == 0.0
            assert seen["update_ratio"] == 0.0
        else:
            # w[t] - w[t-1] = -lr d, so the cosine with d is the one with the negative move.
            expected = -(gradient @ moved) / gradient.norm() / moved.norm()
            assert seen["alignment"] == pytest.approx(float(expected), abs=2e-4)
            assert seen["update_ratio"] == pytest.approx(float(moved.norm() / weights.norm()), rel=2e-4)
        moved = _vector(model.parameters()) - weights
        optimizer.zero_grad()


def test_half_precision_weights_are_measured_in_single_precision() -> None:
    model = mlp().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for x, y in batches(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.bfloat16()), y).backward()
        out = measure_previous_update(optimizer, [0.01], frozenset({"alignment"}))
        optimizer.step()
    assert out["alignment"].dtype == torch.float64
    assert 0 < abs(float(out["alignment"])) <= 1


@pytest.mark.parametrize("lr", [0.05, 0.1, 0.4, 1.5])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_gain_ratio_of_a_quadratic_is_known(lr, clip) -> None:
    """f = h w^2 / 2: a step of length a gains a g^2 - h a^2 g^2 / 2 of the promised a g^2: 1 - h a / 2."""
    h = 2.0
    weight = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    holder = torch.nn.ParameterList([weight])
    optimizer = torch.optim.SGD([weight], lr=lr)
    scheduler = ControlledLR(optimizer, Watcher(fields=("gain_ratio",)), model=holder, hook=False, max_grad_norm=clip)
    scales = []
    for _ in range(3):
        scheduler.before_forward()
        loss = h * weight.square().sum() / 2
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([weight], clip) if clip else weight.grad.norm()
        scales.append(min(1.0, clip / float(norm)) if clip else 1.0)
        scheduler.observe(loss=loss, grad_norm=norm, closure=lambda: h * weight.square().sum() / 2)
        optimizer.step()
        optimizer.zero_grad()
    seen = [d.observation["gain_ratio"] for d in scheduler.trace]
    assert seen[0] == 1.0
    # Losses are float32, and the shortest step takes 9 down by 0.15: 2 * 6e-8 * 9 / 0.15 = 7e-6 at most.
    assert seen[1:] == pytest.approx([1 - h * lr * scale / 2 for scale in scales[:2]], rel=1e-5)


def test_alignment_is_the_normalised_hypergradient() -> None:
    """d f(w - lr d) / d lr by autograd is -g . d: what the multiplicative rule follows (Baydin et al. 2018, eq. 3)."""
    model = mlp().double().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    (x0, y0), (x1, y1), (x2, y2) = batches(3)
    for x, y in ((x0, y0), (x1, y1)):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.double()), y).backward()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step()
    direction = {n: (before[n] - p.detach()) / 0.1 for n, p in model.named_parameters()}
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    moved = {n: before[n] - rate * direction[n] for n in before}
    loss = torch.nn.functional.cross_entropy(torch.func.functional_call(model, moved, (x2.double(),)), y2)
    hypergradient = torch.autograd.grad(loss, rate)[0]
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x2.double()), y2).backward()
    norms = _vector(p.grad for p in model.parameters()).norm() * _vector(direction.values()).norm()
    out = measure_previous_update(optimizer, [0.1], frozenset({"alignment"}))
    assert float(out["alignment"]) == pytest.approx(float(-hypergradient / norms), rel=1e-5)


def test_formulas_with_a_batch_dimension_equal_their_columns() -> None:
    runs, double = 5, torch.float64  # sums in another order, and 1 - 0.999^t, which loses three digits at t = 1
    grads = [torch.randn(runs, 3, 4, dtype=double), torch.randn(runs, 7, dtype=double)]
    moments = [torch.randn_like(g) for g in grads], [torch.rand_like(g) for g in grads]
    steps = torch.arange(1, runs + 1, dtype=double)

    def alignment(g, m, v, step, batch_ndim):
        step = step.view(-1, *[1] * 0) if batch_ndim == 0 else step
        d = [
            adam_direction(
                a, b, step.view(-1, *[1] * (a.ndim - 1)) if batch_ndim else step, betas=(0.9, 0.999), eps=1e-8
            )
            for a, b in zip(m, v, strict=True)
        ]
        return cosine(inner(g, d, batch_ndim), inner(d, d, batch_ndim), inner(g, g, batch_ndim))

    batched = alignment(grads, *moments, steps, 1)
    assert batched.shape == (runs,)
    for run in range(runs):
        alone = alignment([g[run] for g in grads], *([t[run] for t in m] for m in moments), steps[run], 0)
        assert float(alone) == pytest.approx(float(batched[run]), rel=1e-10)
    assert torch.equal(sgd_direction(grads[0], None), grads[0])


def test_a_sparse_gradient_fails_fast() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    ControlledLR(optimizer, Hypergradient())
    table(torch.tensor([1])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    assert torch.equal(table.weight, before)


def _free_of_lr() -> list:
    import prodigyopt
    import schedulefree

    named_like_it = type("DAdaptAdam", (torch.optim.SGD,), {})
    return [prodigyopt.Prodigy, schedulefree.AdamWScheduleFree, named_like_it]


@pytest.mark.parametrize("index", range(3))
def test_optimizers_that_set_their_own_step_size_warn_once(index) -> None:
    model = mlp()
    optimizer = _free_of_lr()[index](model.parameters(), lr=1.0)
    with pytest.warns(UserWarning, match=f"{type(optimizer).__name__} sets its own step size") as caught:
        scheduler = ControlledLR(optimizer, "linear", total_steps=2)
    assert len(caught) == 1
    if hasattr(optimizer, "train"):
        optimizer.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # prodigyopt 1.1.2 calls a deprecated overload
        torch.nn.functional.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1]).backward()
        optimizer.step()
    assert scheduler.updates == 1


def test_the_gain_ratio_under_clipping_needs_both_the_norm_and_the_threshold() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batches(1)[0]
    for threshold, norm in ((None, 1.0), (1.0, None)):
        watcher = Watcher(fields=("gain_ratio",))
        scheduler = ControlledLR(optimizer, watcher, model=model, hook=False, max_grad_norm=threshold)
        scheduler.before_forward()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        scheduler.observe(loss=loss, grad_norm=norm, closure=lambda: torch.nn.functional.cross_entropy(model(x), y))
        with pytest.raises(ValueError, match="gain_ratio from before clipping"):
            optimizer.step()


def _clipped_run(told: bool, micro_batches: int, clip: float = 0.05) -> list[dict]:
    """Two updates under clipping; either the norm and the threshold are told, or the loss before `backward()`."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watcher = Watcher(fields=("grad_norm", "gain_ratio"))
    scheduler = ControlledLR(
        optimizer, watcher, model=model, hook=False, every=2, max_grad_norm=clip if told else None
    )
    for first in range(0, 5 * micro_batches, micro_batches):
        for x, y in batches(5 * micro_batches)[first : first + micro_batches]:

            def closure(x=x, y=y):
                return torch.nn.functional.cross_entropy(model(x), y)

            scheduler.before_forward()
            loss = closure()
            scheduler.observe(loss=loss, closure=closure)
            (loss / micro_batches).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if told:
            scheduler.observe(grad_norm=norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return [row.observation for row in scheduler.trace if row.observation]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_loss_observed_before_backward_shows_the_norm_before_clipping(micro_batches) -> None:
    told, heard = _clipped_run(True, micro_batches), _clipped_run(False, micro_batches)
    assert len(told) == len(heard) == 3
    for here, there in zip(told, heard, strict=True):
        assert here["grad_norm"] == there["grad_norm"] > 0.1
        assert here["gain_ratio"] == pytest.approx(there["gain_ratio"], rel=1e-3)
    assert 0.5 < told[1]["gain_ratio"] < 1.5


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_that_nothing_clips_is_checked_once(clip) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watcher = Watcher(fields=("grad_norm", "gain_ratio"))
    scheduler = ControlledLR(optimizer, watcher, model=model, hook=False, max_grad_norm=0)
    weights = flat(model)
    for x, y in batches(2):

        def closure(x=x, y=y):
            return torch.nn.functional.cross_entropy(model(x), y)

        scheduler.before_forward()
        loss = closure()
        scheduler.observe(loss=loss, closure=closure)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if clip < 1:
            with pytest.raises(ValueError, match=r"max_grad_norm=0 means that nothing clips.*is 0.05 in the step"):
                optimizer.step()
            assert torch.equal(flat(model), weights)
            return
        optimizer.step()
        optimizer.zero_grad()
    assert scheduler.updates == 2


def test_a_loop_with_its_own_gradient_scaler_may_say_that_nothing_clips() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Watcher(fields=("grad_norm",)), model=model, hook=False, max_grad_norm=0)
    x, y = batches(1)[0]
    loss = torch.nn.functional.cross_entropy(model(x), y)
    scheduler.observe(loss=loss)
    (loss * 1024).backward()
    for p in model.parameters():
        p.grad /= 1024  # as the scaler does before the step
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    optimizer.step()
    assert scheduler.trace[0].observation["grad_norm"] == pytest.approx(norm)


def test_a_norm_with_the_factor_of_a_gradient_scaler_in_it_fails_fast() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Watcher(fields=("grad_norm",)), model=model, hook=False)
    weights = flat(model)
    x, y = batches(1)[0]
    loss = torch.nn.functional.cross_entropy(model(x), y)
    scheduler.observe(loss=loss)
    (loss * 1024).backward()
    with pytest.raises(ValueError, match="multiplied by 1024.*bfloat16"):
        optimizer.step()
    assert torch.equal(flat(model), weights)


def test_fields_that_need_a_model_say_so() -> None:
    optimizer = torch.optim.SGD(mlp().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="gain_ratio.*pass model="):
        ControlledLR(optimizer, Everything())


def test_an_unforeseen_decision_reads_nothing_stale() -> None:
    """`extend` ends a cooldown, during which no direction was kept."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Hypergradient(), total_steps=10)
    for step, (x, y) in enumerate(batches(8)):
        if step == 2:
            scheduler.cooldown(5)
        if step == 5:
            scheduler.extend(5)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    seen = [d.observation and d.observation["alignment"] for d in scheduler.trace]
    assert seen[2:5] == [None, None, None]
    assert seen[5] == 0.0
    assert seen[1] != 0.0
    assert seen[6] != 0.0


# --- optimizers that are not what they seem ---


class _Named(torch.optim.AdamW):
    """AdamW, but for its name and a default."""

    def __init__(self, params) -> None:
        super().__init__(params, lr=0.01)


def test_a_subclass_whose_step_is_torchs_is_read_from_its_state() -> None:
    assert steps_like_torch(_Named(mlp().parameters()))
    other = type("AdamW", (torch.optim.AdamW,), {"step": lambda self, closure=None: None})
    assert not steps_like_torch(other(mlp().parameters()))


def test_an_optimizer_that_sets_its_own_rate_is_named() -> None:
    from transformers.optimization import Adafactor

    with pytest.raises(ValueError, match=r"Adafactor was made with lr=None.*lr=\.\.\., relative_step=False"):
        ControlledLR(Adafactor(mlp().parameters()), "constant")
    fixed = Adafactor(mlp().parameters(), lr=0.01, relative_step=False, scale_parameter=False)
    assert ControlledLR(fixed, "constant").get_last_lr() == [0.01]


@pytest.mark.parametrize("name", ["adamw", "momentum", "nesterov", "sgd"])
def test_parameters_without_a_gradient_did_not_move(name) -> None:
    """Two experts take turns, as in a mixture; a checkpoint between two updates keeps who moved."""
    experts = torch.nn.ModuleList([mlp(0), mlp(1)])
    optimizer = OPTIMIZERS[name](experts.parameters())
    scheduler = ControlledLR(optimizer, Watcher(fields=("alignment", "update_ratio")), max_grad_norm=0)
    moved = None
    for step, (x, y) in enumerate(batches(7)):
        torch.nn.functional.cross_entropy(experts[step % 2 if step < 5 else 0](x), y).backward()
        gradient = _vector(torch.zeros_like(p) if p.grad is None else p.grad for p in experts.parameters())
        weights = flat(experts).double()
        if step == 4:
            saved = scheduler.state_dict()
            scheduler = ControlledLR(optimizer, Watcher(fields=("alignment", "update_ratio")), max_grad_norm=0)
            scheduler.load_state_dict(saved)
        optimizer.step()
        optimizer.zero_grad()
        if moved is not None:
            seen = scheduler.trace[-1].observation
            assert seen["update_ratio"] == pytest.approx(float(moved.norm() / weights.norm()), rel=2e-4)
            expected = -(gradient @ moved) / gradient.norm() / moved.norm()
            assert seen["alignment"] == pytest.approx(float(expected), abs=2e-4)
        moved = flat(experts).double() - weights


# --- a model in evaluation mode ---


@pytest.mark.parametrize("field", ["loss", "grad_norm"])
def test_a_model_in_evaluation_mode_is_the_cause_that_is_named(field) -> None:
    model = bert().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    ControlledLR(optimizer, Watcher(fields=(field,)), model=model)
    rows = [Tokens()[row] for row in range(4)]
    model(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]}).loss.backward()
    with pytest.raises(ValueError, match=f"needs {field}, and the model is in evaluation mode.*model.train"):
        optimizer.step()


def test_a_sparse_gradient_is_named_and_no_error_of_torch_comes_first() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3, sparse=True), torch.nn.Flatten(), torch.nn.Linear(6, 1))
    scheduler = ControlledLR(torch.optim.SGD(model.parameters(), lr=0.1), Watcher(fields=("grad_norm",)), model=model)
    loss = model(torch.tensor([[0, 1], [2, 3]])).square().mean()
    scheduler.observe(loss=loss)
    with pytest.raises(ValueError, match="a sparse gradient cannot be compared.*sparse=False"):
        loss.backward()
