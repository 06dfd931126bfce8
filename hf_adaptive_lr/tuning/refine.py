"""Schedule refinement: from the gradient norms of runs that are over to the schedule of the next one.

Defazio, Cutkosky, Mehta and Mishchenko 2023, *When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement*
(arXiv:2310.07831), Algorithm 2, with G_t the gradient norm of update t and G^ its running median:

    w_t = G^_t ** -2             eta_t = w_t * sum_{p > t} w_p             schedule = eta / max(eta)

Constant norms give linear decay; norms that fall give a schedule that stays high longer, norms that rise one that
warms up. The paper's variant for Adam takes l1 norms, to the power of -1; Trainer logs l2 norms, so `power` is a
choice here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import STATE_NAME, TRACE_NAME, numbered_checkpoints
from ..controllers.replay import Replay
from ..scheduler.trace import read_trace

Array = NDArray[np.float64]

LEAST_NORMS = 10
"""Gradient norms that a run must have."""

_POINTS = 200  # of a schedule; more says nothing that the running median has left


class RefineError(ValueError):
    """A folder or a setting from which no schedule can be made; the message names it and the way out."""


@dataclass(frozen=True)
class PastRun:
    """The gradient norms (before clipping, positive and finite) of a finished run, and the largest LR of it.

    `progress` is the share of the run that was done at each norm, ascending within [0, 1).
    """

    source: Path
    progress: Array
    norms: Array
    peak_lr: float


def read_past_run(folder: Path) -> PastRun:
    """Read the trace of this library, or else Trainer's `trainer_state.json`, also from the newest checkpoint.

    The folder is the output folder of a run, or a checkpoint; RefineError: no such folder or file, or too few norms.
    """
    if not folder.is_dir():
        raise RefineError(f"'{folder}' is no folder; give the output_dir of a run")
    found = [_from_trace(folder / TRACE_NAME), *(_from_state(path) for path in _states(folder))]
    runs = [run for run in found if run is not None]
    if not runs:
        raise RefineError(
            f"'{folder}' has neither {TRACE_NAME} nor trainer_state.json; give the output_dir of a run that was saved"
        )
    best = max(runs, key=lambda run: len(run.norms))
    if len(best.norms) < LEAST_NORMS:
        raise RefineError(
            f"'{best.source}' has {len(best.norms)} gradient norms, refinement needs {LEAST_NORMS}; log more often "
            "(logging_steps) or use a controller that measures grad_norm"
        )
    return best


def _states(folder: Path) -> list[Path]:
    newest = [path / STATE_NAME for _, path in numbered_checkpoints(folder) if (path / STATE_NAME).is_file()][:1]
    return [path for path in (folder / STATE_NAME, *newest) if path.is_file()]


def _from_trace(path: Path) -> PastRun | None:
    try:
        rows = read_trace(path)
        if not rows:
            return None
        total = max(row["step"] for row in rows) + 1
        points = [(row["step"] / total, row.get("observation", {}).get("grad_norm")) for row in rows]
        return _run(path, points, [row["lr"] for row in rows])
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise RefineError(f"'{path}' is not a trace: {error!r}; give the output_dir of another run") from error


def _from_state(path: Path) -> PastRun | None:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in state["log_history"] if "learning_rate" in row]
        total = max(int(state["max_steps"]), *(int(row["step"]) for row in rows), 1)
        # Logged after the update: step 1 is the first.
        points = [((int(row["step"]) - 1) / total, row.get("grad_norm")) for row in rows]
        return _run(path, points, [row["learning_rate"] for row in rows])
    except (ValueError, KeyError, TypeError) as error:
        raise RefineError(f"'{path}' is not Trainer's: {error!r}; give the output_dir of another run") from error


def _run(path: Path, points: list[tuple[float, Any]], rates: list[Any]) -> PastRun:
    kept = {
        at: float(norm) for at, norm in points if isinstance(norm, int | float) and math.isfinite(norm) and norm > 0
    }
    peak = max((float(rate) for rate in rates if isinstance(rate, int | float) and math.isfinite(rate)), default=0.0)
    return PastRun(path, np.array(sorted(kept)), np.array([kept[at] for at in sorted(kept)]), peak)


def running_median(values: Array, width: int) -> Array:
    """Median over an odd `width` of at least two values; the first is repeated before the start, the end mirrored."""
    half = width // 2
    padded = np.pad(np.pad(values, (0, half), mode="reflect"), (half, 0), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    out: Array = np.median(windows, axis=-1)
    return out


def refined_schedule(norms: Sequence[float] | Array, smoothing: float = 0.1, power: float = 2.0) -> Array:
    """Factors in [0, 1], the largest of them 1 and the last 0, for a run that is as evenly divided as `norms` are.

    `norms` are at least two, positive, in order; `smoothing`, in [0, 1], is the width of the running median as a share
    of the run; `power`, in (0, 4], is the norm's (the paper's is 2). RefineError for a value out of range.
    """
    values = np.asarray(norms, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        raise RefineError("gradient norms must be at least two finite numbers above 0; leave the others out")
    if not 0 <= smoothing <= 1:
        raise RefineError(f"smoothing={smoothing} is outside [0, 1]; 0.1 is the paper's")
    if not 0 < power <= 4:
        raise RefineError(f"power={power} is outside (0, 4]; 2 is the paper's")
    smooth = running_median(values, 2 * (int(smoothing * len(values)) // 2) + 1)
    weights = (smooth / smooth.min()) ** -power
    after = np.concatenate((np.cumsum(weights[::-1])[::-1][1:], [0.0]))
    schedule: Array = weights * after / (weights * after).max()
    return schedule


def refine(runs: Sequence[PastRun], smoothing: float = 0.1, power: float = 2.0) -> Replay:
    """The next run's schedule as a controller: factors of the base learning rate, open loop.

    Args:
        runs: at least one; of several the geometric mean of the norms counts, each in units of its own mean.
        smoothing: see [`refined_schedule`].
        power: see [`refined_schedule`].

    Raises:
        RefineError: no run, or a setting out of range.
    """
    if not runs:
        raise RefineError("refinement needs at least one run")
    count = min(max(len(run.norms) for run in runs), _POINTS)
    grid = np.arange(count + 1) / count  # one more than norms: the last factor, of no update, is 0
    logs = [np.interp(grid, run.progress, np.log(run.norms)) for run in runs]
    norms = np.exp(np.mean([each - each.mean() for each in logs], axis=0))
    factors = refined_schedule(norms, smoothing, power)
    return Replay(progress=tuple(grid.tolist()), factors=tuple(factors.tolist()))
