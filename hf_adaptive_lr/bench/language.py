"""Models over bytes that we train ourselves before they are tuned: a causal one, and an encoder of masked bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, set_seed

from ..artifacts import replace_file
from ..demo.data import cache_folder
from .data import IGNORED, load
from .encode import BREAK, MASK, START
from .rows import digest
from .tasks import Task

TOKENS = 32
"""Bytes that these models read at once, at most."""
_MASKED = 0.15
_UPDATES, _BATCH, _PEAK = 2000, 32, 2e-3


def bytes_gpt2(task: Task) -> nn.Module:
    """A GPT-2 of two layers of width 96."""
    config = GPT2Config(
        vocab_size=256,
        n_positions=TOKENS,
        n_embd=96,
        n_layer=2,
        n_head=4,
        bos_token_id=START,
        eos_token_id=BREAK,
    )
    model: Any = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # what it takes anyway, with a warning
    built: nn.Module = model
    return built


def bytes_bert(width: int, tokens: int, labels: int, **more: Any) -> BertConfig:
    """Of a BERT of two layers over bytes."""
    return BertConfig(
        vocab_size=256,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=tokens,
        num_labels=labels,  # type: ignore[call-arg]
        **more,
    )


def tuned_gpt2(text: str) -> Callable[[Task], nn.Module]:
    """The GPT-2 with the weights that it has after training on a text of the same suite."""

    def build(task: Task) -> nn.Module:
        model = bytes_gpt2(task)
        model.load_state_dict(_trained(text, "bytes-gpt2"))
        return model

    return build


def tuned_bert(text: str, head: Any, labels: int) -> nn.Module:
    """A BERT of width 96 after training on masked bytes of a text of the same suite; `head` is a class, drawn anew."""
    model: Any = head(bytes_bert(96, TOKENS, labels))
    found = model.load_state_dict(_trained(text, "bytes-bert-"), strict=False)
    # The pooler was not trained before, as in BERT without its second task.
    assert all(name.startswith(("bert.pooler", "classifier")) for name in found.missing_keys)
    built: nn.Module = model
    return built


def _task(text: str, model: str) -> Task:
    return Task(
        name=f"pretrain {model} {text}",
        suite="pretraining",
        data=text,
        model=model,
        objective="language",
        kind="scratch",
        batch_size=_BATCH,
        updates=_UPDATES,
        train_rows=20000,
        valid_rows=200,
        controller_rows=1,
        test_rows=1,
        tokens=TOKENS,
        lr=_PEAK,
    )


@cache
def _trained(text: str, model: str) -> dict[str, Tensor]:
    """Weights out of the cache folder; the first call on a machine trains them, for a minute or two."""
    task = _task(text, model)
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
    causal = task.model == "bytes-gpt2"
    model: Any = bytes_gpt2(task) if causal else BertForMaskedLM(bytes_bert(96, TOKENS, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.lr, total_steps=task.updates, pct_start=0.06)
    generator = torch.Generator().manual_seed(0)
    for _ in range(task.updates):
        ids = rows[torch.randint(len(rows), (task.batch_size,), generator=generator)]
        inputs, labels = (ids, ids) if causal else _masked(ids, generator)
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    weights: dict[str, Tensor] = model.state_dict()
    # The masked bytes' decoder is the embeddings once more, which safetensors refuses, and no head of ours.
    return {name: weight.clone() for name, weight in weights.items() if not name.startswith("cls.")}


def _masked(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows whose bytes are masked here and there, and the bytes that were there."""
    chosen = torch.rand(ids.shape, generator=generator) < _MASKED
    return ids.masked_fill(chosen, MASK), ids.masked_fill(~chosen, IGNORED)
