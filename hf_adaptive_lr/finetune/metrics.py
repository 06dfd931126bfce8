"""Scores of the rows that a job reports on, by what it predicts: classes, several labels, or numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor
from transformers import EvalPrediction

from .labels import CLASSES, NUMBER, SEVERAL

METRICS = {
    CLASSES: ("accuracy", "macro_f1"),
    SEVERAL: ("accuracy", "macro_f1"),
    NUMBER: ("mae", "rmse", "r2"),
}
"""Names of the scores of each kind of job."""

Array = np.ndarray[Any, np.dtype[Any]]


def kept_answers(problem_type: str) -> Callable[[Any, Tensor], Tensor]:
    """The function that makes of a batch's logits what the scores are made of, which is all that evaluation keeps."""

    def kept(logits: Any, labels: Tensor) -> Tensor:
        del labels
        found: Tensor = logits[0] if isinstance(logits, tuple) else logits
        if problem_type == CLASSES:
            return found.argmax(-1)
        return (found > 0).long() if problem_type == SEVERAL else found.squeeze(-1)

    return kept


def scored_by(problem_type: str) -> Callable[[EvalPrediction], dict[str, float]]:
    """The function that scores what `kept_answers` kept.

    Classes have `accuracy` and `macro_f1`, both in [0, 1]; of several labels a row is right when all its labels are.
    Numbers have `mae` and `rmse` in their unit, and `r2`: at most 1, 0 for what is no better than the mean.
    """

    def scored(prediction: EvalPrediction) -> dict[str, float]:
        given, true = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if problem_type == NUMBER:
            return _of_numbers(given.astype("float64"), true.astype("float64"))
        right = given == true
        return {
            "accuracy": float((right.all(-1) if right.ndim > 1 else right).mean()),
            "macro_f1": macro_f1(given, true),
        }

    return scored


def macro_f1(given: Array, true: Array) -> float:
    """Mean of the F1 scores of the labels that rows or answers have, in [0, 1]: every label counts alike.

    Args:
        given: answers; class numbers of shape (rows,), or zeros and ones of shape (rows, labels).
        true: the labels, of the same shape.

    Example:
        >>> macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]))
        0.6666666666666666
    """
    if given.ndim == 1:
        classes = np.union1d(given, true)
        given, true = (column[:, None] == classes for column in (given, true))
    given, true = given.astype(bool), true.astype(bool)
    found = (given.sum(0) + true.sum(0)).astype("float64")
    there = found > 0
    hits: Array = (given & true).sum(0)
    return float((2 * hits[there] / found[there]).mean()) if there.any() else 1.0


def _of_numbers(given: Array, true: Array) -> dict[str, float]:
    squared = float(((given - true) ** 2).mean())
    spread = float(true.var())
    return {
        "mae": float(np.abs(given - true).mean()),
        "rmse": squared**0.5,
        "r2": 1 - squared / spread if spread > 0 else float("nan"),
    }
