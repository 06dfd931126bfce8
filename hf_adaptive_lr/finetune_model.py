"""What the main job trains: a classification model, the processor that feeds it, and how rows become a batch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
)
from transformers.utils import logging as transformers_logging

from .demo_data import demo_text_model
from .finetune_data import FinetuneError, one_line, open_image

logger = logging.getLogger(__name__)

DEMO_TEXT_MODEL = "all-MiniLM-L6-v2"
DEMO_IMAGE_MODEL = "resnet-32-64-128 (0.3M parameters, made from its config)"
_DEMO_IMAGE_SIZE = 32

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """A model with all that belongs to it.

    Args:
        name: which model it is, for the results.
        model: with a classification head for the job's labels, in float32.
        processor: tokenizer or image processor, saved beside the model.
        collate: makes a batch from rows with `input` and `label`.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    collate: Callable[[list[dict[str, Any]]], Batch]


def load_parts(task: str, model: str | None, labels: list[str], max_length: int) -> Parts:
    """Load the model of a job; a head that does not fit the labels starts at random, so seed before.

    Args:
        task: "text" or "image".
        model: None for the demo's model, a local folder, or an id on the Hub.
        labels: name of label 0, 1, ...
        max_length: texts are cut to this many tokens, or to what the model can read.

    Returns:
        The model, its processor and its collator.

    Raises:
        FinetuneError: the model or its processor cannot be loaded for this task.
        DemoDataError: the demo's text model is not installed.

    Example:
        >>> load_parts("image", None, ["cat", "dog"], max_length=64).model.config.num_labels
        2
    """
    if task == "text":
        return _text_parts(model, labels, max_length)
    return _image_parts(model, labels)


def _text_parts(model: str | None, labels: list[str], max_length: int) -> Parts:
    source = str(demo_text_model()) if model is None else model
    net = _load_model(AutoModelForSequenceClassification, source, labels)
    tokenizer = _load(AutoTokenizer, source, "tokenizer")
    if tokenizer.pad_token is None:  # decoders come without one; any token does, its positions are masked
        tokenizer.pad_token = tokenizer.eos_token
        net.config.pad_token_id = tokenizer.pad_token_id
    longest = min(max_length, tokenizer.model_max_length)

    def collate(rows: list[dict[str, Any]]) -> Batch:
        texts = [row["input"] for row in rows]
        batch = tokenizer(texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        return {**batch, "labels": _label_tensor(rows)}

    return Parts(model or DEMO_TEXT_MODEL, net, tokenizer, collate)


def _image_parts(model: str | None, labels: list[str]) -> Parts:
    if model is None:
        net, processor = _demo_image_model(labels)
    else:
        net = _load_model(AutoModelForImageClassification, model, labels)
        processor = _load(AutoImageProcessor, model, "image processor")

    def collate(rows: list[dict[str, Any]]) -> Batch:
        images = [open_image(row["input"]) for row in rows]
        return {**processor(images=images, return_tensors="pt"), "labels": _label_tensor(rows)}

    return Parts(model or DEMO_IMAGE_MODEL, net, processor, collate)


def _demo_image_model(labels: list[str]) -> tuple[PreTrainedModel, Any]:
    """A ResNet that learns small pictures from scratch within a minute; a ViT of this size needs far more data."""
    from transformers import ViTImageProcessorPil

    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        **_label_config(labels),
    )
    size = {"height": _DEMO_IMAGE_SIZE, "width": _DEMO_IMAGE_SIZE}
    return ResNetForImageClassification(config), ViTImageProcessorPil(size=size)


def _label_tensor(rows: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([row["label"] for row in rows])


def _label_config(labels: list[str]) -> dict[str, Any]:
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _load_model(auto: Any, source: str, labels: list[str]) -> PreTrainedModel:
    # float32 whatever the checkpoint holds: an optimizer step would get lost in half-precision weights.
    wanted = {"ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float32}
    net, info = _load(auto, source, "model", **wanted, **_label_config(labels))
    fresh = sorted(key for key in info["missing_keys"] if key.startswith(f"{net.base_model_prefix}."))
    if fresh:
        logger.warning("%d weights below the head are not in '%s' and start at random: %s", len(fresh), source, fresh)
    return net  # type: ignore[no-any-return]


def _load(auto: Any, source: str, what: str, **kwargs: Any) -> Any:
    # ValueError is how the Auto classes say that a model is of no type they know, or of none for this task.
    try:
        with _quiet(local=Path(source).is_dir()):
            return auto.from_pretrained(source, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        raise FinetuneError(f"{what} '{source}' cannot be loaded: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Keep the loader's report of a fresh head off the screen: it is the expected case, the rest is said above."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if local:  # a download may take its time and shows how far it is
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
