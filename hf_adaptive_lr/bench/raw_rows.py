"""Rows of a data set before they become tensors, and how those without a split of their own are divided."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

TEST_SHARE = 0.3


@dataclass(frozen=True)
class Raw:
    """Inputs and labels of rows.

    `inputs` are texts, pairs of texts, lists of words, arrays of pixels (height, width[, 3]) in uint8, or vectors;
    `labels` are classes, numbers or, for words, lists of classes. Rows of one group never stand in two parts of a
    task. `ordered` rows come in an order in which every prefix has the class shares of the whole.
    """

    inputs: Sequence[Any] | NDArray[Any]
    labels: Sequence[Any]
    groups: Sequence[str] = field(default=())
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, numbers: Sequence[int]) -> Raw:
        """The rows of these numbers, in this order."""
        groups = [self.groups[n] for n in numbers] if self.groups else ()
        return Raw([self.inputs[n] for n in numbers], [self.labels[n] for n in numbers], groups)


def unique(raw: Raw) -> Raw:
    """Without rows whose input stands further up, whatever its label: no test row is then a training row as well."""
    seen: set[Any] = set()
    kept = []
    for number, value in enumerate(raw.inputs):
        text = "\n".join(value) if isinstance(value, (tuple, list)) else value
        key = " ".join(text.lower().split()) if isinstance(text, str) else text.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(number)
    return raw.rows(kept)


def divided(raw: Raw) -> tuple[Raw, Raw]:
    """Pool and test rows of a set without a split of its own, the same in every task; a group is in one of them."""
    raw = unique(raw)
    names = raw.groups or [_name(value) for value in raw.inputs]
    pool: list[int] = []
    test: list[int] = []
    for number, name in enumerate(names):
        draw = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
        (test if draw < TEST_SHARE else pool).append(number)
    return raw.rows(pool), raw.rows(test)


def _name(value: Any) -> str:
    return (
        "\n".join(value)
        if isinstance(value, (tuple, list))
        else value
        if isinstance(value, str)
        else str(value.tolist())
    )
