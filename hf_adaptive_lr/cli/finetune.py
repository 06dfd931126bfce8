"""`hf-adaptive-lr finetune`: fine-tunes a text or image classifier."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
import typing
from dataclasses import fields
from typing import Any

from ..artifacts import PROGRAM, shell_word
from ..demo.data import DemoDataError
from ..finetune.config import AUTO, FinetuneConfig, load_config
from ..finetune.data import FinetuneError
from ..finetune.folder import can_resume
from ..finetune.job import FinetuneStoppedError
from ..finetune.job import run as run_job
from ..finetune.outputs import table
from .errors import UserError

_DESCRIPTION = """\
Fine-tune a text or image classifier with an adaptive learning rate. Without --data and --model
it uses small real data and a small model that need no account and no Hub."""
_EXAMPLES = """\
examples:
  hf-adaptive-lr finetune --task text
  hf-adaptive-lr finetune --task text --controller linear --learning-rate 1e-4
  hf-adaptive-lr finetune --task text --controller-kwargs '{"pretrained": 0.002}'
  hf-adaptive-lr finetune --task image --data photos/ --model org/model --output-dir out
  hf-adaptive-lr finetune --data reviews.csv --text-column review --label-column stars
  hf-adaptive-lr finetune --output-dir out --resume"""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb; its options are the fields of [`FinetuneConfig`]."""
    parser = verbs.add_parser(
        "finetune",
        help="fine-tune a text or image classifier with an adaptive learning rate",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # the rest comes from the config, or from the run that is resumed
    )
    hints = typing.get_type_hints(FinetuneConfig)
    for option in (option for option in fields(FinetuneConfig) if option.metadata):
        text = str(option.metadata["help"])
        if option.default is not None and option.default is not False:
            text += f" (default: {option.default})"
        kind: dict[str, Any] = {"action": "store_true"}
        if option.default is not False:
            kind = {"type": _plain(hints[option.name]), "metavar": option.name.rpartition("_")[2].upper()}
        if option.name == "learning_rate":
            kind["type"] = _rate
        parser.add_argument(f"--{option.name.replace('_', '-')}", help=text.replace("%", "%%"), **kind)
    parser.add_argument("--json", action="store_true", default=False, help="print the results as JSON on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the job and print its table, or its results as JSON."""
    # Before torch is loaded: threads that wait by spinning starve each other on a busy machine (5 times slower on two
    # cores with one more job), and gain little on an idle one. Changes no number.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    names = {option.name for option in fields(FinetuneConfig) if option.metadata}
    try:
        config = _config({name: value for name, value in vars(args).items() if name in names})
        results = _run(config)
    except (FinetuneError, DemoDataError) as error:
        raise UserError(str(error), 1 if isinstance(error, FinetuneStoppedError) else 2) from error
    except RuntimeError as error:
        from ..controller import ControllerError  # loads torch, which is there by now

        if not isinstance(error, ControllerError):
            raise
        raise UserError(str(error)) from error
    if results is None:
        return 130
    print(json.dumps(results, indent=2) if args.json else table(results, config.folder))
    return 0


def _config(given: dict[str, Any]) -> FinetuneConfig:
    """The settings given on the command line; a resumed run keeps its own for the rest."""
    config = FinetuneConfig(**given).resolved()
    return FinetuneConfig(**{**load_config(config.folder), **given}).resolved() if config.resume else config


def _run(config: FinetuneConfig) -> dict[str, Any] | None:
    try:
        return run_job(config)
    except KeyboardInterrupt:
        again = f"--output-dir {shell_word(config.folder)} --resume"
        way_on = f"continue with: {PROGRAM} finetune {again}"
        if not can_resume(config):
            way_on = f"nothing has been written yet; start again with: {config.command()}"
        print(f"{PROGRAM}: interrupted; {way_on}", file=sys.stderr)
        return None


def _rate(word: str) -> float | str:
    return word if word == AUTO else float(word)


_rate.__name__ = "learning rate"  # argparse names it: invalid learning rate value


def _plain(hint: Any) -> type:
    """The type of an option that may also be None."""
    kinds: list[type] = [kind for kind in typing.get_args(hint) or (hint,) if kind is not types.NoneType]
    return kinds[0]
