"""Adaptive and learned learning rates for transformers and Accelerate.

The names below load on first use, so `import hf_adaptive_lr` pulls in neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "AutoController": "auto",
    "ControlledLR": "scheduler",
    "Controller": "controller",
    "Observation": "observation",
    "Outcome": "observation",
    "AdaptiveLRCallback": "callback",
    "AdaptiveLRMixin": "trainer",
    "AdaptiveLRSeq2SeqTrainer": "trainer",
    "AdaptiveLRTrainer": "trainer",
    "AdaptiveLRTrainingArguments": "arguments",
    "MetaLRTrainer": "meta_trainer",
    "DSA": "optimizers",
    "DivergenceError": "guard",
    "DivergenceGuard": "guard",
    "Envelope": "envelope",
    "GuardCallback": "guard_callback",
    "HubError": "hub",
    "lr_range_test": "range_test",
    "split_groups": "layer_groups",
    "ActorCritic": "controllers",
    "MLRSNet": "controllers",
    "PLRS": "controllers",
    "PPOSchedule": "controllers",
    "RandomWalk": "controllers",
    "Constant": "controllers",
    "Cosine": "controllers",
    "GRUController": "controllers",
    "Hypergradient": "controllers",
    "Linear": "controllers",
    "Plateau": "controllers",
    "Relative": "controllers",
    "Replay": "controllers",
    "Universal": "controllers",
    "WarmupStableDecay": "controllers",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from .arguments import AdaptiveLRTrainingArguments as AdaptiveLRTrainingArguments
    from .auto import AutoController as AutoController
    from .callback import AdaptiveLRCallback as AdaptiveLRCallback
    from .controller import Controller as Controller
    from .controllers import PLRS as PLRS
    from .controllers import ActorCritic as ActorCritic
    from .controllers import Constant as Constant
    from .controllers import Cosine as Cosine
    from .controllers import GRUController as GRUController
    from .controllers import Hypergradient as Hypergradient
    from .controllers import Linear as Linear
    from .controllers import MLRSNet as MLRSNet
    from .controllers import Plateau as Plateau
    from .controllers import PPOSchedule as PPOSchedule
    from .controllers import RandomWalk as RandomWalk
    from .controllers import Relative as Relative
    from .controllers import Replay as Replay
    from .controllers import Universal as Universal
    from .controllers import WarmupStableDecay as WarmupStableDecay
    from .envelope import Envelope as Envelope
    from .guard import DivergenceError as DivergenceError
    from .guard import DivergenceGuard as DivergenceGuard
    from .guard_callback import GuardCallback as GuardCallback
    from .hub import HubError as HubError
    from .layer_groups import split_groups as split_groups
    from .meta_trainer import MetaLRTrainer as MetaLRTrainer
    from .observation import Observation as Observation
    from .observation import Outcome as Outcome
    from .optimizers import DSA as DSA
    from .range_test import lr_range_test as lr_range_test
    from .scheduler import ControlledLR as ControlledLR
    from .trainer import AdaptiveLRMixin as AdaptiveLRMixin
    from .trainer import AdaptiveLRSeq2SeqTrainer as AdaptiveLRSeq2SeqTrainer
    from .trainer import AdaptiveLRTrainer as AdaptiveLRTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_adaptive_lr' has no attribute '{name}'; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
