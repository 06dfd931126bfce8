"""The checks of the systems study: one method through a real `Trainer`, to one row.

A check that finds a fault is a row with `passed` false; one that cannot be carried out raises, and its row has the
reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..method import EVALUATIONS, Method
from ..record import short
from ..rows import Row
from .systems_train import HALF, LARGER, PLAIN, SMALL, changes_of, decisions_of, lrs_of, prepare, trained, weights_of
from .timing import block_ratios, take_turns
from .tiny_bert import Size

TIMED = Size("1M", 128, 4, 8, 64)
BLOCK, BLOCKS, PAIRS = 10, 2, 6
"""Timed updates from one evaluation or rare decision to the next; such blocks; pairs of trainers."""

_SAVES: dict[str, Any] = {"save_strategy": "steps"}


def resume(method: Method, folder: Path) -> Row:
    """Stop at half of the run, resume in a new trainer with other first weights: is it the run without a stop?"""
    whole = trained(method, folder / "whole")
    first = trained(method, folder / "first", stop=HALF, **_SAVES)
    second = trained(method, folder / "second", weights_seed=1, checkpoint=folder / "first" / f"checkpoint-{HALF}")
    lrs = lrs_of(whole)
    found = _compared(weights_of(whole), weights_of(second), lrs, lrs_of(first) + lrs_of(second))
    return found | {"updates": len(lrs), "lr_changes": changes_of(lrs)}


def _compared(weights: Tensor, others: Tensor, lrs: list[float], other_lrs: list[float]) -> Row:
    same = torch.equal(weights, others)  # not so where one is NaN: such a run proves nothing
    return {
        "passed": same and lrs == other_lrs,
        "weights_equal": same,
        "max_difference": short(float((weights - others).abs().max())),
        "lrs_equal": lrs == other_lrs,
    }


def ranks(method: Method, folder: Path) -> Row:
    """Two processes with half of the batch each: do they have the same weights and learning rates at the end?"""
    from accelerate import debug_launcher
    from torch.multiprocessing.spawn import ProcessRaisedException

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
        made = trained(method, folder / "run", updates=HALF, batch=SMALL.batch // 2)
        size, lrs = made.args.world_size, lrs_of(made)
        if size != dist.get_world_size():  # else two equal runs side by side would pass
            raise RuntimeError(f"{dist.get_world_size()} processes, but the trainer knows of {size}")
        more = {"processes": size, "updates": len(lrs), "lr_changes": changes_of(lrs)}
        torch.save((weights_of(made), lrs, more), folder / f"{rank}.pt")
    except Exception as error:
        (folder / f"{rank}.error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise


def accumulation(method: Method, folder: Path) -> Row:
    """Two micro-batches per update against one batch of their size: as many updates, as many decisions?

    Methods that draw batches of their own draw them by the size of a micro-batch, so their learning rates may differ.
    """
    halves: dict[str, Any] = {"batch": SMALL.batch // 2, "gradient_accumulation_steps": 2}
    whole = trained(method, folder / "whole", updates=HALF, dropout=False)
    parts = trained(method, folder / "parts", updates=HALF, dropout=False, **halves)
    lrs, decisions = [lrs_of(whole), lrs_of(parts)], [decisions_of(whole), decisions_of(parts)]
    apart = [abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in zip(*lrs, strict=False)]
    return {
        "passed": len(lrs[0]) == len(lrs[1]) == HALF and decisions[0] == decisions[1],
        "updates": [len(each) for each in lrs],
        "decisions": decisions,
        "lr_changes": [changes_of(each) for each in lrs],
        "lr_difference": short(max(apart, default=0.0)),
    }


def memory(method: Method, folder: Path) -> Row:
    """Bytes held beyond AdamW's: of the optimizer, the controller's weights, and what its scheduler saves."""
    found, parts = _beyond_plain(_held, method, folder)
    return found | {"parts": parts}


def _held(method: Method, size: Size, folder: Path) -> dict[str, int]:
    trainer = trained(method, folder, size=size, updates=HALF)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {
        "optimizer": _bytes(list(optimizer.state.values()), groups),
        "controller": _bytes(dict(trainer.controller.params)) if method.controller else 0,
        "scheduler": _bytes(trainer.lr_scheduler.state_dict()),
    }


def _bytes(*values: Any) -> int:
    """Of all tensors in nested dicts and lists."""
    return sum(leaf.nbytes for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def checkpoint(method: Method, folder: Path) -> Row:
    """Bytes that a checkpoint has more than a plain trainer's."""
    found, files = _beyond_plain(_files, method, folder)
    return found | {"files": {name: count for name, count in files.items() if count}}


def _files(method: Method, size: Size, folder: Path) -> dict[str, int]:
    trained(method, folder, size=size, updates=HALF, **_SAVES)
    inside = [path for path in (folder / f"checkpoint-{HALF}").rglob("*") if path.is_file()]
    # The log is left out: it grows with evaluations, by seconds that are never the same.
    return {path.name: path.stat().st_size for path in inside if path.name != "trainer_state.json"}


Measure = Callable[[Method, Size, Path], dict[str, int]]


def _beyond_plain(measure: Measure, method: Method, folder: Path) -> tuple[Row, dict[str, int]]:
    """A line through the bytes beyond a plain trainer's at two sizes, and the parts of those of the larger one."""
    parts: dict[str, int] = {}
    sums = []
    for size in (SMALL, LARGER):
        mine, plain = measure(method, size, folder / size.name), _of_plain(measure, size)
        parts = {name: mine.get(name, 0) - plain.get(name, 0) for name in sorted(mine.keys() | plain.keys())}
        sums.append(sum(parts.values()))
    small, larger = (sum(p.numel() for p in size.model().parameters()) for size in (SMALL, LARGER))
    slope = (sums[1] - sums[0]) / (larger - small)
    line = {"bytes_per_parameter": round(slope, 2), "fixed_bytes": round(sums[1] - slope * larger)}
    return {"parameters": larger, "bytes": sums[1], **line}, parts


@cache
def _of_plain(measure: Measure, size: Size) -> dict[str, int]:
    with TemporaryDirectory() as folder:
        return measure(PLAIN, size, Path(folder))


def overhead(method: Method, folder: Path) -> Row:
    """CPU time per update over a plain trainer's, both in one process and in turn, update by update.

    The median and quartiles are of the ratios of blocks of [`BLOCK`] updates. A run is announced to be so long that 20
    evaluations or decisions in it come to one in a block. Two equal trainers may differ by some percent for as long as
    they live, by where their memory lies; so there are several pairs, and each comes first in every other one.
    """
    common: dict[str, Any] = {"logging_strategy": "steps", "logging_steps": BLOCK}
    # At much larger rates the plain trainer's weights grow until its numbers take longer to compute.
    common |= {"size": TIMED, "updates": BLOCK * EVALUATIONS, "usual_lr": 1e-3}
    ratios: list[float] = []
    plain: list[float] = []
    for pair in range(PAIRS):
        methods = {"plain": PLAIN, "method": method}
        trainers = {n: prepare(methods[n], folder / n, **common) for n in sorted(methods, reverse=bool(pair % 2))}
        times = take_turns(trainers, BLOCKS * BLOCK, pair)
        ratios += block_ratios(times["method"].whole, times["plain"].whole, BLOCK)
        plain += times["plain"].whole.values()
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": round(median, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "blocks": len(ratios),
        "plain_ms": round(1e3 * statistics.median(plain), 2),
        "parameters": sum(p.numel() for p in TIMED.model().parameters()),
    }


CHECKS: Mapping[str, Callable[[Method, Path], Row]] = {
    check.__name__: check for check in (resume, ranks, accumulation, memory, checkpoint, overhead)
}
"""Every check by its name: it takes a method and a folder to write to, and returns what it found, with `passed`."""
