"""The same training run through each of the five integrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed

from hf_adaptive_lr import AdaptiveLRCallback, AdaptiveLRTrainer, AdaptiveLRTrainingArguments, ControlledLR, Controller
from tests.tiny import Tokens, bert

STEPS, BATCH, LR = 6, 8, 1e-2

Result = tuple[list[float], torch.Tensor]


def arguments(folder: Path, cls: type[TrainingArguments] = TrainingArguments, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch",
        "weight_decay": 0.01,
        "seed": 3,
    }
    return cls(**(settings | changes))


def optimizer_for(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW with the two groups that Trainer makes."""
    decay = [p for n, p in model.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    rest = [p for n, p in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LR)


def subclassed(controller: Controller, folder: Path, **changes: Any) -> tuple[AdaptiveLRTrainer, Result]:
    model = bert()
    args = arguments(folder, AdaptiveLRTrainingArguments, **changes)
    trainer = AdaptiveLRTrainer(model=model, args=args, train_dataset=Tokens(), controller=controller)
    trainer.train()
    return trainer, (trainer.lr_scheduler.lr_history(), _flat(model))


def passed_to_trainer(
    controller: Controller, folder: Path, *, tell: bool = False, **changes: Any
) -> tuple[Trainer, Result]:
    model = bert()
    args = arguments(folder, **changes)
    optimizer = optimizer_for(model)
    told = args.max_grad_norm if args.max_grad_norm == 0 or tell else None
    scheduler = ControlledLR(optimizer, controller, model=model, total_steps=STEPS, max_grad_norm=told)
    trainer = Trainer(model=model, args=args, train_dataset=Tokens(), optimizers=(optimizer, scheduler))
    trainer.train()
    return trainer, (scheduler.lr_history(), _flat(model))


def called_back(controller: Controller, folder: Path, **changes: Any) -> tuple[Trainer, Result]:
    model = bert()
    callback = AdaptiveLRCallback(controller)
    trainer = Trainer(model=model, args=arguments(folder, **changes), train_dataset=Tokens(), callbacks=[callback])
    trainer.train()
    assert callback.scheduler is not None
    return trainer, (callback.scheduler.lr_history(), _flat(model))


def accelerated(controller: Controller, *, clip: float = 0.0, accumulation: int = 1) -> Result:
    set_seed(3)
    model = bert()
    optimizer = optimizer_for(model)
    scheduler = ControlledLR(optimizer, controller, model=model, total_steps=STEPS, max_grad_norm=clip)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    loader: Any = DataLoader(Tokens(), batch_size=BATCH)
    inner = scheduler
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    set_seed(3)
    model.train()
    while inner.updates < STEPS:
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if clip and accelerator.sync_gradients:
                    inner.observe(grad_norm=accelerator.clip_grad_norm_(model.parameters(), clip))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if inner.updates == STEPS:
                break
    return inner.lr_history(), _flat(model)


def plain(controller: Controller, *, clip: float = 0.0, hook: bool = True, every: int = 1) -> Result:
    set_seed(3)
    model = bert()
    optimizer = optimizer_for(model)
    scheduler = ControlledLR(
        optimizer, controller, model=model, hook=hook, total_steps=STEPS, max_grad_norm=clip, every=every
    )
    set_seed(3)
    model.train()
    while scheduler.updates < STEPS:
        for batch in DataLoader(Tokens(), batch_size=BATCH):
            if not hook:
                scheduler.before_forward(lambda batch=batch: model(**batch).loss)
            loss = model(**batch).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip) if clip else None
            scheduler.observe(loss=None if hook else loss, grad_norm=norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if scheduler.updates == STEPS:
                break
    return scheduler.lr_history(), _flat(model)


def _flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])
