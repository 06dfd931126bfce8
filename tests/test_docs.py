"""Every example in a docstring runs, and so does the README's quickstart."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

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


# TRL 1.16 asks transformers 5.23 for the old name of its checkpointing flag. The quickstart names no device; on a
# machine without a GPU torch says that memory will not be pinned.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_examples_of_the_readme_run(tmp_path, monkeypatch) -> None:
    from hf_adaptive_lr.bench import compat_models
    from tests.tiny import Tokens, bert

    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    code = re.search(r"## Quickstart.*?```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    lines = [line for line in code.group(1).splitlines() if line.strip()]
    assert len(lines) <= 12
    names = {"model": bert(), "train": Tokens(), "val": Tokens(16, seed=1)}
    texts = compat_models.sentences().select_columns("text")
    names |= {"language_model": compat_models.llama(), "texts": texts, "tokenizer": compat_models.tokenizer()}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names.pop("trainer", None)
        exec(block, names)  # the reader brings model, train and val, and reads from top to bottom
        assert names["trainer"].state.global_step > 0
    assert names["watch"].guard.events == []
    assert (tmp_path / "my-schedule" / "model.safetensors").is_file()


def test_the_tables_of_the_readme_are_what_the_rows_say() -> None:
    from hf_adaptive_lr.bench.readme import ROWS, TABLES, render

    text = (ROOT / "README.md").read_text()
    assert render(text, ROOT / ROWS) == text
    for name, (file, _) in TABLES.items():
        assert (ROOT / ROWS / file).is_file() == (f"<!-- {name}: " in text), name
    with pytest.raises(ValueError, match="no markers for 'demo'"):
        render("nothing", ROOT / ROWS)


def test_results_become_rows_and_a_table(tmp_path, monkeypatch) -> None:
    import json

    from hf_adaptive_lr.bench.readme import main

    monkeypatch.chdir(tmp_path)
    assert main(["nowhere.json"]) == 2
    assert list(tmp_path.iterdir()) == []
    row = json.loads((ROOT / "model_cards" / "rows" / "finetune.jsonl").read_text().splitlines()[0])
    (tmp_path / "results.json").write_text(json.dumps({**row, "accuracy": 0.125}))
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    assert main(["results.json"]) == 0
    assert "| 0.125 |" in (tmp_path / "README.md").read_text()
