"""Optimizers whose state nobody reads: what their updates did, by the weights, and `universal` on all of them."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import Tensor, nn, optim
from transformers.optimization import Adafactor

from hf_adaptive_lr import AutoController, ControlledLR
from hf_adaptive_lr.sensors.difference import update_ratio
from hf_adaptive_lr.sensors.start import usual_lr
from tests.controllers_for_tests import Watcher
from tests.optimizers import Lion, Timid
from tests.sharded import Run, data, lora
from tests.tiny import batches, mlp

FIELDS = ("alignment", "group_slope", "slope", "update_ratio")


def _matrices(params) -> list[Tensor]:
    return [p for p in params if p.ndim == 2]


OPTIMIZERS = {
    "ASGD": lambda p: optim.ASGD(p, lr=0.1),
    "Adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "Adamax": lambda p: optim.Adamax(p, lr=0.002),
    "Lion": lambda p: Lion(p, lr=1e-3),
    "Muon": lambda p: optim.Muon(_matrices(p), lr=0.01),
    "NAdam": lambda p: optim.NAdam(p, lr=0.002, foreach=True),
    "RAdam": lambda p: optim.RAdam(p, lr=0.05),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.001, momentum=0.9, centered=True),
    "Timid": lambda p: Timid(p, lr=0.1),
    "transformers Adafactor": lambda p: Adafactor(p, lr=0.01, relative_step=False),
}
REFUSED = ("LBFGS", "Rprop")
READ = ("Adam", "AdamW", "SGD")


def test_every_class_of_torch_is_measured_read_or_refused() -> None:
    classes = {name for name, cls in vars(optim).items() if isinstance(cls, type) and issubclass(cls, optim.Optimizer)}
    assert classes == {*OPTIMIZERS, *REFUSED, *READ, "Optimizer", "SparseAdam"} - {
        "Lion",
        "Timid",
        "transformers Adafactor",
    }


def _vector(tensors) -> Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_what_the_weights_did(name) -> None:
    model = mlp()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    params, moved = [p for group in optimizer.param_groups for p in group["params"]], None
    scheduler = ControlledLR(optimizer, Watcher(fields=FIELDS), max_grad_norm=0)
    for x, y in batches(6):
        nn.functional.cross_entropy(model(x), y).backward()
        gradient, before = _vector(p.grad for p in params), _vector(params)
        optimizer.step()
        optimizer.zero_grad()
        found = scheduler.trace[-1].observation
        if moved is None:
            assert found == dict.fromkeys(("alignment", "slope", "update_ratio"), 0.0) | {"group_slope": (0.0,)}
        else:
            assert found["update_ratio"] == pytest.approx(float(moved.norm() / before.norm()), rel=1e-5)
            dot = -float(gradient @ moved)
            assert found["alignment"] == pytest.approx(dot / float(gradient.norm() * moved.norm()), abs=1e-5)
            assert found["slope"] == pytest.approx(dot / optimizer.param_groups[0]["lr"], rel=1e-4, abs=1e-6)
            assert found["group_slope"] == (found["slope"],)
        moved = _vector(params) - before


class Same(optim.AdamW):
    """AdamW, with a step that nobody can know to be AdamW's."""

    def step(self, closure=None) -> None:
        super().step(closure)


def test_what_is_read_from_adamw_and_what_its_weights_did_agree() -> None:
    found = []  # the hooks of a step that calls its parent's run twice, the parent's within its own
    for cls in (optim.AdamW, Same):
        model = mlp()
        optimizer = cls(model.parameters(), lr=1e-3)  # with its decoupled decay, which the state does not show
        scheduler = ControlledLR(optimizer, Watcher(fields=FIELDS[:1] + FIELDS[-1:]), max_grad_norm=0)
        for x, y in batches(8):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([row.observation for row in scheduler.trace][1:])
    for read, measured in zip(*found, strict=True):
        assert measured["update_ratio"] == pytest.approx(read["update_ratio"], rel=1e-2)
        assert measured["alignment"] == pytest.approx(read["alignment"], abs=1e-2)


def test_adapters_count_by_their_product() -> None:
    found = []
    for cls in (optim.AdamW, Same):
        model = lora()
        optimizer = cls([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
        scheduler = ControlledLR(optimizer, Watcher(fields=("update_ratio",)), model=model, max_grad_norm=0)
        for parts in data(Run(make=lora, steps=5), 0):
            model(**parts[0])["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([row.observation["update_ratio"] for row in scheduler.trace])
    assert min(found[0][1:]) > 0
    assert found[1] == pytest.approx(found[0], rel=1e-2)


# --- rounding -------------------------------------------------------------------------------------------------------


def _ratios(make, dtype: torch.dtype, lr: float) -> list[float]:
    model = mlp().to(dtype)
    optimizer = make(list(model.parameters()))
    optimizer.param_groups[0]["lr"] = lr
    scheduler = ControlledLR(optimizer, Watcher(fields=("update_ratio",)), max_grad_norm=0)
    for x, y in batches(4):
        nn.functional.cross_entropy(model(x.to(dtype)), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [row.observation["update_ratio"] for row in scheduler.trace][1:]


def test_an_update_that_rounding_has_eaten_is_not_measured() -> None:
    """Of bfloat16 weights around 0.3 a change of 1e-5 is lost in nearly all, and one of 1e-2 in none."""
    assert _ratios(Lion, torch.bfloat16, 1e-5) == [0.0] * 3
    coarse, fine = (_ratios(Lion, dtype, 1e-2) for dtype in (torch.bfloat16, torch.float32))
    assert coarse == pytest.approx(fine, rel=0.1)
    assert _ratios(Lion, torch.float32, 1e-5) == pytest.approx([ratio / 1e3 for ratio in fine], rel=0.1)


@pytest.mark.parametrize(
    ("numbers", "ratio"),
    [
        ((1e-6, 1.0, 1e-6, 1e-4, 60, 100), 1e-3),  # most have moved
        ((1e-6, 1.0, 1e-6, 1e-4, 40, 100), 0.0),  # rounding
        ((1e-6, 1.0, 1e-6, 1e-12, 40, 100), 1e-3),  # a mask, as of cautious optimizers: those that moved moved far
        ((0.0, 1.0, 0.0, 1e-4, 0, 100), 0.0),
        ((1e-6, 0.0, 1e-6, 0.0, 100, 100), 0.0),
    ],
)
def test_when_a_difference_is_believed(numbers, ratio) -> None:
    assert update_ratio(*numbers) == pytest.approx(ratio)


# --- steering -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A perceptron whose output carries its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()
        self.inner[2].p = 0.0

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.inner(x), y)}


def _train(name: str, controller: str, steps: int = 60, stop: int | None = None):
    torch.manual_seed(0)
    model, losses = Net(), []
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    scheduler = ControlledLR(
        optimizer, AutoController.from_pretrained(controller), model=model, total_steps=steps, max_grad_norm=0
    )
    for x, y in batches(steps)[:stop]:
        loss = model(x, y)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return model, optimizer, scheduler, losses


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Timid"])
def test_universal_steers_every_one_of_them(name) -> None:
    _, optimizer, scheduler, losses = _train(name, "universal")
    ratios = [row.observation["update_ratio"] for row in scheduler.trace if row.observation]
    # From scratch it aims at 0.016 * sqrt(200 / 60) of the weights, after a warm-up of three updates.
    assert 0.005 < max(ratios) < 0.2, ratios
    assert sum(losses[-10:]) / 10 < 0.9 * losses[0]
    assert usual_lr(optimizer, None) == 0.0


@pytest.mark.parametrize("controller", ["universal", "hypergradient"])
def test_a_run_resumes_to_the_bit(controller) -> None:
    """Stopped at update 3, before a decision that needs what update 2 has done."""
    _, _, whole, _ = _train("Lion", controller, steps=12)
    model, optimizer, scheduler, _ = _train("Lion", controller, steps=12, stop=3)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), torch.get_rng_state()), file)
    file.seek(0)
    again, opt, resumed, _ = _train("Lion", controller, steps=12, stop=0)
    weights, state, position, generator = torch.load(file, weights_only=True)
    again.load_state_dict(weights)
    opt.load_state_dict(state)
    resumed.load_state_dict(position)
    torch.set_rng_state(generator)
    for x, y in batches(12)[3:]:
        again(x, y)["loss"].backward()
        opt.step()
        opt.zero_grad()
    assert resumed.lr_history() == whole.lr_history()[3:]


# --- refused --------------------------------------------------------------------------------------------------------


def _own_rates() -> list:
    import prodigyopt
    import schedulefree

    from hf_adaptive_lr import DSA

    lomo = type("AdaLomo", (optim.SGD,), {})  # a stand-in for a name: lomo-optim is not installed
    return [
        (lambda p: optim.LBFGS(p), "LBFGS makes several steps"),
        (lambda p: optim.Rprop(p), "Rprop takes its learning rate for the first update alone"),
        (lambda p: prodigyopt.Prodigy(p), "prodigyopt.prodigy.Prodigy sets its own step size"),
        (lambda p: schedulefree.AdamWScheduleFree(p), "AdamWScheduleFree sets its own step size"),
        (lambda p: lomo(p, lr=0.1), "AdaLomo updates each weight within the backward pass"),
        (lambda p: DSA(optim.SGD(p, lr=0.1)), "DSA sets a learning rate of its own for every weight"),
    ]


@pytest.mark.parametrize("index", range(6))
def test_an_optimizer_that_lr_does_not_steer_is_refused_by_name(index) -> None:
    make, words = _own_rates()[index]
    model = Net()
    optimizer = make(list(model.parameters()))
    with pytest.raises(ValueError, match=f"update_ratio.*{words}.*such as AdamW"):
        ControlledLR(optimizer, AutoController.from_pretrained("universal"), model=model, total_steps=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a schedule steers a multiplier only
        ControlledLR(optimizer, "linear", total_steps=9)
