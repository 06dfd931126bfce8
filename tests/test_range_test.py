"""The LR range test: it finds the edge of stability, and leaves no trace of itself."""

from __future__ import annotations

import copy
import math
import signal

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from hf_adaptive_lr import ControlledLR
from hf_adaptive_lr.controllers.plrs import PLRS
from hf_adaptive_lr.tuning.range_test import RangeTest, lr_range_test
from tests.tiny import Tokens, batches, bert, flat, mlp

SPECTRUM = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)


class Quadratic(nn.Module):
    """Mean of curvature / 2 * (w - x)^2 over a batch of x, plus a constant; SGD is stable below 2 / curvature."""

    def __init__(self, curvature: float, spectrum: tuple[float, ...] = SPECTRUM, shift: float = 0.0) -> None:
        super().__init__()
        self.curvatures, self.shift = curvature * torch.tensor(spectrum, dtype=torch.float64), shift
        self.w = nn.Parameter(torch.ones(len(spectrum), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (0.5 * self.curvatures * (self.w - x) ** 2).sum(-1).mean() + self.shift

    def data(self, count: int = 101, noise: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return list(noise * torch.randn(count, 32, len(self.w), generator=generator, dtype=torch.float64))


def call(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch)


def classify(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def sgd(model: nn.Module, lr: float = 0.1, **settings: object) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, **settings)


def _test_quadratic(model: Quadratic, noise: float = 1.0, seed: int = 0, **settings: object) -> RangeTest:
    return lr_range_test(model, sgd(model), model.data(noise=noise, seed=seed), loss=call, **settings)


# --- what it finds ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("curvature", [30.0, 100.0, 1000.0])
def test_l_max_is_somewhat_below_the_edge_of_stability(curvature, seed) -> None:
    found = _test_quadratic(Quadratic(curvature), seed=seed)
    assert found.turned_up
    assert 0.2 < found.l_max / (2 / curvature) < 1.0


@pytest.mark.parametrize("curvature", [10.0, 100.0, 1000.0])
def test_without_noise_the_turn_is_found_to_the_update(curvature) -> None:
    found = _test_quadratic(Quadratic(curvature, (1.0,)), noise=0.0)
    assert found.turn == pytest.approx(2 / curvature, rel=0.16)  # from one learning rate to the next is a factor 1.15
    assert found.l_max == found.turn / 2 < 2 / curvature
    best = min(range(len(found.lrs)), key=found.raw_losses.__getitem__)
    assert found.turn in found.lrs[best : best + 2]


def test_training_works_at_l_max_and_not_far_above() -> None:
    model = Quadratic(100.0)
    found = _test_quadratic(model)

    def final_loss(lr: float) -> float:
        trained = copy.deepcopy(model)
        optimizer = sgd(trained, lr)
        for x in trained.data(200, seed=9):
            optimizer.zero_grad()
            trained(x).backward()
            optimizer.step()
        return float(trained(trained.data(1, seed=10)[0]).detach())

    start = float(model(model.data(1, seed=10)[0]).detach())
    assert final_loss(found.l_min) < start
    assert final_loss(found.l_max) < start
    assert not final_loss(8 * found.l_max) < 1e6 * start


@pytest.mark.parametrize("shift", [-200.0, -1e4])
def test_losses_below_zero_and_around_it_are_losses_too(shift) -> None:
    found = _test_quadratic(Quadratic(100.0, shift=shift))
    assert found.turned_up
    assert 0.2 < found.l_max / (2 / 100.0) < 1.0
    assert min(found.losses) < 0


def test_a_transformers_model_with_a_data_loader() -> None:
    model = bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(Tokens(), batch_size=8, shuffle=True)  # six batches: iterated again and again
    found = lr_range_test(model, optimizer, loader, low=1e-5)
    assert found.turned_up

    def final_loss(lr: float) -> float:
        trained = bert().train()
        optimizer, losses = torch.optim.AdamW(trained.parameters(), lr=lr), []
        for _ in range(20):
            for batch in loader:
                loss = trained(**batch).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return sum(losses[-12:]) / 12

    assert final_loss(found.l_max) < 0.1 < 0.5 < final_loss(16 * found.l_max)


def test_a_loss_that_never_turns_up_is_said_to() -> None:
    found = _test_quadratic(Quadratic(100.0), high=1e-3)
    assert not found.turned_up
    assert found.turn is None
    assert found.l_max == found.lrs[-1] == pytest.approx(1e-3)
    assert len(found.lrs) == len(found.losses) == len(found.raw_losses) == 100
    flat_forever = lr_range_test(
        nn.Linear(1, 1), sgd(nn.Linear(1, 1)), torch.randn(101), loss=lambda m, b: b + 0 * m.weight.sum()
    )
    assert not flat_forever.turned_up


def test_it_stops_when_the_loss_diverges() -> None:
    model, seen = Quadratic(1000.0), []

    def counted(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return model(batch)

    found = lr_range_test(model, sgd(model), model.data(), loss=counted)
    count = len(found.lrs)
    assert count < 90
    assert len(seen) == count + 1
    assert found.lrs == pytest.approx([1e-6 * 10 ** (6 * k / 99) for k in range(count)], rel=1e-12)
    assert found.raw_losses[-1] > 4 * found.raw_losses[0]
    # A larger factor lets it go on for longer, until the numbers end.
    longer = _test_quadratic(model, stop_factor=1e6)
    assert len(longer.lrs) > count
    overflowing = _test_quadratic(model, high=1e6, steps=200, stop_factor=1e6, smooth=0.99)
    assert overflowing.turned_up
    assert all(math.isfinite(loss) for loss in overflowing.raw_losses)


def test_a_loss_that_is_no_longer_a_number_ends_it() -> None:
    model = nn.Linear(1, 1)
    seen: list[float] = []

    def breaks(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(1.0)
        return model.weight.sum() * 0 + batch + (math.nan if len(seen) > 41 else 0.0)

    found = lr_range_test(model, sgd(model), 1 + 0.1 * torch.randn(101), loss=breaks)
    assert found.turned_up
    assert len(found.lrs) == 40  # the first loss is that before any update
    assert found.turn in found.lrs
    assert len(seen) == 42


def test_clipping_is_part_of_the_training_that_is_tried() -> None:
    model = Quadratic(1000.0)
    assert _test_quadratic(model).turned_up
    assert not _test_quadratic(model, max_grad_norm=1e-6).turned_up


def test_proposed_bounds_are_those_of_the_controller() -> None:
    found = RangeTest(lrs=(0.1, 0.2), raw_losses=(1.0, 2.0), losses=(1.0, 2.0), turn=0.2)
    assert (found.l_max, found.l_min) == (0.1, pytest.approx(0.07))
    plrs = PLRS.from_bounds(0.05, found.l_min, found.l_max)
    assert (plrs.low, plrs.high) == (pytest.approx(1.4), pytest.approx(2.0))
    with pytest.raises(ValueError, match="base_lr=0.0 must be above 0"):
        PLRS.from_bounds(0.0, found.l_min, found.l_max)


# --- what it leaves behind: nothing ---


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with batch statistics and dropout in the middle of its training, with gradients from a micro-batch."""
    model = mlp(batch_norm=True)
    groups = [{"params": model[0].parameters(), "lr": torch.tensor(0.01)}, {"params": model[1:].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.003, amsgrad=True)
    for batch in batches(4):
        optimizer.zero_grad()
        classify(model, batch).backward()
        optimizer.step()
    model[2].eval()
    return model, optimizer


def _photograph(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Values and identities of everything that a range test touches."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    grads = {name: p.grad for name, p in model.named_parameters()}
    state = {(i, key): v for i, own in enumerate(optimizer.state.values()) for key, v in own.items()}
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    memory = [t.data_ptr() for t in (*tensors.values(), *grads.values(), *state.values())]
    things = (*tensors.values(), optimizer.state, optimizer.param_groups, optimizer.param_groups[0]["lr"])
    return {
        "values": copy.deepcopy([list(values.values()) for values in (tensors, grads, state)] + settings),
        "identities": memory + [id(thing) for thing in things],
        "modes": [module.training for module in model.modules()],
        "attributes": sorted(optimizer.__dict__),
        "generator": torch.get_rng_state(),
    }


def _same(left: object, right: object) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def _ends(how: str) -> type[BaseException] | None:
    return {"whole": None, "error": RuntimeError, "ctrl-c": KeyboardInterrupt, "no data": ValueError}[how]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("how", ["whole", "error", "ctrl-c", "no data"])
def test_everything_is_put_back_bit_for_bit(how, training) -> None:
    model, optimizer = _trained()
    model.train(training)
    model[1].eval()  # a frozen batch norm stays frozen where the model is in train mode
    before, seen = _photograph(model, optimizer), []

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen.append((model.training, model[1].training, optimizer.param_groups[0]["lr"]))
        assert all(p.grad is None for p in model.parameters())
        model[1].running_mean = model[1].running_mean + 1  # a buffer may also be exchanged for another
        torch.rand(3)
        if len(seen) == 30 and how == "error":
            raise RuntimeError("out of memory")
        if len(seen) == 30 and how == "ctrl-c":
            signal.raise_signal(signal.SIGINT)
        return classify(model, batch)

    data = iter(batches(30)) if how == "no data" else batches(30)
    if _ends(how) is None:
        lr_range_test(model, optimizer, data, loss=loss)
    else:
        with pytest.raises(_ends(how)):
            lr_range_test(model, optimizer, data, loss=loss)
    assert len(seen) >= 30
    assert {entry[:2] for entry in seen} == {(True, not training)}
    assert float(seen[-1][2]) > float(seen[1][2]) > 0
    after = _photograph(model, optimizer)
    for name in before:
        assert _same(before[name], after[name]), name


def test_training_goes_on_as_if_nothing_had_been() -> None:
    def train(tested: bool) -> torch.Tensor:
        torch.manual_seed(3)
        model, optimizer = _trained()
        if tested:
            lr_range_test(model, optimizer, batches(20), loss=classify, high=10.0)
        for batch in batches(6, seed=2):
            classify(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([flat(model), model[1].running_var])

    assert torch.equal(train(True), train(False))


def test_it_works_where_gradients_are_off_and_inside_accelerate() -> None:
    model = Quadratic(100.0)
    expected = _test_quadratic(model)
    with torch.no_grad():
        assert _test_quadratic(model) == expected
    optimizer = Accelerator(cpu=True).prepare(sgd(model))
    assert lr_range_test(model, optimizer, model.data(), loss=call) == expected


def test_groups_keep_the_ratio_of_their_learning_rates() -> None:
    model, seen = mlp(), []
    groups = [
        {"params": [model[0].weight], "lr": 0.0},
        {"params": [model[0].bias], "lr": 0.02},
        {"params": model[3].parameters(), "lr": torch.tensor(0.01)},
    ]
    optimizer = torch.optim.SGD(groups)

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        return classify(model, batch)

    found = lr_range_test(model, optimizer, batches(10), loss=loss, high=0.1)
    assert len(seen) == 101
    for lrs, lr in zip(seen[1:], found.lrs, strict=True):
        assert lrs == pytest.approx([0.0, lr, 0.5 * lr], rel=1e-6)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.0, 0.02, 0.01])


# --- batches ---


def test_an_iterator_needs_one_batch_more_than_updates() -> None:
    model = Quadratic(100.0)
    data = model.data(31)
    settings = {"loss": call, "steps": 30, "high": 1e-3}
    assert len(lr_range_test(model, sgd(model), iter(data), **settings).lrs) == 30
    with pytest.raises(ValueError, match=r"no batch is left after 30; pass a list, a DataLoader or steps \+ 1"):
        lr_range_test(model, sgd(model), iter(data[:30]), **settings)
    # What can be iterated again is.
    assert len(lr_range_test(model, sgd(model), data[:7], **settings).lrs) == 30
    with pytest.raises(ValueError, match="no batch is left after 0"):
        lr_range_test(model, sgd(model), [], **settings)


# --- errors ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 19}, r"steps=19 is outside \[20, 100000\]; 100 are enough"),
        ({"low": 0.0}, "low=0.0 is outside"),
        ({"low": math.nan}, "low=nan is outside"),
        ({"low": 0.1, "high": 0.1}, "high=0.1 is outside .* above low=0.1"),
        ({"high": 1e-9}, "high=1e-09 is outside .* above low=1e-06"),
        ({"high": math.inf}, "high=inf is outside"),
        ({"smooth": 1.0}, r"smooth=1.0 is outside \[0.0, 0.99\]"),
        ({"stop_factor": 1.0}, "stop_factor=1.0 is outside"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 is outside"),
        ({"loss": lambda m, b: m(b) * math.nan}, "the first loss is nan, before any update; look at model and data"),
        ({"loss": lambda m, b: m(b) * torch.ones(2)}, "must be a 0-d tensor that depends on the weights"),
        ({"loss": lambda m, b: torch.ones(())}, "must be a 0-d tensor that depends on the weights"),
        ({"loss": lambda m, b: m(b).item()}, "must be a 0-d tensor that depends on the weights, got"),
        ({"low": 1e5, "high": 1e6, "loss": lambda m, b: m(b).exp()}, "the loss is .* after the first update"),
        ({"low": 0.5, "high": 1.0}, "rises from the first learning rate on; lower low=0.5"),
    ],
)
def test_bad_settings_and_losses_fail_fast(settings, message) -> None:
    model = Quadratic(10.0)
    before = flat(model)
    with pytest.raises(ValueError, match=message):
        lr_range_test(model, sgd(model), model.data(), **{"loss": call, **settings})
    assert torch.equal(flat(model), before)


def test_wrong_types_fail_fast() -> None:
    model = Quadratic(10.0)
    with pytest.raises(TypeError, match="steps must be a whole number, got 50.5"):
        lr_range_test(model, sgd(model), model.data(), loss=call, steps=50.5)
    with pytest.raises(TypeError, match="smooth must be a number, got '0.9'"):
        lr_range_test(model, sgd(model), model.data(), loss=call, smooth="0.9")
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got list"):
        lr_range_test(model, [], model.data(), loss=call)
    with pytest.raises(TypeError, match=r"batches are tuple, not mappings; pass loss="):
        lr_range_test(mlp(), sgd(model), batches(2))


def test_a_model_that_gives_no_loss_is_told_from_one_that_does() -> None:
    model = bert()
    with pytest.raises(
        ValueError, match=r"no loss in the model's output for \['input_ids'\]; add labels or pass loss="
    ):
        lr_range_test(model, sgd(model), [{"input_ids": Tokens()[0]["input_ids"][None]}])


def test_an_optimizer_without_a_positive_rate_or_with_a_controller_fails_fast() -> None:
    model = Quadratic(100.0)
    with pytest.raises(ValueError, match=r"learning rates \[0.0\] of the groups; set one above 0"):
        lr_range_test(model, sgd(model, 0.0), model.data(), loss=call)
    optimizer = sgd(model)
    scheduler = ControlledLR(optimizer, PLRS())
    with pytest.raises(ValueError, match=r"a ControlledLR writes this optimizer's learning rates; close\(\) it first"):
        lr_range_test(model, optimizer, model.data(), loss=call)
    scheduler.close()
    assert lr_range_test(model, optimizer, model.data(), loss=call).turned_up
    assert scheduler.updates == 0
