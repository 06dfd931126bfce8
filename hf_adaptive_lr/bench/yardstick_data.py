"""Data and models of the yardstick's real tasks, as functions of the task and the seed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, set_seed

from .. import demo_data
from ..demo_data import DemoDataError, demo_image, demo_text, demo_text_model
from .trouble_tasks import _prepared, _vit
from .verdict_data import TOKENS, Parts, Rows, _images
from .verdict_models import _cnn, _minilm3, _resnet
from .yardstick_tasks import RealTask

_INIT_STD = 0.1  # about one over the root of the width, as in the guard's benchmark


@cache
def load(task: RealTask) -> Parts:
    """The data of a task; kept in memory once it was asked for.

    Raises:
        DemoDataError: the data cannot be had here; the message ends with the command to get it.
    """
    sizes = (task.train_rows, task.valid_rows, task.controller_rows)
    read = {"20newsgroups": _text, "fashion-mnist": _fashion, "mnist-5000": _mnist}[task.data]
    pool, test = read(sum(sizes), task.test_rows, task.split_seed)
    parts, first = [], 0
    for size in sizes:
        parts.append(_topics(pool.part(first, size), task))
        first += size
    return Parts(parts[0], parts[1], parts[2], _topics(test, task))


def build_model(task: RealTask, seed: int) -> nn.Module:
    """The task's model with its first weights; sets all global seeds on the way.

    Args:
        task: which model.
        seed: of the first weights; of a pretrained model, those of the head.

    Raises:
        DemoDataError: the text model is not installed.
    """
    set_seed(seed)
    if task.model == "vit":
        return _vit(task.classes, _INIT_STD)
    makers = {"minilm3": _whole, "minilm3-lora": _lora, "bert": _bert, "resnet": _resnet, "cnn": _cnn}
    return makers[task.model](task.classes)


def _topics(rows: Rows, task: RealTask) -> Rows:
    return _prepared(rows, task.topics) if task.topics or task.model == "vit" else rows


def _text(pool: int, test: int, seed: int) -> tuple[Rows, Rows]:
    from transformers import AutoTokenizer

    found = demo_text(seed=seed, train_size=pool, test_size=test)
    tokenizer = AutoTokenizer.from_pretrained(str(demo_text_model()))

    def rows(split: Any) -> Rows:
        tokens = tokenizer(
            list(split["text"]), truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt"
        )
        columns = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return Rows({**columns, "labels": torch.tensor(list(split["label"]))})

    return rows(found.train), rows(found.test)


def _fashion(pool: int, test: int, seed: int) -> tuple[Rows, Rows]:
    found = demo_image(seed=seed, train_size=pool, test_size=test)
    if found.name != "fashion-mnist":
        command = demo_data._FASHION_MNIST_INSTALL
        raise DemoDataError(f"This task is on Fashion-MNIST, which is missing. Get it with: {command}")
    train, held_out = (
        _images(np.stack([np.asarray(image) for image in split["image"]]), split["label"])
        for split in (found.train, found.test)
    )
    return train, held_out


def _mnist(pool: int, test: int, seed: int) -> tuple[Rows, Rows]:
    parts = []
    for (images, labels), size in zip(demo_data._read_mnist(), (pool, test), strict=True):
        order = np.random.default_rng(seed).permutation(len(labels))[:size]
        parts.append(_images(np.asarray(images)[order], np.asarray(labels)[order]))
    return parts[0], parts[1]


def _whole(classes: int) -> nn.Module:
    model: Any = _minilm3(classes)
    # The head's usual 0.02 leaves the encoder where it is for a third of so short a run.
    nn.init.normal_(model.classifier.weight, std=0.2)
    module: nn.Module = model
    return module


def _lora(classes: int) -> nn.Module:
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise DemoDataError("The LoRA task needs peft. Get it with: pip install peft") from error
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
    model: nn.Module = get_peft_model(_whole(classes), config)
    return model


def _bert(classes: int) -> nn.Module:
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=TOKENS,
        initializer_range=_INIT_STD,
        num_labels=classes,  # type: ignore[call-arg]
    )
    return BertForSequenceClassification(config)
