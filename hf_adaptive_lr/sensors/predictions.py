"""Sensors that look into a classification model: its class probabilities and, from `weights.py`, its last matrices.

Xu et al. 2019 (arXiv:1909.09712) observe both. They work for any model whose output carries `logits` of shape (batch,
classes), as the classification models of transformers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import Shards
from .start import pretrained_share, usual_lr
from .weights import WEIGHT_FIELDS, measure_weights

PREDICTION_FIELDS = ("prediction_variance", "prediction_change")
LOGIT_FIELDS = frozenset({"classes", *PREDICTION_FIELDS})
"""Fields for which the model's outputs have to be seen."""
_UNIFORM_VARIANCE = 1 / 12  # of numbers drawn evenly from [0, 1)


def find_logits(output: Any) -> Tensor | None:
    """The logits of a model's output, or None where it has none."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple) and len(output) > 1:
        logits = output[1]
    return logits if isinstance(logits, Tensor) else None


def class_count(model: nn.Module | None, logits: Tensor | None) -> int | None:
    """Number of classes by the model's config, or else by its logits; None when neither says."""
    named = getattr(getattr(model, "config", None), "num_labels", None)
    if isinstance(named, int) and named >= 2:
        return named
    return int(logits.shape[-1]) if logits is not None and logits.shape[-1] >= 2 else None


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities (batch, classes) in float32, out of the graph; ValueError for logits of another shape."""
    if logits.ndim != 2 or logits.shape[-1] < 2:
        raise ValueError(
            f"the controller looks at the predictions of a classifier, and the logits have shape "
            f"{tuple(logits.shape)}; it needs (batch, classes) with at least 2 classes"
        )
    return logits.detach().float().softmax(-1)


def prediction_change(now: Tensor, before: Tensor | None) -> Tensor:
    """Variance of the difference of two (batch, classes) probabilities, row by row as far as both go.

    At the first decision there is none before: then as if it had been uniform noise.
    """
    if before is None:
        return now.var(correction=0) + _UNIFORM_VARIANCE
    rows = min(len(now), len(before))
    return (now[:rows] - before[:rows].to(now.device)).var(correction=0)


class ModelSensors:
    """Measures the fields of one live run that look into its model."""

    def __init__(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        self._optimizer, self._model = optimizer, model
        self.logits: Tensor | None = None
        self.before: Tensor | None = None
        self.pretrained: tuple[float, int] | None = None  # and the number of trained weights that it was measured with

    def measure(self, wanted: frozenset[str], shards: Shards | None, *, first_rank: bool) -> dict[str, Tensor]:
        """The wanted fields, 0-d, no host sync; ValueError where model and outputs do not have what a field takes.

        Predictions are rank 0's alone, and 0 on the others, because a checkpoint keeps rank 0's for the next decision.
        Where weights are sharded `pretrained` gathers them, one by one.
        """
        values: dict[str, Tensor] = {}
        if "classes" in wanted:
            values["classes"] = torch.tensor(float(self._classes()), dtype=torch.float64)
        if wanted & set(PREDICTION_FIELDS):
            values |= {name: value * float(first_rank) for name, value in self._predictions().items()}
        if "pretrained" in wanted:
            values["pretrained"] = torch.tensor(self._pretrained(shards), dtype=torch.float64)
        if "usual_lr" in wanted:
            values["usual_lr"] = torch.tensor(usual_lr(self._optimizer, self._model, shards), dtype=torch.float64)
        if wanted & set(WEIGHT_FIELDS):
            values |= measure_weights(self._optimizer, self._model)
        return {name: value for name, value in values.items() if name in wanted}

    def _pretrained(self, shards: Shards | None) -> float:
        """Measured when it is first asked for, and again where other weights are trained than then."""
        params = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        trained = sum(p.numel() if shards is None else shards.numel(p) for p in params)
        if self.pretrained is None or self.pretrained[1] != trained:
            self.pretrained = pretrained_share(params if shards is None else shards.whole(params)), trained
        return self.pretrained[0]

    def _classes(self) -> int:
        count = class_count(self._model, self.logits)
        if count is None:
            raise ValueError(
                "the controller needs the number of classes, and neither the model's config (num_labels) nor its "
                "logits say it; give model= to ControlledLR, call observe(logits=...), or set the controller's "
                "classes="
            )
        return count

    def _predictions(self) -> dict[str, Tensor]:
        if self.logits is None:
            raise ValueError(
                "the controller looks at the model's predictions and none were seen: the model returns no logits. "
                "Give model= to ControlledLR, or call observe(logits=...)"
            )
        now, before = probabilities(self.logits), self.before
        self.before = now
        return {"prediction_variance": now.var(correction=0), "prediction_change": prediction_change(now, before)}
