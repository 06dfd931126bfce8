"""The fields of the two suites' tasks by their names.

Development's may be looked at as often as one likes; the test's are run once for a release, and no controller may be
trained or chosen on their data sets. Tasks that have judged a release and were read go to development. *Slow*: the
loss lies flat for a third of the run at the best learning rate; *fragile*: three times the best learning rate ruins
the model.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]


def _of(data: str, model: str, *parts: Fields, **fields: Any) -> Fields:
    """Fields of a task on a data set, those that are named last."""
    joined: Fields = {"data": data, "model": model}
    for part in parts:
        joined |= part
    return joined | fields


def _rows(train: int, valid: int = 300, controller: int = 200, test: int = 600) -> Fields:
    return {"train_rows": train, "valid_rows": valid, "controller_rows": controller, "test_rows": test}


_MINI: Fields = {"kind": "pretrained", "batch_size": 8, "tokens": 16, "updates": 60, "lr": 4e-4}  # of all-MiniLM
_LORA: Fields = _MINI | {"kind": "adapter", "tokens": 24, "updates": 200, "lr": 4e-3}
_SCRATCH: Fields = {"kind": "scratch", "lr": 1e-3}
_BYTES: Fields = _SCRATCH | {"batch_size": 16, "tokens": 12}
_LANGUAGE: Fields = {"objective": "language", "batch_size": 16, "tokens": 32} | _rows(8000)
_SGD: Fields = _SCRATCH | {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1}
_PICTURES: Fields = {"kind": "pretrained", "side": 64, "batch_size": 8, "updates": 60, "lr": 1e-3}
_TUNED_BYTES: Fields = {"kind": "pretrained", "batch_size": 8, "tokens": 32, "updates": 600, "lr": 3e-4}
_DENSITY: Fields = _SCRATCH | {"objective": "density", "lr": 3e-3}

DEVELOPMENT: dict[str, Fields] = {
    "news-two": _of("20newsgroups", "minilm6", _MINI, _rows(6000, 3000, 1500, 6000), topics=((7,), (8,)), lr=2e-4),
    "reuters-few-shots": _of("reuters-r8", "minilm6", _MINI, _rows(3000), shots=7, tokens=24, updates=30, lr=8e-4),
    "reuters-lora4": _of("reuters-r52", "minilm3-lora4", _LORA, _rows(4000)),
    "spam-lora64": _of("spam", "minilm3-lora64", _LORA, _rows(2000), updates=100),
    "sotu-year": _of("sotu-year", "minilm3", _MINI, _rows(2000), objective="value", tokens=24),
    "sotu-next": _of("sotu-next", "minilm3", _MINI, _rows(2000), objective="pairs", batch_size=32, updates=30),
    "sotu-language": _of("sotu-text", "bytes-gpt2", _LANGUAGE, _SCRATCH, updates=600),
    "news-language": _of("20newsgroups", "bytes-gpt2-sotu", _LANGUAGE, kind="pretrained", updates=200, lr=1e-3),
    "names-bytes": _of("names", "bytes-bert", _BYTES, _rows(4000), updates=600),
    "names-short": _of("names", "bytes-bert", _BYTES, _rows(4000), updates=120, lr=4e-3),
    "reuters-bytes": _of("reuters-r8", "bytes-gpt2-sotu", _TUNED_BYTES, _rows(4500)),
    "fashion-resnet-noisy": _of(
        "fashion-mnist", "resnet", _SGD, _rows(6000), batch_size=64, label_noise=0.4, updates=200
    ),
    "fashion-vit": _of("fashion-mnist", "vit", _SCRATCH, _rows(6400), batch_size=128, updates=60),
    "mnist-cnn": _of(
        "mnist-5000",
        "cnn",
        _SCRATCH,
        _rows(3000),
        optimizer="rmsprop",
        imbalance=20.0,
        batch_size=16,
        updates=200,
        lr=2e-3,
    ),
    "emoji-efficientnet": _of("emoji", "efficientnet", _PICTURES, _rows(600, 150, 60, 390)),
    "digits-mlp": _of("digits", "mlp", _SGD, _rows(1000, 200, 200, 397), batch_size=16, updates=10000, lr=0.05),
    "digits-deep": _of("digits", "deep-mlp", _SGD, _rows(1000, 200, 200, 397), batch_size=16, updates=800, lr=0.05),
    "diabetes-mlp": _of(
        "diabetes", "mlp", _SCRATCH, _rows(200, 50, 25, 129), objective="value", batch_size=16, updates=600, lr=5e-4
    ),
    "segment-density": _of("segment", "mixture", _DENSITY, _rows(900, 300, 200, 650), batch_size=32, updates=2000),
}

FIRST_TEST: dict[str, Fields] = {
    "wordnet-many": _of("wordnet", "minilm3", _MINI, _rows(4000)),
    "brown-two": _of(
        "brown", "minilm6", _MINI, _rows(4000, 800, 400, 2000), topics=((0, 1, 2), (9, 10, 11, 12, 13)), lr=1e-4
    ),
    "wordnet-pairs": _of("wordnet-pairs", "minilm3-lora64", _LORA, _rows(4000), tokens=32),
    "wordnet-words": _of("wordnet-words", "minilm3", _MINI, _rows(4000), objective="pairs", batch_size=32, updates=30),
    "brown-tags": _of("brown-tags", "minilm3", _MINI, _rows(2000), objective="tokens", tokens=24, lr=6e-4),
    "fortunes-few-shots": _of("fortunes", "minilm6", _MINI, _rows(4000), shots=7, tokens=24, updates=30, lr=8e-4),
    "fortunes-lora4-noisy": _of("fortunes", "minilm3-lora4", _LORA, _rows(4000), label_noise=0.3),
    "wordnet-bytes": _of("wordnet", "bytes-gpt2-moby", _TUNED_BYTES, _rows(8000), topics=((2,), (3,), (15,), (17,))),
    "moby-language": _of("moby-text", "bytes-gpt2-wordnet", _LANGUAGE, kind="pretrained", updates=200, lr=1e-3),
    "wordnet-language": _of("wordnet-text", "bytes-gpt2", _LANGUAGE, _SCRATCH, updates=200),
    "syllables-bytes": _of("syllables", "bytes-bert", _BYTES, _rows(6000), updates=2000),
    "syllables-tuned": _of("syllables", "bytes-gpt2-moby", _TUNED_BYTES, _rows(8000), tokens=16, updates=1500),
    "valence-words": _of("valence", "minilm3", _MINI, _rows(2000), objective="value", tokens=8, lr=6e-4),
    "clipart-resnet": _of("clipart", "resnet", _SGD, _rows(2000), side=32, batch_size=32, updates=300, lr=0.05),
    "clipart-efficientnet": _of("clipart", "efficientnet", _PICTURES, _rows(1500)),
    "icons-vit": _of("icons", "vit", _SCRATCH, _rows(360, 100, 40, 180), side=32, batch_size=16, updates=400),
    "phishing-mlp": _of("phishing", "mlp", _SGD, _rows(200, 80, 40, 120), batch_size=8, updates=200),
    "banana-mlp": _of("banana", "mlp", _SCRATCH, _rows(2500, 500, 200, 1400), batch_size=32, updates=600, lr=5e-3),
    "banana-deep": _of("banana", "deep-mlp", _SGD, _rows(2500, 500, 200, 1400), batch_size=32, updates=240),
    "phishing-deep": _of("phishing", "deep-mlp", _SGD, _rows(200, 80, 40, 120), batch_size=8, updates=240, lr=0.05),
    "diamonds-mlp": _of(
        "diamonds",
        "mlp",
        _SCRATCH,
        _rows(20000, 2000, 500, 4000),
        objective="value",
        batch_size=64,
        updates=1000,
        lr=2e-3,
    ),
    "shuttle-mlp": _of(
        "shuttle",
        "mlp",
        _SCRATCH,
        _rows(10000, 2000, 200, 4000),
        optimizer="adafactor",
        imbalance=20.0,
        batch_size=128,
        updates=600,
    ),
    "shuttle-density": _of("shuttle-sensor", "mixture", _DENSITY, _rows(4000), batch_size=64, updates=2000, lr=2e-3),
}
"""What judged `universal` 1 and 2, and was read while it did: development's now."""
DEVELOPMENT |= FIRST_TEST

TEST: dict[str, Fields] = {
    "subjects-many": _of("subjects", "minilm3", _MINI, _rows(4000), batch_size=32, tokens=12),
    "foldoc-links-lora64": _of("foldoc-links", "minilm3-lora64", _LORA, _rows(4000), objective="tokens"),
    "foldoc-terms": _of("foldoc-terms", "minilm3", _MINI, _rows(4000), objective="pairs", batch_size=16, updates=30),
    "manpages-two": _of("manpages-sections", "minilm6", _MINI, _rows(4000), lr=2e-4),
    "manpages-language": _of("manpages-text", "bytes-gpt2", _LANGUAGE, _SCRATCH, batch_size=32, updates=200, lr=3e-3),
    "rights-language": _of(
        "declaration-text", "bytes-gpt2-moby", _LANGUAGE, _rows(2700), kind="pretrained", updates=200, lr=1e-3
    ),
    "rights-bytes": _of("declaration-language", "bytes-bert", _BYTES, _rows(1800), tokens=24, updates=600, lr=2e-3),
    "genders-tuned": _of("genders", "bytes-gpt2-wordnet", _TUNED_BYTES, _rows(20000), tokens=16, updates=2000),
    "counts-long": _of(
        "word-counts",
        "minilm3",
        _MINI,
        _rows(6000),
        objective="value",
        tokens=8,
        frozen="embeddings",
        updates=600,
        lr=3e-4,
    ),
    "letters-resnet": _of("letters", "resnet", _SGD, _rows(1600), batch_size=64, updates=200),
    "voices-vit-noisy": _of(
        "voices", "vit", _SCRATCH, _rows(1000, 240, 80), label_noise=0.3, batch_size=32, updates=200, side=32
    ),
    "sprites-few-shots": _of("sprites", "efficientnet", _PICTURES, _rows(1000), shots=7, updates=30),
    "defaulters-mlp": _of(
        "defaulters",
        "mlp",
        _SCRATCH,
        _rows(5000, 1000, 500, 2500),
        optimizer="rmsprop",
        batch_size=128,
        updates=200,
        lr=2e-3,
    ),
    "bikes-mlp": _of("bikes", "mlp", _SCRATCH, _rows(5000), objective="value", batch_size=32, updates=600, lr=5e-3),
    "wages-density": _of("wages", "mixture", _DENSITY, _rows(1300), batch_size=32, updates=2000, lr=1e-3),
    "tumours-deep": _of("tumours", "deep-mlp", _SGD, _rows(250, 80, 40, 150), batch_size=8, updates=200, lr=0.05),
}
