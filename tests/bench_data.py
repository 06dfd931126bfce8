"""What the tests of the benchmark's data share: a small task, a data set of one's own, and where rows are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hf_adaptive_lr.bench import (
    data,
    packages,
)
from hf_adaptive_lr.bench.data import Rows, load
from hf_adaptive_lr.bench.raw_rows import Raw
from hf_adaptive_lr.bench.sources import SOURCES, Source
from hf_adaptive_lr.bench.tasks import Task

DIGITS = Task(
    name="toy-digits", suite="development", data="digits", model="mlp", kind="scratch", batch_size=16, updates=10,
    train_rows=600, valid_rows=200, controller_rows=100, test_rows=300, lr=0.1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_rows(tmp_path, monkeypatch, request):
    """Rows that a test makes are its own; those of the real tasks stay where they are."""
    if "real" not in request.fixturenames:
        monkeypatch.setenv("HF_ADAPTIVE_LR_CACHE", str(tmp_path))
    for kept in (load, data._read, packages.kept):
        kept.cache_clear()
    yield
    for kept in (load, data._read, packages.kept):
        kept.cache_clear()


@pytest.fixture
def real() -> None:
    """The user's cache folder, with the packages that are there."""


def toy(monkeypatch, kind: str, pool: Raw, test: Raw | None = None, **fields) -> None:
    """A data set by the name of "toy"."""
    source = Source(read=lambda: (pool, test or pool), origin="toy", suite="development", kind=kind, **fields)
    monkeypatch.setitem(SOURCES, "toy", source)


def task(**fields) -> Task:
    return replace(DIGITS, name="toy", data="toy", **{"overlap": True} | fields)


def inputs(rows: Rows) -> set[bytes]:
    """All that the model sees of each row."""
    columns = [column for name, column in rows.columns.items() if name != "labels"]
    return {b"".join(column[row].numpy().tobytes() for column in columns) for row in range(len(rows))}


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
