"""AdaptiveLRCallback: a controller on an unmodified Trainer, for scripts where only a callback can be added."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, Unpack

from transformers import SchedulerType, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from ..artifacts import TRACE_NAME
from ..auto import resolve_controller
from ..controller import Controller
from ..optimizers.groups import raw
from ..optimizers.writers import WrittenLRs
from ..scheduler.config import SchedulerOptions
from ..scheduler.controlled_lr import ControlledLR
from ..scheduler.trace import TraceWriter
from .checkpoints import check_position
from .cooldown import shorten, stop_after_cooldown

STATE_ATTRIBUTE = "adaptive_lr_state"
"""Attribute of the native scheduler that carries the run state through Trainer's checkpoints."""

_REPLACED = ("constant", "constant_with_warmup")  # native schedules that a controller takes nothing away from


class AdaptiveLRCallback(TrainerCallback):
    """Lets a controller set the learning rate of an unmodified Trainer: `Trainer(..., callbacks=[...])`.

    The loss is read by a forward hook on the model, the gradient norm before clipping at the end of the backward pass.
    Evaluation losses are those of Trainer's `eval_dataset`, whoever asks for them, and of all that its own schedule
    evaluates; those of other data that a callback evaluates are not taken. `warmup_steps` is that of the arguments.
    Fails fast where a callback cannot measure a signal exactly (a loss that the model does not return or that is not
    the trained one, the norm under a float16 gradient scaler); `AdaptiveLRTrainer` measures everything. Set
    `lr_scheduler_type="constant"` or `"constant_with_warmup"`: the native schedule is overruled and only carries the
    logged value and the checkpoint. Every update's learning rate is written to `lr_trace.jsonl` in the output folder.

    Args:
        controller: a [`Controller`] or the name of one.
        anytime: the controller does not see how long the run is; `cooldown` ends it well.
        **settings: those of [`SchedulerConfig`] but `total_steps` and `envelope`.

    Raises:
        ValueError: an unknown controller or setting.

    Example:
        >>> AdaptiveLRCallback("hypergradient", every=10).controller.controller_type
        'hypergradient'
    """

    def __init__(
        self, controller: Controller | str, *, anytime: bool = False, **settings: Unpack[SchedulerOptions]
    ) -> None:
        known = [name for name in SchedulerOptions.__annotations__ if name not in ("total_steps", "envelope")]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ValueError(f"AdaptiveLRCallback has no setting '{unknown[0]}'; it has: {', '.join(known)}")
        self.controller = resolve_controller(controller)
        self.settings, self.anytime = settings, anytime
        self.scheduler: ControlledLR | None = None
        self._state: TrainerState | None = None
        self._over = False
        self._native: Any = None

    def cooldown(self, steps: int) -> None:
        """Let the learning rate fall linearly to zero within the next `steps` updates, and training stop there.

        Args:
            steps: updates, at least 1 and at most those left until `max_steps`.

        Raises:
            ValueError: a number out of range, or no run under way.
        """
        shorten(self.scheduler, self._state, steps)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the controller in charge of the optimizer, with the state of the checkpoint that is being resumed."""
        # SetFit passes its own arguments and model, and calls the trainer's `st_args`, `st_model`.
        args, model = kwargs.get("st_args", args), kwargs.get("st_model", kwargs["model"])
        native = kwargs["lr_scheduler"]
        if args.lr_scheduler_type not in _REPLACED and not isinstance(native, ControlledLR):
            named = SchedulerType(args.lr_scheduler_type).value
            warnings.warn(
                f"lr_scheduler_type='{named}' is overruled by AdaptiveLRCallback, but for its warm-up; "
                "set it to 'constant_with_warmup' or 'constant'",
                UserWarning,
                stacklevel=2,
            )
        settings: SchedulerOptions = {
            "total_steps": None if self.anytime else state.max_steps,
            "warmup_steps": args.get_warmup_steps(state.max_steps) or None,
            "seed": args.seed,
        }
        settings.update(self.settings)
        self._check_evaluations(args)
        self._check_evaluation_set()
        WrittenLRs.of(raw(kwargs["optimizer"])).accept()  # the native schedule's first one
        self.scheduler = ControlledLR(
            kwargs["optimizer"],
            self.controller,
            model=model,
            max_grad_norm=args.max_grad_norm or 0.0,
            **settings,
        )
        self.scheduler.expect_evaluations()
        if state.is_world_process_zero:
            trace = TraceWriter(Path(args.output_dir or ".") / TRACE_NAME, self.controller, state.max_steps)
            self.scheduler.listeners.append(trace)
        self._state, self._native, self._over = state, native, False
        saved = getattr(native, STATE_ATTRIBUTE, None)
        if state.global_step > 0 and saved is not None:
            check_position(saved, state.global_step)
            self.scheduler.load_state_dict(saved)
        elif state.global_step > 0:
            warnings.warn(
                "the checkpoint has no controller state, as it was saved without the callback or lacks optimizer.pt "
                "or scheduler.pt; the controller starts anew",
                UserWarning,
                stacklevel=2,
            )

    def _check_evaluations(self, args: TrainingArguments) -> None:
        needs, fresh = self.controller.needs, self.controller.fresh_eval
        if "eval_loss" not in needs:
            return
        name = self.controller.controller_type
        if fresh and not args.eval_on_start:
            raise ValueError(
                f"'{name}' needs an evaluation before every decision, also the first; set eval_on_start=True, or use "
                "AdaptiveLRTrainer"
            )
        if not fresh and args.eval_strategy == "no":
            raise ValueError(
                f"'{name}' needs eval_loss, and eval_strategy='no' makes no evaluations; set eval_strategy='steps' "
                "and eval_steps, or use AdaptiveLRTrainer"
            )

    def _check_evaluation_set(self) -> None:
        trainer = _trainer() if "eval_loss" in self.controller.needs else None
        # Only transformers' own `evaluate` is known to give each set a name of its own.
        if trainer is None or not type(trainer).evaluate.__module__.startswith("transformers."):
            return
        if isinstance(trainer.eval_dataset, dict):
            raise ValueError(
                f"'{self.controller.controller_type}' needs eval_loss, and there are several evaluation sets "
                f"({', '.join(map(str, trainer.eval_dataset))}), none of which gives that name. Pass one as "
                "eval_dataset, or use AdaptiveLRTrainer(controller_dataset=...)"
            )

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Let a cooldown end the training."""
        if self.scheduler is not None:
            stop_after_cooldown(self.scheduler, state)
            self.scheduler.accept_lrs(getattr(self._native, "_last_lr", ()))

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Mirror the applied learning rate to where Trainer reads it for the log."""
        if self.scheduler is not None:
            kwargs["lr_scheduler"]._last_lr = self.scheduler.get_last_lr()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the run state into the native scheduler, with which Trainer saves it in every checkpoint.

        Asks Trainer for an evaluation where a controller needs a new one for its next decision.
        """
        if self.scheduler is None:
            return
        self._keep_state()
        needs = self.controller.fresh_eval and "eval_loss" in self.controller.needs
        if needs and self.scheduler.due() and state.global_step < state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, *args: Any, metrics: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Report the `eval_loss` of Trainer's own data to a controller that needs it, while the training lasts."""
        found = {name for name in metrics or {} if name.startswith("eval_")}  # others are of a prefix of the user's
        if self.scheduler is None or self._over or "eval_loss" not in self.controller.needs or not found:
            return
        if _of_other_data():
            return
        if metrics is None or "eval_loss" not in metrics:
            raise ValueError(
                f"'{self.controller.controller_type}' needs eval_loss, and the evaluation gave {sorted(found)}: the "
                "eval_dataset has no labels, or there are several. Pass one that has labels, or use "
                "AdaptiveLRTrainer(controller_dataset=...)"
            )
        self.scheduler.observe(eval_loss=metrics["eval_loss"])
        self._keep_state()  # a checkpoint of this update is written after its evaluation

    def _keep_state(self) -> None:
        if self.scheduler is not None and self._state is not None:
            self.scheduler.global_step = self._state.global_step
            setattr(self._native, STATE_ATTRIBUTE, self.scheduler.state_dict())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the hooks off the model and the optimizer."""
        self._over = True
        if self.scheduler is not None:
            self.scheduler.close()


# --- reading running calls, as a callback is told neither its trainer nor which data was evaluated ------------------


def _trainer() -> Trainer | None:
    """The trainer that is calling, if it is one of transformers'."""
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), Trainer):
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


def _of_other_data() -> bool:
    """Whether the evaluation under way is not Trainer's own: not by its schedule, nor of its `eval_dataset`."""
    frame = _above(inspect.currentframe(), Trainer.evaluate)
    if frame is None or frame.f_locals["eval_dataset"] is frame.f_locals["self"].eval_dataset:
        return False
    caller = _above(frame, Trainer._evaluate, CallbackHandler.call_event)
    return caller is None or caller.f_code is CallbackHandler.call_event.__code__


def _above(frame: FrameType | None, *functions: Any) -> FrameType | None:
    codes = [function.__code__ for function in functions]
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame
