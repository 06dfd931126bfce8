"""The model and data on which costs are measured: a BERT from its config, on random tokens with random classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import BertConfig, BertForSequenceClassification

from ..data import Rows


@dataclass(frozen=True)
class Size:
    """A BERT from its config; the vocabulary is small so that most weights are in the layers."""

    name: str
    hidden: int
    layers: int
    batch: int
    length: int
    vocabulary: int = 2000

    def model(self) -> BertForSequenceClassification:
        """A new model with random weights."""
        config = BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden // 32),
            intermediate_size=4 * self.hidden,
            max_position_embeddings=self.length,
        )
        return BertForSequenceClassification(config)

    def rows(self, number: int, seed: int) -> Rows:
        """Random tokens with one of two classes each."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, self.vocabulary, (number, self.length), generator=generator)
        return Rows({"input_ids": ids, "labels": torch.randint(0, 2, (number,), generator=generator)})


TINY = Size("tiny", 16, 1, 4, 8, vocabulary=50)
"""For trying whether a command runs."""
