"""The gain ratio where it cannot be told from rounding, and losses that do not follow the weights."""

from __future__ import annotations

import warnings

import pytest
import torch

from hf_adaptive_lr import AutoController, ControlledLR
from hf_adaptive_lr.controllers.actor_critic import ActorCritic
from hf_adaptive_lr.sensors.gain import gain_ratio
from hf_adaptive_lr.sensors.replay import surrogate
from tests.controllers_for_tests import Watcher
from tests.tiny import Tokens, bert

LOOKING = Watcher(fields=("gain_ratio",))


def _gains(dtype: torch.dtype, lr: float) -> list[float]:
    """Gain ratios of a BERT on one batch after the first update, under AdamW."""
    model = bert(dropout=0.0).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    scheduler = ControlledLR(optimizer, LOOKING, model=model, max_grad_norm=0)
    rows = [Tokens()[row] for row in range(16)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    for _ in range(6):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [row.observation["gain_ratio"] for row in list(scheduler.trace)[1:]]


def test_below_float32_the_losses_are_computed_in_float32_from_the_logits() -> None:
    """0, 13 and -5 in version 0.1, where the two losses are rounded to a hundredth."""
    for lr in (1e-3, 3e-2):
        coarse, fine = (_gains(dtype, lr) for dtype in (torch.bfloat16, torch.float32))
        assert coarse == pytest.approx(fine, abs=0.1), lr


def test_below_float32_a_small_update_is_not_measured_and_that_is_said_once() -> None:
    with pytest.warns(UserWarning, match="gain_ratio is not measured, and 1 stands for it") as said:
        assert _gains(torch.bfloat16, 1e-5) == [1.0] * 5
    assert len(said) == 1


def test_a_coarse_loss_that_nobody_can_refine_is_measured_where_an_update_is_large() -> None:
    model = torch.nn.Linear(8, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)

    def loss() -> torch.Tensor:
        return model.weight.square().sum().bfloat16()  # no loss function of torch's

    found = []
    for lr in (1e-4, 0.1):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        scheduler = ControlledLR(optimizer, LOOKING, model=model, hook=False, max_grad_norm=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(2):
                scheduler.before_forward(loss)
                now = loss()
                now.backward()
                scheduler.observe(loss=now)
                optimizer.step()
                optimizer.zero_grad()
        found.append(scheduler.trace[-1].observation["gain_ratio"])
    # Of a quadratic, the gain ratio is 1 - lr * curvature / 2, and curvature is 2; a rounding is 3 % of the promise.
    assert found[0] == 1.0 and found[1] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize(
    ("numbers", "ratio", "why"),
    [
        ((0.5e-3, 1e-3, 1e-7, 2.0**-23), 0.5, None),
        ((3e-8, 1e-8, 1e-7, 2.0**-23), 3.0, None),  # in float32 the features know how small an update was
        ((0.0, 1e-8, 1e-7, 2.0**-23), 0.0, None),
        ((0.0, 1e-3, 1e-7, 2.0**-23), 1.0, "does not follow the weights"),
        ((0.01, 0.02, 0.008, 2.0**-7), 1.0, "too coarse"),
        ((0.05, 0.1, 0.008, 2.0**-7), 0.5, None),
        ((0.1, 0.0, 0.1, 2.0**-7), 1.0, None),
    ],
)
def test_when_a_gain_is_measured(numbers, ratio, why) -> None:
    *values, eps = numbers
    found, unmeasured = gain_ratio(*values, eps)
    assert found == pytest.approx(ratio)
    assert (unmeasured is None) if why is None else (why in str(unmeasured))


def _policy_gradient(scheduler: ControlledLR, replay) -> None:
    weight = scheduler.optimizer.param_groups[0]["params"][0]
    for _ in range(3):
        ratio = (weight - weight.detach()).exp()  # 1, whatever the weights are
        scheduler.before_forward(replay or (lambda: -(weight - weight.detach()).exp().sum()))
        loss = -ratio.sum()
        loss.backward()
        scheduler.observe(loss=loss)
        scheduler.optimizer.step()
        scheduler.optimizer.zero_grad()


@pytest.mark.parametrize("replay", [surrogate, None], ids=["told", "noticed"])
def test_a_loss_that_does_not_follow_the_weights_has_no_gain(replay) -> None:
    model = torch.nn.Linear(3, 1, bias=False)
    scheduler = ControlledLR(
        torch.optim.SGD(model.parameters(), lr=0.1), LOOKING, model=model, hook=False, max_grad_norm=0
    )
    with pytest.warns(UserWarning, match="does not follow the weights"):
        _policy_gradient(scheduler, replay)
    assert [row.observation["gain_ratio"] for row in scheduler.trace] == [1.0, 1.0, 1.0]


def test_an_outcome_of_such_a_loss_is_refused() -> None:
    model = torch.nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = ActorCritic(same_batch=True)
    scheduler = ControlledLR(optimizer, controller, model=model, hook=False, max_grad_norm=0, total_steps=3)
    with pytest.raises(ValueError, match="loss_after, and the value of this loss does not follow the weights"):
        _policy_gradient(scheduler, surrogate)
    assert scheduler.updates == 0


@pytest.mark.parametrize("fused", [False, True])
def test_adam_on_float16_weights_is_named(fused) -> None:
    """Its first update makes all of them NaN, and then no signal is finite any more."""
    model = bert().half()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    universal = AutoController.from_pretrained("universal")
    with pytest.raises(ValueError, match=r"AdamW with eps=1e-08 cannot train float16 weights.*bf16=True"):
        ControlledLR(optimizer, universal, model=model, total_steps=10)
    for usable in (torch.optim.AdamW(model.parameters(), eps=1e-4), torch.optim.SGD(model.parameters(), lr=0.1)):
        ControlledLR(usable, universal, model=model, total_steps=10)


def _pair(model, first, second):
    ((model(**first).loss + model(**second).loss) / 2).backward()


def _summed(model, first, second):
    total = 0.0
    for part in (first, second):
        total = total + model(**part).loss / 2  # only the graph keeps the first loss
    total.backward()


def _unused(model, first, second):
    looked_at = model(**second)  # a pass that is not trained, as of a batch whose loss is not finite
    assert looked_at.loss.requires_grad
    _pair(model, first, second)


@pytest.mark.parametrize("backward", [_pair, _summed, _unused])
@pytest.mark.parametrize("to_none", [True, False])
def test_several_passes_before_one_backward_count_like_accumulated_ones(backward, to_none) -> None:
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    scheduler = ControlledLR(optimizer, Watcher(fields=("gain_ratio", "loss")), model=model, total_steps=12)
    for number in range(12):
        rows = Tokens()[number * 4 : number * 4 + 4]
        first, second = ({name: value[part] for name, value in rows.items()} for part in (slice(2), slice(2, 4)))
        with torch.no_grad():
            expected = (model(**first).loss + model(**second).loss) / 2
        backward(model, first, second)
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        assert scheduler.trace[-1].observation["loss"] == pytest.approx(float(expected), rel=1e-5)
    ratios = [decision.observation["gain_ratio"] for decision in scheduler.trace]
    # Of plain SGD at a small step it is 1, but for the curvature, which is a few percent here.
    assert ratios == pytest.approx([1.0] * 12, abs=0.05)
