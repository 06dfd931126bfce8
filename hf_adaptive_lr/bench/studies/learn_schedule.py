"""Learn the bundled `mlr_snet` as its paper does: on one data set, during one training, three snapshots.

    python -m hf_adaptive_lr.bench.studies.learn_schedule --output-dir mlr_snet

Plain SGD at base LR 1, where the controller's factor is the paper's alpha, on a small CNN and Fashion-MNIST; 200
meta-steps at 1e-3 as in the paper's runs of 200 epochs with one meta-step each. The meta set is the task's
`controller` rows; its `valid` and `test` rows are not read.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ...artifacts import TRAINING_NAME, library_version, replace_file
from ...controllers import MLRSNet
from ...trainer.arguments import AdaptiveLRTrainingArguments
from ...trainer.meta_trainer import MetaLRTrainer
from ..data import collate, load
from ..models import build_model
from ..record import curve
from ..runner import command_parser
from ..trainers import build_optimizer, trainer_settings
from .command import carry_out, count
from .papers.methods import METHODS
from .papers.tasks import TASKS, quick


def learn(lesson: argparse.Namespace) -> tuple[MLRSNet, list[float]]:
    """Train; returns the frozen controller with three snapshots, and the factor at every update."""
    task, lr = TASKS[lesson.task], lesson.learning_rate
    task = quick(task) if lesson.quick else task
    data, model = load(task), build_model(task, lesson.seed)
    net = MLRSNet(meta_learn=True, meta_every=lesson.meta_every, meta_lr=lesson.meta_lr)
    with tempfile.TemporaryDirectory() as folder:
        settings = trainer_settings(folder, lesson.updates, task.batch_size, lr, lesson.seed)
        trainer = MetaLRTrainer(
            model=model,
            args=AdaptiveLRTrainingArguments(**settings, max_grad_norm=0.0),
            controller=net,
            train_dataset=data.train,
            controller_dataset=data.controller,
            data_collator=collate,
            optimizers=(build_optimizer(task, METHODS["constant"], model, lr), None),
        )
        trainer.train()
    return trainer.learned_controller(), [now / lr for now in trainer.lr_scheduler.lr_history()]


def main(argv: Sequence[str] | None = None) -> int:
    """Learn and save; 0 when done, 2 when it cannot be."""
    parser = command_parser("studies.learn_schedule", __doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the controller; must not exist")
    parser.add_argument("--task", default="fashion-cnn", choices=sorted(TASKS), help="default: fashion-cnn")
    parser.add_argument("--updates", type=count, default=2000)
    parser.add_argument("--meta-every", type=count, default=10, help="updates from one meta-step to the next")
    parser.add_argument("--meta-lr", type=float, default=1e-3, help="Adam's learning rate for the net")
    parser.add_argument("--learning-rate", type=float, default=1.0, help="base learning rate of the run")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--quick", action="store_true", help="the task's short version")
    options = parser.parse_args(argv)
    if options.output_dir.exists():
        parser.error(f"'{options.output_dir}' exists; name another folder")
    return carry_out(parser.prog, lambda: _save(options, parser.prog))


def _save(options: argparse.Namespace, prog: str) -> None:
    started = time.monotonic()
    controller, factors = learn(options)
    controller.save_pretrained(options.output_dir)
    lesson = {name: value for name, value in vars(options).items() if name != "output_dir"}
    words = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in lesson.items() if k != "quick")
    record = {
        "command": f"{prog} {words} --output-dir mlr_snet",
        "lesson": lesson,
        "seconds": round(time.monotonic() - started, 1),
        "versions": {"hf_adaptive_lr": library_version(), "torch": torch.__version__},
        "factor_curve": curve(factors, 50),
    }
    replace_file(options.output_dir / TRAINING_NAME, json.dumps(record, indent=1) + "\n")
    print(f"written to {options.output_dir}: {controller.controller_type}, {controller.snapshots} snapshots")


if __name__ == "__main__":
    sys.exit(main())
