"""One way to choose the learning rate, as a value; what its runs depend on, and which tasks it fits."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from ..auto import AutoController
from ..controller import Controller
from ..controllers import CONTROLLERS
from ..hub.config import configure
from ..sensors.predictions import LOGIT_FIELDS
from ..sensors.readable import DIRECTION_FIELDS
from ..sensors.weights import WEIGHT_FIELDS
from .rivals import GEN_EVERY, VERSIONS, package_of
from .rows import Specified
from .tasks import Kind, OptimizerName, Task

REPLAY = "replay:"
TRAINER_LR = 5e-5
"""`TrainingArguments.learning_rate`."""
RULE: Mapping[str, float] = {"pretrained": 2e-5, "adapter": 2e-4, "scratch": 1e-3}
"""The rule of thumb for Adam and its kin, by what is trained."""
SGD_RULE: Mapping[str, float] = {"pretrained": 1e-3, "adapter": 1e-2, "scratch": 1e-2}
"""The same for SGD with momentum 0.9."""
WARMUP = 0.06
"""Share of the run in which the learning rate rises, where a method has a warm-up."""
EVALUATIONS = 20
"""Evaluations in a run of a method whose schedule moves only then."""
RANGE_TEST_UPDATES = 100
"""Updates of the LR range test, its default; beside those of the run, and in its seconds."""

_OF_CLASSES = LOGIT_FIELDS | set(WEIGHT_FIELDS)
_OF_OPTIMIZERS = DIRECTION_FIELDS | {"gain_ratio"}
Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method(Specified):
    """One way to choose the learning rate.

    Example:
        >>> Method(name="gentle", controller="hypergradient", config={"beta": 0.01}).make_controller().beta
        0.01
    """

    name: str  # in keys and tables
    text: str = ""  # for the page
    controller: str = ""  # a name of [`CONTROLLERS`]; with `weights`, whatever [`AutoController`] takes
    config: Config = field(default_factory=dict)  # where it differs from the defaults
    config_by_kind: Mapping[str, Config] = field(default_factory=dict)  # the same, by the kind of task
    weights: bool = False  # whether the controller is loaded and not made
    trainer: Literal["adaptive", "meta"] = "adaptive"  # `AdaptiveLRTrainer` or `MetaLRTrainer`
    arguments: Config = field(default_factory=dict)  # fields of `AdaptiveLRTrainingArguments`
    schedule: str = "linear"  # `lr_scheduler_type` of `TrainingArguments`, without a controller
    schedule_kwargs: Config = field(default_factory=dict)
    warmup: float = 0.0  # share of the run
    evaluates: bool = False  # whether the schedule moves at evaluations, on the controller's rows
    optimizer: str = ""  # a name of `rivals.OPTIMIZERS`, instead of the task's own
    optimizer_kwargs: Config = field(default_factory=dict)
    steering: Literal["", "range_test", "gen"] = ""  # what else sets the learning rate, see `rivals.py`
    guard: Config | None = None  # arguments of `GuardCallback` that differ from its defaults; None for no guard
    dsa: Config | None = None  # arguments of `DSA` around the task's optimizer
    groups: Literal["one", "tensor"] = "one"  # parameter groups of the optimizer: one, or one for every tensor
    kinds: tuple[Kind, ...] = ("pretrained", "adapter", "scratch")  # of tasks that it can train
    not_with: tuple[OptimizerName, ...] = ()  # optimizers of tasks for which its learning rate is not meant
    budget: float = 1.0  # length of the run as a multiple of the task's, for comparisons at equal cost
    told: float = 1.0  # length that the trainer is told, as a multiple of the run's
    cooldown: float = 0.0  # share of the run within which the rate then falls to zero, where it was told wrong or none
    # "tuned", "rule", or a number; "tuned:NAME" for the one that was chosen for another method.
    lr: float | str = "rule"
    alternatives: tuple[Config, ...] = ()  # changes of `config` that are tuned together with the learning rate
    replay_of: str | None = None  # name of the method whose mean schedule is replayed, the run's own seed left out
    part_of: str | None = None  # name of the method that it is in another way: on development tasks only
    chosen_on: tuple[str, ...] = ()  # data sets that had a part in its making
    extra_passes: str = "none"  # beside the forward and backward pass of the update, in words

    def __post_init__(self) -> None:
        if self.told != 1.0 and not self.cooldown:
            raise ValueError(
                f"method '{self.name}' is told {self.told:g} times its length and has no cooldown to end by"
            )

    def spec(self) -> dict[str, Any]:
        """All that a run depends on and that is not a default, as JSON values; learned weights by a hash."""
        values = {
            f.name: value
            for f in dataclasses.fields(self)
            if f.name not in _NOT_OF_A_RUN and (value := getattr(self, f.name)) != _default(f)
        }
        constants = {
            "evaluations": EVALUATIONS if self.evaluates else None,
            "range_test_updates": RANGE_TEST_UPDATES if self.steering == "range_test" else None,
            "gen_every": GEN_EVERY if self.steering == "gen" else None,
            "package": f"{package} {VERSIONS[package]}" if (package := package_of(self)) in VERSIONS else None,
            "weights": _fingerprint(self.make_controller()) if self.weights else None,
            "controller": self.make_controller().controller_type if self.weights else None,  # wherever its folder is
        }
        return values | {name: value for name, value in constants.items() if value is not None}

    def fits(self, task: Task) -> bool:
        """Whether a task can run it.

        What observes predictions needs classes; what reads an update out of the optimizer's state, one of those that
        it knows: it fails fast with others, which is a gap in what it is for and no ruin.
        """
        needs = self.make_controller().needs if self.controller else frozenset()
        readable = task.optimizer in ("adamw", "adam", "sgd") or not needs & _OF_OPTIMIZERS
        meant = task.kind in self.kinds and task.optimizer not in self.not_with
        return meant and readable and (task.objective == "classes" or not needs & _OF_CLASSES)

    def fixed_lr(self, task: Task) -> float | None:
        """Its learning rate on a task; None where that is tuned."""
        if self.lr == "rule":
            return (SGD_RULE if task.optimizer == "sgd" else RULE)[task.kind]
        return self.lr if isinstance(self.lr, float) else None

    @property
    def needs_no_lr(self) -> bool:
        """Whether the base learning rate changes nothing."""
        return bool(self.controller) and self.make_controller().ignores_base_lr

    def variants(self) -> list[Method]:
        """The method with each of its alternatives; itself when it has none."""
        return [
            dataclasses.replace(self, config={**self.config, **changes}, alternatives=())
            for changes in self.alternatives or ({},)
        ]

    def make_controller(self, kind: str = "") -> Controller:
        """The controller of a run; ValueError where this version has no such controller."""
        config = {**self.config, **self.config_by_kind.get(kind, {})}
        if self.weights:
            return configure(loaded(self.controller), config)
        if self.controller not in CONTROLLERS:
            raise ValueError(f"this version has no controller '{self.controller}', which method '{self.name}' is of")
        try:
            return CONTROLLERS[self.controller](**config)
        except TypeError as error:
            raise ValueError(
                f"the config of method '{self.name}' does not fit '{self.controller}': {error}"
            ) from error


_NOT_OF_A_RUN = {
    "name",
    "text",
    "lr",
    "alternatives",
    "replay_of",
    "part_of",
    "chosen_on",
    "extra_passes",
    "weights",
    "not_with",
}


def _default(of: dataclasses.Field[Any]) -> Any:
    made = of.default_factory
    return of.default if made is dataclasses.MISSING else made()


@cache
def loaded(source: str) -> Controller:
    """The controller of a name, a folder or a repository."""
    return AutoController.from_pretrained(source)


def _fingerprint(controller: Controller) -> str:
    summary = hashlib.sha256(repr((controller.controller_type, sorted(controller.config().items()))).encode())
    summary.update(controller.provenance.get("code", "").encode())  # of a file of one's own
    for name, tensor in sorted(controller.params.items()):
        values: Any = tensor.detach().cpu().contiguous().numpy()
        summary.update(name.encode() + values.tobytes())
    return summary.hexdigest()
