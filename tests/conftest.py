"""Tiny real models and data, made in memory; the only network is a Hub of our own on loopback.

One thread, unless OMP_NUM_THREADS says how many. Two results are compared to the bit only where they come from the
same computation: the same operations on the same shapes, by as many threads, in the same kind of process. Anything
else (a batch against its columns, a vmap against a loop, our code against torch's own) is summed in another order on
some processor, and has a tolerance: a sum of n products in another order moves by about eps sqrt(n) of the size of
its terms, eps being 1.2e-7 in float32 and 2.2e-16 in float64.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from tests.hub_server import Hub
from tests.hub_server.session import HUB  # sends huggingface_hub to our own Hub, so before that is imported
from tests.tiers import tier_of

# Read at import time by the libraries, so before any of them is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # more threads than idle cores would spin most of their time

import huggingface_hub.constants
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# The threads of a process are not in its forks: one that computes on more than one waits for them for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background, where Ctrl-C is not heard
    signal.signal(signal.SIGINT, signal.default_int_handler)

with suppress(ImportError):  # not installed for `make test-oldest`
    from hypothesis import HealthCheck, settings

    # The same examples everywhere and every time, however long a busy machine takes for one.
    settings.register_profile(
        "same", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its tier, and allow a warning.

    huggingface_hub 2.4 uploads LFS files and commits in a way that its HTTP library calls old.
    """
    old = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")
    for item in items:
        item.add_marker(tier_of(item.path.name))
        if "hub" in getattr(item, "fixturenames", ()):
            item.add_marker(old)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # a command that ran in this process may have changed it


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """Trainer collects garbage at every start, which takes longer than most runs here if it searches all modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """An empty Hub and an empty cache; within this test, and its subprocesses, huggingface_hub is online.

    huggingface_hub has read its environment long ago, so its constants are set as well.
    """
    constants = huggingface_hub.constants
    for name, value in {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv(name, str(int(value)))
    home = tmp_path / "hub-home"  # keeps a developer's own token out
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    clock = SimpleNamespace(sleep=lambda seconds: HUB.slept.append(seconds))
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    HUB.reset(tmp_path_factory.mktemp("hub-server"))
    HUB.start()
    yield HUB
    huggingface_hub.utils.close_session()
    assert not HUB.errors, "\n".join(HUB.errors)


@pytest.fixture
def hub_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """A write token of "user", who is logged in."""
    token = hub.add_user("user")
    monkeypatch.setenv("HF_TOKEN", token)
    return token
