"""One method per file. `CONTROLLERS` maps the names used in config.json and on the command line to the classes."""

from __future__ import annotations

from ..controller import Controller
from .actor_critic import ActorCritic as ActorCritic
from .constant import Constant as Constant
from .cosine import Cosine as Cosine
from .gru import GRUController as GRUController
from .hypergradient import Hypergradient as Hypergradient
from .kl_target import KLTarget as KLTarget
from .linear import Linear as Linear
from .mlr_snet import MLRSNet as MLRSNet
from .plateau import Plateau as Plateau
from .plrs import PLRS as PLRS
from .ppo_schedule import PPOSchedule as PPOSchedule
from .random_walk import RandomWalk as RandomWalk
from .relative import Relative as Relative
from .replay import Replay as Replay
from .universal import Universal as Universal
from .update_size import UpdateSize as UpdateSize
from .wsd import WarmupStableDecay as WarmupStableDecay

_CLASSES: tuple[type[Controller], ...] = (
    Constant,
    Linear,
    Cosine,
    WarmupStableDecay,
    Plateau,
    Hypergradient,
    KLTarget,
    PLRS,
    MLRSNet,
    ActorCritic,
    PPOSchedule,
    GRUController,
    Relative,
    UpdateSize,
    Universal,
    Replay,
    RandomWalk,
)

CONTROLLERS: dict[str, type[Controller]] = {cls.controller_type: cls for cls in _CLASSES}
"""Every controller class by its `controller_type`."""
