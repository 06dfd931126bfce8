"""The rows, labels, images and scores of `hf-adaptive-lr finetune`, without a training."""

from __future__ import annotations

import gc
import io
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from sklearn.metrics import f1_score, mean_absolute_error, r2_score
from transformers import EvalPrediction

from hf_adaptive_lr.finetune.config import check
from hf_adaptive_lr.finetune.data import JobData, load_data
from hf_adaptive_lr.finetune.errors import FinetuneError
from hf_adaptive_lr.finetune.images import open_image
from hf_adaptive_lr.finetune.labels import CLASSES, NUMBER, SEVERAL
from hf_adaptive_lr.finetune.metrics import macro_f1, scored_by
from hf_adaptive_lr.finetune.options import FinetuneConfig
from tests.job import write_csv, write_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def read(data: Path, **changes: Any) -> JobData:
    config = FinetuneConfig(data=str(data), **changes)
    return load_data(config.source, config.wanted)


def rows_of(labels: list[Any]) -> list[tuple[str, Any]]:
    return [(f"text {index}", label) for index, label in enumerate(labels)]


def names(job: JobData) -> list[str]:
    return [job.labels[number] for part in (job.train, job.report) for number in part["label"]]


# --- what counts as a label ---


@pytest.mark.parametrize(
    "cells, found, left_out",
    [
        ([0, 1, 2, ""] * 5, ["0", "1", "2"], 5),  # pandas makes floats of them
        (["0.0", "1.0", "2.0"] * 5, ["0", "1", "2"], 0),
        ([" good", "good", "bad ", "bad", "very  good", "very good"] * 5, ["bad", "good", "very good"], 0),
        (["caf\u00e9", "cafe\u0301", "bar"] * 5, ["bar", "caf\u00e9"], 0),  # two spellings of one letter
        ([10, 9, "NA", 10] * 5, ["9", "10"], 5),
        (["02134", "2134", "NA"] * 5, ["02134", "2134"], 5),
        ([2**53, 2**53 + 1, "NA"] * 5, [str(2**53), str(2**53 + 1)], 5),
        (["None", "some", "  ", "some"] * 5, ["None", "some"], 5),
        (["true", "false"] * 5, ["False", "True"], 0),
    ],
    ids=[
        "blanks",
        "floats",
        "spaces",
        "spelling",
        "NA beside numbers",
        "codes",
        "large numbers",
        "None is a word",
        "booleans",
    ],
)
def test_a_label_is_compared_as_people_read_it(cells, found, left_out, tmp_path) -> None:
    job = read(write_csv(tmp_path / "d.csv", rows_of(cells)))
    assert (job.labels, job.left_out, job.problem_type) == (found, left_out, CLASSES)
    assert len(job.train) + len(job.report) == len(cells) - left_out


def test_numbers_are_the_same_labels_in_both_splits_whatever_pandas_makes_of_them(tmp_path) -> None:
    parts = {"train": [0.0, 1.0, None, 1.0], "test": [1, 0, 1]}
    made = {
        name: Dataset.from_dict({"text": list("abcd")[: len(part)], "label": part}) for name, part in parts.items()
    }
    DatasetDict(made).save_to_disk(str(tmp_path / "d"))
    job = read(tmp_path / "d")
    assert job.labels == ["0", "1"] and list(job.report["label"]) == [1, 0, 1] and job.left_out == 1


def test_a_word_for_nothing_in_one_split_is_no_label_of_its_own(tmp_path) -> None:
    (tmp_path / "d").mkdir()
    write_csv(tmp_path / "d" / "train.csv", rows_of([3, 4] * 5))
    write_csv(tmp_path / "d" / "test.csv", rows_of([3, 4, 4]))
    assert read(tmp_path / "d").labels == ["3", "4"]
    made = {"train": [3, 4, 4], "test": ["3", "NA", "4"]}
    parts = {name: Dataset.from_dict({"text": list("abc"), "label": part}) for name, part in made.items()}
    DatasetDict(parts).save_to_disk(str(tmp_path / "e"))
    job = read(tmp_path / "e")
    assert (job.labels, job.left_out, len(job.report)) == (["3", "4"], 1, 2)


def test_words_that_may_mean_nothing_or_differ_by_case_are_pointed_out(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        job = read(write_csv(tmp_path / "d.csv", rows_of(["Good", "good", "NA"] * 5)))
    assert job.labels == ["Good", "NA", "good"]
    assert "'NA' is taken as a label" in caplog.text and "'Good' and 'good'" in caplog.text


@pytest.mark.parametrize(
    "cells, changes, said",
    [
        (list(range(40)), {}, "40 values in 40 rows, so they do not look like labels; .*--problem-type regression"),
        ([f"name {i % 30}" for i in range(40)], {}, "30 values in 40 rows, so .* name another with --label-column"),
        ([1, 1, 1], {}, "has 1 label"),
        ([0.5, 1.5, 2.5], {"problem_type": CLASSES}, r"holds float \(0.5\); labels are strings or whole numbers"),
        (["a", "b", "a"], {"problem_type": NUMBER}, "holds 'a'; a regression needs finite numbers"),
        ([0.5, float("inf"), 1], {}, "holds inf; a regression needs finite numbers"),
        ([0.5, 0.5, 0.5], {}, "holds the same number in every row"),
        (["a", "b", "a"], {"problem_type": SEVERAL}, "holds one label a row, .*--label-delimiter"),
        ([], {}, "it has no rows"),
    ],
)  # fmt: skip
def test_columns_that_are_no_labels_are_refused_with_a_way_out(cells, changes, said, tmp_path) -> None:
    with pytest.raises(FinetuneError, match=said) as caught:
        read(write_csv(tmp_path / "d.csv", rows_of(cells)), **changes)
    assert "\n" not in str(caught.value)


def test_as_many_labels_as_rows_are_taken_when_they_are_asked_for(tmp_path) -> None:
    path = write_csv(tmp_path / "d.csv", rows_of([f"name {i}" for i in range(40)]))
    assert len(read(path, problem_type=CLASSES).labels) == 40


# --- which rows ---


def test_no_class_is_lost_by_picking_and_shares_are_kept(tmp_path) -> None:
    cells = [f"class {i % 10}" for i in range(180)] + ["rare"] * 3 + ["once"]
    path = write_csv(tmp_path / "d.csv", rows_of(cells))
    job = read(path, train_size=24, eval_size=20)
    assert len(job.labels) == 12
    train, report = Counter(job.train["label"]), Counter(job.report["label"])
    assert len(job.train) == 24 and set(train) == set(range(12)), "a row of each"
    assert len(job.report) == 20 and all(1 <= report[number] <= 3 for number in range(10))
    few = read(path, train_size=5)
    assert len(few.labels) == 12 and len(few.train) == 5, "the model has them all the same"
    assert few.rare_labels()["once"] == [0, 0]


def test_the_held_out_rows_have_the_shares_of_the_classes(tmp_path) -> None:
    cells = ["usual"] * 80 + ["seldom"] * 20 + ["once"]
    job = read(write_csv(tmp_path / "d.csv", rows_of(cells)))
    report = Counter(job.labels[number] for number in job.report["label"])
    assert report == {"usual": 16, "seldom": 4}
    assert Counter(job.labels[number] for number in job.train["label"])["once"] == 1, "else nobody learns it"
    assert not set(job.train["input"]) & set(job.report["input"])


def test_a_run_of_the_first_version_keeps_its_rows(tmp_path) -> None:
    path = write_csv(tmp_path / "d.csv", rows_of(["a", "b"] * 20))
    config = FinetuneConfig(data=str(path), stratified=False, train_size=10, eval_size=5)
    job = load_data(config.source, config.wanted)
    table = Dataset.from_dict({"input": [f"text {i}" for i in range(40)]}).train_test_split(test_size=5, seed=0)
    assert list(job.report["input"]) == list(table["test"]["input"])
    assert list(job.train["input"]) == list(table["train"].shuffle(seed=0)["input"])[:10]


# --- other tables ---


def test_delimiters_and_encodings(tmp_path) -> None:
    text = "text;label\nd\u00e9j\u00e0 vu;a\nna\u00efve;b\n" + "".join(f"row {i};{'ab'[i % 2]}\n" for i in range(8))
    (tmp_path / "d.csv").write_bytes(text.encode("cp1252"))
    job = read(tmp_path / "d.csv", delimiter=";", encoding="cp1252")
    assert "d\u00e9j\u00e0 vu" in [*job.train["input"], *job.report["input"]]
    with pytest.raises(FinetuneError, match=r"can't decode byte.*name its encoding with --encoding"):
        read(tmp_path / "d.csv", delimiter=";")
    with pytest.raises(FinetuneError, match="its columns are: text;label; if that is several, pass --delimiter ';'"):
        read(tmp_path / "d.csv", encoding="cp1252")
    (tmp_path / "d.tsv").write_text(text.replace(";", "\t"), encoding="utf-8-sig")
    assert read(tmp_path / "d.tsv").labels == job.labels
    (tmp_path / "e.csv").write_text(text.replace(";", "\t"))
    assert read(tmp_path / "e.csv", delimiter="tab").labels == job.labels
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.csv").write_text(text)
    assert read(tmp_path / "folder", delimiter=";").labels == job.labels


@pytest.mark.parametrize("longer", [range(6), [4]], ids=["all", "one"])
def test_rows_with_more_cells_than_the_header_are_counted(longer, tmp_path) -> None:
    lines = [f"one{', two' if i in longer else ''} {i},{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text("\n".join(["text,label", *lines]))
    said = f"train.csv: {len(longer)} of 6 rows have more cells than the header, .* is row {longer[0] + 1}"
    for data in (tmp_path / "d", tmp_path / "d" / "train.csv"):
        with pytest.raises(FinetuneError, match=said):
            read(data)


def test_a_delimiter_at_the_end_of_each_row_is_no_cell(tmp_path) -> None:
    (tmp_path / "d.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]},\n" for i in range(10)))
    job = read(tmp_path / "d.csv")
    assert job.labels == ["a", "b"] and {*job.train["input"], *job.report["input"]} == {f"text {i}" for i in range(10)}


def test_a_quote_between_tabs_is_a_quote(tmp_path) -> None:
    texts = ['"so it begins', "and goes on", 'a 5" disk', "ends"] * 3
    (tmp_path / "d.tsv").write_text("text\tlabel\n" + "".join(f"{one}\t{'ab'[len(one) % 2]}\n" for one in texts))
    job = read(tmp_path / "d.tsv")
    assert sorted([*job.train["input"], *job.report["input"]]) == sorted(texts) and job.labels == ["a", "b"]


def test_a_text_or_class_named_none_is_no_blank(tmp_path) -> None:
    job = read(write_csv(tmp_path / "d.csv", [("None", "a"), ("NA", "b"), ("null", "a"), ("n/a", "b"), ("   ", "a")]))
    assert {*job.train["input"], *job.report["input"]} == {"None", "NA", "null", "n/a"} and job.left_out == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # datasets leaves a file open that it cannot read to the end
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_blank_word_far_down_in_a_column_of_numbers(tmp_path) -> None:
    job = read(write_csv(tmp_path / "d.csv", rows_of([*([7, 8] * 5010), "NA", 7])))
    gc.collect()
    assert (job.labels, job.left_out) == (["7", "8"], 1)


def test_pairs_of_texts(tmp_path) -> None:
    rows = [(f"one {i}", f"other {i}" if i else "", i % 2) for i in range(20)]
    path = write_csv(tmp_path / "d.csv", rows, header=("premise", "hypothesis", "label"))
    job = read(path, text_column="premise", text_pair_column="hypothesis")
    assert job.left_out == 1 and len(job.train) + len(job.report) == 19
    assert all(row["pair"] == row["input"].replace("one", "other") for part in (job.train, job.report) for row in part)
    with pytest.raises(FinetuneError, match="no text-pair column 'absent'; .*--text-pair-column"):
        read(path, text_column="premise", text_pair_column="absent")


def test_numbers_with_fractions_are_a_regression(tmp_path) -> None:
    stars = [i / 4 for i in range(40)]
    job = read(write_csv(tmp_path / "d.csv", rows_of(stars), header=("text", "stars")), label_column="stars")
    assert (job.problem_type, job.labels, job.rare_labels()) == (NUMBER, ["stars"], {})
    assert sorted([*job.train["label"], *job.report["label"]]) == stars
    whole = read(write_csv(tmp_path / "e.csv", rows_of(range(40))), problem_type=NUMBER)
    assert whole.problem_type == NUMBER and max([*whole.train["label"], *whole.report["label"]]) == 39.0


def _several(tmp_path: Path, kind: str) -> JobData:
    sets = [("a", "b"), ("a",), (), ("c",)] * 5
    if kind == "columns":
        cells = [(f"text {i}", *(int(name in one) for name in "abc")) for i, one in enumerate(sets)]
        path = write_csv(tmp_path / "d.csv", cells, header=("text", "a", "b", "c"))
        return read(path, label_column="a,b,c")
    if kind == "delimiter":
        cells = [(f"text {i}", "; ".join(one) or ";") for i, one in enumerate(sets)]
        return read(write_csv(tmp_path / "d.csv", cells), label_delimiter=";")
    values: dict[str, Any] = {
        "names": [list(one) for one in sets],
        "numbers": [["abc".index(name) for name in one] for one in sets],
        "marks": [[int(name in one) for name in "abc"] for one in sets],
    }
    features = None
    if kind == "numbers":
        feature = datasets.Sequence(ClassLabel(names=["a", "b", "c"]))
        features = Features({"text": Value("string"), "label": feature})
    rows = {"text": [f"text {i}" for i in range(20)], "label": values[kind]}
    Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "d"))
    return read(tmp_path / "d")


@pytest.mark.parametrize("kind", ["columns", "delimiter", "names", "numbers", "marks"])
def test_rows_with_several_labels(kind, tmp_path) -> None:
    job = _several(tmp_path, kind)
    assert job.problem_type == SEVERAL and job.labels == (["0", "1", "2"] if kind == "marks" else ["a", "b", "c"])
    found = {row["input"]: row["label"] for part in (job.train, job.report) for row in part}
    assert found["text 0"] == [1.0, 1.0, 0.0] and found["text 2"] == [0.0, 0.0, 0.0] and len(found) == 20
    assert Counter(map(tuple, job.report["label"])) == {key: 1 for key in set(map(tuple, found.values()))}
    assert job.majority_accuracy() == 0.25


def _lists(folder: Path, **parts: list[Any]) -> JobData:
    """Of data whose label column holds lists, one set of rows for each part."""
    made = {
        name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(len(lists))], "label": lists})
        for name, lists in parts.items()
    }
    DatasetDict(made).save_to_disk(str(folder))
    return read(folder)


@pytest.mark.parametrize("kind", [int, bool, float])
def test_one_hot_labels_of_two_classes_are_marks(kind, tmp_path) -> None:
    lists = [[kind(i % 2), kind(1 - i % 2)] for i in range(20)]
    job = _lists(tmp_path / "d", train=lists, test=[[kind(0), kind(1)], [kind(1), kind(0)]])
    assert (job.labels, job.problem_type) == (["0", "1"], SEVERAL)
    assert {row["input"]: row["label"] for row in job.train} == {f"train {i}": one for i, one in enumerate(lists)}
    assert {row["input"]: row["label"] for row in job.report} == {"test 0": [0.0, 1.0], "test 1": [1.0, 0.0]}


def test_marks_are_told_by_all_parts_of_the_data_and_a_blank_mark_is_no_label(tmp_path) -> None:
    job = _lists(tmp_path / "d", train=[[1, 1, 0], [0, 0, 1], [None, 0, 1]], test=[[0, 1, 0], [1, 0, 0]])
    assert [*job.report["label"]] == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    assert len(job.train) == 2 and job.left_out == 1
    with pytest.raises(FinetuneError, match="lists of 0 and 1 of 2 to 3 items; each needs one for every label"):
        _lists(tmp_path / "e", train=[[1, 0, 0], [0, 0, 1]], test=[[0, 1], [1, 0]])


def test_to_a_row_with_an_empty_cell_no_label_applies(tmp_path) -> None:
    path = write_csv(tmp_path / "d.csv", rows_of(["a;b", "a", "", "b"] * 5))
    job = read(path, label_delimiter=";")
    found = {row["input"]: row["label"] for part in (job.train, job.report) for row in part}
    assert found["text 2"] == [0.0, 0.0] and len(found) == 20 and job.left_out == 0


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"label_column": "text"}, "column 'text' is named twice, as text and label column; .*--label-column"),
        ({"text_pair_column": "text"}, "column 'text' is named twice, as text and text-pair column"),
        ({"text_pair_column": "a"}, "column 'a' is named twice, as label and text-pair column"),
        ({"label_column": "a,b,a"}, "column 'a' is named twice, as label column"),
        ({"label_column": "a,b", "label_delimiter": ";"}, "label_delimiter=';' is for the cells of one label column"),
    ],
)
def test_each_column_has_one_role(changes, said, tmp_path) -> None:
    path = write_csv(tmp_path / "d.csv", [(f"text {i}", i % 2, 1) for i in range(6)], header=("text", "a", "b"))
    with pytest.raises(FinetuneError, match=said):
        read(path, **{"label_column": "a", **changes})


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"delimiter": ";;"}, "delimiter=';;' must be one character"),
        ({"encoding": "utf-9"}, "encoding='utf-9' is not known"),
        ({"problem_type": "classes"}, "problem_type 'classes' must be one of: single_label_classification, "),
        ({"skip_unreadable": True}, "skip_unreadable is for --task image"),
        ({"task": "image", "text_pair_column": "b"}, "text_pair_column is for --task text"),
        ({"data": None, "delimiter": ";"}, "the demo's data have their own"),
        ({"data": "user/name", "delimiter": ";"}, "delimiter=';' is for CSV files here, not for 'user/name'"),
        ({"data": "user/name", "encoding": "cp1252"}, "encoding='cp1252' is for CSV and JSON files here"),
        ({"label_delimiter": ""}, "label_delimiter=''"),
    ],
)
def test_options_that_do_not_go_together(changes, said, tmp_path) -> None:
    path = str(write_csv(tmp_path / "d.csv", rows_of(["a", "b"])))
    config = FinetuneConfig(**{"data": path, "output_dir": str(tmp_path / "out"), **changes})
    with pytest.raises(FinetuneError, match=said):
        check(config.resolved())


# --- images ---

RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64)


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def _grey(mode: str) -> Image.Image:
    return Image.fromarray((RAMP / 257).astype("uint8")).convert(mode)


@pytest.mark.parametrize(
    "image, kind",
    [
        (Image.fromarray(RAMP.astype("uint16")), "PNG"),
        (Image.fromarray(RAMP.astype("uint16")), "TIFF"),
        (Image.fromarray(RAMP.astype(">u2")), "TIFF"),
        *((_grey(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((_grey(mode), "TIFF") for mode in ("CMYK", "RGBX")),
        (_grey("L"), "JPEG"),
        (_grey("CMYK"), "JPEG"),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_a_grey_ramp_is_half_bright_in_every_mode(image, kind) -> None:
    found = np.asarray(open_image(stored(image, kind)), dtype=float) / 255
    assert found.shape == (64, 64, 3)
    assert found.mean() == pytest.approx(0.5, abs=0.01)  # mode 1 and JPEG are coarse
    assert found[:8].mean() < 0.1 and found[-8:].mean() > 0.9


@pytest.mark.parametrize("dtype, mode", [("int32", "I"), ("float32", "F")])
def test_modes_without_a_known_range_are_refused(dtype, mode) -> None:
    with pytest.raises(FinetuneError, match=rf"cannot be read: .*PIL's mode {mode}\), whose black and white"):
        open_image(stored(Image.fromarray(RAMP.astype(dtype)), "TIFF"))


def test_a_photo_that_was_held_upright_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    turned = open_image(stored(_grey("L"), "JPEG", exif=exif))
    assert np.asarray(turned)[:, :8].mean() > 200 and np.asarray(turned)[:, -8:].mean() < 50


def test_all_unreadable_images_are_named_at_once_and_can_be_left_out(tmp_path, caplog) -> None:
    folder = write_images(tmp_path / "photos")
    (folder / "dark" / "3.png").write_bytes(b"no picture")
    whole = (folder / "dark" / "5.png").read_bytes()
    (folder / "dark" / "5.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(RAMP.astype("float32")).save(folder / "bright" / "f.tiff")
    photo = stored(_grey("L").resize((256, 256)), "JPEG")["bytes"]
    (folder / "bright" / "cut.jpg").write_bytes(photo[: len(photo) // 2])
    job = {"task": "image", "image_column": "image"}
    with pytest.raises(FinetuneError, match="4 of 26 images cannot be read: ") as caught:
        read(folder, **job)
    for name in ("dark/3.png", "dark/5.png", "bright/f.tiff", "bright/cut.jpg", "--skip-unreadable"):
        assert name in str(caught.value)
    with caplog.at_level(logging.WARNING):
        kept = read(folder, **job, skip_unreadable=True)
    assert kept.unreadable == 4 and len(kept.train) + len(kept.report) == 22
    assert "they are left out" in caplog.text
    for part in (kept.train, kept.report):
        for row in part:
            assert open_image(row["input"]).mode == "RGB"


def _photos(folder: Path, *names: str) -> Path:
    """Three images in each of these folders."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(3):
            _grey("L").save(folder / name / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    "classes",
    [
        ("control", "test_negative", "test_positive"),
        ("invalid_id", "valid_id"),
        ("bus", "car", "train"),
        ("test", "validation"),
        ("data/bus", "data/train"),
    ],
)
def test_a_class_may_be_named_like_a_split(classes, tmp_path) -> None:
    job = read(_photos(tmp_path / "photos", *classes), task="image")
    assert job.labels == [name.removeprefix("data/") for name in classes]
    assert len(job.train) + len(job.report) == 3 * len(classes) and job.left_out == 0
    assert "held out of train" in job.report_split


@pytest.mark.parametrize("above", ["", "data/"])
def test_folders_that_are_all_named_as_splits_are_splits(above, tmp_path) -> None:
    names = [f"{above}{split}/{name}" for split in ("train", "val") for name in ("test_a", "test_b")]
    job = read(_photos(tmp_path / "photos", *names), task="image")
    assert (job.labels, len(job.train), len(job.report)) == (["test_a", "test_b"], 6, 6)
    assert job.report_split == "validation"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # datasets leaves the metadata file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_images_that_a_metadata_file_does_not_have_are_named(tmp_path) -> None:
    folder = _photos(tmp_path / "photos", "a", "b")
    rows = [(f"{name}/{index}.png", name) for name in "ab" for index in range(3)]
    write_csv(folder / "metadata.csv", rows[:4], header=("file_name", "label"))
    with pytest.raises(FinetuneError, match=r"2 of 6 images are in no metadata file \(b/1.png, b/2.png\)"):
        read(folder, task="image")
    write_csv(folder / "metadata.csv", rows, header=("file_name", "label"))
    assert read(folder, task="image").labels == ["a", "b"]
    gc.collect()


# --- scores ---


def test_macro_f1_is_the_usual_one() -> None:
    draw = np.random.default_rng(0)
    for count in (2, 5, 30):
        true, given = draw.integers(0, count, 40), draw.integers(0, count, 40)
        assert macro_f1(given, true) == pytest.approx(f1_score(true, given, average="macro"))
    true, given = draw.integers(0, 2, (40, 4)), draw.integers(0, 2, (40, 4))
    assert macro_f1(given, true) == pytest.approx(f1_score(true, given, average="macro"))


def test_scores_by_what_is_predicted() -> None:
    draw = np.random.default_rng(1)
    true, given = draw.normal(size=30), draw.normal(size=30)
    found = scored_by(NUMBER)(EvalPrediction(predictions=given, label_ids=true))
    assert found["mae"] == pytest.approx(mean_absolute_error(true, given))
    assert found["r2"] == pytest.approx(r2_score(true, given))
    several = scored_by(SEVERAL)(EvalPrediction(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]])))
    assert several == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 1) / 2)}
