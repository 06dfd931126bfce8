"""A loss that a caller reports with `observe` is believed; computed again it is only as the caller says."""

from __future__ import annotations

import pytest
import torch

from tests.controllers_for_tests import LossOnly, Watcher, by_default
from tests.own_losses import UNHEARD, loop


def _reported(name: str, when: str, controller, closure: bool = False) -> list[dict]:
    """The observations of three updates whose loss, of `UNHEARD`, the loop reports before or after backward()."""
    losses = []

    def step(model, batch, scheduler) -> None:
        def compute() -> torch.Tensor:
            return UNHEARD[name](model(**batch), batch)

        loss = compute()
        report = {"loss": loss, "closure": compute if closure else None}
        if when == "before":
            scheduler.observe(**report)
        loss.backward()
        if when == "after":
            scheduler.observe(**report)
        losses.append(float(loss.detach()))

    seen = [decision.observation for decision in loop(step, controller).trace]
    if "loss" in controller.needs:
        assert [values["loss"] for values in seen] == pytest.approx(losses, rel=1e-6)
    return seen


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", UNHEARD)
def test_what_a_caller_reports_is_believed(name, when) -> None:
    for controller in (LossOnly(), by_default("mlr_snet")):
        assert len(_reported(name, when, controller)) == 3


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["scaled", "regulariser", "regulariser in place", "two heads"])
def test_a_gain_ratio_of_a_reported_loss_needs_a_function_that_computes_it(name, when) -> None:
    """Else the model's own loss was computed again and subtracted from the reported one: 39 and 52 instead of 1."""
    controller = Watcher(fields=("loss", "gain_ratio"))
    with pytest.raises(ValueError, match=r"needs gain_ratio.*observe\(loss=..., closure=...\)"):
        _reported(name, when, controller)
    seen = _reported(name, when, controller, closure=True)
    # Of a smooth loss at this learning rate: 1 but for the curvature, a few percent.
    assert [values["gain_ratio"] for values in seen[1:]] == pytest.approx([1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("form", [lambda loss: loss, torch.Tensor.detach, torch.Tensor.item, lambda loss: loss * 1])
def test_the_models_own_loss_may_be_reported_in_any_form(form) -> None:
    def step(model, batch, scheduler) -> None:
        for _ in range(2):
            loss = model(**batch).loss
            scheduler.observe(loss=form(loss))
            (loss / 2).backward()

    seen = [decision.observation for decision in loop(step, Watcher(fields=("gain_ratio",))).trace]
    assert [values["gain_ratio"] for values in seen[1:]] == pytest.approx([1.0, 1.0], abs=0.1)


def test_one_micro_batch_whose_loss_cannot_be_computed_again_is_enough_to_fail() -> None:
    def step(model, batch, scheduler) -> None:
        for factor in (10, 1):
            loss = factor * model(**batch).loss
            if factor > 1:
                scheduler.observe(loss=loss)
            (loss / 2).backward()

    with pytest.raises(ValueError, match=r"observe\(loss=..., closure=...\)"):
        loop(step, Watcher(fields=("gain_ratio",)))
