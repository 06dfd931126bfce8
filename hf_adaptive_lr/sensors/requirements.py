"""Fails fast, before the first update, when an integration cannot measure a needed signal exactly."""

from __future__ import annotations

import warnings

from torch import nn

from ..distributed import Shards
from .grad_norm import GradNorm
from .loss_window import LossWindow
from .replay import RecordedPasses
from .trained_loss import TrainedLoss

REPLAYED = frozenset({"gain_ratio", "loss_before", "loss_after"})
"""Signals for which the last micro-batch is computed again."""
LOSSES = frozenset({"loss"})
"""Signals that are made of the losses of updates."""
_SCALED = LOSSES | frozenset({"grad_norm", "gain_ratio", "slope", "group_slope", "loss_before", "loss_after"})


def check_adapters(needs: frozenset[str], model: nn.Module | None, shards: Shards | None) -> None:
    """ValueError for LoRA's factors in flat parameters, as the size of an update is that of their product."""
    if "update_ratio" not in needs or model is None or shards is None or not shards.flat:
        return
    if any(isinstance(getattr(module, "lora_A", None), nn.ModuleDict) for module in model.modules()):
        raise ValueError(
            "the controller needs update_ratio, which for LoRA is that of the product of its factors, and the first "
            "FSDP and DeepSpeed keep these in flat parameters; use fully_shard (fsdp_version 2), or train under DDP"
        )


def check_training_mode(needs: frozenset[str], losses: LossWindow, norm: GradNorm) -> None:
    """ValueError where the model is in evaluation mode, in which its passes are not taken for training."""
    unseen = ["loss"] if needs & (REPLAYED | LOSSES) and not losses else []
    hidden = norm.hidden_by_clipping(needs)
    for name in [*unseen, *([hidden] if hidden else [])]:
        raise ValueError(
            f"the controller needs {name}, and the model is in evaluation mode (model.training is False), in which "
            "its passes are not taken for training. Call model.train() before the run; to train without dropout, set "
            "its probability to 0, or pass hook=False and call before_forward() and observe(loss=...)"
        )


def check_measurable(
    needs: frozenset[str],
    losses: LossWindow,
    passes: RecordedPasses,
    norm: GradNorm,
    *,
    ranks: int,
) -> None:
    """ValueError for a needed signal that was not delivered for this update: why, and the integration that can."""
    if needs & (REPLAYED | LOSSES) and not losses:
        raise ValueError(
            "the controller needs the loss of the update and none was observed: the model returns none, as where a "
            "compute_loss of your own takes the labels out of the inputs (class weights), under label smoothing or "
            "compute_loss_func, or in a plain module; or the loss is computed inside optimizer.step(closure), after "
            "the decision. Use AdaptiveLRTrainer(controller=...) in place of a callback or scheduler, or report it "
            "ahead of backward(): scheduler.observe(loss=loss), or in compute_loss "
            "callback.scheduler.observe(loss=loss)"
        )
    hidden = norm.hidden_by_clipping(needs)
    if hidden:
        raise ValueError(
            f"the controller needs {hidden} from before clipping, and no backward pass could be observed from here, "
            "or only with a float16 gradient scaler's factor in it. Use AdaptiveLRTrainer, or pass model= or call "
            "observe(loss=...) before loss.backward(), or give max_grad_norm= and observe(grad_norm=...) with the "
            "result of clip_grad_norm_, or pass max_grad_norm=0 if nothing clips"
        )
    repeated = sorted(needs & REPLAYED)
    if repeated and not passes.replayable:
        raise ValueError(
            f"the controller needs {repeated[0]}, for which the last micro-batch is computed again; call "
            "before_forward() ahead of it and observe(loss=..., closure=...) after it, or use AdaptiveLRTrainer"
        )
    outcomes = sorted(needs & {"loss_before", "loss_after"})
    if outcomes and passes.surrogate:
        raise ValueError(
            f"the controller needs {outcomes[0]}, and the value of this loss does not follow the weights (a policy "
            "gradient on samples of the same policy); use a controller that does not need it, such as 'hypergradient'"
        )
    scaled = sorted(needs & _SCALED)
    if scaled and losses.shares and (len(losses) > 1 or ranks > 1):
        raise ValueError(
            f"the controller needs {scaled[0]}, and Trainer passes num_items_in_batch to the model: with "
            "accumulation or several processes most heads then return inflated losses and gradients. Use "
            "AdaptiveLRTrainer, or set trainer.model_accepts_loss_kwargs = False"
        )


def check_predicted(needs: frozenset[str], model: nn.Module | None, *, readable: bool) -> None:
    """ValueError where `kl` is needed, no pass of the model returned predictions, and nobody reported it."""
    if "kl" not in needs or readable:
        return
    why = "there is no model to look at" if model is None else "the model returned neither logits nor log_probs"
    raise ValueError(
        f"the controller needs kl, the KL divergence of an update's predictions, and {why}; pass model=, the "
        "unwrapped module, whose training passes return them, or report what you measure yourself with "
        "observe(kl=...) ahead of every decision, with NaN where there is none yet"
    )


def check_trained(needs: frozenset[str], trained: TrainedLoss, deviation: float, *, late: bool = False) -> None:
    """ValueError where the loss in the model's output is not the one that the backward passes differentiate.

    `late` is in mid-run, as where a regulariser grows from 0: then one warning, as the run would be lost.
    """
    if deviation > trained.tolerance():
        field = sorted(needs & (REPLAYED | LOSSES))[0]
        text = (
            f"the controller needs {field}, and the loss in the model's output is not the one that is trained: "
            f"{trained.explain()}. The trained one is computed elsewhere (compute_loss, class weights, a regulariser, "
            "several heads). Use AdaptiveLRTrainer, which hears the result of compute_loss, or report the trained "
            "loss with observe(loss=...) for every micro-batch"
        )
        if not late:
            raise ValueError(text)
        if not trained.said:
            trained.said = True
            warnings.warn(f"{text} (said once)", UserWarning, stacklevel=6)
