"""Data and models of the older benchmark, as they were; this file goes with it."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from ..demo import data as demo_data
from ..demo.data import DemoDataError, demo_image, demo_text, demo_text_model
from ..demo.image_model import no_bars, no_report
from .data import Rows
from .plain_nets import Classifier

TOKENS = 32
"""Length to which texts are cut or padded."""


def _images(pixels: Any, labels: Any) -> Rows:
    scaled = torch.from_numpy(np.array(pixels, dtype=np.float32)).unsqueeze(1) / 255
    return Rows({"pixel_values": scaled, "labels": torch.tensor(labels)})


def fashion(pool: int, test: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows for training and rows of the test set; the seed chooses them."""
    found = demo_image(seed=seed, train_size=pool, test_size=test)
    if found.name != "fashion-mnist":
        raise DemoDataError(
            f"This task is on Fashion-MNIST, which is missing. Get it with: {demo_data.FASHION_MNIST_INSTALL}"
        )
    train, held_out = (
        _images(np.stack([np.asarray(image) for image in split["image"]]), split["label"])
        for split in (found.train, found.test)
    )
    return train, held_out


def newsgroups(pool: int, test: int, seed: int = 0) -> tuple[Rows, Rows]:
    """Rows for training and rows of the test set, texts as tokens; the seed chooses them."""
    from transformers import AutoTokenizer

    found = demo_text(seed=seed, train_size=pool, test_size=test)
    tokenizer = AutoTokenizer.from_pretrained(str(demo_text_model()))

    def rows(split: Any) -> Rows:
        texts = list(split["text"])
        tokens = tokenizer(texts, truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt")
        columns = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return Rows({**columns, "labels": torch.tensor(list(split["label"]))})

    return rows(found.train), rows(found.test)


def _cnn(classes: int) -> nn.Module:
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return Classifier(nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 7 * 7, classes)), classes)


def _resnet(classes: int) -> nn.Module:
    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=classes,  # type: ignore[call-arg]
    )
    return ResNetForImageClassification(config)


def _minilm3(classes: int) -> nn.Module:
    """The first three layers of MiniLM with a head whose weights are random; the embeddings are frozen."""
    model = copy.deepcopy(_pretrained(classes))
    nn.init.normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    for weight in model.bert.embeddings.parameters():
        weight.requires_grad_(False)
    return model


@lru_cache(maxsize=2)
def _pretrained(classes: int, layers: int = 3) -> BertForSequenceClassification:
    with no_bars(), no_report(), torch.random.fork_rng(devices=[]):
        return BertForSequenceClassification.from_pretrained(
            str(demo_text_model()), num_hidden_layers=layers, num_labels=classes, dtype=torch.float32
        )


def _prepared(rows: Rows, topics: tuple[tuple[int, ...], ...]) -> Rows:
    """Pixels between -1 and 1, as ViT's processor has them; of texts the rows of these topics, labelled by topic."""
    if not topics:
        return Rows({**rows.columns, "pixel_values": rows.columns["pixel_values"] * 2.0 - 1.0})
    topic = torch.full((1 + int(rows.columns["labels"].max()),), -1)
    for number, labels in enumerate(topics):
        topic[[label for label in labels if label < len(topic)]] = number
    columns = {**rows.columns, "labels": topic[rows.columns["labels"]]}
    kept = columns["labels"] >= 0
    return Rows({name: column[kept] for name, column in columns.items()})


def _vit(classes: int, init_std: float) -> nn.Module:
    config = ViTConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        initializer_range=init_std,
        num_labels=classes,  # type: ignore[call-arg]
    )
    return ViTForImageClassification(config)
