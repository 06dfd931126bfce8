"""The checks of `hf-adaptive-lr finetune` that come before anything slow or anything written, and its folder."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import CURVES_NAME, MODEL_NAME, RESULTS_NAME, SETTINGS_NAME, STATE_NAME, replace_file
from .errors import FinetuneError, need_package
from .labels import PROBLEM_TYPES
from .options import AUTO as AUTO
from .options import NOT_COMPARED, OPTIMIZERS
from .options import FinetuneConfig as FinetuneConfig
from .options import load_config as load_config
from .read import check_model

if TYPE_CHECKING:
    from ..controller import Controller

logger = logging.getLogger(__name__)


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
    _check_data(config)
    if config.model is not None:
        check_model(config.model)
    if config.task == "image":
        need_package("PIL", "task 'image'")
    _check_folder(config)
    return _controller(config)


def _check_data(config: FinetuneConfig) -> None:
    if config.problem_type not in (None, *PROBLEM_TYPES):
        raise FinetuneError(f"problem_type '{config.problem_type}' must be one of: {', '.join(PROBLEM_TYPES)}")
    if config.label_delimiter == "":
        raise FinetuneError("label_delimiter='' must be the text between two labels, such as ';'")
    only = {"text_pair_column": "text", "skip_unreadable": "image"}
    for name, task in only.items():
        if getattr(config, name) and config.task != task:
            raise FinetuneError(f"{name} is for --task {task}")
    if config.source is not None:
        config.source.check()
    elif config.delimiter or config.encoding:
        raise FinetuneError("delimiter and encoding are for --data FILE; the demo's data have their own")


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
            if name not in (*NOT_COMPARED, "choice") and name in saved and saved[name] != value:
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
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_COMPARED}
    replace_file(config.folder / SETTINGS_NAME, json.dumps(settings, indent=2) + "\n")
