"""Builds the API reference from the docstrings, and the guides beside it, as static pages: `make docs`.

    python -W error .ci/docs.py build/docs

pdoc shows what a package names in `__all__` and nothing else, and does not know that our public names load on first
use. So they are loaded first, and the modules are added to them. What begins with an underscore stays out, and so does
`cli`: its verbs explain themselves with `--help`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pdoc
import pdoc.docstrings
import pdoc.render
from pages import write_pages

import hf_adaptive_lr

PUBLIC = tuple(hf_adaptive_lr.__all__)


def link(found: re.Match[str]) -> str:
    """[`Name`] as pdoc links it: without brackets, and public names from any module."""
    return f"`hf_adaptive_lr.{found[1]}`" if found[1].split(".")[0] in PUBLIC else f"`{found[1]}`"


google = pdoc.docstrings.google
pdoc.docstrings.google = lambda text: re.sub(r"\[`([\w.]+)`\](?!\()", link, google(text))

for name in PUBLIC:
    value = getattr(hf_adaptive_lr, name)
    setattr(hf_adaptive_lr, name, value)
for module in pkgutil.walk_packages(hf_adaptive_lr.__path__, "hf_adaptive_lr."):
    package, _, name = module.name.rpartition(".")
    names = getattr(importlib.import_module(package), "__all__", None)
    if names is not None and not name.startswith("_") and name != "cli":
        names.append(name)
    if name != "__main__":
        importlib.import_module(module.name)


def lend(cls: type) -> None:
    """A dataclass's __init__ has inherited fields' annotations as text, read where the class is, not its base."""
    here = vars(sys.modules[cls.__module__])
    for base in cls.__mro__[1:-1]:
        there = vars(sys.modules[base.__module__])
        words = {
            word for text in vars(base).get("__annotations__", {}).values() for word in re.findall(r"\w+", str(text))
        }
        for word in words & there.keys() - here.keys():
            here[word] = there[word]


for name, module in list(sys.modules.items()):
    for value in list(vars(module).values()) if name.split(".")[0] == "hf_adaptive_lr" else ():
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == name:
            lend(value)

OUT, ROOT = Path(sys.argv[1]), Path(__file__).parents[1]
found = [(path.stem, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "examples/guides").glob("*.md"))]
guides = "\n".join(f"- [{text[2:].partition(chr(10))[0]}](examples/guides/{name}.html)" for name, text in found)
hf_adaptive_lr.__doc__ = f"{hf_adaptive_lr.__doc__}\n\n{guides}\n"
pdoc.render.configure(docformat="google")
pdoc.pdoc("hf_adaptive_lr", output_directory=OUT)
write_pages(ROOT, OUT, PUBLIC)
