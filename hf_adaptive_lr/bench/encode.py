"""Texts, pictures and tables as the tensors that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..demo.data import demo_text_model
from .raw_rows import Raw
from .sources import SOURCES
from .tasks import Task

Batch = dict[str, Tensor]

START, BREAK = 1, 2
"""Bytes before a text and between two: control characters, which stand in none. Padding is 0."""


def encoded(task: Task, parts: Sequence[Raw]) -> list[Batch]:
    """Columns of each part, the training rows first: by them numbers are standardised."""
    kind = SOURCES[task.data].kind
    if task.objective == "language":
        rows = [_windows(raw) for raw in parts]
    elif kind in ("text", "pairs", "words"):
        read = _bytes if reads_bytes(task.model_name) else _wordpieces
        rows = [read(raw, task) for raw in parts]
    elif kind == "image":
        rows = [{"pixel_values": _pixels(raw, task)} for raw in parts]
    else:
        rows = [{"pixel_values": torch.from_numpy(np.array(raw.inputs, dtype=np.float32))} for raw in parts]
        if kind == "table":
            rows = [{"pixel_values": column} for column in standardised([row["pixel_values"] for row in rows])]
    if task.objective in ("value", "density"):
        labels = standardised([torch.tensor(raw.labels, dtype=torch.float64) for raw in parts])
    elif task.objective in ("tokens", "language"):
        return rows
    else:
        labels = [torch.tensor(list(raw.labels)) for raw in parts]
    return [{**row, "labels": column} for row, column in zip(rows, labels, strict=True)]


def reads_bytes(model: str) -> bool:
    """Whether a model takes the bytes of a text, not words and their pieces."""
    return model.startswith("bytes-")


def standardised(columns: Sequence[Tensor]) -> list[Tensor]:
    """Numbers with the mean 0 and the deviation 1 that the first tensor has; what is constant in it becomes 0."""
    mean, deviation = columns[0].mean(0), columns[0].std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return [((column - mean) / deviation).float() for column in columns]


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(demo_text_model()))


def _wordpieces(raw: Raw, task: Task) -> Batch:
    """Tokens of all-MiniLM's vocabulary, cut or padded to one length."""
    arguments = {"truncation": True, "max_length": task.tokens, "padding": "max_length", "return_tensors": "pt"}
    names = ["input_ids", "attention_mask"]
    if task.objective == "pairs":  # each text for itself
        first, second = (_tokenizer()([pair[k] for pair in raw.inputs], **arguments) for k in (0, 1))
        return {n: first[n] for n in names} | {f"{n}_b": second[n] for n in names}
    if task.objective == "tokens":
        found = _tokenizer()(list(raw.inputs), is_split_into_words=True, **arguments)
        labels = torch.full_like(found["input_ids"], -100)
        for row, tags in enumerate(raw.labels):
            words = found.word_ids(row)
            for place, word in enumerate(words):  # a word's first piece has its label
                if word is not None and word != words[place - 1]:
                    labels[row, place] = tags[word]
        return {n: found[n] for n in names} | {"labels": labels}
    if SOURCES[task.data].kind == "pairs":
        found = _tokenizer()([a for a, _ in raw.inputs], [b for _, b in raw.inputs], **arguments)
        names.append("token_type_ids")
    else:
        found = _tokenizer()(list(raw.inputs), **arguments)
    return {n: found[n] for n in names}


def _bytes(raw: Raw, task: Task) -> Batch:
    """A text's bytes behind the start byte, cut or padded to one length."""
    ids = torch.zeros(len(raw), task.tokens, dtype=torch.long)
    for row, value in enumerate(raw.inputs):
        text = value if isinstance(value, str) else chr(BREAK).join(value)
        found = [START, *text.encode()[: task.tokens - 1]]
        ids[row, : len(found)] = torch.tensor(found)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _windows(raw: Raw) -> Batch:
    """Windows of text as bytes; each byte is predicted from those before it."""
    ids = torch.tensor([list(text.encode()) for text in raw.inputs])
    return {"input_ids": ids, "labels": ids.clone()}


def _pixels(raw: Raw, task: Task) -> Tensor:
    """Pixels from 0 to 1, or from -1 to 1 where the model's own processor has them so."""
    pixels = torch.from_numpy(np.array(raw.inputs, dtype=np.float32))
    pixels = (pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)) / 255
    if task.side and task.side != pixels.shape[-1]:
        size = (task.side, task.side)
        pixels = torch.nn.functional.interpolate(
            pixels, size=size, mode="bilinear", antialias=True, align_corners=False
        )
    if task.model_name == "efficientnet":
        pixels = pixels.expand(-1, 3, -1, -1)
    return pixels * 2.0 - 1.0 if task.model_name in ("vit", "efficientnet") else pixels
