"""One method per file. `CONTROLLERS` maps the names used in config.json and on the command line to the classes."""

from __future__ import annotations

from ..controller import Controller
from .actor_critic import ActorCritic
from .constant import Constant
from .cosine import Cosine
from .gru import GRUController
from .hypergradient import Hypergradient
from .linear import Linear
from .mlr_snet import MLRSNet
from .plateau import Plateau
from .plrs import PLRS
from .ppo_schedule import PPOSchedule
from .random_walk import RandomWalk
from .relative import Relative
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
    GRUController,
    Relative,
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
    "GRUController",
    "Hypergradient",
    "Linear",
    "MLRSNet",
    "PLRS",
    "PPOSchedule",
    "Plateau",
    "RandomWalk",
    "Relative",
    "Replay",
    "Universal",
    "WarmupStableDecay",
]
