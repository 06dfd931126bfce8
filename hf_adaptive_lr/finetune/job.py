"""Fine-tunes a text or image classifier with an adaptive learning rate, from settings to results.

Everything that can be wrong with the request is found before anything is written; `results.json` is written last, so
its presence says that the other outputs are whole. A run that was killed continues from its last whole checkpoint and
ends in the same numbers as one that was not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import STATE_NAME, FolderInUseError, only_writer, write_failed
from .config import FinetuneConfig, check
from .data import JobData, load_data
from .errors import FinetuneError, one_line
from .folder import check_folder, checkpoint_to_resume, prepare_folder
from .outputs import collect, write_outputs

if TYPE_CHECKING:
    from ..controller import Controller
    from ..trainer.mixin import AdaptiveLRTrainer
    from .model import Parts

__all__ = ["FinetuneConfig", "FinetuneError", "run"]


def run(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune, report once on the test rows and write all outputs into the output folder.

    Writes `results.json`, `lr_trace.jsonl` (the learning rate of every update and why), `curves.png` (needs
    matplotlib), `model/` (loads with `from_pretrained`), checkpoints, and `finetune_config.json` to resume by.

    Args:
        config: what to do; None fields take the task's defaults.

    Returns:
        What `results.json` holds.

    Raises:
        FinetuneError: something in the request cannot be; nothing was written then.
        DemoDataError: a part of the demo's data is missing; nothing was written either.

    Example:
        >>> run(FinetuneConfig(task="image", max_steps=20))["accuracy"]  # doctest: +SKIP
        0.62
    """
    started = time.perf_counter()
    config = config.resolved()
    check_folder(config)
    controller = check(config)
    data = load_data(config.source, config.wanted)
    try:
        with only_writer(config.folder) if os.environ.get("RANK", "0") == "0" else nullcontext():
            check_folder(config)  # again: another process may just have ended
            return _run(config, controller, data, started)
    except FolderInUseError as error:
        raise FinetuneError(str(error)) from error


class FinetuneStoppedError(FinetuneError):
    """The file system ended a run that had begun; the message says how to go on."""


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not write_failed(error):
            raise
        raise FinetuneStoppedError(
            f"the run stopped, as a file cannot be written or read: {one_line(error)}; free the disk or restore the "
            "folder, and go on with --resume"
        ) from error


def _run(config: FinetuneConfig, controller: Controller, data: JobData, started: float) -> dict[str, Any]:
    from transformers import TrainerState, set_seed

    from .model import load_parts, one_bar

    checkpoint = checkpoint_to_resume(config)
    state = TrainerState.load_from_json(str(checkpoint / STATE_NAME)) if checkpoint else TrainerState()
    trained = state.global_step >= (config.max_steps or 0)
    set_seed(config.seed)
    parts = load_parts(config.task, config.model, data.labels, config.max_length, data.problem_type)
    trainer = _trainer(config, controller, data, parts)
    with _in_one_line(), one_bar(trainer):
        if trainer.is_world_process_zero():
            prepare_folder(config, checkpoint)
        if trained:  # killed after its last update; Trainer would do one more
            trainer.state = state
            trainer._load_from_checkpoint(str(checkpoint))
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        scores = trainer.evaluate(data.report, metric_key_prefix="report")
        results = collect(config, controller, data, parts, trainer, scores)
        results["wall_seconds"] = round(time.perf_counter() - started, 1)
        if trainer.is_world_process_zero():
            write_outputs(Path(trainer.args.output_dir), results, parts, trainer.state.log_history)
    return results


def _trainer(config: FinetuneConfig, controller: Controller, data: JobData, parts: Parts) -> AdaptiveLRTrainer:
    import torch

    from ..trainer.arguments import AdaptiveLRTrainingArguments
    from ..trainer.mixin import AdaptiveLRTrainer
    from .metrics import kept_answers, scored_by

    assert config.max_steps and config.batch_size  # `resolved` set them
    optim: dict[str, Any] = {"optim": "sgd"} if config.optimizer == "sgd" else {}
    args = AdaptiveLRTrainingArguments(
        output_dir=str(config.folder.absolute()),
        learning_rate=config.base_lr,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=4 * config.batch_size,
        seed=config.seed,
        # Trainer's 0 leaves it to the controller; a warm-up of one update is none.
        warmup_steps=1 if config.warmup_steps == 0 else config.warmup_steps or 0,
        **optim,
        dsa=config.optimizer == "dsa",
        divergence_guard=config.guard == "on",
        controller_every=config.every,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=1,  # deleted only after the next one is whole
        logging_steps=max(1, config.max_steps // 100),
        remove_unused_columns=False,  # the collator reads the raw rows
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    return AdaptiveLRTrainer(
        model=parts.model,
        args=args,
        controller=controller,
        train_dataset=data.train,
        data_collator=parts.collate,
        processing_class=parts.processor,
        compute_metrics=scored_by(data.problem_type),
        preprocess_logits_for_metrics=kept_answers(data.problem_type),
    )
