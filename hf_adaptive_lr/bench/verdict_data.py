"""The paper study's data as tensors: four disjoint parts, loaded once per process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..demo import data as demo_data
from ..demo.data import DemoDataError, demo_image, demo_text, demo_text_model
from .verdict_tasks import DataName, Task

TOKENS = 32
"""Length to which texts are cut or padded."""
CLASSES: dict[DataName, int] = {"fashion-mnist": 10, "mnist-5000": 10, "digits": 10, "20newsgroups": 20}

Batch = dict[str, Tensor]


class Rows(Dataset[Batch]):
    """Rows of tensors: `labels`, and arguments of the model."""

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, row: int) -> Batch:
        return {name: column[row] for name, column in self.columns.items()}

    def part(self, first: int, size: int) -> Rows:
        """`size` rows from row `first` on."""
        return Rows({name: column[first : first + size] for name, column in self.columns.items()})


def collate(rows: list[Batch]) -> Batch:
    """A batch of rows."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class Parts:
    """The four parts of a task's data."""

    train: Rows
    valid: Rows
    controller: Rows
    test: Rows


def load(task: Task) -> Parts:
    """The data of a task; kept in memory once it was asked for."""
    sizes = (task.train_rows, task.valid_rows, task.controller_rows, task.test_rows)
    return _load(task.data, sizes, task.label_noise)


@cache
def _load(data: DataName, sizes: tuple[int, int, int, int], label_noise: float) -> Parts:
    train, valid, controller, test = sizes
    read = {"fashion-mnist": fashion, "mnist-5000": _mnist, "digits": _digits, "20newsgroups": newsgroups}[data]
    pool, held_out = read(train + valid + controller, test)
    assert (len(pool), len(held_out)) == (train + valid + controller, test)
    rows = pool.part(0, train)
    if label_noise:
        rows = Rows({**rows.columns, "labels": corrupt(rows.columns["labels"], label_noise, CLASSES[data])})
    return Parts(rows, pool.part(train, valid), pool.part(train + valid, controller), held_out)


def corrupt(labels: Tensor, share: float, classes: int) -> Tensor:
    """Labels of which a share, drawn with a fixed seed, is replaced by uniform draws from all classes."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(classes, labels.shape, generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < share, drawn, labels)


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


def _mnist(pool: int, test: int) -> tuple[Rows, Rows]:
    (images, labels), (test_images, test_labels) = demo_data.read_mnist()  # also where Fashion-MNIST is installed
    return _images(images[:pool], labels[:pool]), _images(test_images[:test], test_labels[:test])


def _digits(pool: int, test: int) -> tuple[Rows, Rows]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DemoDataError("The digits are missing. Get them with: pip install scikit-learn") from error
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    columns = {"pixel_values": torch.from_numpy(pixels).float()[order] / 16, "labels": torch.from_numpy(labels)[order]}
    rows = Rows(columns)
    return rows.part(test, pool), rows.part(0, test)


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
