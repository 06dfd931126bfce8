"""TrainingArguments with the settings of the learning-rate controller, for HfArgumentParser, YAML and HPO."""

from __future__ import annotations

import inspect
import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from .._checks import check_range, did_you_mean
from ..auto import AutoController
from ..controller import Controller
from ..hub.config import configure
from ..optimizers import DSA
from ..optimizers.layers import check_factors
from ..scheduler.config import SchedulerConfig
from ..scheduler.envelope import Envelope
from .defaults import DEFAULT_CONTROLLER
from .guard_callback import GuardCallback

logger = logging.getLogger(__name__)


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class AdaptiveLRTrainingArguments(TrainingArguments):
    """TrainingArguments plus the controller's settings, all searchable by `hyperparameter_search`.

    `learning_rate` is the base learning rate, which the default controller does not use: it finds one. `warmup_steps`
    ramps the controller's answer up; 0 leaves it to the controller, of which `universal` has 5 % of the run, and 1 is
    none. `lr_scheduler_type` is not used. Each field is explained in its help; ranges are checked when training
    begins, by [`ControlledLR`].

    Example:
        >>> AdaptiveLRTrainingArguments(output_dir="out", controller="cosine").controller
        'cosine'
    """

    controller: str = _option(
        DEFAULT_CONTROLLER,
        "Learning-rate controller: a known name, a folder with config.json, user/repo on the Hub, FILE.py:CLASS or "
        "FILE.py:CLASS:FOLDER. The default finds the learning rate.",
    )
    # `dict | str | None` and not a parametrised dict: HfArgumentParser reads it as a JSON string.
    controller_kwargs: dict | str | None = _option(  # type: ignore[type-arg]
        None, "Config fields of the controller to change, as JSON, for example '{\"beta\": 0.02}'."
    )
    controller_every: int | None = _option(
        None, "Updates from one decision to the next, at least 1 (default: as the controller does)."
    )
    controller_decisions: int | None = _option(None, "Instead of controller_every: decisions per run, at least 1.")
    controller_min_factor: float | None = _option(None, "Smallest factor of the base learning rate.")
    controller_max_factor: float | None = _option(None, "Largest factor of the base learning rate.")
    controller_min_lr: float = _option(
        SchedulerConfig.min_lr, "Smallest learning rate, whatever the controller answers."
    )
    controller_max_lr: float = _option(
        SchedulerConfig.max_lr, "Largest learning rate, whatever the controller answers."
    )
    controller_envelope: dict | str | None = _option(  # type: ignore[type-arg]
        None,
        "How far the controller is trusted, as JSON: settings of Envelope, '{}' for its defaults, 'off' "
        "for none (default: none for rules; for learned controllers, beside the divergence guard, a factor of 4 "
        "around a linear schedule, or of 100 where the controller answers with learning rates).",
    )
    controller_split: float = _option(
        0.1,
        "Share of the training set, in (0, 0.5], held out for a controller that needs evaluation losses "
        "and was given no controller_dataset. The eval_dataset is never used for it.",
    )
    controller_eval_steps: int | None = _option(
        None, "Updates between evaluations on the controller's data (default: a twentieth of the run)."
    )

    anytime: bool = _option(
        False,
        "Keep the length of the run from the controller: max_steps is where it ends at the latest, and "
        "trainer.cooldown(steps) ends it well at any time before.",
    )
    lr_factors: dict | str | None = _option(  # type: ignore[type-arg]
        None,
        "Factors of the learning rate by part of the model, as JSON; parts: embeddings, body, head, "
        "lora_A, lora_B. '{\"head\": 10}' trains the head ten times as fast, '{\"lora_B\": 16}' is LoRA+.",
    )
    layer_decay: float | None = _option(
        None, "Factor of the learning rate from one layer to the one below, in (0, 1]."
    )

    divergence_guard: bool = _option(
        False,
        "Notice divergence before an update is applied: skip it, go back and cut the learning rate if it "
        "persists. Host memory for two copies of all that trains, up to four in runs of under 160 updates.",
    )
    divergence_guard_kwargs: dict | str | None = _option(  # type: ignore[type-arg]
        None, "Settings of GuardCallback, as JSON, for example '{\"max_rollbacks\": 2}'."
    )

    dsa: bool = _option(
        False,
        "Wrap the optimizer by DSA: a learning rate for every weight, learned by looking ahead (two "
        "forward and backward passes per update).",
    )
    dsa_kwargs: dict | str | None = _option(  # type: ignore[type-arg]
        None, "Settings of DSA, as JSON, for example '{\"beta\": 0.02}'."
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        as_json = ("controller_kwargs", "controller_envelope", "divergence_guard_kwargs", "dsa_kwargs", "lr_factors")
        for name in as_json:
            value = getattr(self, name)
            if isinstance(value, str) and (name, value) != ("controller_envelope", "off"):
                try:
                    setattr(self, name, json.loads(value))
                except ValueError as error:
                    raise ValueError(f"{name}={value!r} is not valid JSON: {error}") from error
            self._check_object(name, value)
        check_factors(self.lr_factors if isinstance(self.lr_factors, dict) else {}, self.layer_decay)
        self._check_values()

    def _check_values(self) -> None:
        """TypeError for a setting of another type, ValueError for one out of range, when the arguments are made."""
        check_range(self, "controller_split", self.controller_split, 1e-9, 0.5, hint="0.1 holds out a tenth")
        if self.controller_eval_steps is not None:
            hint = "pass a whole number of updates, or None for a twentieth of the run"
            check_range(self, "controller_eval_steps", self.controller_eval_steps, 1, math.inf, hint=hint, whole=True)
        for name in ("controller_min_lr", "controller_max_lr"):
            usual = type(self).__dataclass_fields__[name].default
            check_range(self, name, getattr(self, name), 0.0, math.inf, hint=f"leave it out for {usual:g}")
        for name in ("anytime", "divergence_guard", "dsa"):
            value = getattr(self, name)
            if not isinstance(value, bool):  # "false" would turn it on
                raise TypeError(f"{type(self).__name__}: {name} must be True or False, got {value!r}")

    def _check_object(self, name: str, given: Any) -> None:
        """Fail fast on JSON that is no object, and on settings that there are not, when the arguments are made."""
        value = getattr(self, name)
        if value is None or (name, value) == ("controller_envelope", "off"):
            return
        if not isinstance(value, dict):
            raise ValueError(f"{name}={given!r} is not a JSON object such as '{{\"name\": 1}}'")
        takers = {"controller_envelope": Envelope, "divergence_guard_kwargs": GuardCallback, "dsa_kwargs": DSA}
        if name not in takers:
            return
        known = [key for key in inspect.signature(takers[name]).parameters if key not in ("base", "anchor")]
        for key in value:
            if key not in known:
                raise ValueError(f"{name}: no setting '{key}'{did_you_mean(key, known)}")
        if name != "dsa_kwargs":
            takers[name](**value)  # values out of range fail here, too

    def make_controller(self) -> Controller:
        """The controller that `controller` and `controller_kwargs` describe.

        Raises:
            ValueError: an unknown name, or a key or value that its config does not have.
        """
        changes: dict[str, Any] = dict(self.controller_kwargs) if isinstance(self.controller_kwargs, dict) else {}
        return configure(AutoController.from_pretrained(self.controller), changes)

    def warn_of_unused_rate(self) -> None:
        """Say that a learning rate was given although the default controller finds it."""
        usual = type(self).__dataclass_fields__["learning_rate"].default
        if self.controller == DEFAULT_CONTROLLER and self.learning_rate != usual:
            logger.warning(
                "learning_rate=%s is not used: controller '%s', the default, finds it; leave it out, or name a "
                "controller that starts from yours (controller='linear')",
                self.learning_rate,
                DEFAULT_CONTROLLER,
            )

    def make_envelope(self, controller: Controller) -> Envelope | None:
        """The envelope for this controller; see `controller_envelope`.

        Raises:
            TypeError: a setting that [`Envelope`] does not have.
            ValueError: a value out of range.
        """
        if isinstance(self.controller_envelope, dict):
            return Envelope(**self.controller_envelope)
        if self.controller_envelope == "off" or not (controller.learned and self.divergence_guard):
            return None
        return Envelope(low=0.01, high=100.0) if controller.answers == "lr" else Envelope()

    def scheduler_settings(self, num_training_steps: int) -> dict[str, Any]:
        """The keyword arguments of [`ControlledLR`] that these arguments set, for a run of this many updates."""
        names = ("every", "decisions", "min_factor", "max_factor", "min_lr", "max_lr")
        return {
            "total_steps": None if self.anytime else num_training_steps,
            "warmup_steps": self.get_warmup_steps(num_training_steps) or None,
            "max_grad_norm": self.max_grad_norm or 0.0,
            "seed": self.seed,
            **{name: getattr(self, f"controller_{name}") for name in names},
        }
