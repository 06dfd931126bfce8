"""One controller, five integrations, one trace: bit-equal learning rates and weights."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer

from hf_adaptive_lr import Hypergradient, Linear
from tests import integrations
from tests.controllers_for_tests import Classified, Everything, LossOnly, NormOnly, Recurrent

UNCLIPPED = [Linear(), Hypergradient(), LossOnly(), Recurrent(), Everything(), Classified()]
CLIPPED = [Linear(), Hypergradient(), LossOnly(), Recurrent()]


def _ids(controllers: list) -> list[str]:
    return [c.controller_type for c in controllers]


@pytest.mark.parametrize("controller", UNCLIPPED, ids=_ids(UNCLIPPED))
def test_all_integrations_agree_without_clipping(controller, tmp_path) -> None:
    _, (lrs, weights) = integrations.subclassed(controller, tmp_path)
    others = {
        "optimizers=": integrations.passed_to_trainer(controller, tmp_path)[1],
        "callback": integrations.called_back(controller, tmp_path)[1],
        "accelerate": integrations.accelerated(controller),
        "plain, hook": integrations.plain(controller),
        "plain, observe": integrations.plain(controller, hook=False),
    }
    assert len(lrs) == integrations.STEPS
    assert len(set(lrs)) > 1
    for integration, (other_lrs, other_weights) in others.items():
        assert other_lrs == lrs, integration
        assert torch.equal(other_weights, weights), integration


@pytest.mark.parametrize("controller", CLIPPED, ids=_ids(CLIPPED))
def test_all_integrations_agree_with_clipping_when_the_norm_is_not_needed(controller, tmp_path) -> None:
    clip = 0.1
    _, (lrs, weights) = integrations.subclassed(controller, tmp_path, max_grad_norm=clip)
    others = {
        "optimizers=": integrations.passed_to_trainer(controller, tmp_path, max_grad_norm=clip)[1],
        "callback": integrations.called_back(controller, tmp_path, max_grad_norm=clip)[1],
        "accelerate": integrations.accelerated(controller, clip=clip),
        "plain": integrations.plain(controller, clip=clip),
    }
    for integration, (other_lrs, other_weights) in others.items():
        assert other_lrs == lrs, integration
        assert torch.equal(other_weights, weights), integration


@pytest.mark.parametrize("every", [2, 4])
def test_sparse_decisions_agree(every, tmp_path) -> None:
    _, (lrs, weights) = integrations.subclassed(Everything(), tmp_path, controller_every=every)
    assert len(set(lrs)) == -(-integrations.STEPS // every)
    for hook in (True, False):
        other_lrs, other_weights = integrations.plain(Everything(), hook=hook, every=every)
        assert other_lrs == lrs
        assert torch.equal(other_weights, weights)


def test_integrations_that_see_the_norm_agree_with_clipping(tmp_path) -> None:
    controller, clip = Everything(), 0.1
    _, (lrs, weights) = integrations.subclassed(controller, tmp_path, max_grad_norm=clip)
    for other_lrs, other_weights in (
        integrations.accelerated(controller, clip=clip),
        integrations.plain(controller, clip=clip),
        integrations.called_back(controller, tmp_path, max_grad_norm=clip)[1],
        integrations.passed_to_trainer(controller, tmp_path, tell=True, max_grad_norm=clip)[1],
    ):
        assert other_lrs == lrs
        assert torch.equal(other_weights, weights)


@pytest.mark.parametrize("integration", [integrations.passed_to_trainer, integrations.called_back])
@pytest.mark.parametrize("controller", [NormOnly(), Everything()], ids=["norm", "everything"])
def test_integrations_behind_the_clipping_hear_the_norm_at_the_end_of_the_backward_pass(
    integration, controller, tmp_path
) -> None:
    _, (lrs, weights) = integrations.subclassed(controller, tmp_path, max_grad_norm=0.1)
    _, (other_lrs, other_weights) = integration(controller, tmp_path, max_grad_norm=0.1)
    if integration is integrations.called_back or isinstance(controller, NormOnly):
        assert other_lrs == lrs
        assert torch.equal(other_weights, weights)
    else:  # it is not told the threshold: the gain ratio divides by the quotient of two norms
        assert other_lrs == pytest.approx(lrs, rel=1e-5) and len(set(lrs)) > 1


@pytest.mark.parametrize("integration", [integrations.passed_to_trainer, integrations.called_back])
def test_a_loss_hidden_by_label_smoothing_fails_fast(integration, tmp_path) -> None:
    text = r"takes the labels out.*AdaptiveLRTrainer\(controller=...\).*callback.scheduler.observe\(loss=loss\)"
    with pytest.raises(ValueError, match=f"none was observed.*{text}"):
        integration(LossOnly(), tmp_path, label_smoothing_factor=0.1)


def test_the_subclass_sees_the_smoothed_loss(tmp_path) -> None:
    trainer, _ = integrations.subclassed(LossOnly(), tmp_path, label_smoothing_factor=0.1)
    seen = [d.observation["loss"] for d in trainer.lr_scheduler.trace]
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert seen == pytest.approx(logged)


@pytest.mark.parametrize("integration", [integrations.passed_to_trainer, integrations.called_back])
def test_losses_inflated_by_accumulation_fail_fast(integration, tmp_path) -> None:
    with pytest.raises(ValueError, match="num_items_in_batch.*AdaptiveLRTrainer"):
        integration(LossOnly(), tmp_path, gradient_accumulation_steps=2)


@pytest.mark.parametrize(
    "integration", [integrations.subclassed, integrations.passed_to_trainer, integrations.called_back]
)
def test_the_logged_learning_rate_is_the_applied_one(integration, tmp_path) -> None:
    trainer, (lrs, _) = integration(Hypergradient(), tmp_path)
    assert [row["learning_rate"] for row in trainer.state.log_history if "loss" in row] == lrs


def test_controllers_values_reach_the_log_and_the_reporters(tmp_path) -> None:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        seen: list[dict] = []

        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            self.seen.append(dict(logs))

    from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments
    from tests.tiny import Tokens, bert

    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments)
    trainer = AdaptiveLRTrainer(
        model=bert(), args=args, train_dataset=Tokens(), controller=Hypergradient(), callbacks=[Reporter()]
    )
    trainer.train()
    for rows in (trainer.state.log_history, Reporter.seen):
        rows = [row for row in rows if "loss" in row]
        factors = [row["adaptive_lr/factor"] for row in rows]
        assert factors == [lr / integrations.LR for lr in trainer.lr_scheduler.lr_history()]
        assert all(-1 <= row["adaptive_lr/alignment"] <= 1 for row in rows)


def test_linear_equals_the_native_schedule_bit_for_bit(tmp_path) -> None:
    from tests.tiny import Tokens, bert

    model = bert()
    args = integrations.arguments(tmp_path, lr_scheduler_type="linear", max_grad_norm=1.0)
    native = Trainer(model=model, args=args, train_dataset=Tokens())
    native.train()
    _, (lrs, weights) = integrations.subclassed(Linear(), tmp_path, max_grad_norm=1.0)
    assert [row["learning_rate"] for row in native.state.log_history if "loss" in row] == lrs
    assert torch.equal(integrations._flat(model), weights)


def test_a_native_schedule_that_is_not_constant_warns_once(tmp_path) -> None:
    with pytest.warns(UserWarning, match="overruled by AdaptiveLRCallback") as caught:
        integrations.called_back(Hypergradient(), tmp_path, lr_scheduler_type="linear")
    assert len(caught) == 1


@pytest.mark.parametrize("native", ["constant", "constant_with_warmup"])
def test_the_callback_warms_up_as_the_arguments_say(native, tmp_path) -> None:
    _, (lrs, weights) = integrations.subclassed(Hypergradient(), tmp_path, warmup_steps=3)
    _, (other_lrs, other_weights) = integrations.called_back(
        Hypergradient(), tmp_path, warmup_steps=3, lr_scheduler_type=native
    )
    assert other_lrs == lrs and lrs[0] == pytest.approx(integrations.LR / 3)
    assert torch.equal(other_weights, weights)
