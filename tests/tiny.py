"""Helpers of the tests: tiny models, tiny data, and the same training run through every integration."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification, set_seed

VOCAB, LENGTH, CLASSES = 40, 6, 3


class Tokens(Dataset):
    """Random token sequences whose class is the first token modulo three, so that there is something to learn."""

    def __init__(self, size: int = 48, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, VOCAB, (size, LENGTH), generator=generator)
        self.labels = self.ids[:, 0] % CLASSES

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def bert(dropout: float = 0.1, seed: int = 0, **config: object) -> BertForSequenceClassification:
    """A BERT of about 3,000 parameters."""
    set_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=LENGTH,
            num_labels=CLASSES,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **config,
        )
    )


def vit(seed: int = 0) -> ViTForImageClassification:
    """A ViT of about 3,000 parameters; its head honours num_items_in_batch."""
    set_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=CLASSES,
        )
    )


def mlp(seed: int = 0, batch_norm: bool = False) -> nn.Sequential:
    """A plain module without a loss of its own."""
    torch.manual_seed(seed)
    middle: list[nn.Module] = [nn.BatchNorm1d(8)] if batch_norm else []
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))


def batches(steps: int, size: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels for `mlp`."""
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(steps, size, 4, generator=generator)
    return [(x, x[:, :3].argmax(-1)) for x in xs]


def flat(model: nn.Module) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])
