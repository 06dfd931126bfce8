"""An adaptive learning rate in a plain PyTorch loop, without transformers.

    python examples/plain_pytorch.py
    python examples/plain_pytorch.py --controller plateau --learning_rate 0.3

What to copy: the lines marked (1) and (2). The data are drawn here: 8x8 pictures of ten prototypes, shifted and noisy.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from hf_adaptive_lr import ControlledLR


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controller", default="hypergradient", help="known name or folder")
    parser.add_argument("--learning_rate", type=float, default=0.02)
    parser.add_argument("--max_steps", type=int, default=300, help="number of updates")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def draw_digits(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 64) and labels: a class's prototype, shifted by up to one pixel each way, plus noise."""
    prototypes = (torch.rand(10, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    labels = torch.randint(10, (count,), generator=generator)
    shifts = torch.randint(-1, 2, (count, 2), generator=generator).tolist()
    images = torch.stack([prototypes[y].roll(shift, dims=(0, 1)) for y, shift in zip(labels, shifts, strict=True)])
    return (images + 0.4 * torch.randn(images.shape, generator=generator)).flatten(1), labels


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = draw_digits(4000, generator)
    test_images, test_labels = draw_digits(1000, generator)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate, momentum=0.9)
    # (1) The optimizer's lr is the base learning rate. total_steps is needed by schedules with an end only.
    scheduler = ControlledLR(optimizer, args.controller, total_steps=args.max_steps)

    for _ in range(args.max_steps):
        rows = torch.randint(len(images), (args.batch_size,), generator=generator)
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()
        scheduler.observe(loss=loss)  # (2) before optimizer.step(), where the decision is taken; nothing syncs here
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # as with any scheduler

    with torch.no_grad():
        accuracy = (model(test_images).argmax(-1) == test_labels).float().mean().item()
    rates = scheduler.lr_history()
    print(f"accuracy {accuracy:.3f} on {len(test_labels)} images")
    print(f"learning rate {min(rates):.3g} ... {max(rates):.3g} ({args.controller})")


if __name__ == "__main__":
    main()
