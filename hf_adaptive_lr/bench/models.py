"""The models of the benchmark, as functions of the task and the seed alone.

Pretrained ones are whole, with the heads that `from_pretrained` gives them; the others are made from configs. All take
the columns of a batch and answer as the models of transformers do, with `loss` and `logits`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    EfficientNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from ..demo.data import DemoDataError, demo_text_model
from ..demo.image_model import demo_image_model, no_bars, no_report
from .data import classes
from .language import bytes_gpt2, tuned_gpt2
from .plain_nets import Classifier, Contrastive, MixtureDensity
from .sources import SOURCES
from .tasks import Task

_BERT_HEADS = {
    "classes": BertForSequenceClassification,
    "value": BertForSequenceClassification,
    "tokens": BertForTokenClassification,
}


def build_model(task: Task, seed: int) -> nn.Module:
    """The task's model with its first weights; sets all global seeds on the way.

    Raises:
        DemoDataError: the package with the pretrained weights, or peft, is missing.
        ValueError: no model has this name.
    """
    set_seed(seed)
    if task.model_name not in MODELS:
        raise ValueError(f"No model is named {task.model_name!r}; there are {', '.join(MODELS)}.")
    model = MODELS[task.model_name](task)
    if task.adapter_rank:
        model = _adapted(model, task)
    if task.frozen == "embeddings":
        encoder: Any = model.bert
        encoder.embeddings.requires_grad_(False)
    return model


def _channels(task: Task) -> int:
    return max(SOURCES[task.data].width, 1)


# --- pretrained ---------------------------------------------------------------------------------------------------


def _minilm(layers: int) -> Callable[[Task], nn.Module]:
    """all-MiniLM-L6-v2, or its first layers."""

    def build(task: Task) -> nn.Module:
        if task.objective == "pairs":
            return Contrastive(copy.deepcopy(_pretrained_encoder(layers)))
        return _with_new_head(_pretrained_bert(task.objective, classes(task), layers), task)

    return build


def _with_new_head(read: nn.Module, task: Task) -> nn.Module:
    """A copy with another head: what `from_pretrained` draws, without reading the file again."""
    model: Any = copy.deepcopy(read)
    nn.init.normal_(model.classifier.weight, std=model.config.initializer_range)
    nn.init.zeros_(model.classifier.bias)
    if task.init_std:
        nn.init.normal_(model.classifier.weight, std=task.init_std)
    built: nn.Module = model
    return built


@cache
def _pretrained_bert(objective: str, count: int, layers: int) -> nn.Module:
    with no_bars(), no_report(), torch.random.fork_rng(devices=[]):
        model: nn.Module = _BERT_HEADS[objective].from_pretrained(
            str(demo_text_model()), num_hidden_layers=layers, num_labels=count, dtype=torch.float32
        )
    return model


@cache
def _pretrained_encoder(layers: int) -> nn.Module:
    with no_bars(), no_report(), torch.random.fork_rng(devices=[]):
        model: nn.Module = BertModel.from_pretrained(
            str(demo_text_model()), num_hidden_layers=layers, add_pooling_layer=False, dtype=torch.float32
        )
    return model


def _adapted(model: nn.Module, task: Task) -> nn.Module:
    """The model with LoRA at queries and values, alpha twice the rank, and its head trained."""
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise DemoDataError("The LoRA tasks need peft. Get it with: pip install peft") from error
    kinds = {"classes": TaskType.SEQ_CLS, "value": TaskType.SEQ_CLS, "tokens": TaskType.TOKEN_CLS}
    config = LoraConfig(
        task_type=kinds[task.objective],
        r=task.adapter_rank,
        lora_alpha=2 * task.adapter_rank,
        target_modules=["query", "value"],
    )
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def _efficientnet(task: Task) -> nn.Module:
    """EfficientNet-Lite0, whole, with a new head."""
    return _with_new_head(_pretrained_efficientnet(classes(task)), task)


@cache
def _pretrained_efficientnet(count: int) -> nn.Module:
    with no_bars(), no_report(), torch.random.fork_rng(devices=[]):
        model: Any = EfficientNetForImageClassification.from_pretrained(
            # Statistics of ImageNet must be forgotten in some 60 updates; at 0.01 half of them would stay.
            str(demo_image_model()),
            batch_norm_momentum=0.1,
            num_labels=count,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    for name, weight in model.named_parameters():
        if ".squeeze_excite." in name:
            weight.requires_grad_(False)  # not a part of this net: always one
    built: nn.Module = model
    return built


# --- from scratch -------------------------------------------------------------------------------------------------


def _spread(task: Task) -> dict[str, float]:
    return {"initializer_range": task.init_std} if task.init_std else {}


def _small_bert(task: Task) -> nn.Module:
    """A BERT of two layers of width 32 over bytes."""
    config = BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=task.tokens,
        num_labels=classes(task),  # type: ignore[call-arg]
        **_spread(task),  # type: ignore[arg-type]
    )
    return _BERT_HEADS[task.objective](config)


def _vit(task: Task) -> nn.Module:
    side = task.side or 28
    config = ViTConfig(
        image_size=side,
        patch_size=side // 4,
        num_channels=_channels(task),
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        num_labels=classes(task),  # type: ignore[call-arg]
        **_spread(task),  # type: ignore[arg-type]
    )
    return ViTForImageClassification(config)


def _resnet(task: Task) -> nn.Module:
    config = ResNetConfig(
        num_channels=_channels(task),
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=classes(task),  # type: ignore[call-arg]
    )
    return ResNetForImageClassification(config)


def _mlp(task: Task) -> nn.Module:
    width, count = SOURCES[task.data].width, classes(task)
    return Classifier(nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, count)), count)


def _deep_mlp(task: Task) -> nn.Module:
    """Six hidden layers without norms or short cuts, torch's own first weights: the signal is small at first."""
    width, count = SOURCES[task.data].width, classes(task)
    hidden = [layer for _ in range(5) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return Classifier(nn.Sequential(nn.Linear(width, 64), nn.ReLU(), *hidden, nn.Linear(64, count)), count)


def _mixture(task: Task) -> nn.Module:
    return MixtureDensity(SOURCES[task.data].width)


def _cnn(task: Task) -> nn.Module:
    count, side = classes(task), (task.side or 28) // 4
    first = [nn.Conv2d(_channels(task), 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return Classifier(nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * side * side, count)), count)


def _paper_cnn(task: Task) -> nn.Module:
    """The CNN of Xu et al. 2019, as in their released code: no dropout."""
    count = classes(task)
    first = [nn.Conv2d(1, 32, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(32, 64, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU(), nn.Linear(512, count)]
    return Classifier(nn.Sequential(*first, *second, *head), count)


MODELS: Mapping[str, Callable[[Task], nn.Module]] = {
    "minilm6": _minilm(6),
    "minilm3": _minilm(3),
    "efficientnet": _efficientnet,
    "bytes-bert": _small_bert,
    "bytes-gpt2": bytes_gpt2,
    "bytes-gpt2-sotu": tuned_gpt2("sotu-text"),
    "bytes-gpt2-moby": tuned_gpt2("moby-text"),
    "bytes-gpt2-wordnet": tuned_gpt2("wordnet-text"),
    "vit": _vit,
    "resnet": _resnet,
    "cnn": _cnn,
    "papercnn": _paper_cnn,
    "mlp": _mlp,
    "deep-mlp": _deep_mlp,
    "mixture": _mixture,
}
"""What makes each model, by its name. Those that begin with "bytes-" read texts as bytes."""
