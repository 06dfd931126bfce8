"""`hf-adaptive-lr train`: meta-train a learning-rate controller on vectorised tasks."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from ..artifacts import PROGRAM, shell_word
from ..meta.trainers import METHODS, PRESETS, make_trainer
from .errors import UserError

_SUITES = {"universal": "strangers", "schedule_ppo": "fashion"}
_PHOTOS = ("fashion", "mnist")
_RUNS = {"universal": 24, "schedule_ppo": 1}
_FOR_SCHEDULE, _FOR_UNIVERSAL = ("preset", "every_steps", "recurrent"), ("controller_kwargs",)
_GIVEN = (*_FOR_SCHEDULE, *_FOR_UNIVERSAL)
_EXAMPLES = """\
examples:
  hf-adaptive-lr train universal --minutes 60 --output-dir my-universal
  hf-adaptive-lr train ppo --suite quadratic --minutes 2 --output-dir my-controller
  hf-adaptive-lr train evolution --suite quadratic --iterations 200 --seed 1 --output-dir es
  hf-adaptive-lr train ppo --output-dir my-controller --suite quadratic --minutes 5 --resume
  hf-adaptive-lr train schedule_ppo --suite fashion --iterations 100 --output-dir xu2019
  torchrun --nproc-per-node 2 -m hf_adaptive_lr.cli train universal --minutes 60 --output-dir my-universal

The folder loads with AutoController.from_pretrained(...), and in every verb with --controller FOLDER."""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "train",
        help="train a controller on vectorised tasks",
        description="Train a learning-rate controller on a suite of vectorised tasks.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("method", choices=METHODS, metavar="METHOD", help=f"one of: {', '.join(METHODS)}")
    parser.add_argument(
        "--suite", help="suite of tasks (default: quadratic; universal: strangers; schedule_ppo: fashion)"
    )
    parser.add_argument("--minutes", type=float, help="train for this long")
    parser.add_argument("--iterations", type=int, help="train for this many iterations (the same on every machine)")
    parser.add_argument(
        "--runs",
        type=int,
        help="runs per family and iteration (default: 64; universal: 24; schedule_ppo: 1)",
    )
    parser.add_argument("--hidden-size", type=int, default=32, help="width of the controller's network (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of tasks and exploration (default: 0)")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the controller and its training")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=30.0, help="time between checkpoints (default: 30)"
    )
    parser.add_argument(
        "--report-to", nargs="+", default=[], metavar="TRACKER", help="tensorboard, trackio, wandb, ..."
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in the folder")
    parser.add_argument("--json", action="store_true", help="print JSON: folder and cost of the controller")
    only = parser.add_argument_group("only for schedule_ppo")
    only.add_argument(
        "--preset",
        choices=PRESETS,
        help="settings of the paper, of its released code, or ours: whole runs, judged in groups (default: paper)",
    )
    only.add_argument(
        "--every-steps",
        type=int,
        help="updates between decisions (default: 5, the paper's 10 being for runs of 1,000 updates; released: 1)",
    )
    only.add_argument(
        "--recurrent", action="store_true", default=None, help="an LSTM cell as the policy's hidden layer"
    )
    free = parser.add_argument_group("only for universal")
    free.add_argument(
        "--controller-kwargs", metavar="JSON", help='fields of the controller to change: {"without_gain": true}'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 130 when interrupted."""
    from ..artifacts import CHECKPOINT_NAME, TRAINING_NAME, FolderInUseError, write_failed
    from ..demo.data import DemoDataError
    from ..meta.driver import DriverConfig, check_folder
    from ..meta.driver import run as drive

    config = DriverConfig(
        suite=args.suite or _SUITES.get(args.method, "quadratic"),
        output_dir=args.output_dir,
        runs=args.runs if args.runs is not None else _RUNS.get(args.method, 64),
        minutes=args.minutes,
        iterations=args.iterations,
        seed=args.seed,
        checkpoint_seconds=args.checkpoint_seconds,
        report_to=tuple(args.report_to),
    )
    given = {name: getattr(args, name) for name in _GIVEN if getattr(args, name) is not None}
    try:
        config.check()
        _check_method(args.method, config.suite, config.runs, given)
        check_folder(config, args.method, resume=args.resume)
        trainer = make_trainer(args.method, hidden_size=args.hidden_size, seed=args.seed, **given)
        if args.resume and args.method in ("schedule_ppo", "universal", "ppo"):
            _check_settings(trainer, args.output_dir)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    _join_processes()
    words = [w for w in sys.argv[1:] if w != "--resume"]
    again = " ".join(map(shell_word, [PROGRAM, *words]))
    try:
        controller = drive(trainer, config, resume=args.resume, command=shlex.join([PROGRAM, *words]))
    except KeyboardInterrupt:
        if (args.output_dir / CHECKPOINT_NAME).is_file():
            how = f"interrupted; continue with: {again} --resume"
        else:
            how = f"interrupted before the first iteration; begin again with: {again}"
        print(f"\n{PROGRAM}: {how}", file=sys.stderr)
        return 130
    except (DemoDataError, FolderInUseError) as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if not write_failed(error):
            raise
        raise UserError(
            f"the training stopped, as a file cannot be written: {error}; go on with --resume", 1
        ) from error
    if int(os.environ.get("RANK", "0")) == 0:
        record = json.loads((args.output_dir / TRAINING_NAME).read_text(encoding="utf-8"))
        weights = sum(p.numel() for p in controller.params.values())
        figures = {name: record[name] for name in ("iterations", "inner_steps", "seconds")}
        figures |= {
            "output_dir": str(args.output_dir),
            "controller_type": controller.controller_type,
            "weights": weights,
            "return": _first_and_last([row["return"] for row in record["curves"] if "return" in row]),
        }
        print(json.dumps(figures, indent=2) if args.json else _summary(figures))
    return 0


def _summary(figures: dict[str, Any]) -> str:
    lines = [
        f"{figures['iterations']} iterations, {figures['inner_steps']:.3g} inner updates in {figures['seconds']:.0f} s"
    ]
    if figures["return"]:
        first, last = figures["return"]
        lines.append(f"return (mean fall of a run's log loss): {first:.2f} in the first tenth, {last:.2f} in the last")
    folder = shell_word(figures["output_dir"])
    return "\n".join(
        [
            *lines,
            f"written to {figures['output_dir']}: {figures['controller_type']}, {figures['weights']} weights",
            f"try it:     {PROGRAM} finetune --controller {folder}",
            f"measure it: {PROGRAM} bench --quick --controller {folder} --write-results",
            f"share it:   {PROGRAM} push {folder} USER/NAME",
        ]
    )


def _first_and_last(returns: list[float]) -> list[float]:
    """Means over the first and the last tenth of the iterations, or nothing where there are none."""
    tenth = max(1, len(returns) // 10)
    return [fmean(returns[:tenth]), fmean(returns[-tenth:])] if returns else []


def _check_method(method: str, suite: str, runs: int, given: dict[str, Any]) -> None:
    from ..meta.suites import SUITES

    for names, owner in ((_FOR_SCHEDULE, "schedule_ppo"), (_FOR_UNIVERSAL, "universal")):
        for name in names:
            if name in given and method != owner:
                raise ValueError(f"--{name.replace('_', '-')} is for {owner}, not for {method}")
    if method != "schedule_ppo":
        if runs < 2:
            raise ValueError(f"runs={runs} must be at least 2")
        if suite in _PHOTOS:
            others = ", ".join(name for name in SUITES if name not in _PHOTOS)
            raise ValueError(
                f"suite '{suite}' trains a convolutional net on real images, one run at a time, for schedule_ppo; "
                f"{method} wants many small runs at once, such as of: {others}"
            )
        return
    lacking = SUITES[suite].without_classes()
    if lacking:
        able = ", ".join(name for name in SUITES if not SUITES[name].without_classes())
        raise ValueError(
            f"suite '{suite}' has tasks of the family '{lacking[0]}', which have no classes, and ppo_schedule "
            f"observes predictions; use one of: {able}"
        )


def _check_settings(trainer: Any, folder: Path) -> None:
    """Fails fast when a training would resume with other options than it began with."""
    from ..meta.driver import load_checkpoint

    trainer.load_state_dict(load_checkpoint(folder)["trainer"])


def _join_processes() -> None:
    """Under torchrun or accelerate launch, join the other processes."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
        torch.set_num_threads(1)  # the processes share the cores
