"""Loads the classification model that `finetune` trains and its processor, and makes batches of rows."""

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
    ProgressCallback,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
)

from ..demo.data import demo_text_model
from ..demo.image_model import no_bars, no_report
from .errors import FinetuneError, one_line, quiet_logger
from .images import open_image
from .labels import CLASSES

logger = logging.getLogger(__name__)

DEMO_MODELS = {"text": "all-MiniLM-L6-v2", "image": "resnet-32-64-128 from its config"}
"""Names of the models that `load_parts` takes for None."""
_DEMO_IMAGE_SIZE = 32

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Parts:
    """A model with a classification head for the job's labels, in float32, and all that belongs to it."""

    model: PreTrainedModel
    processor: Any  # tokenizer or image processor, saved beside the model
    collate: Callable[[list[dict[str, Any]]], Batch]  # of rows with `input`, `label` and perhaps `pair`


def load_parts(task: str, model: str | None, labels: list[str], max_length: int, problem_type: str = CLASSES) -> Parts:
    """Load the model of a job; a head that does not fit the labels starts at random, so seed before.

    None is the demo's model; texts are cut to `max_length` tokens, or to what the model can read, pairs of texts by
    the longer one first. `problem_type` is transformers' name of what the head is trained for.

    Raises:
        FinetuneError: the model or its processor cannot be loaded for this task.
        DemoDataError: the demo's text model is not installed.
    """
    head = _head(labels, problem_type)
    return _text_parts(model, head, max_length) if task == "text" else _image_parts(model, head)


class ProgressBar(ProgressCallback):
    """Trainer's progress bar with loss and learning rate beside it, instead of a line on stdout for every log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Put the newest values behind the bar."""
        del args, state, control, kwargs
        bar: Any = self.training_bar
        if bar is not None and logs and "loss" in logs:
            bar.set_postfix(loss=f"{logs['loss']:.3g}", lr=f"{logs['learning_rate']:.3g}", refresh=False)

    def close(self) -> None:
        """End the bars' line, also of an interrupted run, so that later messages start on a line of their own."""
        bars: list[Any] = [self.training_bar, self.prediction_bar]
        for bar in bars:
            if bar is not None:
                bar.close()
        self.training_bar = self.prediction_bar = None


@contextlib.contextmanager
def one_bar(trainer: Trainer) -> Iterator[None]:
    """Show [`ProgressBar`] for a trainer, and no other bars, while the context is open."""
    bar = ProgressBar()
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(bar)
    try:
        with no_bars():
            yield
    finally:
        bar.close()


def _text_parts(model: str | None, head: dict[str, Any], max_length: int) -> Parts:
    source = str(demo_text_model()) if model is None else model
    net = _load_model(AutoModelForSequenceClassification, source, head)
    tokenizer = _load(AutoTokenizer, source, "tokenizer")
    if tokenizer.pad_token is None:  # decoders come without one; any token does, its positions are masked
        if tokenizer.eos_token is None:
            raise FinetuneError(f"tokenizer '{source}' has no padding token; set its pad_token and save it again")
        tokenizer.pad_token = tokenizer.eos_token
        net.config.pad_token_id = tokenizer.pad_token_id
    most = getattr(net.config, "max_position_embeddings", None)
    if isinstance(most, int) and tokenizer.model_max_length > most:
        tokenizer.model_max_length = most  # some say nothing; whoever truncates with the saved one needs it
    longest = min(max_length, tokenizer.model_max_length)

    def collate(rows: list[dict[str, Any]]) -> Batch:
        texts = [[row[name] for row in rows] for name in ("input", "pair") if name in rows[0]]
        batch = tokenizer(*texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        return {**batch, "labels": _label_tensor(rows)}

    return Parts(net, tokenizer, collate)


def _image_parts(model: str | None, head: dict[str, Any]) -> Parts:
    if model is None:
        net, processor = _demo_image_model(head)
    else:
        net = _load_model(AutoModelForImageClassification, model, head)
        processor = _load(AutoImageProcessor, model, "image processor")

    def collate(rows: list[dict[str, Any]]) -> Batch:
        images = [open_image(row["input"]) for row in rows]
        return {**processor(images=images, return_tensors="pt"), "labels": _label_tensor(rows)}

    return Parts(net, processor, collate)


def _demo_image_model(head: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """A ResNet that learns small pictures from scratch within a minute; a ViT of this size needs far more data."""
    from transformers import ViTImageProcessorPil

    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        **head,
    )
    size = {"height": _DEMO_IMAGE_SIZE, "width": _DEMO_IMAGE_SIZE}
    return ResNetForImageClassification(config), ViTImageProcessorPil(size=size)


def _label_tensor(rows: list[dict[str, Any]]) -> Tensor:
    return torch.tensor([row["label"] for row in rows])  # class numbers, or floats for the other kinds of heads


def _head(labels: list[str], problem_type: str) -> dict[str, Any]:
    """The config of a head; of one class it says no more than transformers assumes."""
    kind = {} if problem_type == CLASSES else {"problem_type": problem_type}
    return {
        **kind,
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _load_model(auto: Any, source: str, head: dict[str, Any]) -> PreTrainedModel:
    # float32 whatever the checkpoint holds: an optimizer step would get lost in half-precision weights.
    wanted = {"ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float32}
    net, info = _load(auto, source, "model", **wanted, **head)
    fresh = sorted(key for key in info["missing_keys"] if key.startswith(f"{net.base_model_prefix}."))
    if fresh:
        logger.warning("%d weights below the head are not in '%s' and start at random: %s", len(fresh), source, fresh)
    return net  # type: ignore[no-any-return]


def _load(auto: Any, source: str, what: str, **kwargs: Any) -> Any:
    source = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
    # ValueError is how the Auto classes say that a model is of no type they know, or of none for this task.
    try:
        # A fresh head is the expected case; a download may take its time and shows how far it is, but not every try.
        bars = no_bars() if Path(source).is_dir() else contextlib.nullcontext()
        with quiet_logger("huggingface_hub", logging.CRITICAL), no_report(), bars:
            return auto.from_pretrained(source, **kwargs)
    except (OSError, ValueError, SafetensorError) as error:
        where = "" if Path(source).is_dir() else " from the Hub (no such folder here)"
        raise FinetuneError(f"{what} '{source}' cannot be loaded{where}: {one_line(error)}") from error
