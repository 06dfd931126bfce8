"""Reading a repository's README.md as the Hub does: front matter, its faults, and the tags that it makes."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

LICENSES = {
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "unlicense", "wtfpl", "mpl-2.0"),
    *(
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "agpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "epl-2.0",
        "eupl-1.1",
        "ms-pl",
        "osl-3.0",
    ),
    *("cc", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("openrail", "bigscience-openrail-m", "creativeml-openrail-m", "llama2", "llama3", "gemma", "odbl", "ofl-1.1"),
    *("unknown", "other"),
}
_FRONT = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})")


def front_matter(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """(metadata, what is wrong with it); (None, None) when there is none."""
    found = _FRONT.match(text)
    if not found or not found[1].strip():
        return None, None
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return None, f"YAML metadata error: {error}"
    if not isinstance(data, dict):
        return None, "YAML metadata must be a mapping"
    return json.loads(json.dumps(data, default=str)), None


def faults(text: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) about a card, as /api/validate-yaml reports them."""
    data, error = front_matter(text)
    if error:
        return [error], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = []
    for license in _as_list(data.get("license")):
        if license not in LICENSES:
            errors.append(f'"license" must be one of the known licenses, got {license!r}')
    if not isinstance(data.get("tags", []), list):
        errors.append('"tags" must be an array')
    index = data.get("model-index", [])
    if not isinstance(index, list) or not all(isinstance(i, dict) and i.get("name") for i in index):
        errors.append('"model-index[0].name" is required')
    return errors, []


def tags(text: str, data: dict[str, Any], paths: list[str]) -> list[str]:
    """A repository's tags: those of the card, and those that follow from its other fields, links and files."""
    found = ["safetensors"] if any(path.endswith(".safetensors") for path in paths) else []
    found += _as_list(data.get("library_name")) + _as_list(data.get("tags"))
    for key, prefix in (("language", ""), ("datasets", "dataset:"), ("base_model", "base_model:")):
        found += [prefix + str(value) for value in _as_list(data.get(key))]
    found += [f"arxiv:{number}" for number in _ARXIV.findall(text)]
    found += [f"license:{value}" for value in _as_list(data.get("license"))]
    return list(dict.fromkeys([*map(str, found), "region:us"]))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
