"""The compatibility table's trackers: what reaches each one is what the trainer logged, in charts that group."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import Trainer

from hf_adaptive_lr.trainer.arguments import AdaptiveLRTrainingArguments
from tests.compatibility import models as tiny
from tests.compatibility.checks import STEPS, Check, Kit, require

Charts = dict[str, dict[int, float]]  # value by update, by name of the chart

GROUP, PROJECT = "train/adaptive_lr/", "adaptive-lr-compatibility"
BESIDE = {"held", "guard_skips", "guard_rollbacks", "guard_factor"}


def _facts(tracker: str, read: Callable[[Path], Charts], folder: Path) -> list[str]:
    """One guarded run of `universal`; its charts beside Trainer's own log."""

    def parts() -> dict[str, Any]:
        return {"model": tiny.bert(), "train_dataset": tiny.encoded()}

    settings = {"report_to": tracker, "divergence_guard": True, "project": PROJECT, "run_name": "run"}
    trainer = Kit(Trainer, AdaptiveLRTrainingArguments, parts, settings).build(folder / "run", "universal")
    trainer.train()
    shown = read(folder)
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "learning_rate" in entry}
    require(sorted(logged) == [*range(1, STEPS + 1)], f"a log at every update, got {sorted(logged)}")
    names = {name for entry in logged.values() for name in entry if name.startswith("adaptive_lr/")}
    expected = {f"adaptive_lr/{name}" for name in BESIDE | trainer.controller.needs}
    require(names == expected, f"the log has {sorted(expected)}, got {sorted(names)}")
    ours = {name for name in shown if "adaptive_lr" in name}
    require(ours == {f"train/{name}" for name in names}, f"all are charts under {GROUP}, got {sorted(ours)}")
    for name in (*names, "learning_rate"):
        said = {step: float(entry[name]) for step, entry in logged.items() if name in entry}
        chart = shown[f"train/{name}"]
        require(chart.keys() == said.keys(), f"{name} at the updates {sorted(said)}, got {sorted(chart)}")
        same = all(math.isclose(chart[step], said[step], rel_tol=1e-6) for step in said)  # float32
        require(same, f"{name} as it was logged, {said}, got {chart}")
    count = len(names)
    return [
        f"{count} charts under `{GROUP}`, the guard's among them, and the learning rate: at every update as logged"
    ]


def _tensorboard(folder: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> Charts:
        board = EventAccumulator(str(folder)).Reload()
        names: list[str] = board.Tags()["scalars"]
        return {name: {event.step: event.value for event in board.Scalars(name)} for name in names}

    with mock.patch.dict(os.environ, {"TENSORBOARD_LOGGING_DIR": str(folder)}):
        return _facts("tensorboard", read, folder)


def _trackio(folder: Path) -> list[str]:
    with mock.patch.dict(os.environ, {"TRACKIO_DIR": str(folder)}):  # read when trackio is first imported
        from trackio.sqlite_storage import SQLiteStorage

        def read(folder: Path) -> Charts:
            charts: Charts = {}
            for row in SQLiteStorage.get_logs(PROJECT, "run"):
                for name, value in row.items():
                    if isinstance(value, int | float):
                        charts.setdefault(name, {})[row["train/global_step"]] = value
            return charts

        return _facts("trackio", read, folder)


def _wandb(folder: Path) -> list[str]:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    def read(folder: Path) -> Charts:
        wandb.teardown()  # ends the run, and waits until its service has written all of it
        (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        charts: Charts = {}
        for raw in _records(path.read_bytes()):
            record = Record.FromString(raw)
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                if isinstance(value, int | float) and "train/global_step" in row:
                    charts.setdefault(name, {})[row["train/global_step"]] = value
        return charts

    places = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_PROJECT": PROJECT, "WANDB_SILENT": "true"}
    with mock.patch.dict(os.environ, places):
        return _facts("wandb", read, folder)


def _records(data: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format: blocks of 32 KiB, each part with checksum, length and kind."""
    place, parts = 7, b""  # after the file's own header
    while len(data) - place >= 7:
        if 32768 - place % 32768 < 7:  # no room for a header: zeros up to the next block
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


TRACKERS: tuple[Check, ...] = (
    Check("TensorBoard", ("tensorboard",), _tensorboard),
    Check("Trackio", ("trackio",), _trackio),
    Check("Weights & Biases, offline", ("wandb",), _wandb),
)
"""Rows of the table, in order."""
