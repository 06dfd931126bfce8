"""Measures, in one live run, the signals that its controller needs.

Everything stays a device tensor until a decision is due; then all signals go through one exchange between ranks and
one copy to the host. A signal that this integration cannot measure exactly makes the first update fail fast.
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

from ..cadence import Plan
from ..controller import Controller
from ..distributed import average_values, check_unsharded, rank, world_size
from ..observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Outcome, Value
from .forward_hook import ForwardHook, differentiable
from .gain import NEUTRAL, gain_ratio, gain_terms, precision
from .grad_norm import GradNorm, check_unscaled
from .gradients import (
    DIRECTION_FIELDS,
    GainProbe,
    forget_direction,
    measure_previous_update,
    remember_direction,
    without_gradient,
)
from .lora import Adapter, find_adapters
from .loss_window import LossWindow
from .outcome import ExtraLoss, OutcomeSensor
from .predictions import LOGIT_FIELDS, PREDICTION_FIELDS, ModelSensors, find_logits
from .replay import RecordedPasses
from .requirements import REPLAYED, check_measurable, check_training_mode
from .weights import WEIGHT_FIELDS

_MANY_DROPPED = 60  # far more than a gradient scaler or a guard skips in a row


class SignalCollector:
    """Collects and measures the signals that a controller needs; see [`ControlledLR`] for most arguments.

    `plan` gives the needs of the update about to be applied, `extra` the losses of other batches by the name of their
    argument (`other_loss`, `meta_loss`), None where not given.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        controller: Controller,
        model: nn.Module | None,
        *,
        hook: bool,
        plan: Callable[[], Plan],
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
        self.group, self._plan, self._takes_losses = group, plan, hook
        self.losses = LossWindow()
        self._norm = GradNorm(optimizer, model, needs, max_grad_norm)
        self._passes = RecordedPasses(model)
        self._outcomes = OutcomeSensor(optimizer, needs, model, extra)
        self._inside = ModelSensors(optimizer, model)
        self._fresh_eval = controller.fresh_eval and "eval_loss" in needs
        self._checked = False  # whether the first update of this process has passed
        self._dropped = 0
        self._eval_loss = math.nan
        self._gain_ratio = NEUTRAL
        self._said_unmeasured = False
        self._still: list[int] = []  # places of parameters that the previous update did not move
        self._prepared_for = 0  # the update whose decision the kept direction and gain ratio belong to
        self.clear()
        hooked = model is not None and (hook or bool(needs & LOGIT_FIELDS))
        self._hook = ForwardHook(model, self) if model is not None and hooked else None

    def clear(self) -> None:
        """Forget the reports about an update that was applied, or is not going to be."""
        self.losses.clear()
        self._norm.clear()
        self._passes.clear()
        self._outcomes.clear()
        self._probe: GainProbe | None = None
        self._inside.logits = None
        self.in_step = False
        """Whether the optimizer is stepping: passes in there are no micro-batches."""

    def drop(self) -> None:
        """Forget the reports about an update that was skipped."""
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

    def close(self) -> None:
        """Take the forward hook off the model."""
        if self._hook is not None:
            self._hook.close()
        self.clear()

    # --- reports of a micro-batch -------------------------------------------------------------------------------

    def before_forward(self, replay: Callable[[], Tensor] | None) -> None:
        """A micro-batch begins. Where all gradients are None the update before was skipped: its losses are dropped."""
        if self.in_step:
            return
        if all(p.grad is None for group in self.optimizer.param_groups for p in group["params"]):
            self.drop()
        plan = self._plan()
        outcome = plan.outcome and bool(self.needs & {"loss_before", "loss_after"})
        repeats = outcome or ("gain_ratio" in self.needs and plan.next_decides)
        self._passes.begin(replay, self._first_param().device if repeats else None)

    def pass_begins(self, replay: Callable[[], Tensor] | None) -> None:
        """Called by the forward hook before a pass."""
        if self._takes_losses:
            self.before_forward(replay)

    def pass_ended(self, loss: Tensor | None, kwargs: Mapping[str, Any], output: Any) -> None:
        """Called by the forward hook after a pass, with the loss that it found in the output."""
        if self.in_step:
            return
        if self.needs & LOGIT_FIELDS:
            self._inside.logits = find_logits(output)
        if self._norm_due():
            self._norm.listen(differentiable(output))
        if self._takes_losses:
            self.losses.pass_ended(loss, kwargs, output)

    def observe(
        self,
        *,
        loss: Tensor | float | None,
        grad_norm: Tensor | float | None,
        eval_loss: Tensor | float | None,
        logits: Tensor | None,
        closure: Callable[[], Tensor] | None,
    ) -> None:
        """See [`ControlledLR.observe`]."""
        if logits is not None and self.needs & LOGIT_FIELDS:
            self._inside.logits = logits
        checked = {"loss": loss, "grad_norm": grad_norm, "eval_loss": eval_loss}
        tensors = {name: self._scalar(name, value) for name, value in checked.items() if value is not None}
        if "loss" in tensors:
            replaced = self.losses.observe(tensors["loss"])
            if not replaced and isinstance(loss, Tensor) and loss.requires_grad and self._norm_due():
                self._norm.listen([loss])
        if "grad_norm" in tensors:
            self._norm.observe(tensors["grad_norm"])
        if closure is not None:
            self._passes.set_replay(closure)
        if "eval_loss" in tensors:
            self._eval_loss = float(tensors["eval_loss"])
            if math.isnan(self._eval_loss):
                warnings.warn("an evaluation loss of NaN was ignored", UserWarning, stacklevel=3)

    def _norm_due(self) -> bool:
        """Whether this update's norm is needed: at decisions, for gain ratios, and for the check of the first one."""
        return not self._checked or self._plan().decides or self._plan().next_decides

    def _scalar(self, name: str, value: Tensor | float) -> Tensor:
        tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        if tensor.numel() != 1:
            raise ValueError(f"observe({name}=...) takes one number, got shape {tuple(tensor.shape)}; pass its mean")
        return tensor.reshape(())

    @cached_property
    def _adapters(self) -> tuple[Adapter, ...]:
        """LoRA adapters that this optimizer trains; found when first measured, as the model is in place then."""
        mine = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return tuple(adapter for adapter in find_adapters(self.model) if id(adapter.b) in mine)

    def _first_param(self) -> Tensor:
        params = (p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
        first: Tensor = next(params)
        return first

    # --- the decision -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """ValueError, before an update is applied, when a needed signal cannot be measured exactly here.

        Looks at the first update of this process, whether or not a decision is due, and at every decision.
        """
        due = self._plan().decides
        if self._checked and not due:
            return
        if not self._checked:
            gradient_fields = {n for n in self.needs if n in OPTIONAL_FIELDS and OPTIONAL_FIELDS[n].reads_gradients}
            if self._norm.observed is not None:
                gradient_fields.discard("grad_norm")
            of_weights = self.needs & {"update_ratio", "meta_inner", *WEIGHT_FIELDS}
            check_unsharded(self.optimizer, gradient_fields | of_weights)
            self._norm.check_clipping()
        lacks = due and self._fresh_eval and math.isnan(self._eval_loss)
        ranks = world_size(self.group)
        if self.model is not None and not self.model.training:
            check_training_mode(self.needs, self.losses, self._norm)
        check_measurable(self.needs, self.losses, self._passes, self._norm, ranks=ranks, lacks_evaluation=lacks)
        self._checked = True

    def fields(self, update: int, last_lrs: Sequence[float]) -> dict[str, Value]:
        """All signals that the controller needs, as Python floats; equal bits on all ranks.

        `update` is the one about to be applied, `last_lrs` are the learning rates of the previous one.
        """
        wanted = self.needs & OPTIONAL_FIELDS.keys()
        if not wanted:
            return {}
        if self._prepared_for != update:  # a decision that nobody could foresee, after extend() for instance
            self._gain_ratio = NEUTRAL
            self._still = []
            forget_direction(self.optimizer)
        values: dict[str, Tensor] = {}
        if "loss" in wanted:
            values["loss"] = self.losses.mean()
        if "grad_norm" in wanted:
            values |= self._norm.fields()
        if wanted & DIRECTION_FIELDS:
            values |= measure_previous_update(self.optimizer, last_lrs, wanted, self._adapters, self._still)
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
            check_unscaled(means.pop("root"))
        if "eval_loss" in wanted:
            count = means.pop("eval_count")
            means["eval_loss"] = means["eval_loss"] / count if count else math.nan
        for name in wanted & set(PREDICTION_FIELDS):
            means[name] *= world_size(self.group)  # the other ranks gave 0
        if "gain_ratio" in wanted:
            means["gain_ratio"] = self._gain_ratio
        return means

    def _exchange(self, values: list[Tensor], agreed: Sequence[float]) -> list[float]:
        return average_values(values, agreed, self._first_param().device, self.group)

    # --- around the update --------------------------------------------------------------------------------------

    def before_step(self, update: int, lr: float, *, outcome: bool) -> None:
        """Before an update at `lr` (group 0's), keep the weights and directions that are compared with afterwards."""
        if outcome:
            self._outcomes.before(lr)
        if not self._plan().next_decides:
            return
        self._prepared_for = update + 1
        if self.needs & DIRECTION_FIELDS:
            self._still = without_gradient(self.optimizer)
            remember_direction(self.optimizer)
        if "gain_ratio" in self.needs:
            self._probe = GainProbe(self.optimizer)
            self._norm.before_step()

    def outcome(self, update: int) -> Outcome:
        """The outcome of the update that was applied, for controllers that learn from it."""
        wanted = self.needs & OUTCOME_FIELDS.keys()
        values = self._outcomes.measure(update)
        if "loss_before" in wanted:
            values["loss_before"] = self.losses.losses[-1]
        if "loss_after" in wanted:
            values["loss_after"] = self._passes.loss_again()
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

    def _measure_gain(self, probe: GainProbe) -> float:
        # The gradient promised it for the whole update, so all its micro-batches are looked at again.
        passes = max(1, len(self._passes))
        before = after = self.losses.losses[-passes:]
        if not self._passes.surrogate:
            after = [self._passes.loss_again(number) for number in range(-passes, 0)]
        eps = precision([*before, *after, *probe.weights])
        terms = gain_terms(before, after, probe.promised(self._norm.clip_factor()), eps)
        ratio, unmeasured = gain_ratio(*self._exchange(terms, []), eps)
        if unmeasured is not None and not self._said_unmeasured:
            self._said_unmeasured = True
            warnings.warn(
                f"gain_ratio is not measured, and {NEUTRAL:g} stands for it: {unmeasured} (said once)",
                UserWarning,
                stacklevel=4,
            )
        return ratio

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The signals from before a checkpoint that a decision after it needs; already averaged over ranks."""
        return {
            "eval_loss": self._eval_loss,
            "gain_ratio": self._gain_ratio,
            "prepared_for": self._prepared_for,
            "without_gradient": list(self._still),
            "probabilities": None if self._inside.before is None else self._inside.before.cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.clear()
        self._eval_loss, self._gain_ratio = float(state["eval_loss"]), float(state["gain_ratio"])
        self._prepared_for = int(state["prepared_for"])
        self._still = [int(place) for place in state.get("without_gradient", ())]
        self._inside.before = state.get("probabilities")
