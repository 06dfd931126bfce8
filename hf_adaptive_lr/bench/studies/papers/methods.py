"""The paper study's methods: baselines, the papers' methods, their ablations and controls.

A method's learning rate is tuned together with its `alternatives`, but that of a control, which is the one of what it
is a control for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ... import methods
from ...method import Config, Method

BASELINES = ("constant", "linear", "cosine")
"""Run on every task, once for all papers."""
TUNED_FOR = "tuned:"


def _method(name: str, controller: str = "", *, like: str = "", **more: Any) -> Method:
    """A method of the controller of its name, tuned by itself or `like` another."""
    lr = f"{TUNED_FOR}{like}" if like else "tuned"
    return Method(name=name, controller=controller or name, lr=lr, **more)


def _replay(of: str) -> Method:
    return dataclasses.replace(methods.replay(_method(of)), lr=f"{TUNED_FOR}{of}")


def _stairs(share: float, factor: float) -> Config:
    """Config of a replay that multiplies the learning rate by `factor` after every `share` of the run."""
    steps, edge = round(1 / share), 1e-9
    ends = [(k / steps, (k + 1) / steps - edge) for k in range(steps)]
    return {
        "progress": tuple(p for pair in ends for p in pair),
        "factors": tuple(f for k in range(steps) for f in (factor**k, factor**k)),
    }


_PLRS_MEAN = 0.85  # of PLRS' defaults, the paper's [0.07, 0.1] over its base LR of 0.1
_SNET_CONFIG = {"meta_learn": True, "meta_every": 5}
_SNET: dict[str, Any] = {
    "trainer": "meta",
    "alternatives": ({"meta_lr": 1e-3}, {"meta_lr": 1e-2}),
    "extra_passes": "a forward and backward pass on held-out data at each meta-step, and one look at the training set "
    "at first",
}
# The paper's 1e-3 drives the learning rate to its bound within a short run; the gentler one gets its chance.
_ACTOR: tuple[Config, ...] = ({"actor_lr": 1e-3}, {"actor_lr": 1e-4})
_LOOK = "a second forward and backward pass at every update"

_ENTRIES = (
    *(_method(name) for name in BASELINES),
    # Xu et al. 2019: their grid is steps of 10 ... 100 of 1000 updates, factors of 0.88 ... 0.99.
    _method(
        "step_decay",
        "replay",
        alternatives=(_stairs(0.02, 0.9), _stairs(0.05, 0.9), _stairs(0.1, 0.9), _stairs(0.1, 0.99)),
    ),
    _method(
        "ppo_schedule",
        weights=True,
        extra_passes="forward passes over the controller's held-out rows at each decision",
    ),
    _replay("ppo_schedule"),
    # The placebo: as often as the bundled policy decides, and no further than its largest move.
    _method("random_walk", config={"step": 0.035}, arguments={"controller_every": 5}, like="ppo_schedule"),
    # Shu et al. 2020: one meta-step per 383 updates of 76,600; here one per 5 of 300, at a tuned meta learning rate.
    _method("mlr_snet", config=_SNET_CONFIG, **_SNET),
    _method("mlr_snet_scalar", "mlr_snet", config={**_SNET_CONFIG, "network": "scalar"}, **_SNET),
    _method("mlr_snet_frozen", "mlr_snet", weights=True),
    _replay("mlr_snet"),
    _method(
        "actor_critic",
        alternatives=_ACTOR,
        extra_passes="two forward passes at every update: the same batch afterwards, and another batch",
    ),
    _method(
        "actor_critic_same_batch",
        "actor_critic",
        config={"same_batch": True},
        alternatives=_ACTOR,
        extra_passes="a forward pass at every update",
    ),
    _replay("actor_critic"),
    _method("hypergradient"),
    _replay("hypergradient"),
    _method("hypergradient_additive", "hypergradient", config={"rule": "additive", "beta": 1e-3}),
    _method("hypergradient_per_tensor", "hypergradient", config={"per_group": True}, groups="tensor"),
    _method("dsa", "constant", dsa={}, extra_passes=_LOOK),
    _method("dsa_scalar", "constant", dsa={"granularity": "scalar"}, extra_passes=_LOOK),
    _method("dsa_tensor", "constant", dsa={"granularity": "tensor"}, extra_passes=_LOOK),
    _method("dsa_rms", "constant", dsa={"normalise": "rms"}, extra_passes=_LOOK),
    _method("dsa_no_redo", "constant", dsa={"redo": False}, extra_passes=_LOOK),
    _method("constant_twice_as_long", "constant", budget=2.0),
    _method("plrs"),
    _method("plrs_wider", "plrs", config={"low": 0.4, "high": 1.3}, like="plrs"),
    _method("plrs_widest", "plrs", config={"low": 0.1, "high": 1.6}, like="plrs"),
    _method("constant_mean", "constant", config={"factor": _PLRS_MEAN}, like="plrs"),
    _replay("plrs"),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ENTRIES}
"""Every method by its name."""
