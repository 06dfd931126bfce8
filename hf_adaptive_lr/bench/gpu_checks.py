"""The checks of `gpu.py`: each a function of a device and a scale that gives rows, which say whether it held.

Trainings are of bytes of Python's own library. On a CPU what only CUDA has is left out, so that tests run the rest.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..auto import AutoController
from ..controller import Controller
from ..controllers import Hypergradient, Linear
from ..guard.snapshot import Snapshot
from ..trainer.arguments import AdaptiveLRTrainingArguments
from ..trainer.mixin import AdaptiveLRTrainer
from .data import Rows
from .gpu_runs import STEPS, Card, Loop, Scale
from .rows import Row
from .studies.overhead import CADENCE, NOISE, PLAIN, Method, trainer_for
from .studies.timing import WARM_UP, Lane
from .trainers import trainer_settings

GRID = (1e-4, 3e-4, 1e-3, 3e-3)
"""Rates of the linear schedule beside `universal`."""


def host_syncs(card: Card, scale: Scale) -> Iterator[Row]:
    """Updates between decisions at which the host waited, of a loop without a controller and with each."""
    ways = [("none", None, "foreach"), ("linear", Linear(), "foreach"), ("universal", _universal(), "foreach")]
    ways += [("hypergradient", Hypergradient(), "foreach")]
    ways += [("hypergradient, rate a tensor", Hypergradient(), "capturable, rate a tensor")] if card.cuda else []
    for name, controller, step in ways:
        found = Loop(card, scale, controller, step=step)
        yield {"case": name, "held": not found.syncs, "waited": found.syncs, "of_updates": found.between}


def steps(card: Card, scale: Scale) -> Iterator[Row]:
    """`universal` with every way to step; the rates and losses beside those of the plain way."""
    first = Loop(card, scale, _universal())
    for step in STEPS:
        if step == "foreach" or (not card.cuda and "rate a tensor" in step):
            continue
        found = Loop(card, scale, _universal(), step=step).compared(first)
        yield {"case": step, "held": max(found.values()) < 0.02, **found}


def sharded(card: Card, scale: Scale) -> Iterator[Row]:
    """`fully_shard` over one device, beside none."""
    first = Loop(card, scale, _universal())
    with tempfile.TemporaryDirectory() as folder:
        backend, meeting = "nccl" if card.cuda else "gloo", f"file://{folder}/store"
        dist.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
        try:
            found = Loop(card, scale, _universal(), shard=True).compared(first)
        finally:
            dist.destroy_process_group()
    yield {"case": "fully_shard", "held": found["rates"] < 1e-2, **found}


def precision(card: Card, scale: Scale) -> Iterator[Row]:
    """`universal` in a Trainer at float32, bf16 and fp16."""
    expected: list[float] = []
    for case in ("float32", "bf16", *(["fp16"] if card.cuda else [])):
        with tempfile.TemporaryDirectory() as folder:
            changes = {} if case == "float32" else {case: True}
            trainer: Any = _encoder_trainer(card, scale, Method("", _universal(), 0), scale.loop, folder, **changes)
            trainer.train()
        rates = trainer.lr_scheduler.lr_history()
        expected = expected or rates
        apart = max(abs(a / b - 1) for a, b in zip(rates, expected, strict=False))
        skipped, loss = trainer.state.global_step - len(rates), trainer.state.log_history[-1]["train_loss"]
        yield {"case": case, "held": loss == loss and apart < 0.2, "rates": apart, "skipped": skipped, "loss": loss}


def guard(card: Card, scale: Scale) -> Iterator[Row]:
    """Snapshots that do not make the host wait, and a rollback after gradients of NaN."""
    run = Loop(card, scale, Hypergradient())
    snapshot = Snapshot(run.model, run.optimizer)
    for _ in range(3):  # the first ones allocate
        snapshot.take(check=False)
    card.wait()
    began = time.perf_counter()
    snapshot.take(check=False)
    returned = time.perf_counter() - began
    card.wait()
    copied, weights = time.perf_counter() - began, [p.detach().clone() for p in run.model.parameters()]
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(1.0)
    snapshot.restore()
    equal = all(torch.equal(p, saved) for p, saved in zip(run.model.parameters(), weights, strict=True))
    free = returned < copied / 2 or not card.cuda
    yield {"case": "snapshot", "held": equal and free, "returned_ms": 1e3 * returned, "copied_ms": 1e3 * copied}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = _encoder_trainer(card, scale, Method("", guard=True), 4 * scale.loop, folder)
        trainer.add_callback(_Poison(range(2 * scale.loop, 2 * scale.loop + 8)))
        trainer.train()
        watch = next(callback for callback in trainer.callback_handler.callbacks if hasattr(callback, "guard"))
    actions = [event["action"] for event in watch.guard.events]
    finite = all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    counts = {name: actions.count(name) for name in sorted(set(actions))}
    yield {"case": "rollback", "held": finite and "rollback" in actions, **counts}


class _Poison(TrainerCallback):
    """Makes gradients NaN, as they come out of the backward passes of these updates."""

    def __init__(self, updates: range) -> None:
        self._updates, self._now = updates, -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameter = next(kwargs["model"].parameters())
        parameter.register_hook(lambda g: g * torch.nan if self._now in self._updates else g)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._now = state.global_step


def overhead(card: Card, scale: Scale) -> Iterator[Row]:
    """Time of an update over Trainer's own linear schedule, and peak memory, in turns of ten updates."""
    methods = [PLAIN, Method(NOISE), Method("linear", Linear()), Method("universal", _universal(), 0)]
    methods += [Method("hypergradient", Hypergradient(), CADENCE), Method("guard", guard=True)]
    times: dict[Method, list[float]] = {method: [] for method in methods}
    memory: dict[Method, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        lanes: dict[Method, Lane] = {}
        for index, method in enumerate(methods):
            before = torch.cuda.memory_allocated() / 2**20 if card.cuda else 0.0
            total = WARM_UP + 10 * scale.blocks + 1
            lanes[method] = Lane(_encoder_trainer(card, scale, method, total, f"{folder}/{index}"))
            stack.callback(lanes[method].close)
            card.peak()
            for _ in range(WARM_UP):
                lanes[method].advance()
            memory[method] = card.peak() - before
        for _ in range(scale.blocks):
            for method, lane in lanes.items():
                card.wait()
                began = time.perf_counter()
                for _ in range(10):
                    lane.advance()
                card.wait()
                times[method].append(time.perf_counter() - began)
    for method in methods[1:]:
        ratio = statistics.median(a / b for a, b in zip(times[method], times[PLAIN], strict=True))
        more = {"ms": 100 * statistics.median(times[method]), "memory_mib": memory[method]}
        yield {"case": method.name, "held": None, "ratio": ratio, **more, "plain_mib": memory[PLAIN]}


def decoder(card: Card, scale: Scale) -> Iterator[Row]:
    """`universal` beside a linear schedule at each rate of a grid: loss on held-out bytes after the same updates."""
    train, held = (Rows({"input_ids": rows, "labels": rows}) for rows in scale.texts())
    held = held.part(0, min(len(held), 20 * scale.batch))
    losses: dict[str, float] = {}
    for rate in (None, *GRID):
        with tempfile.TemporaryDirectory() as folder:
            settings = trainer_settings(folder, scale.updates, scale.batch, rate or 5e-5, 0)
            settings |= {"use_cpu": not card.cuda, "bf16": card.cuda, "per_device_eval_batch_size": scale.batch}
            parts: dict[str, Any] = {"model": scale.decoder(), "train_dataset": train}
            if rate is None:
                trainer: Trainer = AdaptiveLRTrainer(args=AdaptiveLRTrainingArguments(**settings), **parts)
            else:
                trainer = Trainer(args=TrainingArguments(**settings), **parts)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            name = "universal" if rate is None else f"linear, {rate:g}"
            losses[name] = trainer.evaluate(held)["eval_loss"]
        yield {"case": name, "held": None, "loss": losses[name]}


def _universal() -> Controller:
    return AutoController.from_pretrained("universal")


def _encoder_trainer(card: Card, scale: Scale, method: Method, updates: int, folder: str, **changes: Any) -> Trainer:
    return trainer_for(method, scale.encoder, updates, folder, use_cpu=not card.cuda, **changes)


CHECKS: dict[str, Callable[[Card, Scale], Iterable[Row]]] = {
    "host syncs between decisions": host_syncs,
    "steps of the optimizer": steps,
    "sharded": sharded,
    "precision": precision,
    "guard": guard,
    "time and memory": overhead,
    "decoder": decoder,
}
