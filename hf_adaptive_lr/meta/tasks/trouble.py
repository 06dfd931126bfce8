"""Perceptrons under the troubles of real data: wrong labels, rare classes, bad batches, a task that changes."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Split
from .data import Examples
from .mlp import MLPTask
from .supervised import Batch

_SPIKE = 30.0


class TroubleTask(MLPTask):
    """The MLP family with troubles, which add up; `config` may hold the keys of `defaults`.

    `label_noise` is the share of training labels that are random, 0 to 1; `imbalance`: the commonest class has this
    many times the examples of the rarest, at least 1, in all splits; `spikes` is the probability that a run's training
    batch has its inputs multiplied by 30; `change_after`: the classes are permuted at 60 % of this many training
    batches, 0 for never.
    """

    defaults = {**MLPTask.defaults, "label_noise": 0.0, "imbalance": 1.0, "spikes": 0.0, "change_after": 0}

    def setup(self) -> None:
        """Draw the data, then spoil them."""
        super().setup()
        if self.config["imbalance"] > 1:
            self.splits = {name: self._imbalanced(examples) for name, examples in self.splits.items()}
        if self.config["label_noise"] > 0:
            self.splits = {**self.splits, "train": self._noisy(self.splits["train"])}
        order = torch.rand(self.runs, self.classes, generator=self.generator).argsort(-1)
        # A cycle through a random order moves every class, in every run.
        self._permuted = torch.empty_like(order).scatter_(1, order, order.roll(1, dims=1))
        self._drawn = 0

    def _imbalanced(self, examples: Examples) -> Examples:
        """Examples drawn again, with replacement within their split, so that class k is less frequent the larger k."""
        power = torch.arange(self.classes) / (self.classes - 1)
        counts = torch.nn.functional.one_hot(examples.labels, self.classes).sum(1).clamp_min(1)
        weight = (self.config["imbalance"] ** -power / counts).gather(1, examples.labels)
        return examples.take(torch.multinomial(weight, len(examples), replacement=True, generator=self.generator))

    def _noisy(self, examples: Examples) -> Examples:
        labels, random = examples.labels, torch.rand(examples.labels.shape, generator=self.generator)
        other = torch.randint(self.classes, labels.shape, generator=self.generator)
        wrong = random < self.config["label_noise"]
        return Examples(examples.pool, examples.index, torch.where(wrong, other, labels))

    def batch(self, split: Split) -> Batch:
        """The next mini-batch; only those of `train` spike and count towards the change."""
        inputs, labels = super().batch(split)
        if split == "train":
            self._drawn += 1
            if self.config["spikes"]:
                hit = torch.rand(self.runs, generator=self.generator) < self.config["spikes"]
                inputs = inputs * torch.where(hit, _SPIKE, 1.0).view(-1, *[1] * (inputs.dim() - 1))
        return inputs, self.relabelled(labels)

    def relabelled(self, labels: Tensor) -> Tensor:
        """Labels of shape (runs, batch) after the training batches that were drawn so far."""
        if not self.config["change_after"] or self._drawn <= 0.6 * self.config["change_after"]:
            return labels
        return self._permuted.gather(1, labels)
