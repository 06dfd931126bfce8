"""ControlledLR: the scheduler that lets a controller decide, and the only code that writes a learning rate.

Over 300 lines because the whole public interface of a run is documented here, mostly for one line of code each.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from .._checks import check_range, did_you_mean
from ..auto import resolve_controller
from ..controller import Controller, State
from ..observation import Value
from ..optimizers.groups import is_nested, no_update, raw, warn_if_free_of_lr
from ..optimizers.writers import WrittenLRs
from ..report.inline import facts
from ..sensors.collector import SignalCollector
from ..sensors.loss_window import LossWindow
from ..sensors.outcome import ExtraLoss
from ..sensors.readable import check_readable
from .config import SchedulerConfig, SchedulerOptions
from .decision import Decision
from .look import Trace
from .runtime import ControllerRun
from .trace import TraceWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ControlledLR(LRScheduler):
    """A learning-rate scheduler whose value a [`Controller`] decides, in the same step that it is used in.

    The decision for update t is taken in the optimizer's step pre-hook, when the loss and gradient of batch t are
    known. The hooks fire only for updates that really happen, so accumulated and skipped steps are right by
    construction; a step without any gradient, or closure to compute one, is a skipped one. `step()` changes nothing,
    so calling it too often (Accelerate calls it once per process) does no harm.

    Args:
        optimizer: any torch optimizer, raw or prepared by Accelerate. Its `lr` values are the base learning rates, or
            its `initial_lr` where an earlier scheduler has left them. Nobody else may write them: that is overruled,
            with one warning.
        controller: a [`Controller`], or the name of one.
        model: the unwrapped module, but of the first FSDP what `FullyShardedDataParallel(...)` returned. With it a
            forward hook calls `observe` for every training micro-batch whose output carries a `loss`, and sensors that
            repeat a forward pass can work.
        hook: False keeps `model` for the sensors but leaves `observe` to the caller.
        max_grad_norm: the clipping threshold in force, 0 for none, None when the caller does not say. Of use only to
            controllers that read gradient magnitudes. Unless it is 0, the norm before clipping is measured at the end
            of the backward pass of a loss that the model returned or that `observe` got before it; or pass it
            to `observe`.
        other_loss: loss of another training batch than update t's, called with t; for controllers that need
            `loss_other`. The same t must give the same batch.
        meta_loss: the same for a batch of the controller's own data, with a graph; for those that need `meta_inner`.
        process_group: ranks that decide together, None for the default group.
        trace_size: number of updates that `trace` keeps.
        copy_budget: bytes of weights that may be copied on each rank, once a decision, to measure the last update of
            an optimizer other than SGD, Adam and AdamW. Above it a seeded sample of at least 5 % is, unless the
            controller needs an angle, and the trace says which share (`Decision.sampled`).
        **settings: when the controller is asked, and bounds:
            `total_steps` (None): updates of the run, if known.
            `every` (None): updates from one decision to the next; or `decisions` (None): decisions per run, spread
            evenly. With neither, the controller's own.
            `warmup_steps` (None): first updates, during which the answer t is scaled by (t + 1) / warmup_steps; None
            leaves it to the controller, and most have none.
            `min_factor`, `max_factor` (None): bounds of a controller's factor of the base learning rate.
            `min_lr` (1e-8), `max_lr` (10.0): bounds of the learning rate of the reference group.
            `seed` (0): of the controller's own draws; the same on all ranks.
            `envelope` (None): an [`Envelope`], to check the controller and fall back to a plain schedule.

    Raises:
        TypeError: the optimizer or controller is of another type, or an unknown setting.
        ValueError: a setting out of range, or an optimizer whose state the controller needs and nobody can read.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scheduler = ControlledLR(optimizer, "cosine", total_steps=4)
        >>> for _ in range(2):
        ...     loss = model(torch.ones(1, 2)).square().mean(); loss.backward()
        ...     scheduler.observe(loss=loss); optimizer.step(); scheduler.step(); optimizer.zero_grad()
        >>> [round(lr, 4) for lr in scheduler.lr_history()]
        [0.1, 0.0854]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        controller: Controller | str,
        *,
        model: nn.Module | None = None,
        hook: bool = True,
        max_grad_norm: float | None = None,
        other_loss: ExtraLoss | None = None,
        meta_loss: ExtraLoss | None = None,
        process_group: ProcessGroup | None = None,
        trace_size: int = 10_000,
        copy_budget: int = 2**31,
        **settings: Unpack[SchedulerOptions],
    ) -> None:
        # LRScheduler.__init__ is left out on purpose: it would patch optimizer.step and write learning rates itself.
        for name in settings.keys() - SchedulerOptions.__annotations__.keys():
            known = [*SchedulerOptions.__annotations__, *(ControlledLR.__init__.__kwdefaults__ or ())]
            raise TypeError(f"ControlledLR: unknown setting {name}{did_you_mean(name, known)}")
        self.optimizer = raw(optimizer)
        self.controller = resolve_controller(controller)
        check_readable(self.optimizer, self.controller.needs)
        check_range(self, "copy_budget", copy_budget, 0, math.inf, hint="bytes; 0 samples whatever is large")
        self._written = WrittenLRs.of(self.optimizer)
        self.run = ControllerRun(self.controller, self._written.base_lrs(), SchedulerConfig(**settings))
        self._signals = SignalCollector(
            self.optimizer,
            self.controller,
            model,
            hook=hook,
            plan=self.run.plan,
            max_grad_norm=max_grad_norm,
            group=process_group,
            extra={"other_loss": other_loss, "meta_loss": meta_loss},
            copy_budget=copy_budget,
            seed=self.run.config.seed,
        )
        self.trace = Trace(maxlen=trace_size)
        self.listeners: list[Callable[[Decision], None]] = []
        self.last_epoch, self._step_count = 0, 0
        self.global_step: int | None = None  # Trainer's count, which has skipped updates too; saved with the state
        self._last_lr: list[float | Tensor] = list(self.run.base_lrs)
        self._last_observation: Mapping[str, Value] = {}
        self._decision: Decision | None = None
        self._handles: list[RemovableHandle] = []
        warn_if_free_of_lr(self.optimizer)
        self._attach()

    # --- for callers --------------------------------------------------------------------------------------------

    def observe(
        self,
        *,
        loss: Tensor | float | None = None,
        grad_norm: Tensor | float | None = None,
        eval_loss: Tensor | float | None = None,
        kl: Tensor | float | None = None,
        logits: Tensor | None = None,
        closure: Callable[[], Tensor] | None = None,
    ) -> None:
        """Report measured values to the controller; call it once per micro-batch, before `optimizer.step()`.

        Nothing is copied to the host here.

        Args:
            loss: unscaled mean loss of the micro-batch (not divided by accumulation steps), 0-d.
            grad_norm: L2 norm of the accumulated gradient before clipping, 0-d.
            eval_loss: a new loss on the controller's own held-out data.
            kl: KL divergence of the update before, in nats for each prediction, where you measure it yourself; takes
                the place of the one that is measured here, on all ranks or none.
            logits: the micro-batch's logits, (batch, classes), for controllers that look at predictions; the forward
                hook finds them by itself.
            closure: recomputes this micro-batch's loss without gradients; for controllers that need `gain_ratio` or an
                [`Outcome`], unless `loss` is the model's own, which the forward hook computes again. Without a hook,
                call `before_forward()` ahead of the forward pass then.

        Raises:
            ValueError: `loss`, `grad_norm`, `eval_loss` or `kl` is not a single number.
        """
        self._signals.observe(
            loss=loss, grad_norm=grad_norm, eval_loss=eval_loss, kl=kl, logits=logits, closure=closure
        )

    def before_forward(self, replay: Callable[[], Tensor] | None = None) -> None:
        """Announce the forward pass of a training micro-batch; the forward hook does it by itself.

        Args:
            replay: recomputes the micro-batch's loss; may also be given later, to `observe`.
        """
        self._signals.before_forward(replay)

    def step(self, epoch: int | None = None) -> None:
        """Changes no learning rate (the optimizer's hooks do); call it after updates, micro-batches, or not at all."""
        del epoch
        self._step_count += 1
        self._signals.step_called()

    def accept_lrs(self, of: Sequence[float | Tensor] | None = None) -> None:
        """Expect the learning rates that the optimizer has now; one that somebody else wrote is warned of.

        Args:
            of: what another scheduler wrote that may write them; others are not accepted then.
        """
        self._written.accept(of)

    def expect_evaluations(self) -> None:
        """Say that whoever calls this reports every evaluation: a pass in evaluation mode may be something else."""
        self._signals.expect_evaluations()

    def drop_pending(self) -> None:
        """Forget the losses of an update that is not going to happen."""
        self._signals.drop()

    def get_last_lr(self) -> list[float | Tensor]:
        """Learning rate of every parameter group at the last update, as applied; the base LR before the first."""
        return list(self._last_lr)

    def get_lr(self) -> list[float | Tensor]:
        """Same as `get_last_lr`."""
        return self.get_last_lr()

    def lr_history(self) -> list[float]:
        """Learning rate of group 0 at every update in the trace."""
        return [decision.lr[0] for decision in self.trace]

    def plot(self) -> Figure:
        """The trace as a matplotlib figure; see [`Trace.plot`]."""
        return self.trace.plot()

    def _repr_html_(self) -> str:
        total, group = self.run.total_steps, f"{float(self._last_lr[0]):.3g}"
        rows = [
            ("controller", self.controller.controller_type),
            ("updates", f"{self.updates:,}" + ("" if total is None else f" of {total:,}")),
            ("learning rate", group if len(self._last_lr) == 1 else f"{group} in group 0 of {len(self._last_lr)}"),
        ]
        if self.run.fallen_back:
            rows.append(("fell back", self.run.fallen_back))
        return facts("ControlledLR", rows, self.trace._repr_html_())

    def log_values(self) -> dict[str, float]:
        """Values of the last update for a logger, as `adaptive_lr/*`: counts, the last observation, the factor.

        Controllers that ignore the base LR have no factor.
        """
        base = next(lr for lr in self.run.base_lrs if lr > 0)
        index = self.run.base_lrs.index(base)
        values = {"adaptive_lr/held": float(self.run.kept)}  # name of version 0.1
        if not self.controller.ignores_base_lr:
            values = {"adaptive_lr/factor": float(self._last_lr[index]) / base, **values}
        seen = self._last_observation
        shown = {n: v for n, v in seen.items() if isinstance(v, float) and math.isfinite(v)}
        return values | {f"adaptive_lr/{name}": value for name, value in shown.items()}

    def due(self, update: int | None = None) -> bool:
        """Whether the controller is asked at an update, so that for instance an evaluation must be reported before it.

        Args:
            update: 0-based index; by default the update about to be applied.
        """
        return self.run.plan().decides if update is None else self.run.due(update)

    @property
    def losses(self) -> LossWindow:
        """Losses of the update that is being computed; other readers, such as a guard, may share them."""
        return self._signals.losses

    @property
    def updates(self) -> int:
        """Number of updates that were really applied."""
        return self.run.updates

    @property
    def controller_state(self) -> dict[str, Any]:
        """A copy of the controller's run state."""
        return self.run.controller_state()

    def change_controller_state(self, change: Callable[[State], State]) -> None:
        """Replace the controller's run state by `change` of it, for facts that no observation carries."""
        self.run.set_controller_state(change(self.controller_state))

    def extend(self, steps: int) -> None:
        """Make the run `steps` updates longer than planned; a cooldown under way ends."""
        self.run.extend(steps)

    def cooldown(self, steps: int) -> None:
        """Decay the learning rate now in force linearly to zero within `steps` updates, starting with the next one."""
        self.run.cooldown(steps)

    @property
    def cooldown_left(self) -> int | None:
        """Updates until the end of a cooldown; None where there is none."""
        return self.run.cooldown_left

    def set_scale(self, scale: float) -> None:
        """Multiply the written learning rates by `scale` from the next update on, as a guard does after a rollback.

        The controller goes on seeing its own learning rate; `min_lr` still bounds the result.

        Args:
            scale: absolute, 1.0 at the start; in [0, 1].

        Raises:
            ValueError: out of range.
        """
        check_range(self, "scale", scale, 0.0, 1.0, hint="1.0 writes the controller's own rate")
        self.run.scale = float(scale)

    @property
    def fallen_back(self) -> str | None:
        """Why the run fell back; None while the controller is in charge."""
        return self.run.fallen_back

    @property
    def can_fall_back(self) -> bool:
        """Whether there is an envelope and the controller is still in charge."""
        return self.run.config.envelope is not None and self.fallen_back is None

    def fall_back(self, reason: str) -> None:
        """Fall back from the controller: from the next update on, linear decay to zero over what is left of the run.

        It begins at the base learning rates, or, with an envelope of `fallback="auto"`, at the one that worked best
        (late in the run lower, see [`Envelope`]); where the length of the run is unknown it stays there. Warm-up,
        `set_scale`, `cooldown` and `extend` work as before, and a cooldown under way goes on. Nothing is measured any
        more. A second call changes nothing.

        Args:
            reason: why, in a few words; the trace has it as `detail` of the first update without the controller.

        Raises:
            ValueError: no reason, or no envelope.
        """
        self.run.fall_back(reason)

    def note_loss(self, loss: float) -> None:
        """Report an update's loss, for an envelope of `fallback="auto"`; a guard does, with the loss of all ranks.

        Call it once per update or not at all: then losses that the controller sees at its decisions have to do. Taken
        for the result of the learning rate that was applied last. Without an envelope it does nothing.

        Args:
            loss: any number, also NaN; the same on all ranks.
        """
        self.run.note_loss(loss)

    def simulate(
        self, steps: int, observe: Callable[[int, float], Mapping[str, float]] | None = None
    ) -> list[Decision]:
        """The next `steps` decisions as they would be, without touching the run.

        Args:
            steps: number of updates.
            observe: called with (update, learning rate in force); returns the optional fields for that update, for
                controllers that need any.

        Returns:
            One [`Decision`] per update.

        Raises:
            ValueError: the controller needs a field that `observe` does not give.
        """
        return self.run.simulate(steps, observe)

    def close(self) -> None:
        """Take all hooks off the optimizer and the model, and end the trace; the learning rates stay as they are."""
        for listener in self.listeners:
            if isinstance(listener, TraceWriter):
                listener.flush()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._signals.close()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and CPU tensors; `torch.load(..., weights_only=True)` reads it back."""
        return {
            **self.run.state_dict(),
            **self._signals.state_dict(),
            "last_lr": [float(lr) for lr in self._last_lr],
            "last_observation": dict(self._last_observation),
            "last_epoch": self.last_epoch,
            **({} if self.global_step is None else {"global_step": self.global_step}),
            "lr_lambdas": [],  # without it the schedules of a plain Trainer (LambdaLR) could not go on from here
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue a saved run, bit for bit.

        Raises:
            ValueError: another scheduler, a newer format, another controller class, config or set of weights, or other
                parameter groups; nothing was changed then.
        """
        self.run.load_state_dict(state_dict)
        self._signals.load_state_dict(state_dict)
        self._last_lr = list(state_dict["last_lr"])
        self._last_observation = dict(state_dict.get("last_observation", {}))
        self.last_epoch = state_dict["last_epoch"]
        self.accept_lrs()

    # --- hooks of the optimizer ---------------------------------------------------------------------------------

    def _attach(self) -> None:
        previous = getattr(self.optimizer, "_adaptive_lr", None)
        if previous is not None and previous() is not None:
            previous().close()  # two writers on one optimizer would overrule each other
        self.optimizer._adaptive_lr = weakref.ref(self)  # type: ignore[attr-defined]
        self._handles = [
            self.optimizer.register_step_pre_hook(_uncompiled(self._pre_step)),
            self.optimizer.register_step_post_hook(_uncompiled(self._post_step)),
            self.optimizer.register_load_state_dict_post_hook(lambda _: self._written.accept()),
        ]

    def _pre_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if is_nested(optimizer):
            return
        self._decision = None
        if no_update(optimizer, (*args, *kwargs.values())):
            return
        self._add_new_groups()
        self._signals.in_step = True  # a closure given to optimizer.step must not be taken for a micro-batch
        t, due = self.run.updates, self.run.plan().decides
        self._signals.check()
        last_lrs = [float(lr) for lr in self._last_lr]
        fields = self._signals.fields(t, last_lrs, self.run.total_steps) if due else {}
        self._decision = self.run.decide(fields)
        if "update_ratio" in fields and self._signals.sampled < 1.0:
            self._decision = replace(self._decision, sampled=self._signals.sampled)
        self._written.write(list(self._decision.lr))
        self._signals.before_step(t, self._decision.lr[0], outcome=self._outcome_wanted(self._decision))

    def _outcome_wanted(self, decision: Decision) -> bool:
        return decision.reason in ("decision", "bounded") and self.run.plan().outcome

    def _post_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if is_nested(optimizer):
            return
        decision, self._decision = self._decision, None
        skipped = getattr(optimizer, "step_was_skipped", False)  # ZeRO finds infinities itself
        if decision is None or skipped:  # nothing to apply, or skipped inside a fused step
            self._signals.drop()
            return
        wanted = self._outcome_wanted(decision)
        self.run.applied(decision)
        self.last_epoch = self.run.updates
        self._last_lr = list(decision.lr)
        if wanted:
            self.run.learn(self._signals.outcome(decision.step))
        self._signals.finish()
        self._last_observation = decision.observation or self._last_observation
        self.trace.append(decision)
        for listener in self.listeners:
            listener(decision)

    def _add_new_groups(self) -> None:
        groups, known = self.optimizer.param_groups, len(self.run.base_lrs)
        if len(groups) < known:
            raise RuntimeError(
                f"the optimizer had {known} parameter groups and now has {len(groups)}; build a new ControlledLR"
            )
        for group in groups[known:]:
            lr = float(group.setdefault("initial_lr", group["lr"]))
            self.run.add_group(lr)
            self._last_lr.append(lr)


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    # A compiled `optimizer.step` would trace into the hook, and compile anew for every learning rate.
    wrapped: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return wrapped
