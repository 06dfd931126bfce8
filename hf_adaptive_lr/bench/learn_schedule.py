"""Learn the bundled `mlr_snet` as its paper does: on one data set, during one training, three snapshots.

    python -m hf_adaptive_lr.bench.learn_schedule --output-dir mlr_snet

Plain SGD at base LR 1, where the controller's factor is the paper's alpha, on a small CNN and Fashion-MNIST; 200
meta-steps at 1e-3 as in the paper's runs of 200 epochs with one meta-step each. The meta set is the task's
`controller` rows; its `valid` and `test` rows are not read.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..artifacts import PROGRAM, library_version, replace_file
from ..controllers import MLRSNet
from ..demo.data import DemoDataError
from ..trainer.arguments import AdaptiveLRTrainingArguments
from ..trainer.meta_trainer import MetaLRTrainer
from .run_record import curve
from .runner import command_parser
from .verdict_data import collate, load
from .verdict_methods import METHODS
from .verdict_models import build_model, build_optimizer
from .verdict_tasks import QUICK_TASKS, TASKS


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One training during which a schedule is learned."""

    task: str = "fashion-cnn"  # name of a task of the paper study
    updates: int = 2000
    meta_every: int = 10  # updates from one meta-step to the next
    meta_lr: float = 1e-3  # Adam's learning rate for the net
    learning_rate: float = 1.0  # base LR of the run
    seed: int = 0  # of everything that is drawn
    quick: bool = False  # the task's short version


def learn(lesson: Lesson) -> tuple[MLRSNet, list[float]]:
    """Train; returns the frozen controller with three snapshots, and the factor at every update."""
    task = (QUICK_TASKS if lesson.quick else TASKS)[lesson.task]
    data, model = load(task), build_model(task, lesson.seed)
    net = MLRSNet(meta_learn=True, meta_every=lesson.meta_every, meta_lr=lesson.meta_lr)
    with tempfile.TemporaryDirectory() as folder:
        args = AdaptiveLRTrainingArguments(
            output_dir=folder,
            max_steps=lesson.updates,
            per_device_train_batch_size=task.batch_size,
            learning_rate=lesson.learning_rate,
            max_grad_norm=0.0,
            seed=lesson.seed,
            use_cpu=True,
            save_strategy="no",
            logging_steps=max(1, lesson.updates // 20),
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = MetaLRTrainer(
            model=model,
            args=args,
            controller=net,
            train_dataset=data.train,
            controller_dataset=data.controller,
            data_collator=collate,
            optimizers=(build_optimizer(task, METHODS["constant"], model, lesson.learning_rate), None),
        )
        trainer.train()
    return trainer.learned_controller(), [lr / lesson.learning_rate for lr in trainer.lr_scheduler.lr_history()]


def main(argv: Sequence[str] | None = None) -> int:
    """Learn and save."""
    parser = command_parser("learn_schedule", __doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the controller; must not exist")
    parser.add_argument("--task", default=Lesson.task, choices=sorted(TASKS), help=f"default: {Lesson.task}")
    for name in ("updates", "meta_every", "meta_lr", "learning_rate", "seed"):
        default = getattr(Lesson, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--quick", action="store_true", help="a few updates on a few rows")
    options = parser.parse_args(argv)
    if options.output_dir.exists():
        print(f"{PROGRAM}: error: '{options.output_dir}' exists; name another folder", file=sys.stderr)
        return 2
    chosen = {name: value for name, value in vars(options).items() if name != "output_dir"}
    lesson, started = Lesson(**chosen), time.monotonic()
    try:
        controller, factors = learn(lesson)
    except (ValueError, DemoDataError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    controller.save_pretrained(options.output_dir)
    record = {
        "command": "python -m hf_adaptive_lr.bench.learn_schedule "
        + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in chosen.items() if k != "quick")
        + " --output-dir mlr_snet",
        "lesson": asdict(lesson),
        "seconds": round(time.monotonic() - started, 1),
        "versions": {"hf_adaptive_lr": library_version(), "torch": torch.__version__},
        "factor_curve": curve(factors, 50),
    }
    replace_file(options.output_dir / "training.json", json.dumps(record, indent=1) + "\n")
    print(f"written to {options.output_dir}: {controller.controller_type}, {controller.snapshots} snapshots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
