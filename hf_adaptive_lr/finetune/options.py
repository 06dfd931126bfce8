"""Settings of `hf-adaptive-lr finetune` and their defaults, which depend on the task."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..artifacts import CONTROLLER_NAME, SETTINGS_NAME
from ..trainer.defaults import DEFAULT_CONTROLLER
from .data import Wanted
from .errors import FinetuneError
from .labels import PROBLEM_TYPES
from .read import Source

# Defaults by task: most of the demo's accuracy within minutes on two CPU cores; the rates are for controllers that use
# one.
_TASKS: dict[str, dict[str, Any]] = {
    "text": {"learning_rate": 1e-4, "max_steps": 150, "batch_size": 16, "output_dir": "runs/text"},
    "image": {"learning_rate": 1e-3, "max_steps": 300, "batch_size": 32, "output_dir": "runs/image"},
}
GIVEN = "given"
"""The `choice` of a controller that was named."""
AUTO = "auto"
"""The learning rate is the controller's to find."""
OPTIMIZERS = ("adamw", "sgd", "dsa")
"""Optimizers that `finetune` offers."""
NOT_COMPARED = ("output_dir", "resume", "overwrite")
"""Settings in which a resumed run may differ from its first part."""


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
        ('universal', None, None, 'auto')
    """

    task: str = _option("text", "text | image: what is classified")
    data: str | None = _option(
        None,
        "CSV, TSV, JSON, JSONL or Parquet file, folder, or Hub id; for images one folder per class (default: demo "
        "data)",
    )
    data_config: str | None = _option(None, "configuration of the Hub data set, where it has several")
    model: str | None = _option(
        None, "local folder or Hub id (default: a small encoder, or a small ResNet from scratch)"
    )
    delimiter: str | None = _option(
        None, "character between the cells of a CSV file, or tab (default: comma; tab in .tsv)"
    )
    encoding: str | None = _option(None, "of a CSV or JSON file: cp1252, utf-16, ... (default: utf-8)")
    text_column: str = _option("text", "column with the texts")
    text_pair_column: str | None = _option(None, "column with the second text of each pair")
    image_column: str = _option("image", "column with the images")
    label_column: str = _option(
        "label",
        "column with the labels: class labels, strings, whole numbers, lists of these, or numbers with fractions; or "
        "several columns of 0 and 1, as toxic,insult",
    )
    label_delimiter: str | None = _option(
        None, "character between the labels of one cell that may have several, or be empty for none"
    )
    problem_type: str | None = _option(
        None,
        f"{' | '.join(PROBLEM_TYPES)} (default: by the labels: lists are several, numbers with fractions a "
        "regression, all else one class)",
    )
    skip_unreadable: bool = _option(False, "leave out images that cannot be read, instead of naming them and ending")
    controller: str | None = _option(
        None,
        "name of a controller (see `hf-adaptive-lr list`), its folder, user/repo on the Hub, or your own class as "
        "FILE.py:CLASS, or what it saved as FILE.py:CLASS:FOLDER (default: universal, which finds the learning rate; "
        "constant for dsa)",
    )
    controller_kwargs: str | None = _option(None, 'config fields of the controller to change, as JSON: {"beta": 0.02}')
    warmup_steps: int | None = _option(
        None,
        "number of updates over which the learning rate rises at first (default: as the controller does, which is 5 % "
        "of all with universal)",
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
        "default: auto with universal, with other controllers 1e-4 text, 1e-3 image",
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
    stratified: bool = True
    """Whether rows are picked by the shares of their labels; not in runs that the first version began."""

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
            # The direction of an update that looks ahead cannot be read, which universal would need.
            defaults["choice"] = "default for dsa, which has a learning rate for every weight"
        elif told.controller in (None, DEFAULT_CONTROLLER) and told.choice is None:
            if told.controller is None:
                defaults["choice"] = "default"
            defaults |= {"controller": DEFAULT_CONTROLLER, "learning_rate": AUTO}
        return replace(told, **{k: v for k, v in defaults.items() if getattr(told, k) is None})

    def _resumed(self) -> FinetuneConfig:
        """With rows and controller of the run that is resumed: the defaults of its version may have been others."""
        saved = load_config(self.folder) if self.resume else {}
        if not saved:
            return self
        told = replace(self, stratified=saved.get("stratified", False))
        if self.controller not in (None, saved.get("controller")):
            return told
        names = ("controller", "controller_kwargs", "learning_rate", "warmup_steps", "choice")
        saved = {"choice": "of the run that is resumed", **saved}
        return replace(told, **{name: saved[name] for name in names if name in saved and getattr(told, name) is None})

    @property
    def base_lr(self) -> float:
        """The number that the optimizer is made with; any will do where the controller finds the learning rate."""
        given = self.resolved().learning_rate
        return float(_TASKS[self.task]["learning_rate"] if given in (AUTO, None) else given)

    @property
    def source(self) -> Source | None:
        """Where the rows are; None is the demo's data."""
        if self.data is None:
            return None
        return Source(self.data, self.data_config, self.delimiter, self.encoding)

    @property
    def wanted(self) -> Wanted:
        """The columns and rows of the data."""
        return Wanted(
            task=self.task,
            input_column=self.text_column if self.task == "text" else self.image_column,
            label_column=self.label_column,
            pair_column=self.text_pair_column,
            problem_type=self.problem_type,
            label_delimiter=self.label_delimiter,
            train_size=self.train_size,
            eval_size=self.eval_size,
            skip_unreadable=self.skip_unreadable,
            stratified=self.stratified,
        )

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
        if self.skip_unreadable:
            words.append("--skip-unreadable")
        return shlex.join(words)


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
    if saved.get("controller") == "universal" and _was_a_net(path.with_name(CONTROLLER_NAME)):
        saved["controller"] = "universal_1"  # what had that name in version 0.1
    return saved


def _was_a_net(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("controller_type") == "universal"
