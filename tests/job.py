"""Data and models for the tests of `finetune` and of the examples: small enough to learn within seconds."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

SUBJECTS = {"sport": "ball team goal", "space": "orbit moon probe", "cars": "wheel engine brake"}
FILLERS = ["the", "a", "of", "and", "then", "we", "saw", "it", "once"]


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label): two words of the label's subject among fillers."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        label = sorted(SUBJECTS)[index % len(SUBJECTS)]
        words = draw.choices(SUBJECTS[label].split(), k=2) + draw.choices(FILLERS, k=4)
        draw.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_images(folder: Path, per_class: int = 12, seed: int = 0) -> Path:
    """One folder per class: a dark or a bright top half under noise."""
    draw = np.random.default_rng(seed)
    for label, level in (("bright", 200), ("dark", 40)):
        (folder / label).mkdir(parents=True)
        for index in range(per_class):
            pixels = draw.integers(0, 256, (12, 12, 3))
            pixels[:6] = (pixels[:6] + 3 * level) // 4
            Image.fromarray(pixels.astype("uint8")).save(folder / label / f"{index}.png")
    return folder


def write_text_model(folder: Path) -> Path:
    """A BERT of about 3,000 parameters with dropout, and a tokenizer that knows the words above."""
    words = ["[PAD]", "[UNK]", *FILLERS, *" ".join(SUBJECTS.values()).split()]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def write_image_model(folder: Path) -> Path:
    set_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def python(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with one thread, without network, with its caches in `cwd`."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf"), **env}
    root = Path(__file__).parent.parent
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **settings, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
