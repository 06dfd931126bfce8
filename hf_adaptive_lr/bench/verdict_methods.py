"""The methods of the paper study: baselines, the papers' methods, their ablations and controls, as values.

Adding a method is one entry of `METHODS`. Its learning rate is tuned like every other's: on a seed that does not
count, by the loss on the `valid` rows, over the task's learning rates times the method's `alternatives`. Controls take
the learning rate of what they are a control for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..artifacts import WEIGHTS_NAME
from ..auto import PRETRAINED, AutoController
from ..controller import Controller
from ..controllers import CONTROLLERS
from ..hub.config import configure
from ..hub.serialization import read_config
from .rows import digest

TUNED = "tuned"
REPLAY = "replay:"

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to choose the learning rate.

    Example:
        >>> Method(name="gentle", controller="hypergradient", config={"beta": 0.01}).make_controller().beta
        0.01
    """

    name: str
    controller: str
    config: Config = field(default_factory=dict)  # the controller's fields that differ from the defaults
    weights: Literal["none", "bundled"] = "none"  # "none" also where the run learns its own
    trainer: Literal["adaptive", "meta"] = "adaptive"  # `AdaptiveLRTrainer` or `MetaLRTrainer`
    arguments: Config = field(default_factory=dict)  # fields of `AdaptiveLRTrainingArguments`: cadence, bounds, ...
    dsa: Config | None = None  # arguments of `DSA` around the task's optimizer
    groups: Literal["one", "tensor"] = "one"  # parameter groups of the optimizer: one, or one for every tensor
    lr: str = TUNED  # or the name of the method whose learning rate is taken over
    alternatives: tuple[Config, ...] = ()  # changes of `config` that are tuned together with the learning rate
    budget: float = 1.0  # length of the run as a multiple of the task's, for comparisons at equal cost
    replay_of: str | None = None  # the method whose mean schedule is replayed, the run's own seed left out
    extra_passes: str = "none"  # beside the forward and backward pass of the update, in words

    def spec(self) -> dict[str, Any]:
        """All that a run depends on, as JSON values; bundled controllers by a hash of their files."""
        parts = ("controller", "config", "trainer", "arguments", "dsa", "groups", "budget")
        return {**{name: getattr(self, name) for name in parts}, "weights": self._weights_hash()}

    @property
    def digest(self) -> str:
        """[`digest`] of the spec."""
        return digest(self.spec())

    def _weights_hash(self) -> str:
        if self.weights == "none":
            return ""
        folder = PRETRAINED / self.controller
        if not folder.is_dir():
            return "missing"
        config = json.dumps(read_config(folder)[0], sort_keys=True)  # without the version of the library that wrote it
        return hashlib.sha256(config.encode() + (folder / WEIGHTS_NAME).read_bytes()).hexdigest()

    def variants(self) -> list[Method]:
        """The method with each of its alternatives; itself when it has none."""
        return [
            dataclasses.replace(self, config={**self.config, **changes}, alternatives=())
            for changes in self.alternatives or ({},)
        ]

    def make_controller(self) -> Controller:
        """The controller of a run."""
        if self.weights == "bundled":
            return configure(AutoController.from_pretrained(self.controller), self.config)
        if self.controller not in CONTROLLERS:
            raise ValueError(f"this version has no controller '{self.controller}', which method '{self.name}' is of")
        try:
            return CONTROLLERS[self.controller](**self.config)
        except TypeError as error:
            raise ValueError(
                f"the config of method '{self.name}' does not fit '{self.controller}': {error}"
            ) from error


def replay(of: str) -> Method:
    """The control that shows whether feedback matters: the mean schedule of a method's other seeds, open loop."""
    return Method(name=f"{REPLAY}{of}", controller="replay", lr=of, replay_of=of)


def _stairs(share: float, factor: float) -> Config:
    """Config of a replay that multiplies the learning rate by `factor` after every `share` of the run."""
    steps, edge = round(1 / share), 1e-9
    ends = [(k / steps, (k + 1) / steps - edge) for k in range(steps)]
    return {
        "progress": tuple(p for pair in ends for p in pair),
        "factors": tuple(f for k in range(steps) for f in (factor**k, factor**k)),
    }


BASELINES = ("constant", "linear", "cosine")
"""Run on every task, once for all papers."""

_PLRS_MEAN = 0.85  # of PLRS' defaults, the paper's [0.07, 0.1] over its base LR of 0.1
_META = "a forward and backward pass on held-out data at each meta-step, and one look at the training set at first"
_SNET_CONFIG = {"meta_learn": True, "meta_every": 5}
_SNET: dict[str, Any] = {
    "controller": "mlr_snet",
    "trainer": "meta",
    "alternatives": ({"meta_lr": 1e-3}, {"meta_lr": 1e-2}),
    "extra_passes": _META,
}
_ACTOR = "two forward passes at every update: the same batch afterwards, and another batch"
_LOOK = "a second forward and backward pass at every update"

_ENTRIES = (
    Method(name="constant", controller="constant"),
    Method(name="linear", controller="linear"),
    Method(name="cosine", controller="cosine"),
    # Xu et al. 2019: their grid is steps of 10 ... 100 of 1000 updates, factors of 0.88 ... 0.99.
    Method(
        name="step_decay",
        controller="replay",
        alternatives=(_stairs(0.02, 0.9), _stairs(0.05, 0.9), _stairs(0.1, 0.9), _stairs(0.1, 0.99)),
    ),
    Method(
        name="ppo_schedule",
        controller="ppo_schedule",
        weights="bundled",
        extra_passes="forward passes over the controller's held-out rows at each decision",
    ),
    replay("ppo_schedule"),
    # The placebo: as often as the bundled policy decides, and no further than its largest move.
    Method(
        name="random_walk",
        controller="random_walk",
        config={"step": 0.035},
        arguments={"controller_every": 5},
        lr="ppo_schedule",
    ),
    # Shu et al. 2020: one meta-step per 383 updates of 76,600; here one per 5 of 300, at a tuned meta learning rate.
    Method(name="mlr_snet", config=_SNET_CONFIG, **_SNET),
    Method(name="mlr_snet_scalar", config={**_SNET_CONFIG, "network": "scalar"}, **_SNET),
    Method(name="mlr_snet_frozen", controller="mlr_snet", weights="bundled"),
    replay("mlr_snet"),
    # The paper's 1e-3 drives the learning rate to its bound within a short run; the gentler one gets its chance.
    Method(
        name="actor_critic",
        controller="actor_critic",
        alternatives=({"actor_lr": 1e-3}, {"actor_lr": 1e-4}),
        extra_passes=_ACTOR,
    ),
    Method(
        name="actor_critic_same_batch",
        controller="actor_critic",
        config={"same_batch": True},
        alternatives=({"actor_lr": 1e-3}, {"actor_lr": 1e-4}),
        extra_passes="a forward pass at every update",
    ),
    replay("actor_critic"),
    Method(name="hypergradient", controller="hypergradient"),
    replay("hypergradient"),
    Method(name="hypergradient_additive", controller="hypergradient", config={"rule": "additive", "beta": 1e-3}),
    Method(name="hypergradient_per_tensor", controller="hypergradient", config={"per_group": True}, groups="tensor"),
    Method(name="dsa", controller="constant", dsa={}, extra_passes=_LOOK),
    Method(name="dsa_scalar", controller="constant", dsa={"granularity": "scalar"}, extra_passes=_LOOK),
    Method(name="dsa_tensor", controller="constant", dsa={"granularity": "tensor"}, extra_passes=_LOOK),
    Method(name="dsa_rms", controller="constant", dsa={"normalise": "rms"}, extra_passes=_LOOK),
    Method(name="dsa_no_redo", controller="constant", dsa={"redo": False}, extra_passes=_LOOK),
    Method(name="constant_twice_as_long", controller="constant", budget=2.0),
    Method(name="plrs", controller="plrs"),
    Method(name="plrs_wider", controller="plrs", config={"low": 0.4, "high": 1.3}, lr="plrs"),
    Method(name="plrs_widest", controller="plrs", config={"low": 0.1, "high": 1.6}, lr="plrs"),
    Method(name="constant_mean", controller="constant", config={"factor": _PLRS_MEAN}, lr="plrs"),
    replay("plrs"),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ENTRIES}
"""Every method by its name."""
