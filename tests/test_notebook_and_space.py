"""The notebook runs as it stands, and the Space answers, also in a browser."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbclient
import nbformat
import pytest

from hf_adaptive_lr import AutoController

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "examples" / "space"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


# --- the notebook ---


def test_the_notebook_runs_and_says_what_it_shows(tmp_path, monkeypatch) -> None:
    book = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(book, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
    printed = "".join(out.get("text", "") for out in outputs)
    scores = [line for line in printed.splitlines() if line.startswith(("linear, ", "universal, "))]
    values = {line[:20].strip(): float(line[20:]) for line in scores}
    assert len(values) == 6 and values["universal, none"] > 0.6
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert "equal: True" in printed
    assert (tmp_path / "runs" / "notebook" / "my-controller" / "config.json").is_file()


def test_the_notebook_is_kept_with_its_pictures() -> None:
    book = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    outputs = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert "/root/" not in json.dumps(book) and "Traceback" not in json.dumps(book)


# --- the Space: what it computes ---


@pytest.fixture
def replayed(monkeypatch):
    monkeypatch.syspath_prepend(str(SPACE))
    import replayed as module

    yield module
    sys.modules.pop("replayed")


def test_four_recorded_runs_and_controllers_that_can_watch_them(replayed) -> None:
    runs = replayed.load_runs()
    assert len(runs) == 4
    for run in runs.values():
        assert {len(values) for values in run.fields.values()} == {len(run.lr)} == {120}
        names = replayed.playable(run)
        assert {"universal", "hypergradient", "plateau", "linear"} <= set(names) and "actor_critic" not in names


def test_linear_answers_what_was_applied(replayed) -> None:
    run = replayed.load_runs()["text, well tuned"]
    answers = [decision.lr[0] for decision in replayed.answers(run, "linear", 3e-4)]
    assert answers == pytest.approx(run.lr, rel=1e-4)


def test_universal_hears_the_run_and_the_size_of_its_own_updates(replayed) -> None:
    runs = replayed.load_runs()
    found = {title: replayed.answers(run, "universal", 1e-3) for title, run in runs.items()}
    rates = {title: [d.lr[0] for d in decisions] for title, decisions in found.items()}
    assert len({tuple(each) for each in rates.values()}) == 4
    assert all(each[0] == pytest.approx(1e-7 / 6) for each in rates.values())
    rows = replayed.told(found["text, well tuned"])
    assert rows[0][:3] == ["0", "1.67e-08", "decision"] and "update_ratio" in rows[1][3]


def test_what_cannot_be_played_is_said(replayed) -> None:
    run = replayed.load_runs()["text, well tuned"]
    with pytest.raises(ValueError, match=r"learning rate 0.0 is outside \[1e-8, 10\]"):
        replayed.answers(run, "linear", 0.0)
    silent = dataclasses.replace(run, fields={name: run.fields[name] for name in run.fields if name != "loss"})
    with pytest.raises(ValueError, match="'plateau' needs loss, which was not recorded"):
        replayed.answers(silent, "plateau", 1e-3)
    with pytest.raises(ValueError, match="'actor_critic' needs loss_after, which was not recorded"):
        replayed.answers(run, "actor_critic", 1e-3)


# --- the Space: its page ---


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    log = (tmp_path_factory.mktemp("space") / "log").open("w+")
    server = subprocess.Popen(
        [sys.executable, str(SPACE / "app.py")], env=os.environ | settings, stdout=log, stderr=log, cwd=SPACE
    )
    url = f"http://127.0.0.1:{port}/"
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, log.seek(0) or log.read()
            time.sleep(0.5)
    yield url
    server.terminate()
    server.wait()
    log.close()


def _call(address: str, *words: object) -> list:
    """The page's own request: ask, then read the answer from the stream of events."""
    body = json.dumps({"data": list(words)}).encode()
    request = urllib.request.Request(f"{address}gradio_api/call/draw", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}gradio_api/call/draw/{event}", timeout=60) as stream:
        lines = stream.read().decode().splitlines()
    assert "event: complete" in lines, lines
    return json.loads(next(line for line in lines if line.startswith("data: "))[6:])


def test_the_space_answers(address) -> None:
    picture, table, text = _call(address, "image, diverging", "plateau", -2.0)
    assert picture["type"] == "matplotlib" and picture["plot"].startswith("data:image/")
    assert len(table["data"]) > 50 and table["data"][0][:2] == ["0", "0.01"]
    assert "Base learning rate 1.0e-02" in text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_page_shows_a_run_in_a_browser(address, tmp_path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={tmp_path}"]
    words = [str(BROWSER), *options, "--virtual-time-budget=15000", "--dump-dom", address]
    page = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "What would it have done?" in page and "text, well tuned" in page
    assert "data:image/" in page and "update_ratio" in page
    assert AutoController.from_pretrained("universal").controller_type in page
