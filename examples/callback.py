"""An unmodified Trainer, a callback, and nothing else: three lines for a script that already exists.

    python examples/callback.py --output_dir out

What to copy: `lr_scheduler_type="constant"` and the callback. Everything else is what your script has already.
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_adaptive_lr import AdaptiveLRCallback


def rows() -> tuple[list[dict], list[dict]]:
    """1,400 digits to train on and 397 to report on, 8 x 8 pixels."""
    digits = load_digits()
    images = (digits.images[:, None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    found = [{"pixel_values": images[i], "labels": int(digits.target[i])} for i in order]
    return found[:1400], found[1400:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--controller", default="universal")
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--output_dir", default="runs/example-callback")
    args = parser.parse_args()
    set_seed(0)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **shape))
    train, report = rows()

    callback = AdaptiveLRCallback(args.controller)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            per_device_train_batch_size=32,
            lr_scheduler_type="constant",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        eval_dataset=report,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        callbacks=[callback],
    )
    trainer.train()
    metrics = trainer.evaluate()

    rates = callback.scheduler.lr_history()
    print(f"accuracy {metrics['eval_accuracy']:.3f} on {len(report)} images")
    print(f"learning rate {min(rates):.3g} ... {max(rates):.3g} ({args.controller})")


if __name__ == "__main__":
    main()
