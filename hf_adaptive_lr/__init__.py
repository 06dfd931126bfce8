"""Adaptive and learned learning rates for transformers and Accelerate.

The names below load on first use, so `import hf_adaptive_lr` pulls in neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "AutoController": "auto",
    "ControlledLR": "scheduler.controlled_lr",
    "Controller": "controller",
    "Observation": "observation",
    "Outcome": "observation",
    "AdaptiveLRCallback": "trainer.callback",
    "AdaptiveLRMixin": "trainer.mixin",
    "AdaptiveLRSeq2SeqTrainer": "trainer.mixin",
    "AdaptiveLRTrainer": "trainer.mixin",
    "AdaptiveLRTrainingArguments": "trainer.arguments",
    "MetaLRTrainer": "trainer.meta_trainer",
    "DSA": "optimizers",
    "DivergenceError": "guard.guard",
    "DivergenceGuard": "guard.guard",
    "Envelope": "scheduler.envelope",
    "GuardCallback": "trainer.guard_callback",
    "HubError": "hub.errors",
    "lr_range_test": "tuning.range_test",
    "show_report": "report.notebook",
    "split_groups": "optimizers.layers",
    "ActorCritic": "controllers",
    "MLRSNet": "controllers",
    "PLRS": "controllers",
    "PPOSchedule": "controllers",
    "RandomWalk": "controllers",
    "Constant": "controllers",
    "Cosine": "controllers",
    "GRUController": "controllers",
    "Hypergradient": "controllers",
    "KLTarget": "controllers",
    "Linear": "controllers",
    "Plateau": "controllers",
    "Relative": "controllers",
    "Replay": "controllers",
    "UpdateSize": "controllers",
    "Universal": "controllers",
    "WarmupStableDecay": "controllers",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from .auto import AutoController as AutoController
    from .controller import Controller as Controller
    from .controllers import PLRS as PLRS
    from .controllers import ActorCritic as ActorCritic
    from .controllers import Constant as Constant
    from .controllers import Cosine as Cosine
    from .controllers import GRUController as GRUController
    from .controllers import Hypergradient as Hypergradient
    from .controllers import KLTarget as KLTarget
    from .controllers import Linear as Linear
    from .controllers import MLRSNet as MLRSNet
    from .controllers import Plateau as Plateau
    from .controllers import PPOSchedule as PPOSchedule
    from .controllers import RandomWalk as RandomWalk
    from .controllers import Relative as Relative
    from .controllers import Replay as Replay
    from .controllers import Universal as Universal
    from .controllers import UpdateSize as UpdateSize
    from .controllers import WarmupStableDecay as WarmupStableDecay
    from .guard.guard import DivergenceError as DivergenceError
    from .guard.guard import DivergenceGuard as DivergenceGuard
    from .hub.errors import HubError as HubError
    from .observation import Observation as Observation
    from .observation import Outcome as Outcome
    from .optimizers import DSA as DSA
    from .optimizers.layers import split_groups as split_groups
    from .report.notebook import show_report as show_report
    from .scheduler.controlled_lr import ControlledLR as ControlledLR
    from .scheduler.envelope import Envelope as Envelope
    from .trainer.arguments import AdaptiveLRTrainingArguments as AdaptiveLRTrainingArguments
    from .trainer.callback import AdaptiveLRCallback as AdaptiveLRCallback
    from .trainer.guard_callback import GuardCallback as GuardCallback
    from .trainer.meta_trainer import MetaLRTrainer as MetaLRTrainer
    from .trainer.mixin import AdaptiveLRMixin as AdaptiveLRMixin
    from .trainer.mixin import AdaptiveLRSeq2SeqTrainer as AdaptiveLRSeq2SeqTrainer
    from .trainer.mixin import AdaptiveLRTrainer as AdaptiveLRTrainer
    from .tuning.range_test import lr_range_test as lr_range_test


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .artifacts import library_version

        return library_version()
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_adaptive_lr' has no attribute '{name}'; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", *(name for name in globals() if name.startswith("__"))]
