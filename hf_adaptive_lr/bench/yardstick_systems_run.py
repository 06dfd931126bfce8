"""One check of the benchmark's systems track: one method through a real `Trainer`, to one row.

A check that finds a fault is a row with `passed` false; one that cannot be carried out raises, and its row has the
reason. See `yardstick_systems_train.py` for what is trained.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..scheduler.controlled_lr import ControlledLR
from .lanes import Lane, share_one_heap
from .rows import Row, RunKey, digest
from .run_record import short
from .training_run import versions
from .trouble_tasks import EVALUATIONS
from .workload import Size
from .yardstick_methods import Method
from .yardstick_run import commit
from .yardstick_systems_train import (
    HALF,
    HELD_ROWS,
    LARGER,
    PLAIN,
    SMALL,
    TRAIN_ROWS,
    UPDATES,
    base_lr,
    prepare,
    quiet,
)

TIMED = Size("1M", 128, 4, 8, 64)
WARM_UP, BLOCK, BLOCKS, PAIRS = 3, 10, 2, 6
"""Untimed updates; timed updates from one evaluation or rare decision to the next; such blocks; pairs of trainers."""

PLAIN_LANE, OWN_LANE = "plain", "method"

_SAVES: dict[str, Any] = {"save_strategy": "steps"}


@dataclass(frozen=True)
class SystemsRun:
    """One check of one method."""

    method: Method  # any but a replay
    check: str  # a name of [`CHECKS`]

    @property
    def key(self) -> RunKey:
        """Its key in the rows; the check stands where others have a task."""
        return RunKey(self.check, self.method.name, 0, base_lr(self.method))

    @property
    def task_digest(self) -> str:
        """Changes with what is trained and for how long, not with how it is measured."""
        sizes = [TIMED] if self.check == "overhead" else [SMALL, LARGER]
        numbers = [UPDATES, HALF, WARM_UP, BLOCK, BLOCKS, PAIRS, TRAIN_ROWS, HELD_ROWS, EVALUATIONS]
        return digest([self.check, [asdict(size) for size in sizes], numbers])

    @property
    def method_digest(self) -> str:
        """Changes with all that the method is."""
        return self.method.digest

    def execute(self) -> Row:
        """Carry the check out."""
        with quiet():
            found = CHECKS[self.check](self.method)
        return {"check": self.check, **found, "versions": versions(), "commit": commit()}


# --- the checks ---------------------------------------------------------------------------------------------------


def resume(method: Method) -> Row:
    """Stop at half of the run, resume in a new trainer with other first weights: is it the run without a stop?"""
    with TemporaryDirectory() as name:
        folder = Path(name)
        whole = prepare(method, folder / "whole").train()
        first = prepare(method, folder / "first", stop=HALF, **_SAVES).train()
        second = prepare(method, folder / "second", weights_seed=1).train(first.folder / f"checkpoint-{HALF}")
        return _compared(whole.weights, second.weights, whole.lrs, first.lrs + second.lrs) | {
            "updates": len(whole.lrs),
            "lr_changes": whole.changes,
        }


def _compared(weights: Tensor, others: Tensor, lrs: list[float], other_lrs: list[float]) -> Row:
    same = torch.equal(weights, others)  # not so where one is NaN: such a run proves nothing
    return {
        "passed": same and lrs == other_lrs,
        "weights_equal": same,
        "max_difference": short(float((weights - others).abs().max())),
        "lrs_equal": lrs == other_lrs,
    }


def ranks(method: Method) -> Row:
    """Two processes with half of the batch each: do they have the same weights and learning rates at the end?"""
    from accelerate import debug_launcher
    from torch.multiprocessing.spawn import ProcessRaisedException

    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            debug_launcher(_on_a_rank, args=(method, folder), num_processes=2)
        except ProcessRaisedException as error:
            reasons = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.error"))]
            raise RuntimeError(reasons[0] if reasons else str(error).strip().splitlines()[-1]) from error
        (weights, lrs, more), (others, other_lrs, _) = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    return {**_compared(weights, others, lrs, other_lrs), **more}


def _on_a_rank(method: Method, folder: Path) -> None:
    from accelerate.state import AcceleratorState, GradientState

    # A forked process inherits the one-process state that earlier trainings left in its parent.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(1)
    rank = dist.get_rank()
    try:
        made = prepare(method, folder / "run", updates=HALF, batch=SMALL.batch // 2).train()
        size = made.trainer.args.world_size
        if size != dist.get_world_size():  # else two equal runs side by side would pass
            raise RuntimeError(f"{dist.get_world_size()} processes, but the trainer knows of {size}")
        more = {"processes": size, "updates": len(made.lrs), "lr_changes": made.changes}
        torch.save((made.weights, made.lrs, more), folder / f"{rank}.pt")
    except Exception as error:
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise


def accumulation(method: Method) -> Row:
    """Two micro-batches per update against one batch of their size: as many updates, as many decisions?

    Methods that draw batches of their own draw them by the size of a micro-batch, so their learning rates may differ.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        whole = prepare(method, folder / "whole", updates=HALF, dropout=False).train()
        halves: dict[str, Any] = {"batch": SMALL.batch // 2, "gradient_accumulation_steps": 2}
        parts = prepare(method, folder / "parts", updates=HALF, dropout=False, **halves).train()
    pairs = list(zip(whole.lrs, parts.lrs, strict=False))
    return {
        "passed": len(whole.lrs) == len(parts.lrs) == HALF and whole.decisions == parts.decisions,
        "updates": [len(whole.lrs), len(parts.lrs)],
        "decisions": [whole.decisions, parts.decisions],
        "lr_changes": [whole.changes, parts.changes],
        "lr_difference": short(max((abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in pairs), default=0.0)),
    }


def memory(method: Method) -> Row:
    """Bytes held beyond AdamW's: of the optimizer, the controller's weights, and what its scheduler saves."""
    found, parts = _beyond_plain(_held, method)
    return found | {"parts": parts}


def _held(method: Method, size: Size) -> dict[str, int]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        trainer = prepare(method, folder, size=size, updates=HALF).train().trainer
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        controlled = isinstance(trainer.lr_scheduler, ControlledLR)
        return {
            "optimizer": _bytes(list(optimizer.state.values())) + _bytes(groups),
            "controller": _bytes(trainer.controller.params) if controlled else 0,
            "scheduler": _bytes(trainer.lr_scheduler.state_dict()),
        }


def _bytes(value: Any) -> int:
    """Of all tensors in nested dicts and sequences."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, inner))


Measure = Callable[[Method, Size], dict[str, int]]


def _beyond_plain(measure: Measure, method: Method) -> tuple[Row, dict[str, int]]:
    """A line through the bytes beyond a plain trainer's at two sizes, and the parts of those of the larger one."""
    parts: dict[str, int] = {}
    sums = []
    for size in (SMALL, LARGER):
        mine, plain = measure(method, size), _of_plain(measure, size)
        parts = {name: mine.get(name, 0) - plain.get(name, 0) for name in sorted(mine.keys() | plain.keys())}
        sums.append(sum(parts.values()))
    small, larger = (sum(p.numel() for p in size.model().parameters()) for size in (SMALL, LARGER))
    slope = (sums[1] - sums[0]) / (larger - small)
    line = {"bytes_per_parameter": round(slope, 2), "fixed_bytes": round(sums[1] - slope * larger)}
    return {"parameters": larger, "bytes": sums[1], **line}, parts


@cache
def _of_plain(measure: Measure, size: Size) -> dict[str, int]:
    return measure(PLAIN, size)


def checkpoint(method: Method) -> Row:
    """Bytes that a checkpoint has more than a plain trainer's."""
    found, files = _beyond_plain(_files, method)
    return found | {"files": {name: count for name, count in files.items() if count}}


def _files(method: Method, size: Size) -> dict[str, int]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepare(method, folder, size=size, updates=HALF, **_SAVES).train()
        inside = [path for path in (folder / f"checkpoint-{HALF}").rglob("*") if path.is_file()]
        # The log is left out: it grows with evaluations, by seconds that are never the same.
        return {path.name: path.stat().st_size for path in inside if path.name != "trainer_state.json"}


def overhead(method: Method) -> Row:
    """CPU time per update over a plain trainer's, both in one process and in turn, update by update.

    The median and quartiles are of the ratios of blocks of [`BLOCK`] updates. A run is announced to be so long that 20
    evaluations or decisions in it come to one in a block. Two equal trainers may differ by some percent for as long as
    they live, by where their memory lies; so there are several pairs, and each comes first in every other one.
    """
    share_one_heap()
    times = [block for pair in range(PAIRS) for block in _pair(method, pair)]
    ratios = [mine / plain for plain, mine in times]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": round(median, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "blocks": len(ratios),
        "plain_ms": round(1e3 * statistics.median(plain for plain, _ in times) / BLOCK, 2),
        "parameters": sum(p.numel() for p in TIMED.model().parameters()),
    }


def _pair(method: Method, number: int) -> list[tuple[float, float]]:
    """CPU seconds of the plain trainer's and the method's blocks."""
    order = random.Random(number)
    spent = {PLAIN_LANE: [0.0] * BLOCKS, OWN_LANE: [0.0] * BLOCKS}
    often: dict[str, Any] = {"evaluate_every": BLOCK, "logging_strategy": "steps", "logging_steps": BLOCK}
    common = {"size": TIMED, "updates": BLOCK * EVALUATIONS, **often}
    names = list(spent) if number % 2 else list(spent)[::-1]
    with TemporaryDirectory() as name:
        folder = Path(name)
        methods = {PLAIN_LANE: PLAIN, OWN_LANE: method}
        lanes = {name: Lane(prepare(methods[name], folder / name, **common).trainer) for name in names}
        with _warm(list(lanes.values())):
            for turn in range(BLOCKS * BLOCK):
                for name in order.sample(names, len(names)):
                    spent[name][turn // BLOCK] += lanes[name].advance()
    return list(zip(spent[PLAIN_LANE], spent[OWN_LANE], strict=True))


@contextmanager
def _warm(lanes: list[Lane]) -> Iterator[None]:
    for lane in lanes * WARM_UP:
        lane.advance()
    gc.collect()
    gc.freeze()  # what is alive stays alive; the collector need not search it in whichever lane's turn it wakes up
    try:
        yield
    finally:
        gc.unfreeze()
        for lane in lanes:
            lane.close()


CHECKS: Mapping[str, Callable[[Method], Row]] = {
    check.__name__: check for check in (resume, ranks, accumulation, memory, checkpoint, overhead)
}
"""Every check by its name: it takes a method and returns what it found, with `passed` where it can fail."""
