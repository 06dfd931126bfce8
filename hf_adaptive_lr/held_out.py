"""The controller's own data: a seeded part of the training set that is not trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset, Subset


def hold_out(dataset: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Split a map-style data set in two, at random but always alike for one seed.

    Args:
        dataset: `datasets.Dataset` or any data set with a length.
        share: part for the controller, in (0, 0.5]; at least one example.
        seed: seed of the permutation.

    Returns:
        What is left for training, and the controller's part, of the same type where the data set has `select`.

    Raises:
        ValueError: the data set has no length (a stream), or fewer than two examples.
    """
    if dataset is None or not hasattr(dataset, "__len__"):
        raise ValueError(
            "the controller needs evaluation losses and the training set has no length; pass controller_dataset="
        )
    size = len(dataset)
    if size < 2:
        raise ValueError(f"a training set of {size} cannot be split; pass controller_dataset=")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, int(size * share))
    held, left = sorted(order[:count]), sorted(order[count:])
    if hasattr(dataset, "select"):
        return dataset.select(left), dataset.select(held)
    base: Dataset[Any] = dataset
    return Subset(base, left), Subset(base, held)
