"""One method per file. `CONTROLLERS` maps the names used in config.json and on the command line to the classes."""

from __future__ import annotations

from ..controller import Controller
from .constant import Constant
from .cosine import Cosine
from .hypergradient import Hypergradient
from .linear import Linear
from .plateau import Plateau
from .replay import Replay
from .universal import Universal
from .wsd import WarmupStableDecay

CONTROLLERS: dict[str, type[Controller]] = {
    cls.controller_type: cls
    for cls in (Constant, Linear, Cosine, WarmupStableDecay, Plateau, Hypergradient, Replay, Universal)
}
"""Every controller class by its `controller_type`."""

__all__ = [
    "CONTROLLERS",
    "Constant",
    "Cosine",
    "Hypergradient",
    "Linear",
    "Plateau",
    "Replay",
    "Universal",
    "WarmupStableDecay",
]
