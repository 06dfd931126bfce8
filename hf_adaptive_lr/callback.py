"""AdaptiveLRCallback: a controller on an unmodified Trainer, for scripts where only a callback can be added."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .auto import resolve_controller
from .controller import Controller
from .scheduler import ControlledLR

STATE_ATTRIBUTE = "adaptive_lr_state"
"""Attribute of the native scheduler that carries the run state through Trainer's checkpoints."""


class AdaptiveLRCallback(TrainerCallback):
    """Give the learning rate of an unmodified Trainer to a controller: `Trainer(..., callbacks=[...])`.

    The loss is read by a forward hook on the model. What a callback cannot see exactly (the gradient norm before
    clipping, a loss that the model does not return) is refused before the first update; `AdaptiveLRTrainer` sees
    everything. Set `lr_scheduler_type="constant"`: the native schedule is overruled and only carries the logged value
    and the checkpoint.

    Args:
        controller: a [`Controller`] or the name of one.
        **settings: settings of [`ControlledLR`]: `every`, `decisions`, `warmup_steps`, `min_factor`, `max_factor`,
            `min_lr`, `max_lr`, `seed`.

    Raises:
        ValueError: an unknown controller or setting.

    Example:
        >>> AdaptiveLRCallback("hypergradient", every=10).controller.controller_type
        'hypergradient'
    """

    _SETTINGS = ("every", "decisions", "warmup_steps", "min_factor", "max_factor", "min_lr", "max_lr", "seed")

    def __init__(self, controller: Controller | str, **settings: Any) -> None:
        unknown = [name for name in settings if name not in self._SETTINGS]
        if unknown:
            raise ValueError(f"AdaptiveLRCallback has no setting '{unknown[0]}'; it has: {', '.join(self._SETTINGS)}")
        self.controller = resolve_controller(controller)
        self.settings = settings
        self.scheduler: ControlledLR | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the optimizer, and the state of the checkpoint that is being resumed."""
        del control
        native = kwargs["lr_scheduler"]
        if args.lr_scheduler_type != "constant" and not isinstance(native, ControlledLR):
            warnings.warn(
                f"lr_scheduler_type='{args.lr_scheduler_type}' is overruled by AdaptiveLRCallback; set it to "
                f"'constant'",
                UserWarning,
                stacklevel=2,
            )
        self.scheduler = ControlledLR(
            kwargs["optimizer"],
            self.controller,
            model=kwargs["model"],
            total_steps=state.max_steps,
            max_grad_norm=None if args.max_grad_norm else 0.0,
            **{"seed": args.seed, **self.settings},
        )
        saved = getattr(native, STATE_ATTRIBUTE, None)
        if state.global_step > 0 and saved is not None:
            self.scheduler.load_state_dict(saved)
        elif state.global_step > 0:
            warnings.warn(
                "the checkpoint has no controller state; the controller starts anew", UserWarning, stacklevel=2
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mirror the applied learning rate to where Trainer reads it for the log."""
        del args, state, control
        if self.scheduler is not None:
            kwargs["lr_scheduler"]._last_lr = self.scheduler.get_last_lr()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the run state where the next checkpoint, whoever asks for it, takes it along."""
        del args, state, control
        if self.scheduler is not None:
            setattr(kwargs["lr_scheduler"], STATE_ATTRIBUTE, self.scheduler.state_dict())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hooks off the model and the optimizer."""
        del args, state, control, kwargs
        if self.scheduler is not None:
            self.scheduler.close()
