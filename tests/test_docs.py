"""Every example in a docstring and on the pages runs; commands, links and figures on the pages are right."""

from __future__ import annotations

import argparse
import contextlib
import doctest
import importlib
import os
import pkgutil
import re
import shlex
import socket
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import set_seed

import hf_adaptive_lr

ROOT = Path(__file__).parent.parent
MODULES = [
    m.name for m in pkgutil.walk_packages(hf_adaptive_lr.__path__, "hf_adaptive_lr.") if "__main__" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


GUIDES = tuple(f"examples/guides/{path.name}" for path in sorted((ROOT / "examples" / "guides").glob("*.md")))
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "model_cards/README.md",
    "model_cards/hub/README.md",
    *GUIDES,
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1500
    assert len([line for line in blocks("README.md", "python")[0].splitlines() if line]) <= 10


# The examples name no device; on a machine without a GPU torch says that memory will not be pinned.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_code_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    names: dict = {"__name__": "readme"}
    monkeypatch.setitem(sys.modules, "readme", types.ModuleType("readme"))  # where a dataclass looks for its module
    first, *others = blocks("README.md", "python")
    exec(first, names)
    assert names["trainer"].state.global_step == 100
    assert "update 90: " in capsys.readouterr().out
    for block in others:
        exec(block, names)  # a reader goes from top to bottom
    # The model knows its rows by then (losses below .01), so that a single hard one may be skipped as a spike.
    assert {event["action"] for event in names["watch"].guard.events} <= {"skip"}
    assert names["controller"].beta == 0.05
    assert names["trainer"].state.global_step == 100
    assert {entry.reason for entry in names["trainer"].lr_scheduler.trace} == {"decision"}


# TRL 1.16 asks transformers 5.23 for the old name of its checkpointing flag.
@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize("guide", [page for page in GUIDES if "sharded" not in page])
def test_the_code_of_a_guide_runs(guide, tmp_path, monkeypatch) -> None:
    from tests.compatibility import models
    from tests.tiny import Tokens, bert

    monkeypatch.chdir(tmp_path)
    set_seed(0)
    names = {"model": bert(), "train": Tokens(), "val": Tokens(16, seed=1)}
    texts = models.sentences().select_columns("text")
    names |= {"language_model": models.llama(), "texts": texts, "tokenizer": models.tokenizer()}
    for block in blocks(guide, "python"):
        names.pop("trainer", None)
        exec(block, names)  # the reader brings model, train and val, and reads from top to bottom
        assert "trainer" not in names or names["trainer"].state.global_step > 0
    said = {
        "guard.md": lambda: (
            names["watch"].guard.events == [] and names["guard"].events[0]["reason"] == "non_finite_loss"
        ),
        "own_controller.md": lambda: names["factor"] < 0.9,
        "report.md": lambda: (tmp_path / "report.html").is_file() and len(names["table"]) == 20,
        "which_controller.md": lambda: (tmp_path / "my-schedule" / "model.safetensors").is_file(),
    }
    assert said.get(Path(guide).name, lambda: True)()


def _sharded_guide(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    torch.set_num_threads(1)
    (block,) = blocks("examples/guides/sharded.md", "python")
    with open(f"{folder}/{rank}", "w") as file, contextlib.redirect_stdout(file):
        exec(block, {})


def test_the_code_of_the_guide_to_sharded_training_runs_on_two_processes(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_sharded_guide, (port, str(tmp_path)), nprocs=2, start_method="fork")
    first, second = (path.read_text().split(": ") for path in sorted(tmp_path.iterdir()))
    assert (first[0], second[0]) == ("rank 0", "rank 1") and first[1] == second[1] and float(first[1]) > 0


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return sorted({line.partition(" #")[0].strip() for line in lines if line.startswith("hf-adaptive-lr ")})


@pytest.mark.parametrize("command", commands())
def test_commands_on_the_pages_have_options_that_exist(command) -> None:
    from hf_adaptive_lr.cli import VERBS

    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    parser.parse_args(shlex.split(command)[1:])  # SystemExit where something is unknown


def anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text().replace("\n", " ")):
        if link.startswith("http"):
            continue
        path, _, part = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if part:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert part in map(anchor, headings), link


def test_the_tables_of_the_pages_are_what_the_rows_say() -> None:
    from hf_adaptive_lr.bench.rows import read_rows
    from hf_adaptive_lr.bench.studies.cards import BLOCKS, PAGES, ROWS, TABLES, render

    texts = [(ROOT / page).read_text() for page in PAGES]
    assert render(texts, ROOT / ROWS) == texts
    everything = "".join(texts)
    for name in (*TABLES, *BLOCKS):
        assert everything.count(f"<!-- {name}: ") == everything.count(f"<!-- /{name} -->") == 1, name
    for file, _ in TABLES.values():
        assert read_rows(ROOT / ROWS / file), file
    with pytest.raises(ValueError, match="no page has markers for 'demo'"):
        render(["nothing"], ROOT / ROWS)


def test_results_become_rows_and_a_table(tmp_path, monkeypatch) -> None:
    import json

    from hf_adaptive_lr.bench.rows import read_rows
    from hf_adaptive_lr.bench.studies.cards import PAGES, main

    monkeypatch.chdir(tmp_path)
    assert main(["nowhere.json"]) == 2
    assert list(tmp_path.iterdir()) == []
    row = read_rows(ROOT / "model_cards" / "rows" / "finetune.jsonl")[0]
    (tmp_path / "results.json").write_text(json.dumps({**row, "accuracy": 0.125}))
    (tmp_path / "model_cards").mkdir()
    for page in PAGES:
        (tmp_path / page).write_text((ROOT / page).read_text())
    assert main(["results.json"]) == 0
    assert "| 0.125 |" in (tmp_path / "model_cards" / "README.md").read_text()
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
