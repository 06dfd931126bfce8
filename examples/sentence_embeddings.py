"""Train sentence embeddings with sentence-transformers and a controller; no learning rate to choose.

    python examples/sentence_embeddings.py --output_dir out
    python examples/sentence_embeddings.py --model_name_or_path org/model --train_file pairs.jsonl

What to copy: `class AdaptiveTrainer(AdaptiveLRMixin, SentenceTransformerTrainer)`. A callback cannot see its
loss, which a module beside the model computes; the subclass can. Without files, the two halves of a newsgroup post are
a pair, and MiniLM is the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import HfArgumentParser

from hf_adaptive_lr import AdaptiveLRMixin
from hf_adaptive_lr.demo.data import demo_text, demo_text_model


class AdaptiveTrainer(AdaptiveLRMixin, SentenceTransformerTrainer):
    """SentenceTransformerTrainer whose learning rate a controller decides."""


@dataclass
class Arguments:
    """What to train, and how long."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id (default: MiniLM)."})
    train_file: str | None = field(default=None, metadata={"help": "JSON lines with `anchor` and `positive`."})
    controller: str = field(default="universal", metadata={"help": "Name, folder, file.py:Class or Hub id."})
    max_steps: int = field(default=60, metadata={"help": "Updates."})
    output_dir: str = field(default="runs/example-sentences", metadata={"help": "Output folder."})


def load_pairs(file: str | None) -> Dataset:
    """A data set with the columns `anchor` and `positive`."""
    if file is not None:
        return load_dataset("json", data_files=file, split="train").select_columns(["anchor", "positive"])
    words = [text.split()[:64] for text in demo_text().train["text"]]
    words = [each for each in words if len(each) >= 8]
    halves = [(each[: len(each) // 2], each[len(each) // 2 :]) for each in words]
    return Dataset.from_dict(
        {"anchor": [" ".join(a) for a, _ in halves], "positive": [" ".join(b) for _, b in halves]}
    )


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    body = Transformer(str(args.model_name_or_path or demo_text_model()), max_seq_length=32)
    model = SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())])
    trainer = AdaptiveTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            per_device_train_batch_size=16,
            logging_steps=10,
            report_to="none",
        ),
        train_dataset=load_pairs(args.train_file),
        loss=MultipleNegativesRankingLoss(model),
        controller=args.controller,
    )
    trainer.train()
    model.save_pretrained(f"{args.output_dir}/model")

    rates = trainer.lr_scheduler.lr_history()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} ... {losses[-1]:.3f}")
    print(f"learning rate {min(rates):.3g} ... {max(rates):.3g} ({args.controller})")


if __name__ == "__main__":
    main()
