"""The output folder of `finetune`: what may be written into it, and where a run that was killed goes on."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from ..artifacts import (
    CURVES_NAME,
    MODEL_NAME,
    RESULTS_NAME,
    SETTINGS_NAME,
    STATE_NAME,
    numbered_checkpoints,
    replace_file,
)
from ..trainer.checkpoints import Expected, fault, newest_whole
from .errors import FinetuneError
from .options import NOT_COMPARED, FinetuneConfig, load_config

logger = logging.getLogger(__name__)


def can_resume(config: FinetuneConfig) -> bool:
    """Whether this run, having been interrupted, can go on in its folder."""
    try:
        check_folder(replace(config.resolved(), resume=True, overwrite=False))
    except FinetuneError:
        return False
    return True


def check_folder(config: FinetuneConfig) -> None:
    """FinetuneError unless the output folder can be written and, for `resume`, holds a run with these settings."""
    folder = config.folder
    if config.resume and config.overwrite:
        raise FinetuneError("--resume and --overwrite exclude each other")
    if os.path.lexists(folder) and not folder.is_dir():
        kind = "a link to nothing" if folder.is_symlink() and not folder.exists() else "a file"
        raise FinetuneError(f"output_dir '{folder}' is {kind}; name a folder")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise FinetuneError(f"output_dir '{folder}' cannot be written: no permission in '{parent}'")
    if config.resume:
        _check_resumed(config)
    elif not config.overwrite:
        kept = [*_results(folder), *filter(None, [newest_whole(folder)])]
        if kept:
            hint = "pass --resume, --overwrite or another --output-dir"
            raise FinetuneError(f"'{folder}' holds {kept[0].name} of an earlier run; {hint}")


def _check_resumed(config: FinetuneConfig) -> None:
    folder, saved = config.folder, load_config(config.folder)
    if not saved:
        raise FinetuneError(f"'{folder}' has no run to resume; start without --resume")
    for name, value in asdict(config).items():
        if name not in (*NOT_COMPARED, "choice") and name in saved and saved[name] != value:
            if name == "max_steps" and value > saved[name]:
                continue  # a run may grow
            same = "as many or more" if name == "max_steps" else "the same"
            raise FinetuneError(f"the run in '{folder}' has {name}={saved[name]}, not {value}; resume it with {same}")
    # A run that was killed early has neither; one whose checkpoint was damaged later is not thrown away unasked.
    got_far = (folder / RESULTS_NAME).exists() or any(_was_whole(path) for _, path in numbered_checkpoints(folder))
    if got_far and newest_whole(folder, _expected()) is None:
        raise FinetuneError(
            f"'{folder}' has no whole checkpoint to resume from{_faults(folder)}; restore it, or begin again with "
            "--overwrite"
        )


def _was_whole(checkpoint: Path) -> bool:
    try:
        return bool(json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8")))  # written last
    except (OSError, ValueError):
        return False


def checkpoint_to_resume(config: FinetuneConfig) -> Path | None:
    """The newest whole checkpoint of the run that is resumed; None to begin at its beginning, with a warning."""
    if not config.resume:
        return None
    expected, folder = _expected(), config.folder
    found = newest_whole(folder, expected)
    if found is None:
        logger.warning(
            "'%s' has no whole checkpoint yet%s; the run starts from its beginning", folder, _faults(folder)
        )
    elif found != (newest := numbered_checkpoints(folder)[0][1]):
        logger.warning(
            "%s is not whole: %s; the run goes on from %s", newest.name, fault(newest, expected), found.name
        )
    return found


def prepare_folder(config: FinetuneConfig, checkpoint: Path | None) -> None:
    """Make room for a run that `check_folder` has passed and write down its settings: the folder changes from here on.

    Checkpoints after `checkpoint` were not written to their end; those before it were about to be deleted.
    """
    folder, settings = config.folder, config.folder / SETTINGS_NAME
    if not config.resume:
        settings.unlink(missing_ok=True)  # first: a run that is half deleted is none to resume
        for path in _results(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif load_config(folder).get("max_steps") != config.max_steps:  # the results are those of the shorter run
        (folder / RESULTS_NAME).unlink(missing_ok=True)
    for _, path in numbered_checkpoints(folder):
        if path != checkpoint:
            shutil.rmtree(path)
    saved = {name: value for name, value in asdict(config).items() if name not in NOT_COMPARED}
    replace_file(settings, json.dumps(saved, indent=2) + "\n")


def _results(folder: Path) -> list[Path]:
    """Files and folders of an earlier run that a new one would replace."""
    return [path for name in (RESULTS_NAME, MODEL_NAME, CURVES_NAME) if (path := folder / name).exists()]


def _expected() -> Expected:
    return Expected(processes=int(os.environ.get("WORLD_SIZE", "1")))


def _faults(folder: Path) -> str:
    """Of the newest checkpoint, in brackets; nothing where there is none."""
    return next((f" ({path.name}: {fault(path, _expected())})" for _, path in numbered_checkpoints(folder)), "")
