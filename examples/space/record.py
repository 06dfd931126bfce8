"""Record the runs that the Space plays: real trainings under plain schedules, with every sensor read at every update.

    python examples/space/record.py

Takes some minutes and writes runs/*.json beside this file. The data come with packages.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments, Replay
from hf_adaptive_lr.finetune.config import FinetuneConfig
from hf_adaptive_lr.finetune.data import load_data
from hf_adaptive_lr.finetune.model import load_parts

FIELDS = ("loss", "grad_norm", "alignment", "slope", "update_ratio", "gain_ratio", "pretrained", "usual_lr")
UPDATES = 120
RUNS = {
    "text, well tuned": ("text", "20 Newsgroups, MiniLM, AdamW, linear decay from 3e-4", 3e-4),
    "text, far too low": ("text", "20 Newsgroups, MiniLM, AdamW, linear decay from 3e-6", 3e-6),
    "image, well tuned": ("image", "Fashion-MNIST or MNIST, a small ResNet, AdamW, linear decay from 3e-3", 3e-3),
    "image, diverging": ("image", "Fashion-MNIST or MNIST, a small ResNet, AdamW, linear decay from 0.3", 0.3),
}
"""Title to task, description and learning rate."""


@dataclass(frozen=True, kw_only=True)
class Recorder(Replay):
    """Linear decay that asks for every sensor at every update, so that they are written down."""

    controller_type = "recorder"
    needs = frozenset(FIELDS)


def record(task: str, lr: float, folder: str) -> list[dict[str, float]]:
    """Train, and return what was seen at every update."""
    config = FinetuneConfig(task=task, controller="linear", learning_rate=lr, max_steps=UPDATES, eval_size=10)
    data = load_data(config.source, config.wanted)
    torch.manual_seed(0)
    parts = load_parts(task, None, data.labels, config.max_length)
    args = AdaptiveLRTrainingArguments(
        output_dir=folder,
        learning_rate=lr,
        max_steps=UPDATES,
        per_device_train_batch_size=16,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = AdaptiveLRTrainer(
        model=parts.model,
        args=args,
        controller=Recorder(progress=(0.0, 1.0), factors=(1.0, 0.0)),
        train_dataset=data.train,
        data_collator=parts.collate,
    )
    trainer.train()
    return [{"lr": decision.lr[0], **(decision.observation or {})} for decision in trainer.lr_scheduler.trace]


def main() -> None:
    out = Path(__file__).parent / "runs"
    out.mkdir(exist_ok=True)
    for title, (task, text, lr) in tqdm(RUNS.items(), unit="run"):
        with tempfile.TemporaryDirectory() as folder:
            rows = record(task, lr, folder)
        columns = {name: [float(f"{row[name]:.5g}") for row in rows] for name in ("lr", *FIELDS)}
        file = out / f"{title.replace(', ', '-').replace(' ', '-')}.json"
        file.write_text(json.dumps({"title": title, "text": text, "updates": len(rows), **columns}) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
