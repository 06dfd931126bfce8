"""What one live run measures for its controller: losses that were reported, gradients that stand in `param.grad`.

Everything stays a device tensor until a decision is due; then all fields go through one exchange between ranks and one
copy to the host. A field that this door to the training loop cannot measure exactly is refused before the first
update.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from .observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Outcome
from .ranks import average_over_ranks, refuse_sharded, world_size
from .sensors import (
    GainProbe,
    forget_direction,
    measure_grad_norm,
    measure_previous_update,
    remember_direction,
)
from .tap import ReplayPoint

_REPLAYED = frozenset({"gain_ratio", "loss_before", "loss_after"})
_MANY_DROPPED = 20  # far more than a gradient scaler skips in a row when it looks for its scale
_NEUTRAL_GAIN = OPTIONAL_FIELDS["gain_ratio"].neutral or 1.0
_SCALED = frozenset({"loss", "grad_norm", "gain_ratio", "loss_before", "loss_after"})


class Measurer:
    """Collects and measures the fields that a controller needs; see [`ControlledLR`] for the arguments.

    Args:
        optimizer: the raw optimizer.
        needs: field names of the controller.
        model: unwrapped module, for sensors that repeat a forward pass.
        max_grad_norm: clipping in force, 0 for none, None for unknown.
        group: process group of the exchange.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        needs: frozenset[str],
        model: nn.Module | None,
        max_grad_norm: float | None,
        group: ProcessGroup | None,
    ) -> None:
        unmeasured = sorted(needs & {"loss_other", "meta_inner"})
        if unmeasured:
            raise ValueError(
                f"the controller needs {unmeasured[0]}, which ControlledLR cannot measure; use its own trainer"
            )
        if needs & _REPLAYED and model is None:
            raise ValueError(
                f"the controller needs {sorted(needs & _REPLAYED)[0]}, for which a forward pass is repeated; "
                "pass model=, the unwrapped module"
            )
        self.optimizer, self.needs, self.model = optimizer, needs, model
        self.max_grad_norm, self.group = max_grad_norm, group
        self.in_step = False
        self._checked_shards = False
        self._dropped = 0
        self._eval_loss = math.nan
        self._gain_ratio = _NEUTRAL_GAIN
        self._prepared_for = 0  # the update whose decision the kept direction and gain ratio belong to
        self.clear()

    def clear(self) -> None:
        """Forget what was reported for the update that is not going to happen, or has happened."""
        self._losses: list[Tensor] = []
        self._auto = False  # whether the last loss came from the forward hook
        self._scaled_by_items = False
        self._grad_norm: Tensor | None = None
        self._replay: Callable[[], Tensor] | None = None
        self._point: ReplayPoint | None = None
        self._announced = self._repeatable = False
        self._probe: GainProbe | None = None
        self.in_step = False

    def drop(self) -> None:
        """Forget what was reported for an update that was skipped."""
        if self._losses:
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
            self._replay, self._point = replay, ReplayPoint(self._first_param().device)

    def after_forward(self, loss: Tensor, kwargs: Mapping[str, Any]) -> None:
        """The forward hook saw this loss."""
        if self.in_step:
            return
        self._scaled_by_items |= kwargs.get("num_items_in_batch") is not None
        self._losses.append(loss.detach())
        self._auto = True

    def observe(
        self,
        *,
        loss: Tensor | float | None,
        grad_norm: Tensor | float | None,
        eval_loss: Tensor | float | None,
        closure: Callable[[], Tensor] | None,
    ) -> None:
        """See [`ControlledLR.observe`]."""
        checked = {"loss": loss, "grad_norm": grad_norm, "eval_loss": eval_loss}
        tensors = {name: self._scalar(name, value) for name, value in checked.items() if value is not None}
        if "loss" in tensors:
            if self._auto:  # the caller knows better than the hook
                self._losses.pop()
                self._scaled_by_items = False
            self._losses.append(tensors["loss"])
            self._auto = False
        self._grad_norm = tensors.get("grad_norm", self._grad_norm)
        if closure is not None:
            self._replay, self._repeatable = closure, True
        if "eval_loss" in tensors:
            self._eval_loss = float(tensors["eval_loss"])
            if math.isnan(self._eval_loss):
                warnings.warn("an evaluation loss of NaN was ignored", UserWarning, stacklevel=3)

    def _scalar(self, name: str, value: Tensor | float) -> Tensor:
        tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        if tensor.numel() != 1:
            raise ValueError(f"observe({name}=...) takes one number, got shape {tuple(tensor.shape)}; pass its mean")
        return tensor.reshape(())

    def _first_param(self) -> Tensor:
        params = (p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
        first: Tensor = next(params)
        return first

    # --- the door -----------------------------------------------------------------------------------------------

    def check_door(self) -> None:
        """Refuse, before an update is applied, what cannot be measured exactly here.

        Raises:
            ValueError: names the field, why it cannot be measured, and the door that can.
        """
        if not self._checked_shards:
            gradient_fields = {n for n in self.needs if n in OPTIONAL_FIELDS and OPTIONAL_FIELDS[n].reads_gradients}
            if self._grad_norm is not None:
                gradient_fields.discard("grad_norm")
            refuse_sharded(self.optimizer, gradient_fields | (self.needs & {"update_ratio"}))
            self._checked_shards = True
        if self.needs & (_REPLAYED | {"loss"}) and not self._losses:
            raise ValueError(
                "the controller needs the loss of the update and none was observed: the model returns none (label "
                "smoothing, compute_loss_func, a plain module) or nobody calls observe(loss=...). Use "
                "AdaptiveLRTrainer, or call observe"
            )
        unseen = self._hidden_by_clipping()
        if unseen:
            raise ValueError(
                f"the controller needs {unseen} from before clipping, and clipping cannot be seen from here. Use "
                "AdaptiveLRTrainer, or give max_grad_norm= and observe(grad_norm=...) with what clip_grad_norm_ "
                "returns, or say max_grad_norm=0 if nothing clips"
            )
        repeated = sorted(self.needs & _REPLAYED)
        if repeated and not (self._announced and self._repeatable):
            raise ValueError(
                f"the controller needs {repeated[0]}, for which the last micro-batch is computed again; call "
                "before_forward() ahead of it and observe(loss=..., closure=...) after it, or use AdaptiveLRTrainer"
            )
        scaled = sorted(self.needs & _SCALED)
        if scaled and self._scaled_by_items and (len(self._losses) > 1 or world_size(self.group) > 1):
            raise ValueError(
                f"the controller needs {scaled[0]}, and Trainer passes num_items_in_batch to the model: with "
                "accumulation or several processes most heads then return inflated losses and gradients. Use "
                "AdaptiveLRTrainer, or set trainer.model_accepts_loss_kwargs = False"
            )

    def _hidden_by_clipping(self) -> str | None:
        if self.max_grad_norm == 0:
            return None
        if "grad_norm" in self.needs and self._grad_norm is None:
            return "grad_norm"
        # The gain ratio divides clipping out again, for which both numbers are needed.
        known = self.max_grad_norm is not None and self._grad_norm is not None
        return "gain_ratio" if "gain_ratio" in self.needs and not known else None

    # --- the decision -------------------------------------------------------------------------------------------

    def fields(self, update: int, last_lrs: Sequence[float]) -> dict[str, float]:
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
            values["loss"] = torch.stack([loss.double() for loss in self._losses]).mean()
        if "grad_norm" in wanted:
            values["grad_norm"] = (
                self._grad_norm if self._grad_norm is not None else measure_grad_norm(self.optimizer, self.model)
            )
        if wanted & {"alignment", "update_ratio"}:
            values |= measure_previous_update(self.optimizer, last_lrs, wanted)
        if "eval_loss" in wanted:
            # Perhaps only some ranks evaluated: averaged over those that did.
            fresh = 0.0 if math.isnan(self._eval_loss) else 1.0
            values["eval_count"] = torch.tensor(fresh, dtype=torch.float64)
            values["eval_loss"] = torch.tensor(self._eval_loss if fresh else 0.0, dtype=torch.float64)
            self._eval_loss = math.nan
        names = sorted(values)
        means = dict(zip(names, self._exchange([values[n] for n in names], [update, *last_lrs]), strict=True))
        if "eval_loss" in wanted:
            count = means.pop("eval_count")
            means["eval_loss"] = means["eval_loss"] / count if count else math.nan
        if "gain_ratio" in wanted:
            means["gain_ratio"] = self._gain_ratio
        return means

    def _exchange(self, values: list[Tensor], agreed: Sequence[float]) -> list[float]:
        if not values:
            return []
        device = self._first_param().device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        packed = torch.stack([v.to(device, dtype, non_blocking=True) for v in values])
        return average_over_ranks(packed, torch.tensor(agreed, dtype=dtype), self.group)

    # --- after the update ---------------------------------------------------------------------------------------

    def before_last_update_of_interval(self, update: int) -> None:
        """A decision is due after this update: keep what it will want to know of it."""
        self._prepared_for = update + 1
        if self.needs & {"alignment", "update_ratio"}:
            remember_direction(self.optimizer)
        if "gain_ratio" in self.needs:
            self._probe = GainProbe(self.optimizer)

    def outcome(self, update: int) -> Outcome | None:
        """What the update did to the loss of its last micro-batch, or None if the controller does not ask."""
        wanted = self.needs & OUTCOME_FIELDS.keys()
        if not wanted:
            return None
        before, after = self._exchange([self._losses[-1], self._loss_again()], [update])
        numbers = {"loss_before": before, "loss_after": after}
        return Outcome(step=update, **{n: torch.tensor(numbers[n], dtype=torch.float64) for n in sorted(wanted)})

    def finish(self) -> None:
        """After the update: measure the gain ratio if the next decision reads it, then forget the batch."""
        if self._probe is not None:
            self._gain_ratio = self._measure_gain(self._probe)
        self._dropped = 0
        self.clear()

    def _loss_again(self) -> Tensor:
        if self._replay is None or self._point is None or self.model is None:
            raise RuntimeError(
                "a forward pass has to be repeated and none was recorded; call before_forward() ahead of each one"
            )
        return self._point.run(self._replay, self.model)

    def _measure_gain(self, probe: GainProbe) -> float:
        gained = self._losses[-1].double() - self._loss_again().double()
        scale: Tensor | float = 1.0
        if self.max_grad_norm and self._grad_norm is not None:
            # torch.nn.utils.clip_grad_norm_ multiplies by this factor
            scale = (self.max_grad_norm / (self._grad_norm.double() + 1e-6)).clamp(max=1.0)
        gain, promised = self._exchange([gained, probe.promised(scale)], [])
        if abs(promised) < 1e-30:
            return _NEUTRAL_GAIN
        return gain / promised

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, float]:
        """What a decision after a checkpoint needs from before it; averaged over ranks already where ranks differ."""
        return {
            "eval_loss": self._eval_loss,
            "gain_ratio": self._gain_ratio,
            "prepared_for": self._prepared_for,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.clear()
        self._eval_loss, self._gain_ratio = float(state["eval_loss"]), float(state["gain_ratio"])
        self._prepared_for = int(state["prepared_for"])
