"""AdaptiveLRTrainer: a Trainer whose learning rate is decided by a controller.

The mixin measures signals that a scheduler alone cannot (the true loss of an update, the gradient norm before
clipping) and reports them before the optimizer steps. It composes with any Trainer subclass:
`class Mine(AdaptiveLRMixin, SFTTrainer)`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Seq2SeqTrainer, Trainer

from ..artifacts import TRACE_NAME, replace_file
from ..auto import resolve_controller
from ..controller import Controller
from ..hub.card import MODEL_TAGS, mention
from ..optimizers import DSA
from ..optimizers.dsa_closure import LookAhead
from ..optimizers.groups import raw
from ..optimizers.layers import split_groups
from ..scheduler.controlled_lr import ControlledLR
from ..scheduler.trace import TraceWriter
from ..sensors.replay import surrogate
from ..sensors.requirements import REPLAYED
from .cooldown import shorten, stop_after_cooldown
from .data import ControllerData
from .deepspeed import ahead_of_backward, check_deepspeed
from .guard_callback import GuardCallback
from .losses import is_surrogate, recorded
from .saving import WholeCheckpoints

# Heads whose loss really is normalised by num_items_in_batch; most classification heads accept the argument and ignore
# it, and then loss and gradients come out multiplied by accumulation steps x processes.
_TOKEN_WEIGHTED = ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM")


class AdaptiveLRMixin(WholeCheckpoints, ControllerData):
    """Lets a controller decide the learning rate of any Trainer: `class MyTrainer(AdaptiveLRMixin, Trainer)`.

    Args:
        controller: a [`Controller`] or the name of one; by default the one that `args` names
            ([`AdaptiveLRTrainingArguments`]).
        controller_dataset: data on which `eval_loss` is measured, or from which a controller that needs `meta_inner`
            learns; by default a seeded tenth of the training set (`controller_split`), which is then not trained on.
            Never the `eval_dataset`.

    The other arguments are the Trainer's own. Every update's learning rate is written to `lr_trace.jsonl` in the
    output folder, and `log_history` and the reporters receive `adaptive_lr/*` values.

    Raises:
        ValueError: no controller, a scheduler passed beside it or one in DeepSpeed's config, or settings out of range.
    """

    lr_scheduler: Any
    _created_lr_scheduler: bool
    _look_ahead: LookAhead | None = None
    _guard: GuardCallback | None = None
    _trace: TraceWriter | None = None
    _computes_loss = True

    def __init__(
        self,
        *args: Any,
        controller: Controller | str | None = None,
        controller_dataset: Dataset[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("optimizers", (None, None))[1] is not None:
            raise ValueError(
                "AdaptiveLRTrainer makes its own scheduler; pass controller=, or give optimizers=(optimizer, "
                "ControlledLR(...)) "
                "to a plain Trainer"
            )
        self._controller = None if controller is None else resolve_controller(controller)
        self.controller_dataset = controller_dataset
        super().__init__(*args, **kwargs)
        check_deepspeed(self.accelerator)
        self._prepare_guard()
        if self._controller is None and not hasattr(self.args, "make_controller"):
            raise ValueError("no controller: pass controller=, or args=AdaptiveLRTrainingArguments(controller=...)")
        if self._controller is None and hasattr(self.args, "warn_of_unused_rate"):
            self.args.warn_of_unused_rate()
        self._prepare_controller_data(self.controller)
        if getattr(self._inner_model(), "loss_type", None) not in _TOKEN_WEIGHTED:
            self.model_accepts_loss_kwargs = False

    @property
    def controller(self) -> Controller:
        """The controller that decides, or will decide at the next `train()`."""
        if self._controller is not None:
            return self._controller
        made: Controller = self.args.make_controller()
        return made

    def _inner_model(self) -> nn.Module:
        model: nn.Module = self.accelerator.unwrap_model(self.model)
        base = getattr(model, "get_base_model", None)  # PEFT
        return base() if callable(base) else model

    def _prepare_guard(self) -> None:
        if getattr(self.args, "divergence_guard", False) and self.guard_callback is None:
            self.add_callback(GuardCallback(**(self.args.divergence_guard_kwargs or {})))
        if self.guard_callback is not None:
            self.guard_callback.restore_checkpoint = self._restore_checkpoint

    @property
    def guard_callback(self) -> GuardCallback | None:
        """The divergence guard that watches this trainer, if any."""
        return next((cb for cb in self.callback_handler.callbacks if isinstance(cb, GuardCallback)), None)

    def cooldown(self, steps: int) -> None:
        """End a run well: the learning rate falls linearly to zero within the next `steps` updates, then it stops.

        For the callbacks of a run under way: when the time is up, or when nothing has improved for long.

        Args:
            steps: updates, at least 1 and at most those left until `max_steps`.

        Raises:
            ValueError: a number out of range, or no run under way.
        """
        shorten(self.lr_scheduler, self.state, steps)

    # --- called by Trainer --------------------------------------------------------------------------------------

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> ControlledLR:
        """Build the [`ControlledLR`]; `train()` calls it once per run."""
        if self.lr_scheduler is not None:
            existing: ControlledLR = self.lr_scheduler
            return existing
        controller = self.controller
        if controller.needs & {"eval_loss", "meta_inner"} and self.controller_dataset is None:
            raise ValueError(
                f"'{controller.controller_type}' needs data of its own; pass controller_dataset= to the trainer"
            )
        target = optimizer if optimizer is not None else self.optimizer
        assert target is not None  # Trainer makes the optimizer first
        model = self._computing_model()
        scheduler = ControlledLR(
            target,
            controller,
            model=model,
            hook=False,
            other_loss=self._extra_loss(self.train_dataset, 0) if "loss_other" in controller.needs else None,
            meta_loss=self._extra_loss(self.controller_dataset, 1) if "meta_inner" in controller.needs else None,
            envelope=self.args.make_envelope(controller) if hasattr(self.args, "make_envelope") else None,
            **self._scheduler_settings(num_training_steps),
        )
        self._look_ahead, self._guard = LookAhead.of(target, model), self.guard_callback
        if self.is_world_process_zero():
            self._trace = TraceWriter(Path(self.args.output_dir) / TRACE_NAME, controller, num_training_steps)
            scheduler.listeners.append(self._trace)
        self.lr_scheduler, self._created_lr_scheduler = scheduler, True
        self._eval_every = getattr(self.args, "controller_eval_steps", None) or max(1, num_training_steps // 20)
        return scheduler

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Trainer's optimizer, split by part of the model or wrapped by [`DSA`] where the arguments ask for it."""
        fresh = self.optimizer is None
        prepared = [*args, kwargs.get("model")][0]  # the first FSDP has a model wrapped before there is an optimizer
        self._gathers = prepared if hasattr(prepared, "_fsdp_wrapped_module") else None
        made: Optimizer = super().create_optimizer(*args, **kwargs)
        factors, decay = getattr(self.args, "lr_factors", None), getattr(self.args, "layer_decay", None)
        if factors or decay is not None:
            if fresh:
                split_groups(made, self.accelerator.unwrap_model(self.model), factors, decay)
            elif "lr_factor" not in made.param_groups[0]:
                raise ValueError(
                    f"lr_factors={factors} and layer_decay={decay} split Trainer's own optimizer, and you passed one; "
                    "call hf_adaptive_lr.split_groups(optimizer, model, ...) yourself and leave them out"
                )
        if getattr(self.args, "dsa", False) and not isinstance(raw(made), DSA):
            self.optimizer = made = DSA(made, **(self.args.dsa_kwargs or {}))
        return made

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own; at its end, also one that nobody planned, the trace is whole."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._trace is not None:
                self._trace.flush()

    def _restore_checkpoint(self, folder: Path) -> None:
        """Weights and optimizer of a checkpoint, in mid-run; position, schedule and generators stay."""
        position = self.lr_scheduler.state_dict()
        self._load_from_checkpoint(str(folder), self.model_wrapped)
        self._load_optimizer_and_scheduler(str(folder))
        self.lr_scheduler.load_state_dict(position)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.guard_callback is not None:
            self.guard_callback.resumed_from = Path(resume_from_checkpoint)
        load = super()._load_from_checkpoint
        # That of sentence-transformers loads into the trainer's own model and takes no other.
        load(resume_from_checkpoint, *([model] if "model" in inspect.signature(load).parameters else []))
        # transformers 5.23 saves some models (ViT) under their Hub names, loads the file as it stands, and so leaves
        # weights at random without an error. from_pretrained knows both names.
        path = Path(resume_from_checkpoint) / "model.safetensors"
        target = self._inner_model() if model is None else self.accelerator.unwrap_model(model)
        if isinstance(target, PreTrainedModel) and path.is_file():
            with safe_open(path, framework="pt") as file:
                renamed = set(file.keys()) - set(target.state_dict())
            if renamed:
                target.load_state_dict(type(target).from_pretrained(resume_from_checkpoint).state_dict())

    def _scheduler_settings(self, num_training_steps: int) -> dict[str, Any]:
        if hasattr(self.args, "scheduler_settings"):
            settings: dict[str, Any] = self.args.scheduler_settings(num_training_steps)
            return settings
        return {
            "total_steps": num_training_steps,
            "warmup_steps": self.args.get_warmup_steps(num_training_steps) or None,
            "max_grad_norm": self.args.max_grad_norm or 0.0,
            "seed": self.args.seed,
        }

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; its loss is kept for the controller, on the device."""
        scheduler, begun = self.lr_scheduler, 0
        stop_after_cooldown(scheduler, self.state)
        if not self._computes_loss:  # then nothing else announces the micro-batch
            scheduler.before_forward()

        def begins(repeat: Callable[..., Any], prepared: Any) -> None:
            nonlocal begun
            begun += 1
            replay = self._replay(repeat, num_items_in_batch)
            scheduler.before_forward(surrogate if is_surrogate(prepared) else replay)
            if self._look_ahead is not None:
                self._look_ahead.add(replay, self.args.device)

        def hear(loss: Tensor) -> None:
            # Trainer differentiates each micro-batch's share of the update's loss; its mean loss is that times the
            # number of shares.
            scheduler.observe(loss=loss * self.current_gradient_accumulation_steps)

        if self.is_deepspeed_enabled and not scheduler.losses:  # its last backward pass makes the update
            self._evaluate_if_due(model)
        early = ahead_of_backward(self.accelerator, hear) if self.is_deepspeed_enabled else contextlib.nullcontext()
        with recorded(self, begins), early:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._computes_loss = begun > 0
        needed = sorted(scheduler.controller.needs & REPLAYED) + ["DSA's second gradient"] * bool(self._look_ahead)
        if begun != 1 and needed:
            raise ValueError(
                f"{needed[0]} takes the loss of a micro-batch a second time, and a training step of "
                f"{type(self).__name__} calls compute_loss {begun} times, not once; use a controller that needs "
                "nothing repeated, such as 'hypergradient', or an optimizer other than DSA"
            )
        if not self.is_deepspeed_enabled:
            hear(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if self.is_deepspeed_enabled:  # the update has been made
            return norm
        self.lr_scheduler.observe(grad_norm=norm)
        if self._guard is not None:
            self._guard.observe(losses=self.lr_scheduler.losses, grad_norm=norm)
        self._evaluate_if_due(model)
        return norm

    def _evaluate_if_due(self, model: nn.Module) -> None:
        if self._evaluates_now():
            self.lr_scheduler.observe(eval_loss=self._mean_loss(model, self.controller_dataset))

    def _evaluates_now(self) -> bool:
        scheduler = self.lr_scheduler
        if "eval_loss" not in scheduler.controller.needs:
            return False
        if scheduler.controller.fresh_eval and getattr(self.args, "controller_eval_steps", None) is None:
            due: bool = scheduler.due()
            return due
        every: bool = scheduler.updates % self._eval_every == 0
        return every

    # --- the model's own card -----------------------------------------------------------------------------------

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's card of the model, with a section about the controller; `push_to_hub` uploads it, too.

        The section names the controller and its settings, links its repository and commit when it came from the Hub,
        and takes the place of the one of an earlier call.
        """
        if len(args) < 3:  # the third is the tags, here and in TRL
            given = kwargs.get("tags") or []
            kwargs["tags"] = [*([given] if isinstance(given, str) else given)]
            kwargs["tags"] += [tag for tag in MODEL_TAGS if tag not in kwargs["tags"]]
        super().create_model_card(*args, **kwargs)
        path = Path(self.args.output_dir) / "README.md"
        if self.is_world_process_zero() and path.is_file():
            settings = {"learning_rate": self.args.learning_rate}
            card = mention(path.read_text(encoding="utf-8"), self.controller, settings)
            replace_file(path, card)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the controller's values to training logs, for `log_history` and every reporter."""
        scheduler = self.lr_scheduler
        if "learning_rate" in logs and isinstance(scheduler, ControlledLR):
            logs |= scheduler.log_values()
            if self._guard is not None:
                logs |= self._guard.log_values()
        super().log(logs, start_time)


class AdaptiveLRTrainer(AdaptiveLRMixin, Trainer):
    """`transformers.Trainer` with a learning-rate controller; see [`AdaptiveLRMixin`] for the two extra arguments.

    Example:
        ```python
        trainer = AdaptiveLRTrainer(model=model, args=args, train_dataset=train, controller="hypergradient")
        trainer.train()
        trainer.lr_scheduler.trace[-1].reason
        ```
    """


class AdaptiveLRSeq2SeqTrainer(AdaptiveLRMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with a learning-rate controller; see [`AdaptiveLRMixin`]."""
