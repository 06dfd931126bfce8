"""What it means for a trainer to work with this library: the facts that rows of the compatibility table check."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from hf_adaptive_lr.auto import AutoController
from hf_adaptive_lr.controllers.constant import Constant
from hf_adaptive_lr.controllers.linear import Linear
from hf_adaptive_lr.trainer.callback import AdaptiveLRCallback
from hf_adaptive_lr.trainer.mixin import AdaptiveLRMixin
from tests.compatibility.models import flat
from tests.controllers_for_tests import Watcher

STEPS, LR, CLIP = 6, 1e-2, 0.1


class CheckFailed(AssertionError):
    """A fact does not hold; the message says which."""


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Args:
        name: what is used, as its users call it.
        packages: distributions whose versions belong into the row.
        facts: makes the runs in a folder; returns what held, raises [`CheckFailed`] or whatever went wrong.
    """

    name: str
    packages: tuple[str, ...]
    facts: Callable[[Path], list[str]]

    def versions(self) -> dict[str, str]:
        """Installed versions of its packages.

        Raises:
            PackageNotFoundError: one is not installed.
        """
        return {package: version(package) for package in self.packages}

    def run(self) -> list[str]:
        """What held, without the trainers' prints and warnings, and without a trace on the disk."""
        quiet = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            warnings.simplefilter("ignore")  # other people's; the library's own are tested elsewhere
            return self.facts(Path(folder))


@dataclass(frozen=True)
class Kit:
    """How to build one trainer, over and over.

    Args:
        trainer: its class.
        arguments: class of its training arguments.
        parts: makes model, data and whatever else the trainer is given, anew for each run.
        settings: training arguments beyond the usual ones.
        callback_sees_loss: whether the model returns the loss, so that a callback can see it.
        exact: whether a learned controller gets the same bits to see as callback and as subclass.
    """

    trainer: type[Trainer]
    arguments: Callable[..., Any]
    parts: Callable[[], dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    callback_sees_loss: bool = True
    exact: bool = True

    def build(self, folder: Path, controller: Any = None, *, callback: Any = None, **changes: Any) -> Any:
        """A trainer: with `controller` its subclass, with `callback` itself and the callback, with neither itself."""
        usual: dict[str, Any] = {
            "output_dir": str(folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": 8,
            "learning_rate": LR,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
        }
        args = self.arguments(**(usual | dict(self.settings) | changes))
        parts = self.parts()
        if callback is not None:
            parts["callbacks"] = [*parts.get("callbacks", []), callback]
        if controller is None:
            return self.trainer(args=args, **parts)
        mixed: Any = type(f"Adaptive{self.trainer.__name__}", (AdaptiveLRMixin, self.trainer), {})
        return mixed(args=args, controller=controller, **parts)


def require(fact: bool, text: str) -> None:
    """Raise [`CheckFailed`] unless it is one."""
    if not fact:
        raise CheckFailed(f"not true: {text}")


def trained(trainer: Any, **options: Any) -> torch.Tensor:
    """Weights after training."""
    trainer.train(**options)
    return flat(trainer.model)


def check_schedule(kit: Kit, folder: Path) -> str:
    """Our `linear`, as subclass and as callback, gives the weights of Trainer's own linear schedule, bit for bit."""
    native = trained(kit.build(folder / "native", lr_scheduler_type="linear"))
    mixed = trained(kit.build(folder / "mixed", Linear()))
    require(torch.equal(native, mixed), "`linear` through the subclass equals lr_scheduler_type='linear'")
    called = trained(kit.build(folder / "called", callback=AdaptiveLRCallback(Linear())))
    require(torch.equal(native, called), "`linear` through the callback equals lr_scheduler_type='linear'")
    return "`linear` as subclass and callback equals the trainer's own, to the bit"


def check_universal(kit: Kit, folder: Path) -> str:
    """`universal` steers, and the callback does as the subclass, whether or not it can see the loss."""
    trainer = kit.build(folder / "universal", AutoController.from_pretrained("universal"), max_grad_norm=CLIP)
    expected = trained(trainer)
    rates = trainer.lr_scheduler.lr_history()
    require(len(rates) == STEPS and len(set(rates)) > 1, f"{STEPS} updates at different rates, got {rates}")
    require(all(math.isfinite(rate) for rate in rates), f"finite learning rates, got {rates}")
    require(bool(torch.isfinite(expected).all()), "finite weights")
    got = trained(kit.build(folder / "callback", callback=AdaptiveLRCallback("universal"), max_grad_norm=CLIP))
    same = torch.equal(expected, got) if kit.exact else torch.allclose(expected, got, rtol=1e-2, atol=1e-4)
    require(same, f"`universal` as callback equals the subclass under clipping at {CLIP}")
    return f"`universal` as callback, under clipping, equals the subclass, {'to the bit' if kit.exact else 'to 1 %'}"


def check_hearing(kit: Kit, folder: Path) -> str:
    """A controller that needs the loss hears the one that the trainer logs; so does the callback, or it says no."""
    fields = ("loss", "gain_ratio")
    trainer = kit.build(folder / "heard", Watcher(fields=fields), max_grad_norm=CLIP)
    expected = trained(trainer)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    asked = [decision for decision in trainer.lr_scheduler.trace if decision.observation]
    require(len(asked) > 2, f"several decisions, got {len(asked)}")
    for decision in asked:
        heard, said = decision.observation["loss"], logged[decision.step]
        same = math.isclose(heard, said, rel_tol=1e-2, abs_tol=1e-3)  # the log is rounded
        require(same, f"hears the loss that is logged, {said}, heard {heard}")
    if not kit.callback_sees_loss:
        return "a controller hears the trainer's own loss"
    callback = AdaptiveLRCallback(Watcher(fields=fields))
    got = trained(kit.build(folder / "called", callback=callback, max_grad_norm=CLIP))
    same = torch.equal(expected, got) if kit.exact else torch.allclose(expected, got, rtol=1e-2, atol=1e-4)
    require(same, f"what hears the loss as callback equals the subclass under clipping at {CLIP}")
    return "a controller hears the trainer's own loss, as subclass and as callback"


def check_resume(kit: Kit, folder: Path) -> str:
    """A run that is stopped half-way and resumed equals one that was not."""
    saving = {"save_strategy": "steps", "save_steps": STEPS // 2}
    whole = kit.build(folder / "whole", AutoController.from_pretrained("universal"), **saving)
    expected = trained(whole)
    again = kit.build(folder / "again", AutoController.from_pretrained("universal"), **saving)
    got = trained(again, resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{STEPS // 2}"))
    rates = whole.lr_scheduler.lr_history()[STEPS // 2 :]
    require(again.lr_scheduler.lr_history() == rates, "resumed learning rates are the same")
    require(torch.equal(expected, got), "resumed weights are the same")
    return "resumes to the bit"


def logged(trainer: Any) -> list[dict[str, Any]]:
    """What a training logged, but for times and what this library adds."""
    own = ("adaptive_lr/", "train_", "eval_runtime", "eval_samples", "eval_steps", "step_time")
    history: list[dict[str, Any]] = trainer.state.log_history
    return [{name: value for name, value in entry.items() if not name.startswith(own)} for entry in history]


def check_log(kit: Kit, folder: Path) -> str:
    """A second look at each batch is not in the log."""
    quiet = kit.build(folder / "once", Constant())
    expected = trained(quiet)
    looking = kit.build(
        folder / "twice", Watcher(fields=("gain_ratio",))
    )  # only now: it draws from where Trainer seeds
    require(torch.equal(expected, trained(looking)), "weights are the same with a second look at each batch")
    for entry, other in zip(logged(quiet), logged(looking), strict=True):
        differ = {name: (entry.get(name), other.get(name)) for name in entry if entry.get(name) != other.get(name)}
        require(not differ, f"the log is the same with a second look at each batch, but for {differ}")
    return "the log is the same where a batch is computed twice"


def check_callback_refuses(kit: Kit, folder: Path) -> str:
    """Where the callback cannot see the loss it says so before the first update."""
    trainer = kit.build(folder / "refused", callback=AdaptiveLRCallback(Watcher(fields=("loss",))))
    before = flat(trainer.model)
    try:
        trainer.train()
    except (ValueError, RuntimeError) as error:
        require("loss" in str(error), f"the refusal names the loss, got: {error}")
        require(torch.equal(before, flat(trainer.model)), "nothing was trained before the refusal")
        return "as callback a controller that needs the loss is refused before the first update"
    raise CheckFailed("not true: the callback refuses what it cannot see")


def check_kit(kit: Kit, folder: Path) -> list[str]:
    """All of the above."""
    held = [check_schedule(kit, folder), check_universal(kit, folder), check_hearing(kit, folder)]
    if not kit.callback_sees_loss:
        held.append(check_callback_refuses(kit, folder))
    return [*held, check_resume(kit, folder)]
