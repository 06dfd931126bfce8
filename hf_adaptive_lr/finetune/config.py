"""The checks of `hf-adaptive-lr finetune` that come before anything slow or anything written."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING

from .errors import FinetuneError, need_package
from .labels import PROBLEM_TYPES
from .options import AUTO as AUTO
from .options import OPTIMIZERS
from .options import FinetuneConfig as FinetuneConfig
from .options import load_config as load_config
from .read import check_model

if TYPE_CHECKING:
    from ..controller import Controller

logger = logging.getLogger(__name__)


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
    from ..sensors.readable import DIRECTION_FIELDS

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
        settings = SchedulerConfig(total_steps=config.max_steps, every=config.every, warmup_steps=config.warmup_steps)
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
