"""Fine-tunes a text or image classifier with an adaptive learning rate, from settings to results.

Everything that can be wrong with the request is found before anything is written; `results.json` is written last, so
its presence says that the other outputs are whole. A run that was killed continues from its last whole checkpoint and
ends in the same numbers as one that was not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..artifacts import STATE_NAME
from .config import FinetuneConfig, check, last_checkpoint, prepare_folder
from .data import JobData, load_data
from .errors import FinetuneError
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
    controller = check(config)
    data = load_data(config.source, config.wanted)

    from transformers import TrainerState, set_seed

    from .model import load_parts, one_bar

    checkpoint = last_checkpoint(config.folder) if config.resume else None
    state = TrainerState.load_from_json(str(checkpoint / STATE_NAME)) if checkpoint else TrainerState()
    trained = state.global_step >= (config.max_steps or 0)
    set_seed(config.seed)
    start = str(checkpoint) if trained else config.model
    parts = load_parts(config.task, start, data.labels, config.max_length, data.problem_type)
    trainer = _trainer(config, controller, data, parts)
    if trainer.is_world_process_zero():
        prepare_folder(config)
    with one_bar(trainer):
        if trained:  # killed after its last update; Trainer would do one more
            trainer.state = state
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        scores = trainer.evaluate(data.report, metric_key_prefix="report")
        results = collect(config, controller, data, parts, trainer, scores)
        results["wall_seconds"] = round(time.perf_counter() - started, 1)
        if trainer.is_world_process_zero():
            write_outputs(config.folder, results, parts, trainer.state.log_history)
    return results


def _trainer(config: FinetuneConfig, controller: Controller, data: JobData, parts: Parts) -> AdaptiveLRTrainer:
    import torch

    from ..trainer.arguments import AdaptiveLRTrainingArguments
    from ..trainer.mixin import AdaptiveLRTrainer
    from .metrics import kept_answers, scored_by

    assert config.max_steps and config.batch_size  # `resolved` set them
    optim: dict[str, Any] = {"optim": "sgd"} if config.optimizer == "sgd" else {}
    args = AdaptiveLRTrainingArguments(
        output_dir=str(config.folder),
        learning_rate=config.base_lr,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=4 * config.batch_size,
        seed=config.seed,
        warmup_steps=config.warmup_steps or 0,
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
