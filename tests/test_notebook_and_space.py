"""The notebooks run, and the Space answers, also in a browser."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
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


# --- the notebooks ---


def _execute(book: nbformat.NotebookNode, folder: Path) -> tuple[str, int]:
    """What its cells printed, and how many pictures they showed."""
    nbclient.NotebookClient(book, timeout=250, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = _outputs(book)
    return "".join(out.get("text", "") for out in outputs), sum("image/png" in out.get("data", {}) for out in outputs)


def _outputs(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]


def test_the_first_notebook_runs_and_says_what_it_shows(tmp_path) -> None:
    book = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    printed, pictures = _execute(book, tmp_path)
    scores = re.findall(r"^((?:linear|universal), \S+) +(\d\.\d+)$", printed, re.MULTILINE)
    values = {name: float(score) for name, score in scores}
    assert len(values) == 6 and values["universal, none"] > 0.6
    rescued = re.search(r"linear, 0.1: accuracy (\S+), with the guard (\S+)", printed)
    assert rescued and float(rescued[2]) > float(rescued[1]) + 0.1 and "rollback" in printed
    assert pictures == 2 and "equal: True" in printed
    assert (tmp_path / "runs" / "notebook" / "my-controller" / "config.json").is_file()


def test_the_second_notebook_runs_with_a_shorter_training(tmp_path) -> None:
    book = nbformat.read(ROOT / "examples" / "train_your_own.ipynb", as_version=4)
    for whole, short in (("ITERATIONS = 60", "ITERATIONS = 2"), ("steps=200", "steps=20")):
        (cell,) = [cell for cell in book.cells if whole in cell.source]
        cell.source = cell.source.replace(whole, short)
    printed, pictures = _execute(book, tmp_path)
    assert len(re.findall(r"^ +1e-0\d +\S+ +\S+$", printed, re.MULTILINE)) == 6
    assert pictures == 2 and "equal: True" in printed
    assert (tmp_path / "runs" / "my-controller" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["quickstart", "train_your_own"])
def test_a_notebook_is_kept_with_its_pictures_and_small(name) -> None:
    path = ROOT / "examples" / f"{name}.ipynb"
    outputs = _outputs(nbformat.read(path, as_version=4))
    assert any("image/png" in out.get("data", {}) for out in outputs)
    text = path.read_text()
    assert "/root/" not in text and "Traceback" not in text and len(text) < 100_000


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


# --- the Space: a visitor's run ---


@pytest.fixture
def read_upload(replayed):
    from uploaded import read_upload as function

    yield function
    sys.modules.pop("uploaded")


def test_a_run_of_the_visitors_own_is_played(read_upload, replayed, tmp_path) -> None:
    fixtures = ROOT / "tests" / "fixtures" / "v0_1" / "trainer" / "universal_guard"
    state = read_upload(fixtures / "checkpoint-8" / "trainer_state.json")
    assert 2 < len(state.lr) <= 8 and {"grad_norm", "loss", "gain_ratio"} <= set(state.fields)  # one loss is NaN
    names = replayed.playable(state)
    assert {"linear", "plateau"} <= set(names) and "universal" not in names
    assert len(replayed.answers(state, "plateau", 1e-3)) == len(state.lr)
    trace = read_upload(fixtures / "lr_trace.jsonl")
    assert {"loss", "gain_ratio"} <= set(trace.fields) and len(trace.lr) == len(trace.fields["loss"]) > 2
    log = [{"learning_rate": 1e-3, "loss": 1.0, "step": step} for step in range(5000)]
    (tmp_path / "long.json").write_text(json.dumps({"log_history": log}))
    assert len(read_upload(tmp_path / "long.json").lr) == 1667


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[" * 100_000, "the file is not valid JSON"),
        ("a.json", '{"log_history": [{"loss": ' + "[" * 90_000 + "]" * 90_000 + "}]}", "the file is not valid JSON"),
        ("a.json", '{"log_history": 3}', "no list 'log_history'"),
        ("a.json", '{"log_history": [{"learning_rate": 1e-3}]}', "fewer than two updates"),
        (
            "a.json",
            json.dumps({"log_history": [{"learning_rate": 1, "loss": math.nan}] * 3}),
            "fewer than two updates",
        ),
        (
            "a.json",
            '{"log_history": [{"learning_rate": 1, "loss": 1e999}, {"learning_rate": 1, "loss": 1}]}',
            "loss is not",
        ),
        ("a.json", '{"log_history": [{"learning_rate": ' + "9" * 5000 + "}]}", "the file is not valid JSON"),
        ("a.json", json.dumps({"log_history": [{"learning_rate": "<script>"}] * 3}), "is not a number in"),
        ("a.json", json.dumps({"log_history": [{"learning_rate": 99}] * 3}), r"is not a number in \[0, 10\]"),
        ("a.json", json.dumps({"log_history": [{"learning_rate": 1, "loss": [1]}] * 3}), "loss is not a number"),
        ("a.json", " " * 2_000_001, "more than 2,000,000 bytes"),
        ("a.json", "\x80\x04pickle", "the file is not"),
        ("a.jsonl", '{"lr": 1}, {"lr": 1}]', "the file is not valid JSON"),
        ("a.jsonl", '{"lr": true}\n{"lr": 1}', "is not a number"),
    ],
)
def test_a_file_that_is_no_run_is_one_line(name, text, message, read_upload, tmp_path) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message) as caught:
        read_upload(tmp_path / name)
    assert str(tmp_path) not in str(caught.value) and len(str(caught.value)) < 300


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


def test_a_file_is_uploaded_and_played(address, tmp_path) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(address, verbose=False)
    state = ROOT / "tests/fixtures/v0_1/trainer/universal_guard/checkpoint-8/trainer_state.json"
    client.predict(handle_file(state), api_name="/take")
    _, table, text = client.predict("your own run", "plateau", -3, api_name="/draw")
    assert "Your own run: 7 of 7 lines" in text and len(table["data"]) == 7
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(AppError, match="not valid JSON"):
        client.predict(handle_file(tmp_path / "a.json"), api_name="/take")
    (tmp_path / "a.json").write_bytes(b" " * 2_000_001)
    with pytest.raises(Exception, match="413|[Mm]aximum|size"):
        client.predict(handle_file(tmp_path / "a.json"), api_name="/take")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_page_shows_a_run_in_a_browser(address, tmp_path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={tmp_path}"]
    words = [str(BROWSER), *options, "--virtual-time-budget=15000", "--dump-dom", address]
    page = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "What would it have done?" in page and "text, well tuned" in page
    assert "data:image/" in page and "update_ratio" in page
    assert AutoController.from_pretrained("universal").controller_type in page
