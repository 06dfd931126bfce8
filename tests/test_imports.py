"""The house keeps its floors: imports point down only, and `import hf_adaptive_lr` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_adaptive_lr

PACKAGE = Path(hf_adaptive_lr.__file__).parent

# Lower floors first; a module may import its own floor and those below. Folders stand for all their modules.
FLOORS = [
    {
        *("observation", "sensors", "adapters", "model_sensors", "outcome_sensors", "ranks", "tap", "param_groups"),
        "backward_end",
    },
    {"controller", "files", "hub", "own_code", "card", "features", "draws", "gru_net", "relative_update"},
    {
        "controllers",
        "optimizers",
        "auto",
        "bounds",
        "decision",
        "governor",
        "measure",
        "door",
        "envelope",
        "identity",
        "scheduler",
        "trace",
        "run_files",
        "held_out",
        "layer_groups",
        "range_test",
        "extra_batches",
        "guard",
        "guard_rates",
        "levels",
        "divergence",
        "snapshot",
        "report",
        "refine",
    },
    {
        "arguments",
        "callback",
        "guard_callback",
        "trainer",
        "look_ahead",
        "meta_trainer",
        "finetune",
        "finetune_data",
        "finetune_model",
        "finetune_config",
        "finetune_report",
        "demo_data",
        "demo_image_model",
        "meta",
    },
    {"bench", "cli"},
]
HOME_OF_TRANSFORMERS = {
    "arguments",
    "callback",
    "demo_image_model",
    "guard_callback",
    "trainer",
    "meta_trainer",
    "finetune",
    "finetune_data",
    "finetune_model",
    "bench",
}


def _modules() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[tuple[str, str]]:
    """(kind, name): kind "own" with the room that is imported, or "other" with the top package."""
    found: set[tuple[str, str]] = set()
    depth = len(path.relative_to(PACKAGE).parts)
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {("other", alias.name.split(".")[0]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                name = (node.module or "").split(".")
                own = name[0] == "hf_adaptive_lr"
                found.add(("own", name[1] if len(name) > 1 else "__init__") if own else ("other", name[0]))
            elif node.level < depth:
                found.add(("own", _room(path)))
            elif node.module:
                found.add(("own", node.module.split(".")[0]))
            else:
                found |= {("own", alias.name) for alias in node.names}
    return found


def _floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path) -> None:
    room = _room(path)
    for kind, name in _imports(path):
        if kind == "own":
            if name == "__init__":
                assert _floor(room) == len(FLOORS) - 1, f"{room} imports the public names"
                continue
            assert _floor(name) <= _floor(room), f"{room} imports {name} from a floor above"
            assert not ({room, name} >= {"meta"} and {room, name} & {"callback", "trainer"}), f"{room} imports {name}"
        if name == "transformers":
            assert room in HOME_OF_TRANSFORMERS, f"{room} imports transformers"
        if name == "huggingface_hub":
            assert room in {"hub", "card"}, f"{room} imports huggingface_hub"
    if room == "controllers" and path.name != "__init__.py":
        siblings = {p.stem for p in path.parent.glob("*.py")} - {"__init__"}
        tree = ast.parse(path.read_text())
        used = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 1}
        assert not used & siblings, "one paper, one file: siblings never import each other"


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
