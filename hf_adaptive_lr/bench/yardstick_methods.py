"""The methods that the benchmark compares, as values: adding a method is one entry of `METHODS`.

A method is a controller of ours, a scheduler that `Trainer` makes by name, or an optimizer that needs no schedule. In
the self-tuning track each has one configuration for all tasks: that of its class, its package or its paper, and the
default learning rate published there (`lr_source`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from .. import auto
from ..auto import PRETRAINED, AutoController
from ..controller import Controller
from ..controllers import CONTROLLERS
from ..observation import OUTCOME_FIELDS
from ..sensors.predictions import LOGIT_FIELDS
from ..sensors.weights import WEIGHT_FIELDS
from .rows import Specified

REPLAY = "replay:"
TRAINER_LR, TORCH_LR = 5e-5, 1e-3

_OF_CLASSES = LOGIT_FIELDS | set(WEIGHT_FIELDS)

Config = Mapping[str, Any]
Trouble = Literal["", "loss_spike", "weight_noise"]


@dataclass(frozen=True, kw_only=True)
class Method(Specified):
    """One way to choose the learning rate; exactly one of `controller`, `scheduler` and `optimizer` is given."""

    name: str  # in keys and tables
    text: str  # for the page
    controller: str = ""  # a name of [`CONTROLLERS`]; with `weights`, whatever [`AutoController`] takes
    config: Config = field(default_factory=dict)  # where it differs from the defaults
    weights: bool = False  # whether the controller is loaded and not made
    trainer: Literal["adaptive", "meta"] = "adaptive"
    arguments: Config = field(default_factory=dict)  # fields of `AdaptiveLRTrainingArguments`
    # `lr_scheduler_type` of `TrainingArguments`; these move at evaluations on the controller's rows.
    scheduler: str = ""
    scheduler_kwargs: Config = field(default_factory=dict)
    optimizer: str = ""  # name of an entry of `OPTIMIZERS`, instead of AdamW or the task's own
    finder: bool = False  # whether an LR range test on training rows chooses the learning rate first
    lr: float = TRAINER_LR  # default learning rate of real tasks
    vector_lr: float = TORCH_LR  # of vectorised tasks, where no `Trainer` has a say
    lr_source: str = "TrainingArguments.learning_rate; vectorised: torch's AdamW and SGD"  # where these are published
    replay_of: str | None = None  # name of the method whose mean schedule is replayed, the run's own seed left out
    on_vector: bool = True  # whether vectorised tasks can run it
    needs_classes: bool = False  # whether it observes predictions
    told: float = 1.0  # share of the run's true length that it is told, for the robustness track
    trouble: Trouble = ""  # what goes wrong half-way, for the same track; vectorised tasks only

    def spec(self) -> dict[str, Any]:
        """All that a run depends on, as JSON values; learned weights by a hash."""
        left_out = ("name", "text", "lr", "vector_lr", "lr_source", "replay_of", "on_vector", "needs_classes")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        return {**values, "weights": _fingerprint(self.make_controller()) if self.weights else ""}

    def fits(self, task: Any) -> bool:
        """Whether a task can run it."""
        vector = task.family != "real"
        return (self.on_vector or not vector) and (task.classification or not self.needs_classes)

    def default_lr(self, task: Any) -> float:
        """Its learning rate in the self-tuning track."""
        return self.lr if task.family == "real" else self.vector_lr

    @property
    def finds_lr(self) -> bool:
        """Whether the base learning rate changes nothing, so that runs from several are one run."""
        made = _loaded(self.controller) if self.weights else CONTROLLERS.get(self.controller)
        return made is not None and made.ignores_base_lr

    def make_controller(self) -> Controller:
        """The controller of a run."""
        return _loaded(self.controller) if self.weights else CONTROLLERS[self.controller](**self.config)


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


# --- optimizers ---------------------------------------------------------------------------------------------------


def _from_package(package: str, name: str, **settings: Any) -> Callable[[list[nn.Parameter], float], Optimizer]:
    def make(weights: list[nn.Parameter], lr: float) -> Optimizer:
        with contextlib.redirect_stdout(io.StringIO()):  # some print their weight decay
            maker = getattr(importlib.import_module(package), name)
            made: Optimizer = maker(weights, lr=lr, weight_decay=0.01, **settings)
        return made

    return make


OPTIMIZERS: Mapping[str, Callable[[list[nn.Parameter], float], Optimizer]] = {
    "schedulefree": _from_package("schedulefree", "AdamWScheduleFree", foreach=False),
    "prodigyopt": _from_package("prodigyopt", "Prodigy"),
    "dadaptation": _from_package("dadaptation", "DAdaptAdam", decouple=True),
}
"""Makers of optimizers (weights, learning rate), by the package that each needs."""


def build_optimizer(method: Method, weights: list[nn.Parameter], lr: float) -> Optimizer:
    """The method's optimizer, or AdamW with a weight decay of 0.01."""
    if method.optimizer:
        return OPTIMIZERS[method.optimizer](weights, lr)
    return torch.optim.AdamW(weights, lr=lr, weight_decay=0.01)


def missing_package(method: Method) -> str | None:
    """Name of the package that a method needs and that is not installed, None if nothing is missing."""
    wanted = method.optimizer
    return wanted if wanted and importlib.util.find_spec(wanted) is None else None


# --- the methods --------------------------------------------------------------------------------------------------


def replay(of: Method) -> Method:
    """The control that shows whether feedback matters: the mean schedule of a method's other seeds, open loop."""
    return dataclasses.replace(
        of,
        name=f"{REPLAY}{of.name}",
        text=f"mean schedule of `{of.name}`, open loop",
        controller="replay",
        config={},
        weights=False,
        trainer="adaptive",
        arguments={},
        replay_of=of.name,
        needs_classes=False,
    )


def third_party(source: str) -> Method:
    """An entry for any controller: a name, a folder or a repository of the Hub, as [`AutoController`] takes it."""
    controller = AutoController.from_pretrained(source)
    on_vector = not controller.needs & OUTCOME_FIELDS.keys()
    if on_vector and auto.is_own(source):
        auto.try_out(controller, (3,))
    return Method(
        name=source.rstrip("/").split("/")[-1] if source.startswith((".", "/")) else source,
        text=f"`{controller.controller_type}` given on the command line",
        controller=source,
        weights=True,
        on_vector=on_vector,
        needs_classes=bool(controller.needs & _OF_CLASSES),
    )


def _and_replay(**fields: Any) -> tuple[Method, Method]:
    method = Method(**fields)
    return method, replay(method)


def _learned(name: str, text: str, **more: Any) -> tuple[Method, ...]:
    """A bundled controller and its replay; nothing where this version does not bundle it."""
    there = (PRETRAINED / name).is_dir()
    return _and_replay(name=f"{name}_bundled", text=text, controller=name, weights=True, **more) if there else ()


def _package(name: str, text: str, optimizer: str, lr: float) -> Method:
    """An optimizer that needs no schedule, at the default of the package's class."""
    source = "default of the package's class"
    return Method(name=name, text=text, optimizer=optimizer, lr=lr, vector_lr=lr, lr_source=source)


# transformers gives GreedyLR a min_lr of 1e-3: from 5e-5 it can only rise. Repaired, it may fall a thousandfold, and
# eps, the smallest change that is made, is no longer of the size of the learning rates.
_REPAIRED = {"min_lr": TRAINER_LR / 1000, "eps": 1e-12}

_ENTRIES: tuple[Method, ...] = (
    Method(name="constant", text="constant", controller="constant"),
    Method(name="linear", text="linear to zero, `Trainer`'s default", controller="linear"),
    Method(name="cosine", text="cosine to zero", controller="cosine"),
    Method(name="wsd", text="warmup, stable, decay", controller="wsd"),
    Method(name="reduce_on_plateau", text="torch's `ReduceLROnPlateau`", scheduler="reduce_lr_on_plateau"),
    Method(name="greedy", text="transformers' `GreedyLR` as shipped", scheduler="greedy"),
    Method(
        name="greedy_repaired",
        text="`GreedyLR` with min_lr=5e-8 and eps=1e-12",
        scheduler="greedy",
        scheduler_kwargs=_REPAIRED,
    ),
    _package("schedule_free", "Schedule-Free AdamW (Defazio et al. 2024)", "schedulefree", 0.0025),
    _package("prodigy", "Prodigy (Mishchenko & Defazio 2023)", "prodigyopt", 1.0),
    _package("dadapt_adam", "D-Adapted Adam (Defazio & Mishchenko 2023)", "dadaptation", 1.0),
    Method(
        name="finder_cosine",
        text="LR range test of 100 updates on training rows, then cosine",
        controller="cosine",
        finder=True,
        on_vector=False,
        lr_source="found by the test, whatever the default",
    ),
    *_and_replay(name="plateau_ranks", text="our plateau by ranks of training losses", controller="plateau"),
    *_and_replay(name="hypergradient", text="hypergradient descent (Baydin et al. 2018)", controller="hypergradient"),
    Method(name="plrs", text="probabilistic LR (Devapriya et al. 2024)", controller="plrs"),
    Method(
        name="dsa",
        text="a factor for every weight, DSA-style after Chen et al. 2022",
        controller="constant",
        arguments={"dsa": True},
        on_vector=False,
    ),
    *_and_replay(
        name="actor_critic", text="learns inside the run (Xu et al. 2017)", controller="actor_critic", on_vector=False
    ),
    *_and_replay(
        name="mlr_snet_online",
        text="MLR-SNet, meta-learned inside the run (Shu et al. 2020)",
        controller="mlr_snet",
        config={"meta_learn": True, "meta_every": 5},
        trainer="meta",
        on_vector=False,
    ),
    *_learned("mlr_snet", "MLR-SNet, bundled weights", needs_classes=True),
    *_learned("ppo_schedule", "PPO schedule (Xu et al. 2019), bundled weights", needs_classes=True),
    *_learned("universal", "this library's own, bundled weights"),
    Method(name="relative", text="linear decay of the relative update; needs no LR", controller="relative"),
    Method(
        name="relative_walk",
        text="`relative` with random steps, the placebo of `universal`",
        controller="relative",
        config={"walk": 0.3},
    ),
    # The placebo of the others: by a tenth each time.
    Method(
        name="random_walk",
        text="random walk, the placebo",
        controller="random_walk",
        arguments={"controller_decisions": 20},
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ENTRIES}
"""Every method by its name."""
