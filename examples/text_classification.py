"""Fine-tune a text classifier with AdaptiveLRTrainer.

    python examples/text_classification.py --output_dir out
    python examples/text_classification.py --train_file train.csv --validation_file test.csv --controller plateau

What to copy: `AdaptiveLRTrainingArguments` and `AdaptiveLRTrainer` in place of TrainingArguments and Trainer. All
settings of the controller are arguments (`--controller`, `--controller_every`, ...); the rest is an ordinary script.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from datasets import ClassLabel, DatasetDict, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    set_seed,
)

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments
from hf_adaptive_lr.demo.data import demo_text, demo_text_model


@dataclass
class DataArguments:
    """What to train and report on."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub with train and test."})
    train_file: str | None = field(default=None, metadata={"help": "CSV or JSON file instead."})
    validation_file: str | None = field(default=None, metadata={"help": "CSV or JSON file to report on."})
    text_column: str = field(default="text", metadata={"help": "Column with the texts."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels."})
    max_length: int = field(default=64, metadata={"help": "Texts are cut to this many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use this many training rows."})
    max_eval_samples: int = field(default=1000, metadata={"help": "Report on this many rows."})


@dataclass
class ModelArguments:
    """What to fine-tune."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id (default: MiniLM)."})


def load_data(args: DataArguments) -> DatasetDict:
    """Splits `train` and `test` with the columns `text` and `label` (a ClassLabel)."""
    if args.train_file and args.validation_file:
        kind = "csv" if args.train_file.endswith(".csv") else "json"
        raw = load_dataset(kind, data_files={"train": args.train_file, "test": args.validation_file})
    elif args.dataset_name:
        raw = load_dataset(args.dataset_name)
    else:
        demo = demo_text()
        raw = DatasetDict(train=demo.train, test=demo.test)
    raw = raw.select_columns([args.text_column, args.label_column])
    raw = raw.rename_columns(
        {k: v for k, v in {args.text_column: "text", args.label_column: "label"}.items() if k != v}
    )
    if not isinstance(raw["train"].features["label"], ClassLabel):
        raw = raw.cast_column("label", ClassLabel(names=sorted(map(str, set(raw["train"]["label"])))))
    return raw


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, AdaptiveLRTrainingArguments))
    parser.set_defaults(output_dir="runs/example-text", max_steps=150, logging_steps=10)
    parser.set_defaults(per_device_train_batch_size=16, per_device_eval_batch_size=64, dataloader_pin_memory=False)
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)

    raw = load_data(data_args)
    names = raw["train"].features["label"].names
    path = model_args.model_name_or_path or demo_text_model()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    if data_args.max_train_samples:
        raw["train"] = raw["train"].select(range(min(data_args.max_train_samples, len(raw["train"]))))
    raw["test"] = raw["test"].select(range(min(data_args.max_eval_samples, len(raw["test"]))))
    encoded = raw.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=data_args.max_length),
        batched=True,
        remove_columns="text",
    )

    trainer = AdaptiveLRTrainer(
        model=model,
        args=training_args,  # carries the controller's settings
        train_dataset=encoded["train"],
        eval_dataset=encoded["test"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    metrics = trainer.evaluate()

    rates = trainer.lr_scheduler.lr_history()
    print(f"accuracy {metrics['eval_accuracy']:.3f} on {len(encoded['test'])} texts")
    print(f"learning rate {min(rates):.3g} ... {max(rates):.3g} ({training_args.controller})")


if __name__ == "__main__":
    main()
