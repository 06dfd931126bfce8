"""Base of all classification families: mini-batches per run, the loss, evaluation in pieces, augmentations."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import Split, Task, TaskSpec
from .data import EVAL, Splits
from .layers import Layout, Net, Params, cross_entropy, softmax

Batch = tuple[Tensor, Tensor]
"""Inputs (runs, batch, ...) and labels (runs, batch)."""


class Supervised(Task):
    """Classification by a network. A family sets `net`, `splits` and `start` through `setup`.

    `config` may hold, beside the family's own keys, `batch_size` (default 32), `eval_size` (examples of an evaluation;
    by default all of a split, 256 in most families), `rescale` (largest factor by which a weight tensor is stored too
    large or too small, drawn per run and tensor; default 1: as is) and `loss_scale` (largest factor on or under the
    loss, drawn per run; default 1).
    """

    net: Net
    splits: Splits
    start: Tensor
    """Weights before the first update, (runs, size)."""

    defaults: Mapping[str, Any] = {}
    """The family's own settings and their defaults."""

    piece = 32
    """Examples per forward pass of an evaluation: the activations stay in the cache."""

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        known = {"batch_size": 32, "eval_size": EVAL, "rescale": 1.0, "loss_scale": 1.0, **self.defaults}
        unknown = sorted(set(spec.config) - set(known))
        if unknown:
            raise ValueError(f"{spec.family}: no setting {', '.join(unknown)}; known: {', '.join(known)}")
        self.config = {**known, **spec.config}
        self.batch_size = int(self.config["batch_size"])
        self.setup()
        self.loss_scale = self._factors((self.runs,), float(self.config["loss_scale"]))
        self._shrink: Tensor | None = None
        if self.config["rescale"] != 1.0:
            layout = self.trained_layout()
            factor = layout.spread(self._factors((self.runs, len(layout.sizes)), float(self.config["rescale"])))
            self.start, self._shrink = self.start * factor, 1 / factor

    @abstractmethod
    def setup(self) -> None:
        """Build `net`, `splits` and `start` from `config`, drawing from `generator`."""

    def trained_layout(self) -> Layout:
        """Layout of the weights that are trained."""
        return self.net.layout

    def _factors(self, shape: tuple[int, ...], largest: float) -> Tensor:
        draw = torch.rand(shape, generator=self.generator)
        return torch.exp((2 * draw - 1) * math.log(largest))

    def params(self, weights: Tensor) -> Params:
        """Named weights of the network from what is trained."""
        return self.net.layout.views(self.unscaled(weights))

    def unscaled(self, weights: Tensor) -> Tensor:
        """Weights as the network uses them, from the weights as they are stored."""
        return weights if self._shrink is None else weights * self._shrink

    def init(self) -> Tensor:
        """Weights before the first update, (runs, size)."""
        return self.start.clone()

    def batch(self, split: Split) -> Batch:
        """Examples drawn with replacement, every run its own."""
        examples = self.splits[split]
        rows = torch.randint(len(examples), (self.runs, self.batch_size), generator=self.generator)
        return examples.pick(rows)

    def loss(self, weights: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of every run, times the run's loss scale."""
        inputs, labels = batch
        return self.loss_scale * cross_entropy(self.net(self.params(weights), inputs), labels)

    @torch.no_grad()
    def evaluate(self, weights: Tensor, split: Split) -> Tensor:
        """Loss of every run on the first `eval_size` examples of a split; draws nothing."""
        examples, params = self.splits[split], self.params(weights)
        count = min(len(examples), self.config["eval_size"])
        total = torch.zeros(self.runs)
        for low in range(0, count, self.piece):
            rows = torch.arange(low, min(low + self.piece, count))
            inputs, labels = examples.pick(rows.expand(self.runs, -1))
            total += len(rows) * cross_entropy(self.net(params, inputs), self.relabelled(labels))
        mean: Tensor = self.loss_scale * total / count
        return mean

    def relabelled(self, labels: Tensor) -> Tensor:
        """Labels as they are now; families whose task changes override it."""
        return labels

    def class_count(self) -> int:
        """Number of classes."""
        return self.net.layout.shapes["head.bias"][0]

    @torch.no_grad()
    def probabilities(self, weights: Tensor, batch: Batch) -> Tensor:
        """Softmax outputs of every run on its mini-batch, (runs, batch, classes)."""
        return softmax(self.net(self.params(weights), batch[0]))

    def last_matrices(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The last two matrices of what is trained, as they are stored; with one, it and the tensor after it."""
        trained = list(self.trained_layout().views(weights.detach()).values())
        places = [i for i, tensor in enumerate(trained) if tensor.ndim == 3]  # the run and two more
        if len(places) > 1:
            return trained[places[-2]], trained[places[-1]]
        return trained[places[0]], trained[places[0] + 1]
