"""The controller's own data: a held-out share of the training set, and extra batches beside training's own.

Batch number i is the same whenever it is asked for, so nothing has to be remembered to resume a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset


class ExtraBatches:
    """Random batches of a map-style data set, each a pure function of its number.

    Args:
        dataset: has a length and gives rows by index.
        collate: makes a batch from a list of rows.
        batch_size: rows per batch, drawn with replacement; at least 1.
        seed: of the draws; give each use and each rank its own.

    Raises:
        ValueError: the data set has no length (a stream), or is empty.

    Example:
        >>> batches = ExtraBatches(range(100), torch.tensor, batch_size=4, seed=0)
        >>> bool((batches(7) == batches(7)).all()), bool((batches(7) == batches(8)).all())
        (True, False)
    """

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any], batch_size: int, seed: int | tuple[int, ...]
    ) -> None:
        if not hasattr(dataset, "__len__") or not len(dataset):
            raise ValueError(
                "the controller needs batches beside training's own, and the data set has no length; pass a map-style "
                "data set with at least one row"
            )
        self._dataset, self._collate, self._batch_size = dataset, collate, batch_size
        self._seed = (seed,) if isinstance(seed, int) else seed

    def __call__(self, number: int) -> Any:
        """Batch `number`, collated, on the CPU."""
        entropy = np.random.SeedSequence((*self._seed, number)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0]))
        rows = torch.randint(len(self._dataset), (self._batch_size,), generator=generator).tolist()
        return self._collate([self._dataset[row] for row in rows])


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
