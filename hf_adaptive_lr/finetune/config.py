"""Settings of `hf-adaptive-lr finetune`, and the checks that come before anything slow or anything written."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import shutil
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import CURVES_NAME, MODEL_NAME, RESULTS_NAME, SETTINGS_NAME, STATE_NAME, replace_file
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
_NOT_COMPARED = ("output_dir", "resume", "overwrite")  # of a resumed run with its first part


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
    except ValueError:
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


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None; a run may have been killed while writing one."""
    for _, path in _checkpoints(folder):
        try:
            json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def can_resume(config: FinetuneConfig) -> bool:
    """Whether this run, having been interrupted, can continue from a checkpoint of its own."""
    try:
        _check_folder(replace(config.resolved(), resume=True, overwrite=False))
    except FinetuneError:
        return False
    return True


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
    _check_folder(config)
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
    except json.JSONDecodeError as error:
        raise FinetuneError(f"controller_kwargs={config.controller_kwargs!r} is not valid JSON: {error}") from error
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


def _check_folder(config: FinetuneConfig) -> None:
    folder = config.folder
    if config.resume and config.overwrite:
        raise FinetuneError("--resume and --overwrite exclude each other")
    if folder.exists() and not folder.is_dir():
        raise FinetuneError(f"output_dir '{folder}' is a file; name a folder")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise FinetuneError(f"output_dir '{folder}' cannot be written: no permission in '{parent}'")
    if config.resume:
        saved = load_config(folder)
        if last_checkpoint(folder) is None or not saved:
            raise FinetuneError(f"'{folder}' has no whole checkpoint to resume from; start again without --resume")
        for name, value in asdict(config).items():
            if name not in (*_NOT_COMPARED, "choice") and name in saved and saved[name] != value:
                if name == "max_steps" and value > saved[name]:
                    continue  # a run may grow
                same = "as many or more" if name == "max_steps" else "the same"
                raise FinetuneError(
                    f"the run in '{folder}' has {name}={saved[name]}, not {value}; resume it with {same}"
                )
    elif not config.overwrite:
        kept = [path for path in (*_outputs(folder)[:1], last_checkpoint(folder)) if path is not None]
        if kept:
            hint = "pass --resume, --overwrite or another --output-dir"
            raise FinetuneError(f"'{folder}' holds {kept[0].name} of an earlier run; {hint}")


def _outputs(folder: Path) -> list[Path]:
    """Files and folders of an earlier run that a new one would replace."""
    named = [folder / name for name in (RESULTS_NAME, MODEL_NAME, CURVES_NAME)]
    return [path for path in named if path.exists()] + [path for _, path in _checkpoints(folder)]


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """All checkpoint folders, newest first, whole or not."""
    numbered = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted(((int(match[1]), path) for match, path in numbered if match and path.is_dir()), reverse=True)


def prepare_folder(config: FinetuneConfig) -> None:
    """Make room for a new run that `check` has passed and write down its settings: the folder changes from here on."""
    grown = config.resume and load_config(config.folder).get("max_steps") != config.max_steps
    if not config.resume:
        for path in _outputs(config.folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif grown:  # the results are those of the shorter run
        (config.folder / RESULTS_NAME).unlink(missing_ok=True)
    settings = {name: value for name, value in asdict(config).items() if name not in _NOT_COMPARED}
    replace_file(config.folder / SETTINGS_NAME, json.dumps(settings, indent=2) + "\n")
