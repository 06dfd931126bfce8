"""The wheel and the source distribution: whole, small, and of use by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / ".ci" / "smoke.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """Both, from the tree as it is."""
    out = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def test_the_wheel_has_all_that_the_package_has_and_is_small(built) -> None:
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "hf_adaptive_lr"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert set(files) <= names, "code, bundled controllers, the page's style, py.typed"
    assert "hf_adaptive_lr/pretrained/universal_1/model.safetensors" in names
    assert built["wheel"].stat().st_size < 1e6
    assert not any(name.startswith(("tests", "examples", "model_cards")) for name in names)


def test_the_source_distribution_has_the_tests_and_the_licence(built) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "tests/test_packaging.py"} <= names


def test_the_wheel_works_by_itself(built, tmp_path) -> None:
    alone = tmp_path / "alone"
    zipfile.ZipFile(built["wheel"]).extractall(alone)
    (tmp_path / "elsewhere").mkdir()

    def run(*words: str) -> str:
        ended = subprocess.run(
            [sys.executable, *words],
            env=os.environ | {"PYTHONPATH": str(alone), "HF_HUB_OFFLINE": "1"},
            cwd=tmp_path / "elsewhere",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    said = json.loads(run(str(SMOKE)))
    assert Path(said["file"]).is_relative_to(alone), "not the tree that the tests run in"
    assert len(said["rates"]) == 9 and len(set(said["rates"])) > 1
    listed = {row["name"] for row in json.loads(run("-m", "hf_adaptive_lr.cli", "list", "--json"))}
    assert {"universal", "linear", "hypergradient"} <= listed
