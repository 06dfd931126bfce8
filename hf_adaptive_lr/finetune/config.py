"""Settings of `hf-adaptive-lr finetune`, and the checks that come before anything slow or anything written."""

from __future__ import annotations

import json
import logging
import math
import shlex
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import SETTINGS_NAME
from .data import FinetuneError, check_source, need_package

if TYPE_CHECKING:
    from ..controller import Controller

logger = logging.getLogger(__name__)

# Defaults by task: most of the demo's accuracy within minutes on two CPU cores; the rates are for controllers that use
# one.
_TASKS: dict[str, dict[str, Any]] = {
    "text": {"learning_rate": 1e-4, "max_steps": 150, "batch_size": 16, "output_dir": "runs/text"},
    "image": {"learning_rate": 1e-3, "max_steps": 300, "batch_size": 32, "output_dir": "runs/image"},
}
RHO_BY_START = {"pretrained": 0.001, "scratch": 0.016}
"""`rho` of the default controller, `relative`, by whether the model comes pretrained (its head is always new).

The best means over data sets in `python -m hf_adaptive_lr.bench.relative_sizes`, each as good as the best linear
schedule's there. Adapters (LoRA), which `finetune` does not make, took 0.016 like models from scratch.
"""
_KINDS = {"pretrained": "a pretrained body with a new head", "scratch": "a model from scratch"}
_WARMUP = 0.05  # of the updates, with the default controller
GIVEN = "given"
"""The `choice` of a controller that was named."""
AUTO = "auto"
"""The learning rate is the controller's to find."""
OPTIMIZERS = ("adamw", "sgd", "dsa")
"""Optimizers that `finetune` offers."""


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of one fine-tuning; each field's `help` says what it means, None stands for the task's default.

    Raises:
        FinetuneError: by `check`, for a value out of range; the message names it.

    Example:
        >>> config = FinetuneConfig(task="text").resolved()
        >>> config.controller, config.controller_kwargs, config.warmup_steps, config.learning_rate
        ('relative', '{"rho": 0.001}', 8, 'auto')
    """

    task: str = _option("text", "text | image: what is classified")
    data: str | None = _option(
        None,
        "CSV, JSON, JSONL or Parquet file, folder, or Hub id; for images one folder per class (default: demo data)",
    )
    data_config: str | None = _option(None, "configuration of the Hub data set, where it has several")
    model: str | None = _option(
        None, "local folder or Hub id (default: a small encoder, or a small ResNet from scratch)"
    )
    text_column: str = _option("text", "column with the texts")
    image_column: str = _option("image", "column with the images")
    label_column: str = _option("label", "column with the labels: class labels, strings or whole numbers")
    controller: str | None = _option(
        None,
        "name of a controller (see `hf-adaptive-lr list`), its folder, user/repo on the Hub, or your own class as "
        "FILE.py:CLASS (default: relative, which finds the learning rate, with a relative update rho of "
        f"{RHO_BY_START['pretrained']} for {_KINDS['pretrained']} and {RHO_BY_START['scratch']} for "
        f"{_KINDS['scratch']}; constant for dsa)",
    )
    controller_kwargs: str | None = _option(None, 'config fields of the controller to change, as JSON: {"beta": 0.02}')
    warmup_steps: int | None = _option(
        None,
        "number of updates over which the learning rate rises at first (default: 5 % of all with the default "
        "controller, 0 with one that you name)",
    )
    every: int | None = _option(
        None,
        "updates from one decision to the next (default: 1 for rules, 20 or so a run for learned controllers); "
        "at 1 hypergradient takes about a tenth of a text run's time",
    )
    optimizer: str = _option(
        "adamw", "adamw | sgd | dsa: AdamW with a learning rate for every weight, two forward and backward passes"
    )
    guard: str = _option(
        "on",
        "on | off: skip updates that diverge, go back and cut the learning rate if it persists; in memory and "
        "in checkpoints two copies of weights and optimizer state, up to four in runs of under 160 updates",
    )
    learning_rate: float | str | None = _option(
        None,
        "base learning rate, within [1e-8, 10], or auto with a controller that finds it (relative, universal); "
        "default: auto, or with a controller that you name 1e-4 text, 1e-3 image",
    )
    max_steps: int | None = _option(None, "number of updates (default: 150 text, 300 image)")
    batch_size: int | None = _option(None, "rows per update (default: 16 text, 32 image)")
    train_size: int | None = _option(None, "use at most this many training rows (default: all; demo: 2400 or 4000)")
    eval_size: int = _option(1000, "report on at most this many rows")
    max_length: int = _option(64, "cut texts to this many tokens")
    seed: int = _option(0, "seed of the head, the batches, dropout and the controller, 0 ... 2**32 - 1")
    save_steps: int = _option(50, "updates from one checkpoint to the next")
    output_dir: str | None = _option(None, "folder for all outputs (default: runs/text or runs/image)")
    resume: bool = _option(False, "continue from the last checkpoint in the output folder")
    overwrite: bool = _option(False, "replace the outputs of an earlier run in the output folder")
    choice: str | None = None
    """Why this controller and size, for the results; `resolved` sets it."""

    def resolved(self) -> FinetuneConfig:
        """A copy in which the task's defaults stand where there was None.

        Raises:
            FinetuneError: an unknown task.
        """
        if self.task not in _TASKS:
            raise FinetuneError(f"task '{self.task}' must be one of: {', '.join(_TASKS)}")
        told = self._resumed()
        defaults = {**_TASKS[self.task], "controller": "constant", "choice": GIVEN}
        if told.controller is None and self.optimizer == "dsa":
            # The direction of an update that looks ahead cannot be read, which relative would need.
            defaults["choice"] = "default for dsa, which has a learning rate for every weight"
        elif told.controller is None:
            kind = "scratch" if (self.task, self.model) == ("image", None) else "pretrained"
            steps = self.max_steps or defaults["max_steps"]
            told = replace(told, controller_kwargs=_sized(told.controller_kwargs, RHO_BY_START[kind]))
            defaults |= {"controller": "relative", "learning_rate": AUTO, "warmup_steps": math.ceil(_WARMUP * steps)}
            defaults["choice"] = f"default for {_KINDS[kind]}"
        return replace(told, **{k: v for k, v in defaults.items() if getattr(told, k) is None})

    def _resumed(self) -> FinetuneConfig:
        """With the controller of the run that is resumed, unless one is named: its default may have been another."""
        if not self.resume or self.controller is not None:
            return self
        names = ("controller", "controller_kwargs", "learning_rate", "warmup_steps", "choice")
        saved = {"choice": "of the run that is resumed", **load_config(self.folder)}
        return replace(self, **{name: saved[name] for name in names if name in saved and getattr(self, name) is None})

    @property
    def base_lr(self) -> float:
        """The number that the optimizer is made with; any will do where the controller finds the learning rate."""
        given = self.resolved().learning_rate
        return float(_TASKS[self.task]["learning_rate"] if given in (AUTO, None) else given)

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output_dir or _TASKS[self.task]["output_dir"]).expanduser()

    def command(self) -> str:
        """The command line that runs this config, with every default written out."""
        words = ["hf-adaptive-lr", "finetune"]
        for name, value in asdict(self.resolved()).items():
            if value is not None and not isinstance(value, bool) and name != "choice":
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(words)


def _sized(changes: str | None, rho: float) -> str | None:
    """The controller's changed fields with `rho` among them, unless it is there; what is not JSON stays as it is."""
    try:
        fields_ = json.loads(changes or "{}")
    except (ValueError, RecursionError):
        return changes
    return json.dumps({"rho": rho, **fields_}) if isinstance(fields_, dict) else changes


def load_config(folder: str | Path) -> dict[str, Any]:
    """The settings of the run in an output folder, to resume it; empty when there is none.

    Raises:
        FinetuneError: the folder's config is not readable.
    """
    path = Path(folder).expanduser() / SETTINGS_NAME
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinetuneError(f"{path} cannot be read: {error}") from error
    known = {f.name for f in fields(FinetuneConfig)}
    if not isinstance(saved, dict) or not set(saved) <= known:
        raise FinetuneError(f"{path} was not written by this version; start again with --overwrite")
    return saved


def check(config: FinetuneConfig) -> Controller:
    """Check all of a resolved config that can be checked without data and model; the controller that it names.

    Raises:
        FinetuneError: the first thing that is wrong.
    """
    for name, low in (("max_steps", 1), ("batch_size", 1), ("train_size", 2), ("eval_size", 1), ("max_length", 3),
                      ("every", 1), ("save_steps", 1), ("seed", 0), ("warmup_steps", 0)):  # fmt: skip
        value = getattr(config, name)
        if value is not None and value < low:
            raise FinetuneError(f"{name}={value} must be at least {low}")
    if config.warmup_steps and config.max_steps and config.warmup_steps > config.max_steps:
        raise FinetuneError(f"warmup_steps={config.warmup_steps} must be at most max_steps={config.max_steps}")
    if config.optimizer not in OPTIMIZERS:
        raise FinetuneError(f"optimizer '{config.optimizer}' must be one of: {', '.join(OPTIMIZERS)}")
    if config.guard not in ("on", "off"):
        raise FinetuneError(f"guard '{config.guard}' must be on or off")
    if config.seed >= 2**32:
        raise FinetuneError(f"seed={config.seed} must be below 2**32")
    _check_learning_rate(config.learning_rate)
    if config.data is not None:
        check_source("data", config.data)
    if config.model is not None:
        check_source("model", config.model)
    if config.task == "image":
        need_package("PIL", "task 'image'")
    return _controller(config)


def _check_learning_rate(value: float | str | None) -> None:
    if value == AUTO:
        return
    if isinstance(value, str) or value is None or not math.isfinite(value) or not 1e-8 <= value <= 10:
        raise FinetuneError(f"learning_rate={value} must be within [1e-8, 10], or '{AUTO}'")


def _controller(config: FinetuneConfig) -> Controller:
    from ..auto import AutoController
    from ..hub.config import configure
    from ..scheduler.config import SchedulerConfig
    from ..scheduler.runtime import ControllerRun
    from ..sensors.gradients import DIRECTION_FIELDS

    assert config.controller is not None  # `resolved` set it
    try:
        changes = json.loads(config.controller_kwargs or "{}")
        if not isinstance(changes, dict):
            raise FinetuneError(f"controller_kwargs={config.controller_kwargs!r} is not a JSON object")
        controller = configure(AutoController.from_pretrained(config.controller), changes)
        unseen = sorted(controller.needs & DIRECTION_FIELDS) if config.optimizer == "dsa" else []
        if unseen:
            raise FinetuneError(
                f"controller '{config.controller}' needs {unseen[0]}, which cannot be read with --optimizer dsa; use "
                "another controller (constant, linear, ...) or another optimizer"
            )
        if config.learning_rate == AUTO and not controller.ignores_base_lr:
            raise FinetuneError(
                f"learning_rate=auto: controller '{config.controller}' starts from a learning rate of yours; give a "
                "number, or a controller that finds it (relative, universal)"
            )
        settings = SchedulerConfig(
            total_steps=config.max_steps, every=config.every, warmup_steps=config.warmup_steps or 0
        )
        ControllerRun(controller, [config.base_lr], settings)
    except (json.JSONDecodeError, RecursionError) as error:
        said = str(config.controller_kwargs)[:200]
        raise FinetuneError(f"controller_kwargs={said!r} is not valid JSON: {error}") from error
    except (OSError, TypeError, ValueError) as error:
        raise error if isinstance(error, FinetuneError) else FinetuneError(str(error)) from error
    if str(config.choice).startswith("default") and controller.ignores_base_lr and config.learning_rate != AUTO:
        logger.warning(
            "learning_rate=%s is not used: no controller is named, and the default one, %s, finds it; leave it out or "
            "name a controller that starts from yours (--controller linear)",
            config.learning_rate,
            config.controller,
        )
    return controller
