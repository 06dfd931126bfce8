"""Optimizers and procedures of other packages, as they are published: what the benchmark's methods are made of."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from transformers import BatchEncoding, TrainerCallback

if TYPE_CHECKING:
    from .method import Method


@dataclass(frozen=True)
class Package:
    """An optimizer of a package."""

    module: str
    cls: str
    install: str  # what pip calls it
    settings: Mapping[str, Any] = field(default_factory=dict)  # where it differs from the defaults


OPTIMIZERS: Mapping[str, Package] = {
    "prodigy": Package("prodigyopt", "Prodigy", "prodigyopt"),
    # The package prints a notice about what its options do.
    "prodigy_plus": Package("prodigyplus", "ProdigyPlusScheduleFree", "prodigy-plus-schedule-free"),
    "dadapt_adam": Package("dadaptation", "DAdaptAdam", "dadaptation", {"decouple": True}),
    "hyperball": Package("heavyball", "HyperBallAdamW", "heavyball", {"compile_step": False}),
}
"""The optimizers that need no learning rate of their user, or say so."""

VERSIONS: Mapping[str, str] = {
    "prodigyopt": "1.1.2",
    "prodigy-plus-schedule-free": "2.0.1",
    "dadaptation": "3.2",
    "heavyball": "3.2.1",
    "schedulefree": "1.4.1",
    "gen-optim": "0.1.1",
}
"""The versions that are compared, by what pip calls the package; in the digests of the methods that need them."""

GEN_EVERY = 4
"""Updates between two looks of GeN; its authors advise to look rarely, as each costs three forward passes."""


def package_of(method: Method) -> str:
    """What pip calls the package that a method needs; empty if it needs none."""
    if method.steering == "gen":
        return "gen-optim"
    if str(method.arguments.get("optim", "")).startswith("schedule_free"):
        return "schedulefree"
    return OPTIMIZERS[method.optimizer].install if method.optimizer in OPTIMIZERS else ""


def missing_package(method: Method) -> str | None:
    """What pip calls the package that a method needs and that is not installed; None if nothing is missing."""
    package = package_of(method)
    return package if package and _installed(package) is None else None


def check_package(method: Method) -> None:
    """ValueError where another version of a method's package is installed than the one that is compared."""
    package = package_of(method)
    if package not in VERSIONS:
        return
    found, pinned = _installed(package), VERSIONS[package]
    if found not in (None, pinned):
        raise ValueError(
            f"method '{method.name}' is compared with {package} {pinned}, but {found} is installed; "
            f"pip install {package}=={pinned}"
        )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def build_rival(method: Method, weights: list[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    """The optimizer of a package."""
    package = OPTIMIZERS[method.optimizer]
    if package.module == "heavyball":
        # Compiling its small functions takes longer than many a run.
        importlib.import_module("heavyball.utils").compile_mode = None  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(io.StringIO()):  # some print their weight decay
        maker = getattr(importlib.import_module(package.module), package.cls)
        settings = {**package.settings, **method.optimizer_kwargs}
        made: Optimizer = maker(weights, lr=lr, weight_decay=weight_decay, **settings)
    return made


class GeN(TrainerCallback):
    """Sets the learning rate to where a parabola through three losses has its minimum, before every fourth update.

    The package's own code (Bu & Xu 2024, arXiv 2407.02772), on the batch of the update and with the decay to zero that
    its authors offer; it makes one more update of the optimizer's state at each look.
    """

    def __init__(self) -> None:
        self.batch: dict[str, Any] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before an update, with its gradients there."""
        del args, control
        if state.global_step % GEN_EVERY:
            return
        from GeN import lr_parabola

        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        before = optimizer.param_groups[0]["lr"]
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of scipy, where the three losses lie on no parabola
            lr_parabola(
                kwargs["model"],
                optimizer,
                tr_iter=self._batches(),
                device="cpu",
                task="NLU",
                scale=1 - state.global_step / state.max_steps,
                lr_factor=[-1, 0, 1],
            )
        # A constant schedule writes its base rates after every update: what was found is to last.
        ratio, scheduler = optimizer.param_groups[0]["lr"] / before, kwargs["lr_scheduler"]
        scheduler.base_lrs = [lr * ratio for lr in scheduler.base_lrs]

    def _batches(self) -> Iterator[BatchEncoding]:
        yield BatchEncoding(self.batch)
