"""Causal language models over bytes: from scratch, and first trained by us on another text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, set_seed

from ..artifacts import replace_file
from ..demo.data import cache_folder
from .data import classes, load
from .encode import BREAK, START
from .rows import digest
from .tasks import Task

TOKENS = 32
"""Bytes that these models read at once, at most."""
_UPDATES, _BATCH, _PEAK = 2000, 32, 2e-3


def bytes_gpt2(task: Task) -> nn.Module:
    """A GPT-2 of two layers of width 96."""
    model: Any = GPT2LMHeadModel(_config())
    model.loss_type = "ForCausalLM"  # what it takes anyway, with a warning
    built: nn.Module = model
    return built


def _config(**more: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=256,
        n_positions=TOKENS,
        n_embd=96,
        n_layer=2,
        n_head=4,
        bos_token_id=START,
        eos_token_id=BREAK,
        **more,
    )


def tuned_gpt2(text: str) -> Callable[[Task], nn.Module]:
    """The same after training on a development text, whole; to tell classes with a new head."""

    def build(task: Task) -> nn.Module:
        if task.objective == "language":
            model = bytes_gpt2(task)
            model.load_state_dict(_trained(text))
            return model
        classifier: Any = GPT2ForSequenceClassification(_config(num_labels=classes(task), pad_token_id=0))
        body = {name: weight for name, weight in _trained(text).items() if name.startswith("transformer.")}
        assert classifier.load_state_dict(body, strict=False).missing_keys == ["score.weight"]
        built: nn.Module = classifier
        return built

    return build


def _task(text: str) -> Task:
    return Task(
        name=f"pretrain {text}",
        suite="pretraining",
        data=text,
        model="bytes-gpt2",
        objective="language",
        kind="scratch",
        batch_size=_BATCH,
        updates=_UPDATES,
        train_rows=15000,
        valid_rows=200,
        controller_rows=1,
        test_rows=1,
        tokens=TOKENS,
        lr=_PEAK,
    )


@cache
def _trained(text: str) -> dict[str, Tensor]:
    """Weights out of the cache folder; the first call on a machine trains them, for a minute and a half."""
    task = _task(text)
    file = cache_folder() / "bench" / f"weights-{digest(task.spec() | {'lr': task.lr})}.safetensors"
    if not file.exists():
        with torch.random.fork_rng(devices=[]):
            weights = _train(task)
        replace_file(file, lambda draft: save_file(weights, draft))
    found: dict[str, Tensor] = load_file(file)
    return found


def _train(task: Task) -> dict[str, Tensor]:
    set_seed(0)
    rows = load(task).train.columns["input_ids"]
    model = bytes_gpt2(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.lr, total_steps=task.updates, pct_start=0.06)
    generator = torch.Generator().manual_seed(0)
    for _ in range(task.updates):
        ids = rows[torch.randint(len(rows), (task.batch_size,), generator=generator)]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return {name: weight.clone() for name, weight in model.state_dict().items()}
