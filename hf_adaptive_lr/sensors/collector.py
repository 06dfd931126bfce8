"""Measures, in one live run, the signals that its controller needs.

Everything stays a device tensor until a decision is due; then all signals go through one exchange between ranks and
one copy to the host. A signal that this integration cannot measure exactly makes the first update fail fast. Over 300
lines because every sensor is wired here, in the order of an update, mostly by one line each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from ..cadence import Plan
from ..controller import Controller
from ..distributed import PARTITIONS, Shards, average_values, check_unsharded, rank, world_size
from ..observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Outcome, Value
from .deepspeed import ZeroPartitions, check_not_inside
from .difference import DifferenceSensor
from .divergence import DivergenceSensor
from .evaluation import EvaluationLoss
from .forward_hook import ForwardHook, differentiable, loss_of
from .gain import NEUTRAL, GainSensor
from .grad_norm import GradNorm, check_unscaled
from .gradients import direction_sums, forget_direction, read_directions, remember_direction
from .lora import Adapter, find_adapters
from .loss_window import LossWindow
from .outcome import ExtraLoss, OutcomeSensor
from .pending import PendingUpdate
from .predictions import LOGIT_FIELDS, PREDICTION_FIELDS, ModelSensors, find_logits
from .readable import DIRECTION_FIELDS
from .replay import RecordedPasses
from .requirements import (
    LOSSES,
    REPLAYED,
    check_adapters,
    check_measurable,
    check_predicted,
    check_trained,
    check_training_mode,
)
from .trained_loss import TrainedLoss
from .weights import WEIGHT_FIELDS

_LONG = 2000  # updates of a run of unknown length, for what is said half-way through
_EVERY = 16  # decisions from one comparison with the trained loss to the next, later on
_SUMS_OF_SHARDS = {"direction", "group_direction", "movement"}
_OF_GRADIENTS = DIRECTION_FIELDS | {"grad_norm", "gain_ratio"}
_OF_ALL_WEIGHTS = DIRECTION_FIELDS | {"gain_ratio", "pretrained"}
_EARLY = 3  # first decisions of a process, at which a loss that is not the trained one ends the run


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
        copy_budget: int,
        seed: int,
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
        self._partitions: ZeroPartitions | None = getattr(optimizer, PARTITIONS, None)
        clipping = max_grad_norm if self._partitions is None else self._partitions.clip_grad
        self._norm = GradNorm(optimizer, model, needs, clipping, lambda: self._shards)
        self._passes = RecordedPasses(model)
        self._outcomes = OutcomeSensor(optimizer, needs, model, extra)
        self._inside = ModelSensors(optimizer, model)
        self._evaluation = EvaluationLoss(needed="eval_loss" in needs, fresh=controller.fresh_eval)
        self._pending = PendingUpdate(optimizer)
        self._trained = TrainedLoss()
        self._reads_loss = bool(needs & (REPLAYED | LOSSES))
        self._passed = 0  # checks in this process: the first update's, then those of decisions
        self._watched = False  # whether this update's losses were compared with the trained ones
        self._gain = GainSensor(optimizer)
        self._difference = DifferenceSensor(optimizer, needs, budget=copy_budget, seed=seed)
        self._divergence = DivergenceSensor(model)
        self._still: list[int] = []  # places of parameters that the previous update did not move
        self._prepared_for = 0  # the update whose decision the kept direction and gain ratio belong to
        self.clear()
        sees = hook or bool(needs & (LOGIT_FIELDS | {"kl"}))
        self._hook = ForwardHook(model, self) if model is not None and sees else None

    def clear(self) -> None:
        """Forget the reports about an update that was applied, or is not going to be."""
        self.losses.clear()
        self._trained.clear()
        self._norm.clear()
        self._passes.clear()
        self._outcomes.clear()
        self._gain.clear()
        self._difference.clear()
        self._divergence.clear()
        self._inside.logits = None
        self._pending.clear()
        self.in_step = False
        """Whether the optimizer is stepping: passes in there are no micro-batches."""

    def drop(self) -> None:
        """Forget the reports about an update that was skipped."""
        if self.losses:
            self._pending.missed()
        self.clear()

    def step_called(self) -> None:
        """`scheduler.step()` was called, after an update or a micro-batch."""
        self._pending.step_called(heard=bool(self.losses))

    def close(self) -> None:
        """Take the forward hook off the model."""
        if self._hook is not None:
            self._hook.close()
        self.clear()

    # --- reports of a micro-batch -------------------------------------------------------------------------------

    def before_forward(self, replay: Callable[[], Tensor] | None) -> None:
        """A micro-batch begins. Where all gradients are None and none is to come, the update before was skipped."""
        if self.in_step:
            return
        if self._pending.abandoned(self.losses, before_forward=True):
            self.drop()
        plan = self._plan()
        outcome = plan.outcome and bool(self.needs & {"loss_before", "loss_after"})
        repeats = outcome or ("gain_ratio" in self.needs and plan.next_decides)
        self._passes.begin(replay, self._first_param().device if repeats else None)

    def pass_begins(self, again: Callable[[], Any]) -> None:
        """Called by the forward hook before a pass."""
        if self._takes_losses:
            self.before_forward(lambda: loss_of(again()))
        if self._measures_kl() and not self.in_step:
            self._divergence.begin(again, self._first_param().device)

    def pass_ended(self, loss: Tensor | None, kwargs: Mapping[str, Any], output: Any) -> None:
        """Called by the forward hook after a pass, with the loss that it found in the output."""
        if self.in_step:
            return
        if self.needs & LOGIT_FIELDS:
            self._inside.logits = find_logits(output)
        if "kl" in self.needs:
            self._divergence.end(output, kwargs, keep=self._measures_kl())
        if self._listens():
            self._norm.listen(differentiable(output))
        if self._takes_losses:
            self.losses.pass_ended(loss, kwargs, output)
            if loss is not None:
                self._pending.listen(loss)
                if self._watches():
                    self._trained.listen(loss, differentiable(output))

    @property
    def sampled(self) -> float:
        """Share of the coordinates that the last measured size of an update was measured with."""
        return self._difference.share

    def expect_evaluations(self) -> None:
        """A caller reports every evaluation."""
        self._evaluation.reported = True

    def evaluated(self) -> None:
        """Called by the forward hook after a pass in evaluation mode that returned a loss."""
        if not self.in_step:
            self._evaluation.evaluated()

    def observe(
        self,
        *,
        loss: Tensor | float | None,
        grad_norm: Tensor | float | None,
        eval_loss: Tensor | float | None,
        kl: Tensor | float | None,
        logits: Tensor | None,
        closure: Callable[[], Tensor] | None,
    ) -> None:
        """See [`ControlledLR.observe`]."""
        if logits is not None and self.needs & LOGIT_FIELDS:
            self._inside.logits = logits
        given = {"loss": loss, "grad_norm": grad_norm, "eval_loss": eval_loss, "kl": kl}.items()
        tensors = {name: self._scalar(name, value) for name, value in given if value is not None}
        if loss is not None:
            self._observe_loss(loss, tensors["loss"])
        if "grad_norm" in tensors:
            self._norm.observe(tensors["grad_norm"])
        if closure is not None:
            self._passes.set_replay(closure)
        if "eval_loss" in tensors:
            self._evaluation.observe(tensors["eval_loss"])
        if "kl" in tensors:
            self._divergence.observe(tensors["kl"])

    def _observe_loss(self, loss: Tensor | float, value: Tensor) -> None:
        if self._pending.abandoned(self.losses, before_forward=False):
            self.drop()
        own = not self.needs & REPLAYED or self.losses.is_own(value)
        replaced = self.losses.observe(value)
        if replaced:
            self._trained.believe()
            if not own:  # what the hook would compute again is the model's own loss
                self._passes.set_replay(None)
        else:
            tensor = loss if isinstance(loss, Tensor) else value
            self._pending.listen(tensor)
            if tensor.requires_grad and self._listens():
                self._norm.listen([tensor])

    def _measures_kl(self) -> bool:
        return "kl" in self.needs and self._plan().next_decides

    def _listens(self) -> bool:
        """Whether this update's passes are needed: at decisions, for gain ratios, for the first check."""
        return not self._passed or self._plan().decides or self._plan().next_decides

    def _watches(self) -> bool:
        """Whether this update's losses are compared with the trained ones; the same on all ranks."""
        if not self._reads_loss or not (self._plan().decides or not self._passed):
            return False
        return self._passed < _EARLY or self._passed % _EVERY == 0

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

    @cached_property
    def _shards(self) -> Shards | None:
        """Those of the weights; found when gradients are there, as the model is wrapped then."""
        return Shards.of(self.optimizer, self.model, self.group)

    def _first_param(self) -> Tensor:
        params = (p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad)
        first: Tensor = next(params)
        return first

    # --- the decision -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """ValueError, before an update is applied, when a needed signal cannot be measured exactly here.

        Looks at the first update of this process, whether or not a decision is due, and at every decision.
        """
        self._passes.forget(self.losses.forget_untrained())
        due = self._plan().decides
        if not self._passed:
            check_not_inside(self.optimizer)
        if self._partitions is not None and self.needs & _OF_GRADIENTS and self._listens():
            self._partitions.read_gradients()
            self._partitions.clip(self._norm.measure_unclipped())
        if due:
            self._evaluation.check()
        elif self._passed:
            return
        if not self._passed:
            check_unsharded(self.optimizer, self.needs & {"meta_inner", *WEIGHT_FIELDS})
            if self.needs & _OF_ALL_WEIGHTS or ("grad_norm" in self.needs and self._norm.observed is None):
                check_adapters(self.needs, self.model, self._shards)
            self._norm.check_clipping()
        if self._hook is not None and self.model is not None and not self.model.training:
            check_training_mode(self.needs, self.losses, self._norm)
        check_measurable(self.needs, self.losses, self._passes, self._norm, ranks=world_size(self.group))
        check_predicted(self.needs, self.model, readable=self._divergence.readable)
        self._watched = self._watches()
        if self._watched and not due:  # else with what else is read
            check_trained(self.needs, self._trained, float(self._trained.deviation(self._first_param().device)))
        self._passed += 1

    def fields(self, update: int, last_lrs: Sequence[float], total_steps: int | None) -> dict[str, Value]:
        """All signals that the controller needs, as Python floats; equal bits on all ranks.

        `update` is the one about to be applied, of `total_steps` if known; `last_lrs` are the learning rates of the
        previous one.
        """
        wanted = self.needs & OPTIONAL_FIELDS.keys()
        if not wanted:
            return {}
        if self._prepared_for != update:  # a decision that nobody could foresee, after extend() for instance
            self._gain.ratio, self._difference.ratio, self._divergence.value = NEUTRAL, 0.0, math.nan
            self._difference.share = 1.0
            self._still = []
            forget_direction(self.optimizer)
        values = self._measure(wanted, last_lrs)
        names = sorted(values)
        numbers = iter(self._exchange([values[n] for n in names], [update, *last_lrs]))
        means: dict[str, Any] = {}
        for name in names:
            value = values[name]
            means[name] = tuple(next(numbers) for _ in range(len(value))) if value.ndim else next(numbers)
        if "eval_loss" in wanted:
            count, half = means.pop("eval_count"), max(1, (total_steps or _LONG) // 2)
            means["eval_loss"] = self._evaluation.read(means["eval_loss"], count, update, half)
        return self._read(means, wanted)

    def _measure(self, wanted: frozenset[str], last_lrs: Sequence[float]) -> dict[str, Tensor]:
        """This rank's values, and those that only serve to read them, still on the device."""
        values: dict[str, Tensor] = {}
        if "loss" in wanted:
            values["loss"] = self.losses.mean()
        if "grad_norm" in wanted:
            values |= self._norm.fields()
        if wanted & DIRECTION_FIELDS:
            # The change of the weights has been measured right after the update.
            fields = wanted - {"update_ratio"} if self._difference.wanted else wanted
            sums = direction_sums(self.optimizer, last_lrs, fields, self._adapters, self._still, self._shards)
            values |= read_directions(sums, fields) if self._shards is None else sums
        values |= self._inside.measure(wanted, self._shards, first_rank=rank(self.group) == 0)
        if "eval_loss" in wanted:
            values |= self._evaluation.fields()
        if "kl" in wanted:
            values |= self._divergence.fields()
        if self._watched:
            values["deviation"] = self._trained.deviation(self._first_param().device)
        return values

    def _read(self, means: dict[str, Any], wanted: frozenset[str]) -> dict[str, Value]:
        """The wanted signals from the means over ranks of what was measured."""
        if "root" in means:
            check_unscaled(means.pop("root"))
        if "deviation" in means:
            check_trained(self.needs, self._trained, means.pop("deviation"), late=self._passed > _EARLY)
        sums = {name: torch.tensor(means.pop(name), dtype=torch.float64) for name in means.keys() & _SUMS_OF_SHARDS}
        means |= {name: tuple(v.tolist()) if v.ndim else float(v) for name, v in read_directions(sums, wanted).items()}
        if "grad_square" in means:
            means["grad_norm"] = math.sqrt(means.pop("grad_square"))
        for name in wanted & set(PREDICTION_FIELDS):
            means[name] *= world_size(self.group)  # the other ranks gave 0
        if "gain_ratio" in wanted:
            means["gain_ratio"] = self._gain.ratio
        if "kl" in wanted:
            means["kl"] = self._divergence.read(means["kl"], means.pop("kl_count"))
        if "update_ratio" in wanted and self._difference.wanted:
            means["update_ratio"] = self._difference.ratio
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
            self._still = remember_direction(self.optimizer)
            self._difference.before_step(update, lambda: self._adapters)
        if "kl" in self.needs:
            self._divergence.before_step()
        if "gain_ratio" in self.needs:
            self._gain.before_step(self.losses.losses, self._passes, self._shards, self._difference.before)
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
        self._gain.after_step(self.losses.losses, self._passes, self._norm, lambda terms: self._exchange(terms, []))
        self._difference.after_step(
            lambda: self._adapters, lambda: self._shards, lambda terms: self._exchange(terms, [])
        )
        self._divergence.after_step(lambda terms: self._exchange(terms, []))
        self._pending.applied()
        self.clear()

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The signals from before a checkpoint that a decision after it needs: of all ranks, or rank 0's alone."""
        return {
            "eval_loss": self._evaluation.value,
            "gain_ratio": self._gain.ratio,
            "update_ratio": self._difference.ratio,
            "sampled": self._difference.share,
            "kl": self._divergence.value,
            "prepared_for": self._prepared_for,
            "without_gradient": list(self._still),
            "pretrained": None if self._inside.pretrained is None else list(self._inside.pretrained),
            "probabilities": None if self._inside.before is None else self._inside.before.cpu(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.clear()
        self._evaluation.value, self._gain.ratio = float(state["eval_loss"]), float(state["gain_ratio"])
        self._difference.ratio = float(state.get("update_ratio", 0.0))
        self._difference.share = float(state.get("sampled", 1.0))
        self._divergence.value = float(state.get("kl", math.nan))
        self._prepared_for = int(state["prepared_for"])
        self._still = [int(place) for place in state.get("without_gradient", ())]
        self._inside.before = state.get("probabilities")
        pretrained = state.get("pretrained")
        self._inside.pretrained = None if pretrained is None else (float(pretrained[0]), int(pretrained[1]))
