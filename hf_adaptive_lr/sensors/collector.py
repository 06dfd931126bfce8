"""What one live run measures for its controller: losses that were reported, gradients that stand in `param.grad`.

Everything stays a device tensor until a decision is due; then all fields go through one exchange between ranks and one
copy to the host. A field that this door to the training loop cannot measure exactly is refused before the first
update.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from ..controller import Controller
from ..distributed import average_over_ranks, rank, refuse_sharded, world_size
from ..observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Outcome, Value
from .forward_hook import after_backward, differentiable
from .gradients import (
    DIRECTION_FIELDS,
    GainProbe,
    forget_direction,
    measure_grad_norm,
    measure_previous_update,
    remember_direction,
)
from .lora import Adapter, find_adapters
from .loss_window import LossWindow
from .outcome import ExtraLoss, OutcomeSensor
from .predictions import LOGIT_FIELDS, PREDICTION_FIELDS, WEIGHT_FIELDS, ModelSensors, find_logits
from .replay import ReplayPoint
from .requirements import (
    LARGEST_ROOT,
    REPLAYED,
    Seen,
    refuse_scaled,
    refuse_unmeasurable,
    refuse_untold_clipping,
    scales_gradients,
)

_MANY_DROPPED = 60  # far more than a gradient scaler or a guard skips in a row
_NEUTRAL_GAIN = OPTIONAL_FIELDS["gain_ratio"].neutral or 1.0


class Measurer:
    """Collects and measures the fields that a controller needs; see [`ControlledLR`] for the arguments.

    Args:
        optimizer: the raw optimizer.
        controller: says what it needs.
        model: unwrapped module, for sensors that repeat a forward pass or look into the model.
        max_grad_norm: clipping in force, 0 for none, None for unknown.
        group: process group of the exchange.
        extra: losses of other batches, by the name of their argument (`other_loss`, `meta_loss`); None where not
            given.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        controller: Controller,
        model: nn.Module | None,
        max_grad_norm: float | None,
        group: ProcessGroup | None,
        extra: Mapping[str, ExtraLoss | None],
    ) -> None:
        needs = controller.needs
        if needs & REPLAYED and model is None:
            raise ValueError(
                f"the controller needs {sorted(needs & REPLAYED)[0]}, for which a forward pass is repeated; "
                "pass model=, the unwrapped module"
            )
        self.optimizer, self.needs, self.model = optimizer, needs, model
        self.max_grad_norm, self.group = max_grad_norm, group
        self._outcomes = OutcomeSensor(optimizer, needs, model, extra)
        self._fresh_eval = controller.fresh_eval and "eval_loss" in needs
        self._inside = ModelSensors(optimizer, model)
        self.in_step = False
        self._checked_shards = False
        self._dropped = 0
        self._eval_loss = math.nan
        self._gain_ratio = _NEUTRAL_GAIN
        self._checked_clipping = False
        self._told_norm = False  # whether somebody observes the norm, so that it need not be listened for
        self._prepared_for = 0  # the update whose decision the kept direction and gain ratio belong to
        self.losses = LossWindow()
        self.clear()

    @property
    def looks_at_logits(self) -> bool:
        """Whether the model's outputs have to be seen."""
        return bool(self.needs & LOGIT_FIELDS)

    def clear(self) -> None:
        """Forget what was reported for the update that is not going to happen, or has happened."""
        self.losses.clear()
        self._grad_norm: Tensor | None = None
        self._unclipped: Tensor | None = None  # norm at the end of the last backward pass
        self._root: Tensor | None = None  # gradient of the loss itself in that pass
        self._clipped: Tensor | None = None  # norm in the step
        self._passes: list[tuple[Callable[[], Tensor] | None, ReplayPoint]] = []  # one of every micro-batch
        self._announced = self._repeatable = False
        self._probe: GainProbe | None = None
        self._outcomes.clear()
        self._inside.logits = None
        self.in_step = False

    def drop(self) -> None:
        """Forget what was reported for an update that was skipped."""
        if self.losses:
            self._dropped += 1
            if self._dropped == _MANY_DROPPED:
                warnings.warn(
                    f"{_MANY_DROPPED} losses were observed and the controlled optimizer applied no update; does "
                    "another optimizer train this model, as with optimizers=(None, scheduler)?",
                    UserWarning,
                    stacklevel=3,
                )
        self.clear()

    # --- reported from outside ----------------------------------------------------------------------------------

    def before_forward(self, replay: Callable[[], Tensor] | None, *, keep: bool) -> None:
        """A micro-batch begins; a window whose gradients are gone was skipped, and so are its losses."""
        if self.in_step:
            return
        if all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            self.drop()
        self._announced, self._repeatable = True, replay is not None
        if keep:
            self._passes.append((replay, ReplayPoint(self._first_param().device)))

    def after_forward(
        self, loss: Tensor | None, kwargs: Mapping[str, Any], output: Any, *, norm_due: bool = False
    ) -> None:
        """The forward hook saw this loss, None where it is not to be taken for the micro-batch's, in this output.

        Args:
            loss: with its graph.
            kwargs: of the call.
            output: of the model.
            norm_due: whether this update's gradient norm is wanted.
        """
        if self.in_step:
            return
        if self.needs & LOGIT_FIELDS:
            self._inside.logits = find_logits(output)
        if norm_due:
            self._listen(differentiable(output))
        self.losses.pass_ended(loss, kwargs, output)

    def _listen(self, tensors: list[Tensor]) -> None:
        """Measure the gradient's norm at the end of the backward pass, unless somebody tells it or nothing clips.

        That nothing clips is believed after a first update at which nothing did.
        """
        wanted = self.needs & {"grad_norm", "gain_ratio"} and (self.max_grad_norm != 0 or not self._checked_clipping)
        if wanted and not self._told_norm and not scales_gradients():
            after_backward(tensors, self._backward_ended)

    def _backward_ended(self, root: Tensor | None) -> None:
        if any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"]):
            self._unclipped, self._root = measure_grad_norm(self.optimizer, self.model), root

    def observe(
        self,
        *,
        loss: Tensor | float | None,
        grad_norm: Tensor | float | None,
        eval_loss: Tensor | float | None,
        logits: Tensor | None,
        closure: Callable[[], Tensor] | None,
        norm_due: bool = False,
    ) -> None:
        """See [`ControlledLR.observe`]."""
        if logits is not None and self.needs & LOGIT_FIELDS:
            self._inside.logits = logits
        checked = {"loss": loss, "grad_norm": grad_norm, "eval_loss": eval_loss}
        tensors = {name: self._scalar(name, value) for name, value in checked.items() if value is not None}
        if "loss" in tensors:
            replaced = self.losses.observe(tensors["loss"])
            if norm_due and not replaced and isinstance(loss, Tensor) and loss.requires_grad:
                self._listen([loss])
        if "grad_norm" in tensors:
            self._grad_norm, self._told_norm = tensors["grad_norm"], True
        if closure is not None:
            self._repeatable = True
            if self._passes:
                self._passes[-1] = (closure, self._passes[-1][1])
        if "eval_loss" in tensors:
            self._eval_loss = float(tensors["eval_loss"])
            if math.isnan(self._eval_loss):
                warnings.warn("an evaluation loss of NaN was ignored", UserWarning, stacklevel=3)

    def _scalar(self, name: str, value: Tensor | float) -> Tensor:
        tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        if tensor.numel() != 1:
            raise ValueError(f"observe({name}=...) takes one number, got shape {tuple(tensor.shape)}; pass its mean")
        return tensor.reshape(())

    @cached_property
    def _adapters(self) -> tuple[Adapter, ...]:
        """LoRA's, as far as this optimizer trains them; found when first measured, as the model is in place then."""
        mine = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return tuple(adapter for adapter in find_adapters(self.model) if id(adapter.b) in mine)

    def _first_param(self) -> Tensor:
        params = (p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
        first: Tensor = next(params)
        return first

    # --- the door -----------------------------------------------------------------------------------------------

    def check_door(self, *, due: bool) -> None:
        """Refuse, before an update is applied, what cannot be measured exactly here.

        Args:
            due: whether a decision is due at this update.

        Raises:
            ValueError: names the field, why it cannot be measured, and the door that can.
        """
        if not self._checked_shards:
            gradient_fields = {n for n in self.needs if n in OPTIONAL_FIELDS and OPTIONAL_FIELDS[n].reads_gradients}
            if self._grad_norm is not None:
                gradient_fields.discard("grad_norm")
            of_weights = self.needs & {"update_ratio", "meta_inner", *WEIGHT_FIELDS}
            refuse_sharded(self.optimizer, gradient_fields | of_weights)
            self._checked_shards = True
        if self.max_grad_norm == 0 and self._unclipped is not None and not self._checked_clipping:
            if self._root is not None and float(self._root) <= LARGEST_ROOT:  # or a scaler's factor is in one of both
                refuse_untold_clipping(float(self._unclipped), float(measure_grad_norm(self.optimizer, self.model)))
            self._unclipped = self._root = None
        self._checked_clipping = True
        refuse_unmeasurable(
            self.needs,
            Seen(
                losses=len(self.losses),
                replayable=self._announced and self._repeatable,
                scaled_by_items=self.losses.shares,
                ranks=world_size(self.group),
                max_grad_norm=self.max_grad_norm,
                grad_norm=self._grad_norm is not None,
                unclipped=self._unclipped is not None,
                evaluated=not math.isnan(self._eval_loss),
                fresh_eval=self._fresh_eval and due,
            ),
        )

    # --- the decision -------------------------------------------------------------------------------------------

    def fields(self, update: int, last_lrs: Sequence[float]) -> dict[str, Value]:
        """All fields that the controller needs, as Python floats; equal bits on all ranks.

        Args:
            update: index of the update about to be applied.
            last_lrs: learning rates of the previous update.
        """
        wanted = self.needs & OPTIONAL_FIELDS.keys()
        if not wanted:
            return {}
        if self._prepared_for != update:  # a decision that nobody could foresee, after extend() for instance
            self._gain_ratio = _NEUTRAL_GAIN
            forget_direction(self.optimizer)
        values: dict[str, Tensor] = {}
        if "loss" in wanted:
            values["loss"] = self.losses.mean()
        if "grad_norm" in wanted:
            values |= self._norm()
        if wanted & DIRECTION_FIELDS:
            values |= measure_previous_update(self.optimizer, last_lrs, wanted, self._adapters)
        values |= self._inside.measure(wanted, first_rank=rank(self.group) == 0)
        if "eval_loss" in wanted:
            # Perhaps only some ranks evaluated: averaged over those that did.
            fresh = 0.0 if math.isnan(self._eval_loss) else 1.0
            values["eval_count"] = torch.tensor(fresh, dtype=torch.float64)
            values["eval_loss"] = torch.tensor(self._eval_loss if fresh else 0.0, dtype=torch.float64)
            self._eval_loss = math.nan
        names = sorted(values)
        numbers = iter(self._exchange([values[n] for n in names], [update, *last_lrs]))
        means: dict[str, Any] = {}
        for name in names:
            value = values[name]
            means[name] = tuple(next(numbers) for _ in range(len(value))) if value.ndim else next(numbers)
        if "root" in means:
            refuse_scaled(means.pop("root"))
        if "eval_loss" in wanted:
            count = means.pop("eval_count")
            means["eval_loss"] = means["eval_loss"] / count if count else math.nan
        for name in wanted & set(PREDICTION_FIELDS):
            means[name] *= world_size(self.group)  # the other ranks gave 0
        if "gain_ratio" in wanted:
            means["gain_ratio"] = self._gain_ratio
        return means

    def _norm(self) -> dict[str, Tensor]:
        if self._grad_norm is not None:
            return {"grad_norm": self._grad_norm}
        if self._unclipped is not None:
            # Always there, as all ranks must exchange the same number of values.
            return {"grad_norm": self._unclipped, "root": torch.ones(()) if self._root is None else self._root}
        return {"grad_norm": measure_grad_norm(self.optimizer, self.model)}

    def _exchange(self, values: list[Tensor], agreed: Sequence[float]) -> list[float]:
        if not values:
            return []
        device = self._first_param().device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        packed = torch.cat([v.reshape(-1).to(device, dtype, non_blocking=True) for v in values])
        return average_over_ranks(packed, torch.tensor(agreed, dtype=dtype), self.group)

    # --- after the update ---------------------------------------------------------------------------------------

    def before_last_update_of_interval(self, update: int) -> None:
        """A decision is due after this update: keep what it will want to know of it."""
        self._prepared_for = update + 1
        if self.needs & DIRECTION_FIELDS:
            remember_direction(self.optimizer)
        if "gain_ratio" in self.needs:
            self._probe = GainProbe(self.optimizer)
            if self._unclipped is not None and not self.max_grad_norm:
                self._clipped = measure_grad_norm(self.optimizer, self.model)

    def before_outcome(self, lr: float) -> None:
        """The outcome of the update about to be applied is wanted.

        Args:
            lr: learning rate of group 0 in this update.
        """
        self._outcomes.before(lr)

    def outcome(self, update: int) -> Outcome | None:
        """What the update did, or None if the controller does not ask."""
        wanted = self.needs & OUTCOME_FIELDS.keys()
        if not wanted:
            return None
        values = self._outcomes.measure(update)
        if "loss_before" in wanted:
            values["loss_before"] = self.losses.losses[-1]
        if "loss_after" in wanted:
            values["loss_after"] = self._loss_again()
        names = sorted(values)
        numbers = self._exchange([values[name] for name in names], [update])
        tensors = [torch.tensor(number, dtype=torch.float64) for number in numbers]
        return Outcome(step=update, **dict(zip(names, tensors, strict=True)))

    def finish(self) -> None:
        """After the update: measure the gain ratio if the next decision reads it, then forget the batch."""
        if self._probe is not None:
            self._gain_ratio = self._measure_gain(self._probe)
        self._dropped = 0
        self.clear()

    def _loss_again(self, micro_batch: int = -1) -> Tensor:
        replay, point = self._passes[micro_batch] if self._passes else (None, None)
        if replay is None or point is None or self.model is None:
            raise RuntimeError(
                "a forward pass has to be repeated and none was recorded; call before_forward() ahead of each one"
            )
        return point.run(replay, self.model)

    def _measure_gain(self, probe: GainProbe) -> float:
        # The gradient promised it for the whole update, so all its micro-batches are looked at again.
        before, repeated = self.losses.losses[-max(1, len(self._passes)) :], range(-max(1, len(self._passes)), 0)
        after = [self._loss_again(number).double() for number in repeated]
        gained = torch.stack([loss.double() for loss in before]).mean() - torch.stack(after).mean()
        gain, promised = self._exchange([gained, probe.promised(self._clip_scale())], [])
        if abs(promised) < 1e-30:
            return _NEUTRAL_GAIN
        return gain / promised

    def _clip_scale(self) -> Tensor | float:
        """Factor that clipping applied to the gradients of this update."""
        norm = self._grad_norm if self._grad_norm is not None else self._unclipped
        if self.max_grad_norm and norm is not None:
            # torch.nn.utils.clip_grad_norm_ multiplies by this factor
            return (self.max_grad_norm / (norm.double() + 1e-6)).clamp(max=1.0)
        if self._unclipped is not None and self._clipped is not None:
            return (self._clipped.double() / self._unclipped.double().clamp(min=1e-30)).clamp(min=1e-30, max=1.0)
        return 1.0

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a decision after a checkpoint needs from before it; averaged over ranks already where ranks differ."""
        return {
            "eval_loss": self._eval_loss,
            "gain_ratio": self._gain_ratio,
            "prepared_for": self._prepared_for,
            "probabilities": None if self._inside.before is None else self._inside.before.cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.clear()
        self._eval_loss, self._gain_ratio = float(state["eval_loss"]), float(state["gain_ratio"])
        self._prepared_for = int(state["prepared_for"])
        self._inside.before = state.get("probabilities")
