"""One method per file. `CONTROLLERS` maps the names used in config.json and on the command line to the classes."""

from __future__ import annotations

from ..controller import Controller
from .actor_critic import ActorCritic
from .constant import Constant
from .cosine import Cosine
from .hypergradient import Hypergradient
from .linear import Linear
from .mlr_snet import MLRSNet
from .plateau import Plateau
from .plrs import PLRS
from .ppo_schedule import PPOSchedule
from .random_walk import RandomWalk
from .replay import Replay
from .universal import Universal
from .wsd import WarmupStableDecay

_CLASSES: tuple[type[Controller], ...] = (
    Constant,
    Linear,
    Cosine,
    WarmupStableDecay,
    Plateau,
    Hypergradient,
    PLRS,
    MLRSNet,
    ActorCritic,
    PPOSchedule,
    Universal,
    Replay,
    RandomWalk,
)

CONTROLLERS: dict[str, type[Controller]] = {cls.controller_type: cls for cls in _CLASSES}
"""Every controller class by its `controller_type`."""

__all__ = [
    "CONTROLLERS",
    "ActorCritic",
    "Constant",
    "Cosine",
    "Hypergradient",
    "Linear",
    "MLRSNet",
    "PLRS",
    "PPOSchedule",
    "Plateau",
    "RandomWalk",
    "Replay",
    "Universal",
    "WarmupStableDecay",
]
