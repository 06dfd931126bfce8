"""The methods that the benchmark compares, as values: adding a method is one entry of `METHODS`.

A method is a schedule of `Trainer`'s, a controller of ours, or an optimizer that needs no schedule. Each has one
configuration for all tasks: that of its class, its package or its paper. What needs a learning rate and is not tuned
has that of the `rule` of thumb, so a controller is measured by what it makes of the rate that a user would have given.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from ..auto import PRETRAINED, AutoController
from ..controller import Controller
from ..controllers import CONTROLLERS
from ..hub.config import configure
from ..sensors.gradients import DIRECTION_FIELDS
from ..sensors.predictions import LOGIT_FIELDS
from ..sensors.weights import WEIGHT_FIELDS
from ..trainer.defaults import RHO_BY_START
from ..trainer.defaults import WARMUP as RELATIVE_WARMUP
from .rivals import GEN_EVERY, VERSIONS, package_of
from .rows import Specified
from .tasks import TASKS, Kind, OptimizerName, Task

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
    # "tuned", "rule", or a number; "tuned:NAME" for the one that was chosen for another method.
    lr: float | str = "rule"
    alternatives: tuple[Config, ...] = ()  # changes of `config` that are tuned together with the learning rate
    replay_of: str | None = None  # name of the method whose mean schedule is replayed, the run's own seed left out
    chosen_on: tuple[str, ...] = ()  # data sets that had a part in its making
    extra_passes: str = "none"  # beside the forward and backward pass of the update, in words

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
            return configure(_loaded(self.controller), config)
        if self.controller not in CONTROLLERS:
            raise ValueError(f"this version has no controller '{self.controller}', which method '{self.name}' is of")
        try:
            return CONTROLLERS[self.controller](**config)
        except TypeError as error:
            raise ValueError(
                f"the config of method '{self.name}' does not fit '{self.controller}': {error}"
            ) from error


_NOT_OF_A_RUN = ("name", "text", "lr", "alternatives", "replay_of", "chosen_on", "extra_passes", "weights", "not_with")


def _default(of: dataclasses.Field[Any]) -> Any:
    made = of.default_factory
    return of.default if made is dataclasses.MISSING else made()


@cache
def _loaded(source: str) -> Controller:
    return AutoController.from_pretrained(source)


def _fingerprint(controller: Controller) -> str:
    summary = hashlib.sha256(repr((controller.controller_type, sorted(controller.config().items()))).encode())
    summary.update(controller.provenance.get("code", "").encode())  # of a file of one's own
    for name, tensor in sorted(controller.params.items()):
        values: Any = tensor.detach().cpu().contiguous().numpy()
        summary.update(name.encode() + values.tobytes())
    return summary.hexdigest()


# --- the methods ----------------------------------------------------------------------------------------------------


def replay(of: Method) -> Method:
    """The control that shows whether feedback matters: the mean schedule of a method's other seeds, open loop."""
    return Method(
        name=f"{REPLAY}{of.name}",
        text=f"mean schedule of `{of.name}`, open loop",
        controller="replay",
        lr=of.lr,
        replay_of=of.name,
    )


def third_party(source: str) -> Method:
    """An entry for any controller: a name, a folder or a repository of the Hub, as [`AutoController`] takes it."""
    controller, short = _loaded(source), source.rstrip("/").split("/")[-1]
    return Method(
        name=short if source.startswith((".", "/")) and short not in METHODS else f"{source} (given)",
        text=f"`{controller.controller_type}` given on the command line",
        controller=source,
        weights=True,
    )


def _with_replay(**fields: Any) -> tuple[Method, Method]:
    method = Method(**fields)
    return method, replay(method)


def _bundled(name: str, text: str, **more: Any) -> tuple[Method, ...]:
    """A bundled controller and its replay; nothing where this version does not bundle it."""
    there = (PRETRAINED / name).is_dir()
    return _with_replay(name=name, text=text, controller=name, weights=True, **more) if there else ()


# transformers gives GreedyLR a min_lr of 1e-3: from most rates it can only rise. Repaired, it may fall a
# thousandfold, eps, the smallest change that is made, is no longer of the size of the learning rates, and it moves
# within the twenty evaluations of a run.
_REPAIRED = {"min_lr": TRAINER_LR / 1000, "eps": 1e-12, "patience": 2}

_OLD_TASKS = ("20newsgroups", "fashion-mnist", "mnist-5000")
"""Data of the tasks on which earlier versions were chosen."""
_DEVELOPMENT = tuple(dict.fromkeys(task.data for task in TASKS.values() if task.suite == "development"))

TUNED_METHODS = (
    Method(name="linear", text="linear to zero, tuned", lr="tuned"),
    Method(name="linear_warmup", text="the same after 6 % warm-up, tuned", warmup=WARMUP, lr="tuned"),
    Method(name="cosine", text="cosine to zero, tuned", schedule="cosine", lr="tuned"),
    Method(
        name="cosine_warmup",
        text="the same after 6 % warm-up, tuned",
        schedule="cosine",
        warmup=WARMUP,
        lr="tuned",
    ),
)
"""Schedules whose learning rate is chosen for each task by its validation loss."""

# Prodigy's and D-Adaptation's authors advise no schedule or a cosine.
_FREE: dict[str, Any] = {"lr": 1.0, "schedule": "cosine"}
_ENTRIES: tuple[Method, ...] = (
    *TUNED_METHODS,
    Method(
        name="rule",
        text="2e-5 whole, 2e-4 adapter, 1e-3 from scratch (SGD: 1e-3, 1e-2, 1e-2); linear, 6 % warm-up",
        warmup=WARMUP,
    ),
    Method(name="default", text="`Trainer`'s defaults: 5e-5, linear; not with SGD", lr=TRAINER_LR, not_with=("sgd",)),
    *_bundled("universal", "this library's own, bundled weights; needs no LR", chosen_on=_OLD_TASKS),
    Method(
        name="relative",
        text="`finetune`'s default: linear decay of the relative update, .001 pretrained, .016 else; needs no LR",
        controller="relative",
        config_by_kind={kind: {"rho": RHO_BY_START.get(kind, RHO_BY_START["scratch"])} for kind in RULE},
        arguments={"warmup_steps": RELATIVE_WARMUP},
        chosen_on=(*_OLD_TASKS, "digits", "spam"),
    ),
    *_with_replay(
        name="trust_region",
        text="a trust region of relative updates, begun by what the weights look like; needs no LR",
        controller="trust_region",
        arguments={"warmup_steps": RELATIVE_WARMUP},
        chosen_on=_DEVELOPMENT,
    ),
    Method(
        name="relative_walk",
        text="`relative` with random steps, the placebo of `universal`",
        controller="relative",
        config={"rho": 0.005, "walk": 0.3},
    ),
    Method(name="prodigy", text="Prodigy (Mishchenko & Defazio 2023)", optimizer="prodigy", **_FREE),
    Method(
        name="prodigy_half",
        text="the same, d_coef=0.5",
        optimizer="prodigy",
        optimizer_kwargs={"d_coef": 0.5},
        **_FREE,
    ),
    Method(
        name="prodigy_double",
        text="the same, d_coef=2",
        optimizer="prodigy",
        optimizer_kwargs={"d_coef": 2.0},
        **_FREE,
    ),
    Method(
        name="prodigy_plus",
        text="prodigy-plus-schedule-free 2, without clipping, as it says",
        optimizer="prodigy_plus",
        arguments={"max_grad_norm": 0.0},
        lr=1.0,
        schedule="constant",
    ),
    Method(
        name="schedule_free",
        text='`optim="schedule_free_adamw"` at the default rate of the package, 0.0025, 6 % warm-up',
        arguments={"optim": "schedule_free_adamw"},
        lr=0.0025,
        schedule="constant_with_warmup",
        warmup=WARMUP,
    ),
    Method(
        name="schedule_free_radam",
        text='`optim="schedule_free_radam"` at the default rate of the package, 0.0025',
        arguments={"optim": "schedule_free_radam"},
        lr=0.0025,
        schedule="constant",
    ),
    Method(name="dadapt_adam", text="D-Adapted Adam (Defazio & Mishchenko 2023)", optimizer="dadapt_adam", **_FREE),
    Method(
        name="hyperball",
        text="HyperBallAdamW at its default rate (2606.16899)",
        optimizer="hyperball",
        kinds=("pretrained", "scratch"),  # it keeps norms, and an adapter begins at a norm of 0
        lr=0.0025,
        warmup=WARMUP,
    ),
    Method(name="gen", text="GeN, every fourth update (2407.02772)", steering="gen", schedule="constant"),
    Method(name="greedy", text="transformers' `GreedyLR` as shipped", schedule="greedy", evaluates=True),
    Method(
        name="greedy_repaired",
        text="`GreedyLR` with min_lr=5e-8, eps=1e-12 and patience=2",
        schedule="greedy",
        schedule_kwargs=_REPAIRED,
        evaluates=True,
    ),
    Method(
        name="reduce_on_plateau",
        text="torch's `ReduceLROnPlateau` with patience=2",
        schedule="reduce_lr_on_plateau",
        schedule_kwargs={"patience": 2},
        evaluates=True,
    ),
    Method(
        name="range_test",
        text="`lr_range_test`, 100 updates on training rows; from its `l_max`, half the rate at which the loss turns "
        "up, cosine",
        steering="range_test",
        schedule="cosine",
    ),
    *_bundled("ppo_schedule", "PPO schedule (Xu et al. 2019), bundled weights"),
    *_bundled("mlr_snet", "MLR-SNet (Shu et al. 2020), bundled weights"),
    *_with_replay(name="actor_critic", text="learns inside the run (Xu et al. 2017)", controller="actor_critic"),
    Method(
        name="dsa", text="a factor for every weight, DSA-style after Chen et al. 2022", controller="constant", dsa={}
    ),
    *_with_replay(name="plrs", text="probabilistic LR (Devapriya et al. 2024)", controller="plrs"),
    *_with_replay(name="hypergradient", text="hypergradient descent (Baydin et al. 2018)", controller="hypergradient"),
    *_with_replay(name="plateau", text="our plateau by ranks of training losses", controller="plateau"),
    Method(
        name="random_walk",
        text="random walk from the rule's rate, the placebo",
        controller="random_walk",
        arguments={"controller_decisions": 20},
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ENTRIES}
"""Every method by its name."""
