"""Renders the Markdown pages (README, guides, what was measured) as HTML beside the API reference: `make docs`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from functools import partial
from html import escape
from pathlib import Path

import markdown2
import pdoc
import pdoc.render_helpers

STYLES = [Path(pdoc.__file__).parent / "templates" / f"{name}.css" for name in ("theme", "syntax-highlighting")]
OWN_STYLE = """
body { max-width: 56rem; margin: 0 auto; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }
body, table { color: var(--text); background: var(--pdoc-background); }
a { color: var(--link); } img { max-width: 100%; } pre { overflow-x: auto; padding: .5rem; background: var(--code); }
table { display: block; overflow-x: auto; border-collapse: collapse; }
td, th { border: 1px solid var(--accent2); padding: .2rem .5rem; text-align: left; vertical-align: top; }
"""
NAVIGATION = {
    "README.md": "Start",
    "examples/README.md": "Guides",
    "model_cards/README.md": "Measured",
    "hf_adaptive_lr.html": "API reference",
    "CHANGELOG.md": "Changes",
}


def write_pages(root: Path, out: Path, public: Collection[str]) -> None:
    """Write every page, and copy what they link to.

    Args:
        root: the repository.
        out: folder that has the API reference, and gets the pages at the paths that they have in the repository.
        public: names of the package; code that is such a name becomes a link to the API reference.

    Raises:
        ValueError: a page that links to a file or a heading that is not there.
    """
    pages = {path for path in root.glob("*.md")}
    pages |= {path for folder in ("examples", "model_cards") for path in (root / folder).rglob("*.md")}
    bodies = {page: _body(page) for page in pages}
    css = "".join(path.read_text(encoding="utf-8") for path in STYLES) + OWN_STYLE
    for page, body in bodies.items():
        here = page.relative_to(root)
        up = "../" * (len(here.parts) - 1)
        names = "|".join(map(re.escape, public))
        linked = rf'<a href="{up}hf_adaptive_lr.html#\1"><code>\1</code></a>'
        body = re.sub(rf"(?<!\">)<code>({names})</code>", linked, body)
        relinked = partial(_link, page=page, root=root, out=out, bodies=bodies)
        body = re.sub(r'(href|src)="([^"]+)"', relinked, body)
        target = out / here.with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)
        links = " · ".join(f'<a href="{up}{_html(path)}">{name}</a>' for path, name in NAVIGATION.items())
        title = escape(page.read_text(encoding="utf-8").partition("# ")[2].partition("\n")[0])
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        text = f"<!doctype html><html lang=en><head>{head}<style>{css}</style></head><body><nav>{links}</nav>"
        target.write_text(f"{text}{body}</body></html>\n", encoding="utf-8")
    shutil.copy(out / "README.html", out / "index.html")


def _body(page: Path) -> str:
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)  # of a card
    extras = {name: how for name, how in pdoc.render_helpers.markdown_extensions.items() if name != "link-patterns"}
    return str(markdown2.markdown(text, extras={**extras, "header-ids": None}))  # as GitHub has them


def _html(path: str) -> str:
    return re.sub(r"\.md$", ".html", path)


def _link(found: re.Match[str], page: Path, root: Path, out: Path, bodies: dict[Path, str]) -> str:
    """The attribute as it is in the built pages."""
    kind, link = found.groups()
    path, _, part = link.partition("#")
    if link.startswith(("http:", "https:", "mailto:")) or "hf_adaptive_lr.html" in path:
        return found[0]
    target = Path(os.path.normpath(page.parent / path)) if path else page
    if target.is_dir() and (target / "README.md").is_file():
        path, target = f"{path.rstrip('/')}/README.md", target / "README.md"
    if not target.is_file():
        raise ValueError(f"{page.relative_to(root)} links to '{link}', which is not there")
    if part and target in bodies and f'id="{part}"' not in bodies[target]:
        raise ValueError(f"{page.relative_to(root)} links to '{link}', and there is no such heading")
    if target not in bodies:
        (out / target.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, out / target.relative_to(root))
    return f'{kind}="{_html(path)}{"#" * bool(part)}{part}"'
