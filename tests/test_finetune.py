"""`hf-adaptive-lr finetune` as a function: data from every source, splits, labels, outputs, and what fails fast."""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from hf_adaptive_lr import Hypergradient
from hf_adaptive_lr.artifacts import drafts, only_writer
from hf_adaptive_lr.cli import finetune as finetune_verb
from hf_adaptive_lr.finetune.data import JobData, load_data
from hf_adaptive_lr.finetune.images import open_image
from hf_adaptive_lr.finetune.job import FinetuneConfig, FinetuneError, run
from hf_adaptive_lr.finetune.model import load_parts
from hf_adaptive_lr.finetune.outputs import installed_version, table
from hf_adaptive_lr.scheduler.trace import read_trace
from hf_adaptive_lr.trainer.checkpoints import newest_whole
from tests.job import texts, write_csv, write_image_model, write_images, write_text_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def text_model(tmp_path_factory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text_model"))


@pytest.fixture
def text_job(tmp_path, text_model) -> FinetuneConfig:
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "train.csv", texts(48))
    write_csv(tmp_path / "data" / "test.csv", texts(12, seed=1))
    return FinetuneConfig(
        data=str(tmp_path / "data"),
        model=str(text_model),
        output_dir=str(tmp_path / "out"),
        controller="hypergradient",
        learning_rate=0.02,
        max_steps=40,
        batch_size=8,
    )


def read(data: str | None, **changes: Any) -> JobData:
    config = FinetuneConfig(data=data, **changes)
    return load_data(config.source, config.wanted)


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_a_text_run_learns_and_leaves_four_outputs(text_job) -> None:
    results = run(text_job)
    out = text_job.folder
    assert results["accuracy"] > 0.9 > results["majority_accuracy"] == pytest.approx(1 / 3, abs=1e-5)
    assert results["macro_f1"] > 0.9 and "macro F1" in table(results, out)
    assert json.loads((out / "results.json").read_text()) == results
    assert results["data"] == {
        "name": text_job.data,
        "train_rows": 48,
        "report_rows": 12,
        "report_split": "test",
        "labels": 3,
        "left_out": 0,
        "unreadable": 0,
        "sixteen_bits": 0,
        "problem_type": "single_label_classification",
        "rare_labels": {},
    }
    assert results["controller"] == {"controller_type": "hypergradient", **Hypergradient().config()}
    assert results["controller_data"] == "training batches only"
    trace = read_trace(out / "lr_trace.jsonl")
    rates = [row["lr"] for row in trace]
    assert results["updates"] == len(trace) == 40
    assert results["lr"] == {"first": rates[0], "max": max(rates), "last": rates[-1]}
    assert len(set(rates)) > 20, "the learning rate adapts"
    with Image.open(out / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "no drafts are left"


def test_nothing_but_data_and_a_model_need_be_said(text_job) -> None:
    job = replace(text_job, controller=None, learning_rate=None)
    results = run(replace(job, max_steps=300))
    made = results["controller"]
    assert (
        made["controller_type"] == "update_size"
        and made["provenance"]["source"] == "universal"
        and made["start"] == "auto"
    )
    assert results["accuracy"] > 0.9 and results["learning_rate"] == "auto" and not results["learning_rate_unused"]
    assert "universal (default)" in table(results, text_job.folder)
    assert results["lr"]["first"] < 2e-8  # of 1e-7, at the beginning of a warm-up over 5 %
    cold = run(replace(job, max_steps=2, warmup_steps=0, overwrite=True))
    assert cold["lr"]["first"] == pytest.approx(1e-7)
    assert FinetuneConfig(optimizer="dsa").resolved().learning_rate == 1e-4  # which has no controller that finds it


@pytest.mark.parametrize(
    ("said", "controller", "rate", "choice"),
    [
        ({}, "universal", "auto", "default"),
        ({"task": "image"}, "universal", "auto", "default"),
        ({"controller_kwargs": '{"start": "pretrained"}'}, "universal", "auto", "default"),
        ({"controller": "universal"}, "universal", "auto", "given"),
        ({"controller": "relative"}, "relative", 1e-4, "given"),
        ({"optimizer": "dsa"}, "constant", 1e-4, "default for dsa"),
    ],
)
def test_the_default_controller_finds_the_learning_rate(said, controller, rate, choice) -> None:
    config = FinetuneConfig(**said).resolved()
    assert (config.controller, config.learning_rate, config.warmup_steps) == (controller, rate, None)
    assert config.controller_kwargs == said.get("controller_kwargs") and config.choice.startswith(choice)
    assert config.resolved() == config


GOOD = ["wonderful", "moving", "superb", "charming", "brilliant", "delightful", "gripping", "beautiful"]
BAD = ["terrible", "boring", "awful", "clumsy", "stupid", "tedious", "lifeless", "annoying"]


def reviews(count: int, first: int, wrong: float, seed: int) -> list[tuple[str, str]]:
    """(text, label): two of four adjectives of one class, from `first` on; a share `wrong` has the other label."""
    draw, rows = random.Random(seed), []
    for index in range(count):
        subjects = draw.sample(["film", "story", "cast", "plot", "ending", "script", "music", "acting"], 2)
        one, other = draw.sample((GOOD, BAD)[index % 2][first : first + 4], 2)
        label = ("good", "bad")[(index + (draw.random() < wrong)) % 2]
        rows.append((f"the {subjects[0]} is {one} and so is the {other} {subjects[1]}", label))
    return rows


def test_two_classes_are_learned_with_all_defaults(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "train.csv", reviews(400, 0, 0.2, seed=0))
    write_csv(tmp_path / "data" / "test.csv", reviews(200, 4, 0.0, seed=1))  # words that were not trained on
    job = FinetuneConfig(data=str(tmp_path / "data"), max_steps=40, max_length=16, output_dir=str(tmp_path / "out"))
    results = run(job)
    assert results["majority_accuracy"] == 0.5 and results["model"]["name"] == "all-MiniLM-L6-v2"
    assert results["accuracy"] > 0.8
    assert results["controller_choice"] == "default"


def test_a_learning_rate_that_the_default_controller_does_not_use_is_said_at_once(text_job, caplog) -> None:
    results = run(replace(text_job, controller=None, learning_rate=0.02, max_steps=2))
    assert results["learning_rate_unused"]
    assert "learning_rate=0.02 is not used" in caplog.text and "--controller linear" in caplog.text
    caplog.clear()
    run(replace(text_job, controller="universal", max_steps=2, overwrite=True))
    assert "not used" not in caplog.text, "who names the controller knows it"


def test_runs_resume_with_the_controller_they_began_with(text_job) -> None:
    job = replace(text_job, controller=None, learning_rate=None, max_steps=4)
    first = run(job)
    assert {**run(replace(job, resume=True)), "wall_seconds": 0} == {**first, "wall_seconds": 0}
    # as the version before wrote it, whose default was another, and which named the net as its successor is named now
    old = replace(job, controller="universal_1", learning_rate="auto", output_dir=f"{job.folder}2")
    run(old)
    path = old.folder / "finetune_config.json"
    settings = json.loads(path.read_text()) | {"controller": "universal"}
    path.write_text(json.dumps({k: v for k, v in settings.items() if k not in ("warmup_steps", "choice")}))
    assert json.loads(path.read_text())["stratified"]
    grown = run(replace(job, output_dir=old.output_dir, max_steps=6, resume=True))
    assert grown["controller"]["controller_type"] == "universal" and grown["updates"] == 6
    assert grown["controller_choice"] == "of the run that is resumed"
    with pytest.raises(FinetuneError, match="has controller=universal_1, not relative"):
        run(replace(job, controller="relative", output_dir=old.output_dir, max_steps=6, resume=True))


def test_a_controller_that_finds_the_learning_rate_needs_none(text_job, tmp_path) -> None:
    base = replace(text_job, controller="relative", controller_kwargs='{"rho": 0.05}', max_steps=80)
    found = run(replace(base, learning_rate="auto"))
    given = run(replace(base, learning_rate=1e-7, output_dir=str(tmp_path / "given")))
    assert found["accuracy"] > 0.9 and found["lr"] == given["lr"] and found["loss"] == given["loss"]
    assert (found["learning_rate"], found["learning_rate_unused"]) == ("auto", False)
    assert given["learning_rate_unused"] and "1e-07 was not used" in table(given, tmp_path)
    assert "not used" not in table(found, tmp_path)
    again = run(replace(base, learning_rate="auto", resume=True))
    assert again["loss"] == found["loss"]


def test_the_saved_model_answers_as_reported(text_job) -> None:
    results = run(text_job)
    folder = text_job.folder / "model"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )
    rows = texts(12, seed=1)
    answers = model(**tokenizer([text for text, _ in rows], return_tensors="pt", padding=True)).logits.argmax(-1)
    right = [model.config.id2label[int(a)] == label for a, (_, label) in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == results["accuracy"]


def test_an_image_run_learns_with_the_demo_model_and_with_one_from_a_folder(tmp_path) -> None:
    write_images(tmp_path / "photos" / "train")
    write_images(tmp_path / "photos" / "test", per_class=6, seed=1)
    job = FinetuneConfig(
        task="image",
        data=str(tmp_path / "photos"),
        output_dir=str(tmp_path / "out"),
        controller="hypergradient",
        learning_rate=5e-3,
        max_steps=20,
        batch_size=8,
    )
    assert run(job)["accuracy"] > 0.8
    assert AutoImageProcessor.from_pretrained(job.folder / "model").size["height"] == 32
    own = replace(job, model=str(write_image_model(tmp_path / "model")), output_dir=str(tmp_path / "out2"))
    assert run(own)["model"]["name"] == own.model


def test_numbers_and_several_labels_are_learned(text_job, tmp_path) -> None:
    rows = [(text, label, label != "cars", label == "cars") for text, label in texts(48)]
    path = write_csv(
        tmp_path / "d.csv",
        [(t, {"cars": -1.5, "space": 0.25, "sport": 1.5}[name], int(a), int(b)) for t, name, a, b in rows],
        header=("text", "value", "goes", "drives"),
    )
    job = replace(text_job, data=str(path), max_steps=60)
    results = run(replace(job, label_column="value"))
    assert results["r2"] > 0.7 and "accuracy" not in results and "majority_accuracy" not in results
    assert results["data"]["problem_type"] == "regression" and "r2 " in table(results, job.folder)
    model = AutoModelForSequenceClassification.from_pretrained(job.folder / "model")
    assert model.config.problem_type == "regression" and model.config.id2label == {0: "value"}
    job = replace(job, learning_rate=0.005)
    results = run(replace(job, label_column="goes,drives", overwrite=True))
    assert results["accuracy"] > 0.8 and results["macro_f1"] > 0.8
    model = AutoModelForSequenceClassification.from_pretrained(job.folder / "model")
    assert model.config.problem_type == "multi_label_classification"
    assert run(replace(job, label_column="goes,drives", resume=True))["loss"] == results["loss"]


def test_pairs_of_texts_are_read_together(text_job, tmp_path) -> None:
    words = [text for text, _ in texts(60)]
    rows = [(one, one if i % 2 else words[i - 7], i % 2) for i, one in enumerate(words)]
    path = write_csv(tmp_path / "d.csv", rows, header=("one", "other", "label"))
    job = replace(text_job, data=str(path), text_column="one", text_pair_column="other", max_steps=2)
    run(job)
    parts = load_parts("text", job.model, ["0", "1"], max_length=16)
    both = parts.collate([{"input": "the ball", "pair": "a goal", "label": 1}])["input_ids"]
    assert both.shape == (1, 4), "both are in it"


def test_the_demo_images_are_learned(tmp_path) -> None:
    job = FinetuneConfig(task="image", max_steps=40, train_size=600, eval_size=200, output_dir=str(tmp_path / "out"))
    results = run(job)
    assert results["accuracy"] > 0.4 > 2 * results["majority_accuracy"]
    assert results["learning_rate"] == "auto"
    assert results["model"]["parameters"] < 400_000


def test_the_demo_encoder_takes_any_texts(tmp_path, text_job) -> None:
    results = run(replace(text_job, model=None, max_steps=4, learning_rate=1e-3, max_length=16))
    assert results["model"]["name"] == "all-MiniLM-L6-v2"
    assert results["accuracy"] > 0.7


def test_the_reported_rows_steer_nothing(text_job) -> None:
    job = replace(text_job, controller="plateau", controller_kwargs='{"window": 2}', max_steps=8)
    first = run(job)
    write_csv(Path(job.data) / "test.csv", texts(30, seed=7))
    other = replace(job, output_dir=f"{job.folder}2")
    second = run(other)
    assert first["data"]["report_rows"] != second["data"]["report_rows"]
    assert (job.folder / "lr_trace.jsonl").read_text() == (other.folder / "lr_trace.jsonl").read_text()
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (job.folder, other.folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_data_of_an_evaluating_controller_is_named(text_job) -> None:
    job = replace(
        text_job, controller="plateau", controller_kwargs='{"metric": "eval_loss", "window": 2}', max_steps=6
    )
    results = run(job)
    assert results["controller_data"] == "seeded split of the training set (0.1)"
    assert results["data"]["train_rows"] == 44, "what the controller holds out is not trained on"


def test_the_command_in_the_results_says_it_all(text_job) -> None:
    job = replace(text_job, max_steps=1, every=3, seed=5, controller="cosine", optimizer="sgd")
    words = shlex.split(run(job)["command"])
    assert words[:2] == ["hf-adaptive-lr", "finetune"]
    parser = argparse.ArgumentParser()
    finetune_verb.add_parser(parser.add_subparsers())
    said = vars(parser.parse_args(words[1:]))
    assert FinetuneConfig(**{name: value for name, value in said.items() if name not in ("json", "run")}) == job


def test_without_matplotlib_only_the_curves_are_missing(text_job, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run(replace(text_job, max_steps=1))
    assert not (text_job.folder / "curves.png").exists()
    assert (text_job.folder / "results.json").exists()
    assert [r.message for r in caplog.records if "curves.png" in r.message] == [
        "curves.png is left out: matplotlib is missing; pip install 'hf_adaptive_lr[demo]'"
    ]


# --- an output folder that is not empty ------------------------------------------------------------------------------


def test_an_earlier_run_is_kept_unless_told_otherwise(text_job) -> None:
    job = replace(text_job, max_steps=2)
    run(job)
    before = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")}
    with pytest.raises(FinetuneError, match="holds results.json of an earlier run"):
        run(job)
    assert {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")} == before
    again = run(replace(job, max_steps=3, overwrite=True))
    assert again["updates"] == len(read_trace(job.folder / "lr_trace.jsonl")) == 3
    assert newest_whole(job.folder) == job.folder / "checkpoint-3"
    assert not (job.folder / "checkpoint-2").exists()


def test_overwriting_removes_nothing_when_the_request_is_bad(text_job) -> None:
    run(replace(text_job, max_steps=1))
    with pytest.raises(FinetuneError, match="no text column 'absent'"):
        run(replace(text_job, text_column="absent", overwrite=True))
    assert (text_job.folder / "results.json").exists()


def test_a_finished_run_resumes_to_the_same_results(text_job) -> None:
    job = replace(text_job, max_steps=4)
    first = run(job)
    second = run(replace(job, resume=True))
    assert {**first, "wall_seconds": 0} == {**second, "wall_seconds": 0}


def test_a_resumed_run_must_have_the_same_settings(text_job) -> None:
    job = replace(text_job, max_steps=2)
    run(job)
    with pytest.raises(FinetuneError, match=r"has learning_rate=0\.02, not 0\.01"):
        run(replace(job, resume=True, learning_rate=0.01))


def test_a_run_without_a_whole_checkpoint_begins_again_to_the_same_results(text_job, caplog) -> None:
    """Killed during its first checkpoint."""
    job = replace(text_job, max_steps=4, save_steps=2)
    first = run(job)
    (job.folder / "results.json").unlink()
    half = newest_whole(job.folder)
    (half / "optimizer.pt").unlink()
    with (half / "trainer_state.json").open("r+") as file:
        file.truncate(40)
    (job.folder / ".model.123.tmp").mkdir()
    (job.folder / ".results.json.123.tmp").touch()
    caplog.clear()
    again = run(replace(job, resume=True))
    assert {**again, "wall_seconds": 0} == {**first, "wall_seconds": 0}
    assert "has no whole checkpoint yet (checkpoint-4: it has no optimizer.pt" in caplog.text
    assert not drafts(job.folder)


@pytest.mark.parametrize("finished", [True, False])
def test_a_checkpoint_that_was_damaged_later_is_not_thrown_away_unasked(text_job, finished) -> None:
    job = replace(text_job, max_steps=4, save_steps=2)
    run(job)
    if not finished:
        (job.folder / "results.json").unlink()
    (newest_whole(job.folder) / "optimizer.pt").unlink()
    before = sorted(job.folder.rglob("*"))
    with pytest.raises(FinetuneError, match="no whole checkpoint to resume from .checkpoint-4: .*with --overwrite"):
        run(replace(job, resume=True))
    assert sorted(job.folder.rglob("*")) == before


def test_a_folder_that_a_killed_run_left_takes_a_new_run(text_job) -> None:
    job = replace(text_job, max_steps=2)
    first = run(job)
    half = job.folder / "checkpoint-2"
    (half / "trainer_state.json").unlink()
    shutil.rmtree(job.folder / "model")
    for name in ("results.json", "curves.png"):
        (job.folder / name).unlink()
    second = run(replace(job, learning_rate=0.01))
    assert {**second, "wall_seconds": 0} != {**first, "wall_seconds": 0}
    assert (half / "trainer_state.json").is_file()


def test_two_processes_do_not_share_a_folder(text_job) -> None:
    job = replace(text_job, max_steps=2)
    with only_writer(job.folder):
        with pytest.raises(FinetuneError, match="another process writes into "):
            run(job)
        assert [path.name for path in job.folder.iterdir()] == [".lock"]
    assert not job.folder.exists()
    run(job)


def test_a_trace_of_two_runs_makes_no_results(text_job) -> None:
    job = replace(text_job, max_steps=2)
    run(job)
    trace = job.folder / "lr_trace.jsonl"
    trace.write_text(trace.read_text() * 2)
    with pytest.raises(FinetuneError, match="does not hold updates 0 ... 3 in their order"):
        run(replace(job, resume=True))


# --- sources, splits, labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet", "folder", "saved"])
def test_every_source_gives_the_same_rows(kind, tmp_path) -> None:
    rows = texts(30)
    table = Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    path = tmp_path / ("data" if kind in ("folder", "saved") else f"data.{kind}")
    if kind == "folder":
        path.mkdir()
        write_csv(path / "all.csv", rows)
    elif kind == "saved":
        table.save_to_disk(str(path))
    elif kind == "parquet":
        table.to_parquet(str(path))
    elif kind == "csv":
        table.to_csv(str(path), index=False)
    else:
        table.to_json(str(path), lines=kind == "jsonl")
    job = read(str(path))
    assert job.labels == sorted({label for _, label in rows})
    found = {(row["input"], job.labels[row["label"]]) for part in (job.train, job.report) for row in part}
    assert found == set(rows)
    assert (len(job.train), len(job.report)) == (24, 6)
    assert job.report_split == "6 rows held out of train (seed 0)"


def save_splits(folder: Path, **splits: list[Any]) -> str:
    parts = {
        name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(len(labels))], "label": labels})
        for name, labels in splits.items()
    }
    DatasetDict(parts).save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ({"train": [0, 1, 1], "validation": [0, 1], "test": [1, 0, 1]}, "test"),
        ({"train": [0, 1, 1], "validation": [0, 1], "test": [-1, -1]}, "validation"),
        ({"train": [0, 1, 1], "validation": [0, 1]}, "validation"),
        ({"train": [0, 1] * 5, "test": [-1]}, "2 rows held out of train (seed 0)"),
    ],
)
def test_the_report_comes_from_the_labelled_test_split_if_there_is_one(tmp_path, splits, expected) -> None:
    job = read(save_splits(tmp_path / "d", **splits))
    assert job.report_split == expected
    assert not set(job.train["input"]) & set(job.report["input"])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "b", "a"], ["a", "b"]),
        ([7, 3, 7, 10], ["3", "7", "10"]),
        ([True, False, True, False], ["False", "True"]),
    ],
)
def test_labels_of_any_discrete_type_become_numbers(tmp_path, values, names) -> None:
    job = read(save_splits(tmp_path / "d", train=values, test=values[:2]))
    assert job.labels == names
    assert [job.labels[number] for number in job.train["label"]] == [str(value) for value in values]
    assert [job.labels[number] for number in job.report["label"]] == [str(value) for value in values[:2]]


def test_class_labels_keep_names_that_no_row_has(tmp_path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y", "z"])})
    rows = Dataset.from_dict({"text": list("abcdef"), "label": [0, 1] * 3}, features=features)
    rows.save_to_disk(str(tmp_path / "d"))
    assert read(str(tmp_path / "d")).labels == ["x", "y", "z"]


def test_sizes_are_kept_and_the_rows_do_not_depend_on_the_seed(tmp_path, text_job) -> None:
    path = str(write_csv(tmp_path / "d.csv", texts(60)))
    small, again = read(path, train_size=10, eval_size=5), read(path, train_size=10, eval_size=5)
    assert (len(small.train), len(small.report)) == (10, 5)
    assert small.train[:] == again.train[:]
    assert small.report[:] == again.report[:]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), ("b", "x"), ("c", "x")], "has 1 label; at least 2"),
        ([("a", ""), ("b", ""), ("c", "y"), ("", "x")], "3 of 4 rows have no text in 'text' or no label in 'label'"),
        ([(1, "x"), (2, "y"), (3, "y")], "text column 'text' holds int64, not text"),
        ([("a", "x")], "1 training rows are too few"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, message) -> None:
    with pytest.raises(FinetuneError, match=message):
        read(str(write_csv(tmp_path / "d.csv", rows)))


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path) -> None:
    rows = texts(20)
    whole = read(str(write_csv(tmp_path / "whole.csv", rows)))
    job = read(str(write_csv(tmp_path / "holes.csv", [*rows[:7], ("", "x"), *rows[7:], ("nobody's", "")])))
    assert (whole.left_out, job.left_out) == (0, 2)
    assert job.labels == whole.labels and job.train[:] == whole.train[:] and job.report[:] == whole.report[:]


def test_labels_of_few_rows_are_named(tmp_path) -> None:
    rows = [(f"text {i}", "often" if i % 2 else "usual") for i in range(60)] + [("a", "hardly"), ("b", "hardly")]
    found = read(str(write_csv(tmp_path / "d.csv", rows))).rare_labels()
    assert list(found) == ["hardly"] and sum(found["hardly"]) == 2


def test_a_folder_of_images_without_classes_says_how_they_should_lie(tmp_path) -> None:
    for number in range(3):
        Image.new("L", (4, 4), number).save(tmp_path / f"{number}.png")
    with pytest.raises(FinetuneError, match="has no label column 'label'; .*one folder for each class.*photos/cat"):
        read(str(tmp_path), task="image")


def test_a_split_is_needed_when_there_are_several(tmp_path) -> None:
    with pytest.raises(FinetuneError, match="has no split 'train'; its splits are: a, b"):
        read(save_splits(tmp_path / "d", a=[0, 1], b=[0, 1]))


# --- images and models -----------------------------------------------------------------------------------------------


def stored(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def test_every_image_becomes_rgb_and_what_is_transparent_white() -> None:
    assert open_image(stored(Image.new("L", (2, 2), 9))).getpixel((0, 0)) == (9, 9, 9)
    assert open_image(stored(Image.new("RGBA", (2, 2), (9, 9, 9, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_images_of_16_bits_are_counted_where_the_model_is_found(tmp_path) -> None:
    folder = write_images(tmp_path / "photos", per_class=6)
    for index in range(4):
        Image.new("I;16", (12, 12), 9000 * index).save(folder / "dark" / f"{index}.png")
    job = FinetuneConfig(
        task="image",
        data=str(folder),
        model=str(write_image_model(tmp_path / "model")),
        controller="constant",
        max_steps=1,
        batch_size=4,
        output_dir=str(tmp_path / "out"),
    )
    results = run(job)
    assert results["data"]["sixteen_bits"] == 4
    assert f"4 16-bit images were scaled by 1/257; do the same before you use {tmp_path}" in table(results, job.folder)


def test_a_broken_image_is_named(tmp_path) -> None:
    write_images(tmp_path / "photos")
    file = tmp_path / "photos" / "dark" / "3.png"
    whole = file.read_bytes()
    file.write_bytes(b"no picture")
    with pytest.raises(FinetuneError, match=r"dark/3\.png cannot be read"):
        read(str(tmp_path / "photos"), task="image")
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FinetuneError, match=r"dark/3\.png cannot be read"):
        open_image({"bytes": None, "path": str(file)})


def test_images_in_another_column_type_are_refused(tmp_path) -> None:
    path = save_splits(tmp_path / "d", train=[0, 1, 1])
    with pytest.raises(FinetuneError, match="image column 'text' holds string, not images"):
        read(path, task="image", image_column="text")


def test_half_precision_checkpoints_are_trained_in_float32(tmp_path, text_model) -> None:
    half = AutoModelForSequenceClassification.from_pretrained(text_model, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(text_model).save_pretrained(tmp_path / "half")
    parts = load_parts("text", str(tmp_path / "half"), list("abc"), max_length=64)
    assert parts.model.dtype == torch.float32


def test_weights_missing_below_the_head_are_said(tmp_path, text_model, caplog) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(text_model)
    state = {name: t for name, t in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    AutoTokenizer.from_pretrained(text_model).save_pretrained(tmp_path / "part")
    with caplog.at_level(logging.WARNING):
        load_parts("text", str(tmp_path / "part"), list("abc"), max_length=64)
    assert "2 weights below the head" in caplog.text
    assert "pooler" in caplog.text


def test_texts_are_padded_and_cut_to_what_the_model_can_read(text_model) -> None:
    parts = load_parts("text", str(text_model), list("abc"), max_length=64)
    batch = parts.collate([{"input": "the ball", "label": 1}, {"input": "the " * 30, "label": 0}])
    assert batch["input_ids"].shape == (2, 16)
    assert batch["labels"].tolist() == [1, 0]


def test_a_tokenizer_without_padding_pads_with_its_end_token(tmp_path, text_model) -> None:
    folder = tmp_path / "model"
    shutil.copytree(text_model, folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
    with pytest.raises(FinetuneError, match="has no padding token"):
        load_parts("text", str(folder), list("abc"), max_length=64)
    tokenizer.eos_token = "once"
    tokenizer.save_pretrained(folder)
    parts = load_parts("text", str(folder), list("abc"), max_length=64)
    batch = parts.collate([{"input": "the", "label": 1}, {"input": "the ball", "label": 0}])
    assert parts.model.config.pad_token_id == batch["input_ids"][0, 1] == tokenizer.convert_tokens_to_ids("once")
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_a_package_that_is_not_installed_has_no_known_version() -> None:
    assert installed_version("torch") != "unknown" == installed_version("no-such-package-anywhere")
