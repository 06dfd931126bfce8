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


# The quickstart names no device; on a machine without a GPU torch says that memory will not be pinned.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_quickstart_of_the_readme_runs(tmp_path, monkeypatch) -> None:
    from tests.tiny import Tokens, bert

    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    code = re.search(r"## Quickstart.*?```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    lines = [line for line in code.group(1).splitlines() if line.strip()]
    assert len(lines) <= 12
    names = {"model": bert(), "train": Tokens(), "val": Tokens(16, seed=1)}
    exec(code.group(1), names)  # the reader brings model, train and val
    assert names["trainer"].lr_scheduler.updates > 0
