"""Compiled and fused steps with learning rates in tensors, float16 with a scaler, weights in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.optim import SGD, AdamW, Optimizer

from hf_adaptive_lr import AutoController, ControlledLR
from tests.controllers_for_tests import Watcher
from tests.optimizers import Lion

UPDATES = 200
Make = Callable[[list[Tensor]], Optimizer]


def _adamw(**how: bool) -> Make:
    return lambda p: AdamW(p, lr=torch.tensor(1e-3), **how)


def _sgd(p: list[Tensor]) -> Optimizer:
    return SGD(p, lr=torch.tensor(1e-2), momentum=0.9, foreach=False)


STEPS: dict[str, tuple[Make, Make, int]] = {
    "AdamW": (_adamw(foreach=False), _adamw(foreach=False), 1),
    "AdamW, capturable": (_adamw(foreach=True, capturable=True), _adamw(foreach=False), 1),  # only inside a graph
    "AdamW, fused": (_adamw(fused=True), _adamw(fused=True), 0),  # one kernel already, which torch leaves alone
    "SGD": (_sgd, _sgd, 2),  # the first update has no momentum buffer yet
}
"""By name: the compiled optimizer, its like that is not, and the graphs that torch makes of its step."""


class Net(nn.Module):
    """Two layers; the output carries the loss."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3)).to(dtype)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.body(x.to(self.body[0].weight.dtype)), labels)}


def _batches(count: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(16, 8, generator=generator)
        yield {"x": x, "labels": x[:, :3].argmax(-1)}


def _controlled(optimizer: Optimizer, model: nn.Module, steps: int = UPDATES) -> ControlledLR:
    controller = AutoController.from_pretrained("universal")
    return ControlledLR(optimizer, controller, model=model, total_steps=steps, max_grad_norm=0)


@pytest.mark.parametrize("name", STEPS)
def test_a_compiled_step_stays_as_it_is_in_200_updates_of_universal(name) -> None:
    """Its rate is another one at each of them; it is written into the tensor that the graph reads."""
    *makes, expected = STEPS[name]
    found = []
    for make, compiled in zip(makes, (True, False), strict=True):
        torch._dynamo.reset()
        graphs, model = CompileCounter(), Net()
        optimizer = make(list(model.parameters()))
        tensor = optimizer.param_groups[0]["lr"]
        scheduler = _controlled(optimizer, model)
        step = torch.compile(optimizer.step, backend=graphs) if compiled else optimizer.step
        for batch in _batches(UPDATES):
            model(**batch)["loss"].backward()
            step()
            optimizer.zero_grad()
        assert optimizer.param_groups[0]["lr"] is tensor
        assert float(tensor) == pytest.approx(scheduler.lr_history()[-1])
        assert len(set(scheduler.lr_history())) > UPDATES * 0.9
        assert graphs.frame_count == (expected if compiled else 0)
        found.append(scheduler.lr_history())
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    torch._dynamo.reset()


def test_overflows_under_autocast_to_float16_are_no_updates() -> None:
    """Real ones: the scale is far too large for the first updates."""
    model = Net()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    scheduler = _controlled(optimizer, model, steps=30)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1000)
    skipped = 0
    for batch in _batches(30):
        with torch.autocast("cpu", torch.float16):
            loss = model(**batch)["loss"]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        skipped += scaler.get_scale() < scale
    assert 3 < skipped < 20 and scheduler.updates == 30 - skipped
    assert [row.step for row in scheduler.trace] == list(range(scheduler.updates))
    plain = Net()
    other = AdamW(plain.parameters(), lr=1e-3)
    expected = _controlled(other, plain, steps=30)
    for number, batch in enumerate(_batches(30)):
        if number >= skipped:
            plain(**batch)["loss"].backward()
            other.step()
            other.zero_grad()
    assert scheduler.lr_history() == pytest.approx(expected.lr_history(), rel=5e-2)


class StochasticAdamW(AdamW):
    """AdamW on a float32 copy of the weights, which is rounded to bfloat16 up or down by chance: right on average."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        generator = torch.Generator().manual_seed(self.__dict__.setdefault("updates", 0))
        self.updates += 1
        kept = [(p, p.data, p.grad) for group in self.param_groups for p in group["params"]]
        for p, data, grad in kept:
            p.data, p.grad = data.float(), None
            p.grad = grad.float()
        super().step()
        for p, data, grad in kept:
            bits = p.data.view(torch.int32)
            bits += torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32)
            data.copy_((bits & -(1 << 16)).view(torch.float32))  # exact: what bfloat16 has no room for is 0
            p.grad = None
            p.data = data
            p.grad = grad


@pytest.mark.parametrize("make", [AdamW, StochasticAdamW, Lion])
def test_weights_in_bfloat16_train_without_a_rate(make) -> None:
    model = Net(torch.bfloat16)
    optimizer = make(model.parameters(), lr=1e-3)
    scheduler, losses = _controlled(optimizer, model), []
    for batch in _batches(UPDATES):
        loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert scheduler.updates == UPDATES and sum(losses[-20:]) < 0.7 * sum(losses[:20])


@pytest.mark.parametrize("stochastic", [False, True])
def test_small_updates_of_bfloat16_weights_are_told_from_rounding(stochastic) -> None:
    """Rounded by chance, they are right on average and still no update whose size could be measured."""
    found = {}
    for lr in (1e-6, 3e-3):
        model = Net(torch.bfloat16)
        kind = StochasticAdamW if stochastic else Coarse
        optimizer = kind(model.parameters(), lr=lr)
        scheduler = ControlledLR(optimizer, Watcher(fields=("update_ratio",)), model=model, max_grad_norm=0)
        nominal = Net()
        nominal.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
        reference = AdamW(nominal.parameters(), lr=lr)
        told = ControlledLR(reference, Watcher(fields=("update_ratio",)), model=nominal, max_grad_norm=0)
        for batch in _batches(3):
            for one, its in ((model, optimizer), (nominal, reference)):
                one(**batch)["loss"].backward()
                its.step()
                its.zero_grad()
        found[lr] = scheduler.trace[-1].observation["update_ratio"], told.trace[-1].observation["update_ratio"]
    assert found[1e-6][0] == 0.0 < found[1e-6][1]
    assert found[3e-3][0] == pytest.approx(found[3e-3][1], rel=0.1)


class Coarse(AdamW):
    """AdamW under another name of its own step, so that its weights are looked at and not its state."""

    def step(self, closure: None = None) -> None:
        super().step()
