"""Train an image classifier with AdaptiveLRTrainer.

    python examples/image_classification.py --output_dir out
    python examples/image_classification.py --train_dir photos/train --validation_dir photos/test \
        --model_name_or_path org/model

What to copy: `AdaptiveLRTrainingArguments` and `AdaptiveLRTrainer` in place of TrainingArguments and Trainer. All
settings of the controller are arguments (`--controller`, `--controller_every`, ...); the rest is an ordinary script.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    ViTImageProcessorPil,
    set_seed,
)

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments
from hf_adaptive_lr.demo.data import demo_image


@dataclass
class DataArguments:
    """What to train and report on."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub with train and test."})
    train_dir: str | None = field(default=None, metadata={"help": "Folder with one folder of images per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, to report on."})
    image_column: str = field(default="image", metadata={"help": "Column with the images."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels, a ClassLabel."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use this many training rows."})
    max_eval_samples: int = field(default=1000, metadata={"help": "Report on this many rows."})


@dataclass
class ModelArguments:
    """What to train."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id (default: new ResNet)."})


def load_data(args: DataArguments) -> DatasetDict:
    """Splits `train` and `test`."""
    if args.train_dir and args.validation_dir:
        files = {"train": f"{args.train_dir}/**", "test": f"{args.validation_dir}/**"}
        return load_dataset("imagefolder", data_files=files)
    if args.dataset_name:
        return load_dataset(args.dataset_name)
    demo = demo_image()
    return DatasetDict(train=demo.train, test=demo.test)


def load_model(path: str | None, names: list[str]) -> tuple[Any, Any]:
    """A pretrained model with a head for these classes, or a small ResNet from scratch, and its image processor."""
    labels: dict[str, Any] = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }
    if path:
        model = AutoModelForImageClassification.from_pretrained(path, ignore_mismatched_sizes=True, **labels)
        return model, AutoImageProcessor.from_pretrained(path)
    small = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", **labels)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return AutoModelForImageClassification.from_config(small), processor


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, AdaptiveLRTrainingArguments))
    parser.set_defaults(output_dir="runs/example-image", max_steps=300, logging_steps=20)
    parser.set_defaults(per_device_train_batch_size=32, per_device_eval_batch_size=64, dataloader_pin_memory=False)
    parser.set_defaults(remove_unused_columns=False)  # the transform below reads the image column
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    raw = load_data(data_args)
    names = raw["train"].features[data_args.label_column].names
    model, processor = load_model(model_args.model_name_or_path, names)

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [image.convert("RGB") for image in rows[data_args.image_column]]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": rows[data_args.label_column]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    if data_args.max_train_samples:
        raw["train"] = raw["train"].select(range(min(data_args.max_train_samples, len(raw["train"]))))
    raw["test"] = raw["test"].select(range(min(data_args.max_eval_samples, len(raw["test"]))))

    trainer = AdaptiveLRTrainer(
        model=model,
        args=training_args,  # carries the controller's settings
        train_dataset=raw["train"].with_transform(transform),
        eval_dataset=raw["test"].with_transform(transform),
        data_collator=collate,
        processing_class=processor,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    metrics = trainer.evaluate()

    rates = trainer.lr_scheduler.lr_history()
    print(f"accuracy {metrics['eval_accuracy']:.3f} on {len(raw['test'])} images")
    print(f"learning rate {min(rates):.3g} ... {max(rates):.3g} ({training_args.controller})")


if __name__ == "__main__":
    main()
