"""Fails fast, before the first update, when an integration cannot measure a needed signal exactly."""

from __future__ import annotations

import sys
from dataclasses import dataclass

LARGEST_ROOT = 1.001
"""Gradient of the loss in its backward pass above which something was multiplied in; 1 / n under accumulation."""
REPLAYED = frozenset({"gain_ratio", "loss_before", "loss_after"})
"""Signals for which the last micro-batch is computed again."""
_SCALED = frozenset({"loss", "grad_norm", "gain_ratio", "slope", "group_slope", "loss_before", "loss_after"})


@dataclass(frozen=True)
class Seen:
    """The facts about an integration that are known when the first update is about to be applied.

    Args:
        losses: micro-batches of this update whose loss was seen.
        replayable: whether the last of them can be computed again.
        scaled_by_items: whether Trainer passed `num_items_in_batch` to the model.
        ranks: number of processes.
        max_grad_norm: clipping in force, 0 for none, None for unknown.
        grad_norm: whether the norm before clipping was observed.
        unclipped: whether it was measured at the end of the backward pass.
        evaluated: whether an evaluation loss was observed.
        fresh_eval: whether the controller wants one for the decision that is due.
    """

    losses: int
    replayable: bool
    scaled_by_items: bool
    ranks: int
    max_grad_norm: float | None
    grad_norm: bool
    unclipped: bool
    evaluated: bool
    fresh_eval: bool


def check_measurable(needs: frozenset[str], seen: Seen) -> None:
    """Fails fast when the controller needs a signal that was not seen.

    Raises:
        ValueError: names the signal, why it cannot be measured, and the integration that can.
    """
    if seen.fresh_eval and not seen.evaluated:
        raise ValueError(
            "the controller needs an evaluation at every decision and none was observed. Use AdaptiveLRTrainer, or "
            "call observe(eval_loss=...) before every update at which scheduler.due()"
        )
    if needs & (REPLAYED | {"loss"}) and not seen.losses:
        raise ValueError(
            "the controller needs the loss of the update and none was observed: the model returns none (label "
            "smoothing, compute_loss_func, a plain module) or nobody calls observe(loss=...). Use "
            "AdaptiveLRTrainer, or call observe"
        )
    unseen = _hidden_by_clipping(needs, seen)
    if unseen:
        raise ValueError(
            f"the controller needs {unseen} from before clipping, and no backward pass could be watched from here, or "
            "only with a float16 gradient scaler's factor in it. Use AdaptiveLRTrainer, or pass model= or call "
            "observe(loss=...) before loss.backward(), or give max_grad_norm= and observe(grad_norm=...) with what "
            "clip_grad_norm_ returns, or say max_grad_norm=0 if nothing clips"
        )
    repeated = sorted(needs & REPLAYED)
    if repeated and not seen.replayable:
        raise ValueError(
            f"the controller needs {repeated[0]}, for which the last micro-batch is computed again; call "
            "before_forward() ahead of it and observe(loss=..., closure=...) after it, or use AdaptiveLRTrainer"
        )
    scaled = sorted(needs & _SCALED)
    if scaled and seen.scaled_by_items and (seen.losses > 1 or seen.ranks > 1):
        raise ValueError(
            f"the controller needs {scaled[0]}, and Trainer passes num_items_in_batch to the model: with "
            "accumulation or several processes most heads then return inflated losses and gradients. Use "
            "AdaptiveLRTrainer, or set trainer.model_accepts_loss_kwargs = False"
        )


def check_nothing_clips(before: float, after: float) -> None:
    """Fails fast when `max_grad_norm=0` was given and something clips after all.

    Args:
        before: norm at the end of the backward pass.
        after: norm in the step.

    Raises:
        ValueError: the gradient became smaller in between.
    """
    if after < 0.999 * before:
        raise ValueError(
            f"max_grad_norm=0 says that nothing clips, but the gradient's norm was {before:.4g} after backward() and "
            f"is {after:.4g} in the step. Leave max_grad_norm= out, or give the trainer's (TrainingArguments has 1.0)"
        )


def scales_gradients() -> bool:
    """Whether Accelerate puts a gradient scaler's factor into the gradients, until it clips them."""
    state = sys.modules.get("accelerate.state")
    return bool(state and state.AcceleratorState._shared_state and state.AcceleratorState().mixed_precision == "fp16")


def check_unscaled(root: float) -> None:
    """Fails fast when a gradient norm was measured with a gradient scaler's factor in it.

    Args:
        root: gradient that reached the loss, averaged over ranks; 1, or 1 / n under accumulation.

    Raises:
        ValueError: it is above 1.
    """
    if root > LARGEST_ROOT:
        raise ValueError(
            f"the controller needs the gradient's norm from before clipping, and the loss was multiplied by "
            f"{root:.6g} ahead of backward(), as a float16 gradient scaler does. Use AdaptiveLRTrainer, or give "
            "max_grad_norm= and observe(grad_norm=...) with what clip_grad_norm_ returns, or train in bfloat16"
        )


def _hidden_by_clipping(needs: frozenset[str], seen: Seen) -> str | None:
    if seen.max_grad_norm == 0 or seen.unclipped:
        return None
    if "grad_norm" in needs and not seen.grad_norm:
        return "grad_norm"
    # The gain ratio divides clipping out again, for which both numbers are needed.
    known = seen.max_grad_norm is not None and seen.grad_norm
    return "gain_ratio" if "gain_ratio" in needs and not known else None
