"""AdaptiveLRCallback: a controller on an unmodified Trainer, for scripts where only a callback can be added."""

from __future__ import annotations

import warnings
from typing import Any, Unpack

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..auto import resolve_controller
from ..controller import Controller
from ..scheduler.config import SchedulerOptions
from ..scheduler.controlled_lr import ControlledLR
from .cooldown import shorten, stop_after_cooldown

STATE_ATTRIBUTE = "adaptive_lr_state"
"""Attribute of the native scheduler that carries the run state through Trainer's checkpoints."""


class AdaptiveLRCallback(TrainerCallback):
    """Lets a controller set the learning rate of an unmodified Trainer: `Trainer(..., callbacks=[...])`.

    The loss is read by a forward hook on the model, the gradient norm before clipping at the end of the backward pass.
    Fails fast, before the first update, where a callback cannot measure a signal exactly (a loss that the model does
    not return, the norm under a float16 gradient scaler); `AdaptiveLRTrainer` measures everything. Set
    `lr_scheduler_type="constant"`: the native schedule is overruled and only carries the logged value and the
    checkpoint.

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
        if args.lr_scheduler_type != "constant" and not isinstance(native, ControlledLR):
            warnings.warn(
                f"lr_scheduler_type='{args.lr_scheduler_type}' is overruled by AdaptiveLRCallback; set it to "
                f"'constant'",
                UserWarning,
                stacklevel=2,
            )
        settings: SchedulerOptions = {"total_steps": None if self.anytime else state.max_steps, "seed": args.seed}
        settings.update(self.settings)
        self.scheduler = ControlledLR(
            kwargs["optimizer"],
            self.controller,
            model=model,
            max_grad_norm=args.max_grad_norm or 0.0,
            **settings,
        )
        self._state = state
        saved = getattr(native, STATE_ATTRIBUTE, None)
        if state.global_step > 0 and saved is not None:
            self.scheduler.load_state_dict(saved)
        elif state.global_step > 0:
            warnings.warn(
                "the checkpoint has no controller state; the controller starts anew", UserWarning, stacklevel=2
            )

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Let a cooldown end the training."""
        if self.scheduler is not None:
            stop_after_cooldown(self.scheduler, state)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Mirror the applied learning rate to where Trainer reads it for the log."""
        if self.scheduler is not None:
            kwargs["lr_scheduler"]._last_lr = self.scheduler.get_last_lr()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Put the run state into the native scheduler, with which Trainer saves it in every checkpoint."""
        if self.scheduler is not None:
            setattr(kwargs["lr_scheduler"], STATE_ATTRIBUTE, self.scheduler.state_dict())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the hooks off the model and the optimizer."""
        if self.scheduler is not None:
            self.scheduler.close()
