"""Data and models of the benchmark's real tasks, as functions of the task and the seed.

What cannot be had here raises `DemoDataError`; its message ends with the command to get it.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, EfficientNetForImageClassification, set_seed

from ..demo import data as demo_data
from ..demo.data import DemoDataError
from ..demo.image_model import demo_image_model, no_bars
from .data import Parts, Rows
from .plain_nets import Classifier
from .yardstick_former import (
    TOKENS,
    _cnn,
    _images,
    _minilm3,
    _prepared,
    _pretrained,
    _resnet,
    _vit,
    fashion,
    newsgroups,
)
from .yardstick_tasks import RealTask

_INIT_STD = 0.1  # about one over the root of the width, as in the guard's benchmark
_FROZEN_BLOCKS = 11  # of EfficientNet's 16: most of its work, and a fifth of its weights
_SIDE = 64  # of the pictures that EfficientNet sees; it halves them five times
_AT_ONCE = 50  # pictures, for the sake of memory


@cache
def load(task: RealTask) -> Parts:
    """The data of a task; kept in memory once it was asked for."""
    sizes = (task.train_rows, task.valid_rows, task.controller_rows)
    read = {"20newsgroups": newsgroups, "fashion-mnist": fashion, "mnist-5000": _mnist}[task.data]
    pool, test = read(sum(sizes), task.test_rows, task.split_seed)
    parts, first = [], 0
    for size in sizes:
        parts.append(_topics(pool.part(first, size), task))
        first += size
    return Parts(parts[0], parts[1], parts[2], _topics(test, task), 0.0, 0.0)


def build_model(task: RealTask, seed: int) -> nn.Module:
    """The task's model; the seed is of first weights, a pretrained one's head, and all global generators."""
    set_seed(seed)
    name = task.model.removesuffix("-lora")
    if name == "vit":
        return _vit(task.classes, _INIT_STD)
    makers = {
        "minilm3": _three_layers,
        "minilm6": _six_layers,
        "bert": _bert,
        "resnet": _resnet,
        "cnn": _cnn,
        "efficientnet": _late_stages,
    }
    model = makers[name](task.classes)
    return model if name == task.model else adapted(model)


def _topics(rows: Rows, task: RealTask) -> Rows:
    if task.model == "efficientnet":
        return _early_stages(rows)
    return _prepared(rows, task.topics) if task.topics or task.model == "vit" else rows


def _mnist(pool: int, test: int, seed: int) -> tuple[Rows, Rows]:
    parts = []
    for (images, labels), size in zip(demo_data.read_mnist(), (pool, test), strict=True):
        order = np.random.default_rng(seed).permutation(len(labels))[:size]
        parts.append(_images(np.asarray(images)[order], np.asarray(labels)[order]))
    return parts[0], parts[1]


def _three_layers(classes: int) -> nn.Module:
    model = _minilm3(classes)
    head: Any = model.classifier
    # The head's usual 0.02 leaves the encoder where it is for a third of so short a run.
    nn.init.normal_(head.weight, std=0.2)
    return model


def _six_layers(classes: int) -> nn.Module:
    """The text model as it is published, with all its weights trained."""
    model = copy.deepcopy(_pretrained(classes, 6))
    nn.init.normal_(model.classifier.weight, std=0.2)
    nn.init.zeros_(model.classifier.bias)
    return model


def adapted(whole: nn.Module) -> nn.Module:
    """A text model with LoRA of rank 8 at queries and values, and the head trained."""
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise DemoDataError("The LoRA task needs peft. Get it with: pip install peft") from error
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
    model: nn.Module = get_peft_model(whole, config)
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


def _late_stages(classes: int) -> nn.Module:
    """What of EfficientNet is trained: its last five blocks and a fresh head, on what `_early_stages` gives."""
    model: Any = copy.deepcopy(_efficientnet())
    encoder = model.efficientnet.encoder
    top = [encoder.top_conv, encoder.top_bn, encoder.top_activation, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    head = [model.dropout, nn.Linear(model.config.hidden_dim, classes)]
    blocks = encoder.blocks[_FROZEN_BLOCKS:]
    for block in blocks:
        block.squeeze_excite.requires_grad_(False)  # not a part of this net: always one
    return Classifier(nn.Sequential(*blocks, *top, *head), classes)


def _early_stages(rows: Rows) -> Rows:
    """The rows with, in place of pixels, what the frozen blocks make of them: (rows, 112, 4, 4).

    They would make the same of a row at every update: it is done once for all runs.
    """
    model: Any = _efficientnet().efficientnet
    frozen = nn.Sequential(model.embeddings, *model.encoder.blocks[:_FROZEN_BLOCKS])
    with torch.no_grad():
        parts = [frozen(_enlarged(pixels)) for pixels in torch.split(rows.columns["pixel_values"], _AT_ONCE)]
    return Rows({**rows.columns, "pixel_values": torch.cat(parts)})


def _enlarged(pixels: torch.Tensor) -> torch.Tensor:
    """Grey pixels between 0 and 1 as the model was trained to see them: larger, in three colours, -1 to 1."""
    large = nn.functional.interpolate(pixels, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return large.expand(-1, 3, -1, -1) * 2.0 - 1.0


@cache
def _efficientnet() -> EfficientNetForImageClassification:
    """The pretrained model, in evaluation mode: the statistics of the frozen part's norms are not touched."""
    with no_bars(), torch.random.fork_rng(devices=[]):
        # Statistics of ImageNet must be forgotten in 80 updates; at its own momentum of 0.01 half of them would stay.
        model: EfficientNetForImageClassification = EfficientNetForImageClassification.from_pretrained(
            str(demo_image_model()), batch_norm_momentum=0.1, dtype=torch.float32
        )
    model.eval()  # type: ignore[no-untyped-call]
    return model
