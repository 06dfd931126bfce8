"""The package's top stays small and light; which layer may import which is import-linter's, in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hf_adaptive_lr

PACKAGE = Path(hf_adaptive_lr.__file__).parent


def test_only_the_contract_lies_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def _loaded_by(code: str) -> set[str]:
    script = f"import sys; {code}; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    return set(out.stdout.split())


def test_importing_the_package_is_light() -> None:
    loaded = _loaded_by("import hf_adaptive_lr")
    assert not loaded & {"torch", "transformers", "datasets", "accelerate", "huggingface_hub"}
    loaded = _loaded_by("from hf_adaptive_lr import ControlledLR, AutoController, Hypergradient")
    assert "torch" in loaded
    assert not loaded & {"transformers", "datasets", "accelerate", "huggingface_hub"}


def test_every_public_name_is_there_and_documented() -> None:
    for name in hf_adaptive_lr.__all__:
        assert getattr(hf_adaptive_lr, name).__doc__, name
    assert set(hf_adaptive_lr.__all__) <= set(dir(hf_adaptive_lr))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = hf_adaptive_lr.nonsense


def test_every_test_file_that_the_makefile_names_is_there() -> None:
    root = Path(__file__).parent.parent
    named = re.findall(r"tests/\w+\.py", (root / "Makefile").read_text())
    assert len(named) > 5
    assert not [name for name in named if not (root / name).is_file()]
