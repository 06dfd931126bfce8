"""What the checks of `gpu.py` run: the device, how large everything is, and the updates of a loop of its own."""

from __future__ import annotations

import contextlib
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from ..controller import Controller
from ..scheduler.controlled_lr import ControlledLR
from .studies.overhead import CADENCE
from .studies.tiny_bert import Size


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    encoder: Size = Size("100M", 768, 14, 8, 128)
    width: int = 768  # of the decoder, which has a hundred million weights, too
    layers: int = 14
    tokens: int = 256
    batch: int = 16
    loop: int = 40  # updates of short runs
    blocks: int = 6  # of ten updates, that are timed
    updates: int = 300  # of the decoder

    def decoder(self) -> LlamaForCausalLM:
        """A new one over bytes."""
        torch.manual_seed(0)
        shape: dict[str, Any] = {"hidden_size": self.width, "intermediate_size": 8 * self.width // 3 // 8 * 8}
        heads = max(1, self.width // 64)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=256, num_hidden_layers=self.layers, num_attention_heads=heads, **shape)
        )

    def texts(self) -> tuple[Tensor, Tensor]:
        """Bytes of Python's library, (rows, tokens), to train on and held out: every eighth file."""
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        parts = [
            b"".join(f.read_bytes() for i, f in enumerate(files) if (i % 8 == 0) == held) for held in (False, True)
        ]
        train, held = (torch.frombuffer(bytearray(part), dtype=torch.uint8).long() for part in parts)
        return self._rows(train), self._rows(held)

    def _rows(self, text: Tensor) -> Tensor:
        return text[: len(text) // self.tokens * self.tokens].view(-1, self.tokens)


class Card:
    """The device; what only CUDA has does nothing on a CPU, on which tests run the rest."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = torch.device(device), device == "cuda"

    def wait(self) -> None:
        """Until all is done that was asked of it."""
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self) -> float:
        """Largest memory since the last call, in MiB."""
        found = torch.cuda.max_memory_allocated() / 2**20 if self.cuda else 0.0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        return found

    @contextlib.contextmanager
    def without_syncs(self, forbidden: bool) -> Iterator[None]:
        """Inside, whatever makes the host wait for the device raises a RuntimeError, if it is forbidden."""
        if self.cuda and forbidden:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if self.cuda:
                torch.cuda.set_sync_debug_mode("default")


STEPS: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable, rate a tensor": {"capturable": True},
    "compiled to a CUDA graph": {"capturable": True},
}


class Loop:
    """A run of the decoder in a loop of its own; `syncs` counts the updates between decisions that had to wait."""

    def __init__(
        self, card: Card, scale: Scale, controller: Controller | None, *, step: str = "foreach", shard: bool = False
    ) -> None:
        model: Any = scale.decoder()
        model.to(card.device)
        if shard:
            mesh = init_device_mesh(card.device.type, (1,))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        options = STEPS[step]
        lr = torch.tensor(1e-3, device=card.device) if "capturable" in options else 1e-3
        self.model, self.syncs, self.between = model.train(), 0, 0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, **options)
        self.scheduler: ControlledLR | None = None
        if controller is not None:
            self.scheduler = ControlledLR(  # seldom, so that there are updates between decisions
                self.optimizer, controller, model=model, total_steps=scale.loop, every=CADENCE, max_grad_norm=0
            )
        make: Callable[[], Any] = self.optimizer.step
        if "compiled" in step:
            make = torch.compile(make, mode="reduce-overhead") if card.cuda else torch.compile(make, backend="eager")
        rows, self.losses = scale.texts()[0].to(card.device), list[Tensor]()
        for update in range(scale.loop):
            quiet = update > 0 and not (self._due(update) or self._due(update + 1))
            self.between += quiet
            ids = rows[update * scale.batch : (update + 1) * scale.batch]
            try:
                with card.without_syncs(quiet):
                    loss = model(input_ids=ids, labels=ids).loss
                    loss.backward()
                    make()
                    self.losses.append(loss.detach())
            except RuntimeError as error:
                if "synchroniz" not in str(error):
                    raise
                self.syncs += 1
            self.optimizer.zero_grad()

    def _due(self, update: int) -> bool:
        return self.scheduler is not None and self.scheduler.due(update)

    def compared(self, other: Loop) -> dict[str, float]:
        """Largest relative differences of the learning rates and of the losses."""
        assert self.scheduler is not None and other.scheduler is not None  # noqa: S101 - narrowed for mypy
        rates = zip(self.scheduler.lr_history(), other.scheduler.lr_history(), strict=True)
        losses = zip(self.losses, other.losses, strict=True)
        return {
            "rates": max(abs(a / b - 1) for a, b in rates),
            "losses": max(abs(float(a / b) - 1) for a, b in losses),
        }
