"""Fine-tune a text classifier in an Accelerate loop of your own.

    python examples/text_classification_no_trainer.py --gradient_accumulation_steps 2
    accelerate launch examples/text_classification_no_trainer.py --train_file train.csv --validation_file test.csv

What to copy: the three lines marked (1), (2) and (3). The scheduler reads the loss by itself, from the model it is
given, and decides inside `optimizer.step()`.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import ClassLabel, DatasetDict, load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_adaptive_lr import ControlledLR
from hf_adaptive_lr.demo.data import demo_text, demo_text_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", help="CSV file with the columns text and label (default: demo data)")
    parser.add_argument("--validation_file", help="CSV file to report on")
    parser.add_argument("--model_name_or_path", help="folder or Hub id (default: MiniLM)")
    parser.add_argument("--controller", default="hypergradient", help="known name or folder")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--max_steps", type=int, default=150, help="number of updates")
    parser.add_argument("--batch_size", type=int, default=16, help="rows per process and micro-batch")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--max_length", type=int, default=64, help="texts are cut to this many tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", help="save accelerator's state here at the end")
    return parser.parse_args()


def load_data(args: argparse.Namespace) -> DatasetDict:
    if not (args.train_file and args.validation_file):
        demo = demo_text()
        return DatasetDict(train=demo.train, test=demo.test)
    raw = load_dataset("csv", data_files={"train": args.train_file, "test": args.validation_file})
    return raw.cast_column("label", ClassLabel(names=sorted(map(str, set(raw["train"]["label"])))))


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader: Any, accelerator: Accelerator) -> float:
    model.eval()
    right = total = 0
    for batch in loader:
        predicted = model(**batch).logits.argmax(-1)
        predicted, labels = accelerator.gather_for_metrics((predicted, batch["labels"]))
        right, total = right + int((predicted == labels).sum()), total + len(labels)
    return right / total


def main() -> None:
    args = parse_args()
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
    set_seed(args.seed)
    raw = load_data(args)
    path = args.model_name_or_path or demo_text_model()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=raw["train"].features["label"].num_classes, ignore_mismatched_sizes=True
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in rows]
        batch = tokenizer(texts, truncation=True, max_length=args.max_length, padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    train = DataLoader(raw["train"], shuffle=True, batch_size=args.batch_size, collate_fn=collate)
    test = DataLoader(raw["test"], batch_size=64, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    # (1) Give it the model before `prepare`, and keep this object: the prepared one only has step().
    controlled = ControlledLR(
        optimizer, args.controller, model=model, total_steps=args.max_steps, max_grad_norm=args.max_grad_norm
    )
    # (2) Prepare it like any scheduler, so that save_state and load_state take it along.
    model, optimizer, train, test, scheduler = accelerator.prepare(model, optimizer, train, test, controlled)

    model.train()
    while controlled.updates < args.max_steps:
        for batch in train:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if args.max_grad_norm and accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                    # (3) For controllers that look at the gradient norm: its value before clipping. They hear it
                    # without being told, too, but measuring it twice would be a waste.
                    controlled.observe(grad_norm=norm)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if controlled.updates == args.max_steps:
                break

    accuracy = evaluate(model, test, accelerator)
    if args.output_dir:
        accelerator.save_state(args.output_dir)
    rates = controlled.lr_history()
    accelerator.print(f"accuracy {accuracy:.3f} on {len(raw['test'])} texts")
    accelerator.print(f"learning rate {min(rates):.3g} ... {max(rates):.3g} ({args.controller})")


if __name__ == "__main__":
    main()
