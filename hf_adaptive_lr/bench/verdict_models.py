"""The paper study's models and optimizers, as a function of the seed alone."""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from transformers import (
    BertForSequenceClassification,
    PretrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    set_seed,
)
from transformers.modeling_outputs import ImageClassifierOutput

from ..demo.data import demo_text_model
from ..demo.image_model import no_bars, no_report
from .verdict_data import CLASSES
from .verdict_methods import Method
from .verdict_tasks import Task


class Classifier(nn.Module):
    """A plain net, from `pixel_values` to logits, that answers as the models of transformers do."""

    def __init__(self, layers: nn.Sequential, classes: int) -> None:
        super().__init__()
        self.config = PretrainedConfig(num_labels=classes)  # type: ignore[call-arg]
        self.layers = layers

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        """Logits of shape (rows, classes) and, with labels, their mean cross-entropy."""
        logits = self.layers(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def build_model(task: Task, seed: int) -> nn.Module:
    """The task's model with its first weights; sets all global seeds on the way."""
    set_seed(seed)
    makers = {"mlp": _mlp, "cnn": _cnn, "papercnn": _paper_cnn, "resnet": _resnet, "minilm3": _minilm3}
    return makers[task.model](CLASSES[task.data])


def build_optimizer(task: Task, method: Method, model: nn.Module, lr: float) -> Optimizer:
    """The task's optimizer over the weights that are trained."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p]} for p in weights] if method.groups == "tensor" else [{"params": weights}]
    makers: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
    optimizer = makers[task.optimizer](groups, lr=lr)  # type: ignore[call-arg]
    if method.dsa is None:
        return optimizer
    from ..optimizers import DSA

    wrapped: Optimizer = DSA(optimizer, **method.dsa)
    return wrapped


def _mlp(classes: int) -> nn.Module:
    return Classifier(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)), classes)


def _cnn(classes: int) -> nn.Module:
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return Classifier(nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 7 * 7, classes)), classes)


def _paper_cnn(classes: int) -> nn.Module:
    """The CNN of Xu et al. 2019, as in their released code: no dropout."""
    first = [nn.Conv2d(1, 32, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(32, 64, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, classes)]
    return Classifier(nn.Sequential(*first, *second, *head), classes)


def _resnet(classes: int) -> nn.Module:
    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=classes,  # type: ignore[call-arg]
    )
    return ResNetForImageClassification(config)


def _minilm3(classes: int) -> nn.Module:
    """The first three layers of MiniLM with a head whose weights are random; the embeddings are frozen."""
    model = copy.deepcopy(_pretrained(classes))
    nn.init.normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    for weight in model.bert.embeddings.parameters():
        weight.requires_grad_(False)
    return model


@lru_cache(maxsize=2)
def _pretrained(classes: int, layers: int = 3) -> BertForSequenceClassification:
    with no_bars(), no_report(), torch.random.fork_rng(devices=[]):
        return BertForSequenceClassification.from_pretrained(
            str(demo_text_model()), num_hidden_layers=layers, num_labels=classes, dtype=torch.float32
        )
