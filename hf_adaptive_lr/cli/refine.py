"""`hf-adaptive-lr refine`: the next run's schedule from the gradient norms of past runs."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from ..artifacts import PROGRAM
from .errors import UserError, begun, check_new_folder

_EXAMPLES = """\
examples:
  hf-adaptive-lr refine runs/text --output-dir my-schedule
  hf-adaptive-lr refine runs/seed-0 runs/seed-1 --smoothing 0.2 --output-dir my-schedule --json

A run is the output folder of any Trainer (trainer_state.json with gradient norms, so log often) or of this library.
The schedule is a controller: AutoController.from_pretrained("my-schedule"), --controller my-schedule, push."""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "refine",
        help="make the next run's schedule from the gradient norms of past runs",
        description="Make a schedule from the gradient norms of runs that are over (Defazio et al. 2023, "
        "arXiv:2310.07831): high where they were small, and down to zero at the end.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path, help="output folder of a run")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the controller")
    parser.add_argument(
        "--smoothing", type=float, default=0.1, help="width of the running median, share of the run (default: 0.1)"
    )
    parser.add_argument(
        "--power",
        type=float,
        default=2.0,
        help="of the norms (default: 2, the paper's; its variant for Adam has 1, of l1 norms, which logs do not have)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the runs, write the controller, show the schedule."""
    from ..tuning.refine import RefineError, read_past_run, refine

    folder = args.output_dir
    check_new_folder(folder)
    try:
        runs = [read_past_run(run_dir) for run_dir in args.run_dirs]
        controller = refine(runs, args.smoothing, args.power)
        folder.mkdir(parents=True, exist_ok=True)
    except (RefineError, OSError) as error:
        raise UserError(str(error)) from error
    peak = max(run.peak_lr for run in runs)
    with begun("refine", f"make room, remove {folder} and give the command again"):
        controller.save_pretrained(folder)
        _write_record(args, runs, controller, peak)
    if args.json:
        facts = {
            "output_dir": str(args.output_dir),
            "learning_rate": peak,
            "sources": [{"file": str(run.source), "norms": len(run.norms)} for run in runs],
            "progress": list(controller.progress),
            "factors": list(controller.factors),
        }
        print(json.dumps(facts, indent=2))
        return 0
    for past in runs:
        print(f"{past.source}: {len(past.norms)} gradient norms, largest learning rate {past.peak_lr:g}")
    print("progress  factor  linear")
    for tenth in range(0, 11, 2):
        print(f"{tenth / 10:8.1f}  {_at(controller, tenth / 10):6.3f}  {1 - tenth / 10:6.3f}")
    print(
        f"written to {args.output_dir}; use it: {PROGRAM} finetune --controller {args.output_dir} --learning-rate "
        f"{peak:g}"
    )
    return 0


def _write_record(args: argparse.Namespace, runs: list[Any], controller: Any, peak: float) -> None:
    """Write training.json, for the card: the runs that the schedule comes from, and the learning rate it is for."""
    from ..artifacts import TRAINING_NAME, library_version, replace_file

    names = [folder.resolve().name for folder in args.run_dirs]
    words = ["refine", *map(str, args.run_dirs), "--smoothing", f"{args.smoothing:g}", "--power", str(args.power)]
    record = {
        "command": shlex.join([PROGRAM, *words, "--output-dir", str(args.output_dir)]),
        "method": "refined schedule from past gradient norms (Defazio et al. 2023, arXiv:2310.07831, Algorithm 2)",
        "controller": {"controller_type": controller.controller_type, **controller.config()},
        "sources": ", ".join(f"{name} ({len(run.norms)} norms)" for name, run in zip(names, runs, strict=True)),
        "learning_rate": peak,
        "smoothing": args.smoothing,
        "power": args.power,
        "versions": {"hf_adaptive_lr": library_version()},
    }
    text = json.dumps(record, indent=1) + "\n"
    replace_file(args.output_dir / TRAINING_NAME, text)


def _at(controller: Any, progress: float) -> float:
    import numpy as np

    return float(np.interp(progress, controller.progress, controller.factors))
