"""Nets of plain torch that answer as the models of transformers do."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import ImageClassifierOutput


class Classifier(nn.Module):
    """A net from `pixel_values` to logits; with one output its loss is the squared error."""

    def __init__(self, layers: nn.Sequential, classes: int) -> None:
        super().__init__()
        self.config = PretrainedConfig(num_labels=classes)  # type: ignore[call-arg]
        self.layers = layers

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Logits of shape (rows, classes) and, with labels, their mean cross-entropy or squared error."""
        logits = self.layers(pixel_values)
        if labels is None:
            return ImageClassifierOutput(logits=logits)
        if logits.shape[-1] == 1:
            return ImageClassifierOutput(loss=nn.functional.mse_loss(logits.squeeze(-1), labels), logits=logits)
        return ImageClassifierOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


class MixtureDensity(nn.Module):
    """A net from a vector to a mixture of normal densities of one number (Bishop 1994).

    The loss is the mean negative log-likelihood, which goes below zero where the density is above one.
    """

    def __init__(self, width: int, hidden: int = 64, components: int = 4) -> None:
        super().__init__()
        self.config = PretrainedConfig(num_labels=1)  # type: ignore[call-arg]
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 3 * components),
        )

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Weights, means and log deviations of each row's components, (rows, 3 components), and the loss."""
        logits = self.layers(pixel_values)
        if labels is None:
            return ImageClassifierOutput(logits=logits)
        weights, means, scales = logits.chunk(3, dim=-1)
        distances = (labels.unsqueeze(-1) - means) * torch.exp(-scales)
        densities = -0.5 * distances**2 - scales - 0.5 * math.log(2 * math.pi)
        likelihood = torch.logsumexp(torch.log_softmax(weights, dim=-1) + densities, dim=-1)
        return ImageClassifierOutput(loss=-likelihood.mean(), logits=logits)


class Contrastive(nn.Module):
    """An encoder of sentences under the loss of sentence-transformers' MultipleNegativesRankingLoss.

    Mean of the tokens, cosine times 20; the right partner of a row is its own, the wrong ones are the batch's others.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.bert = encoder
        self.config = encoder.config

    def _sentence(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        input_ids_b: Tensor,
        attention_mask_b: Tensor,
        labels: Tensor | None = None,
    ) -> ImageClassifierOutput:
        """Scores of each first text with every second one, (rows, rows); `labels` are not looked at."""
        first = self._sentence(input_ids, attention_mask)
        logits = 20.0 * first @ self._sentence(input_ids_b, attention_mask_b).T
        right = torch.arange(len(logits), device=logits.device)
        return ImageClassifierOutput(loss=nn.functional.cross_entropy(logits, right), logits=logits)
