"""`hf-adaptive-lr train`: meta-train a learning-rate controller on vectorised tasks."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from .errors import PROGRAM, UserError

METHODS = ("ppo", "evolution", "bilevel")
_EXAMPLES = """\
examples:
  hf-adaptive-lr train ppo --suite quadratic --minutes 2 --output-dir my-controller
  hf-adaptive-lr train evolution --suite quadratic --iterations 200 --seed 1 --output-dir es
  hf-adaptive-lr train ppo --output-dir my-controller --suite quadratic --minutes 5 --resume
  torchrun --nproc-per-node 2 -m hf_adaptive_lr.cli train ppo --suite quadratic --minutes 2 --output-dir shared

The folder loads with AutoController.from_pretrained(...) and trains anything with --controller FOLDER."""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "train",
        help="train a controller on vectorised tasks",
        description="Train a recurrent learning-rate controller on a suite of vectorised tasks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", choices=METHODS, metavar="METHOD", help=f"one of: {', '.join(METHODS)}")
    parser.add_argument("--suite", default="quadratic", help="name of the suite of tasks (default: quadratic)")
    parser.add_argument("--minutes", type=float, help="train for this long")
    parser.add_argument("--iterations", type=int, help="train for this many iterations (the same on every machine)")
    parser.add_argument("--runs", type=int, default=64, help="runs per family and iteration (default: 64)")
    parser.add_argument("--hidden-size", type=int, default=32, help="width of the controller's GRU (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="seed of tasks and exploration (default: 0)")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the controller and its training")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=30.0, help="time between checkpoints (default: 30)"
    )
    parser.add_argument(
        "--report-to", nargs="+", default=[], metavar="TRACKER", help="tensorboard, trackio, wandb, ..."
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 130 when interrupted."""
    from ..meta.driver import DriverConfig, check_folder
    from ..meta.driver import run as drive

    config = DriverConfig(
        suite=args.suite,
        output_dir=args.output_dir,
        runs=args.runs,
        minutes=args.minutes,
        iterations=args.iterations,
        seed=args.seed,
        checkpoint_seconds=args.checkpoint_seconds,
        report_to=tuple(args.report_to),
    )
    try:
        config.check()
        check_folder(config, args.method, resume=args.resume)
        trainer = make_trainer(args.method, hidden_size=args.hidden_size, seed=args.seed)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    _join_processes()
    words = [w for w in sys.argv[1:] if w != "--resume"]
    try:
        controller = drive(trainer, config, resume=args.resume, command=shlex.join([PROGRAM, *words]))
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted; continue with: {shlex.join([PROGRAM, *words, '--resume'])}", file=sys.stderr)
        return 130
    if int(os.environ.get("RANK", "0")) == 0:
        record = json.loads((args.output_dir / "training.json").read_text(encoding="utf-8"))
        weights = sum(p.numel() for p in controller.params.values())
        print(
            f"{record['iterations']} iterations, {record['inner_steps']:.3g} inner updates in {record['seconds']:.0f} "
            f"s"
        )
        print(f"written to {args.output_dir}: {controller.controller_type}, {weights} weights")
    return 0


def make_trainer(method: str, *, hidden_size: int, seed: int) -> Any:
    """A trainer with an untrained controller.

    Args:
        method: one of [`METHODS`].
        hidden_size: width of the controller's GRU.
        seed: of its first weights and of everything it draws.
    """
    from ..controllers import Universal

    start = Universal(hidden_size=hidden_size, params=Universal.random_params(hidden_size=hidden_size, seed=seed))
    if method == "ppo":
        from ..meta.ppo import PPOTrainer

        return PPOTrainer(start, seed=seed)
    if method == "evolution":
        from ..meta.evolution import EvolutionTrainer

        return EvolutionTrainer(start, seed=seed)
    from ..meta.bilevel import BilevelTrainer

    return BilevelTrainer(start, seed=seed)


def _join_processes() -> None:
    """Under torchrun or accelerate launch, meet the other processes."""
    import torch
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
        torch.set_num_threads(1)  # the processes share the cores
