"""`--config FILE`: the options of any verb from a YAML file.

A file has `learning-rate: 1e-4` for `--learning-rate 1e-4`, `overwrite: true` for `--overwrite`, and a list for
options that take several words. Options on the command line win.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._checks import did_you_mean
from .errors import UserError

_NOT_IN_FILES = ("config", "help")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Give a verb the option `--config`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", default=None, help="YAML file of options; the command line wins"
    )


def expand(words: Sequence[str], verbs: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """The command line with the options of `--config` before those that were typed."""
    words = list(words)
    parser = verbs.get(words[0]) if words else None
    path = _path(words)
    if parser is None or path is None:
        return words
    options = _named(parser)
    out: list[str] = []
    for name, value in _read(path).items():
        if name.replace("-", "_") not in options:
            hint = did_you_mean(name, [known.replace("_", "-") for known in options])
            raise UserError(f"'{path}': '{words[0]}' has no option '{name}'{hint}")
        out += _words(path, options[name.replace("-", "_")], value)
    return [words[0], *out, *words[1:]]


def _path(words: Sequence[str]) -> Path | None:
    for position, word in enumerate(words):
        if word == "--config" and position + 1 < len(words):
            return Path(words[position + 1])
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _named(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options that a file may set, by name with underscores."""
    return {
        action.dest: action for action in parser._actions if action.option_strings and action.dest not in _NOT_IN_FILES
    }


def _read(path: Path) -> dict[str, Any]:
    import yaml

    if path.exists() and not path.is_file():  # a device would never end
        raise UserError(f"'{path}' cannot be read: it is no regular file")
    try:
        # Scalars stay words: YAML 1.1 reads `1e-4` as text and `no` as false.
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except RecursionError as error:
        raise UserError(f"'{path}' is not a mapping of options to values: it is nested too deep") from error
    except yaml.YAMLError as error:
        raise UserError(f"'{path}' is not YAML: {error}") from error
    if found is None or found == "":
        return {}
    if not isinstance(found, dict):
        raise UserError(f"'{path}' must be a mapping of options to values, such as 'learning-rate: 1e-4'")
    return {str(name): value for name, value in found.items()}


def _words(path: Path, action: argparse.Action, value: Any) -> list[str]:
    """The option as it would be typed."""
    option = action.option_strings[-1]
    if action.nargs == 0:
        if value not in ("true", "false"):
            raise UserError(f"'{path}': {option} is true or false, not {value!r}")
        return [option] if value == "true" else []
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, list | dict) for each in values):
        raise UserError(f"'{path}': {option} takes words, not {value!r}; quote what is JSON")
    if isinstance(action, argparse._AppendAction):
        return [word for each in values for word in (option, str(each))]
    if action.nargs in ("+", "*"):
        return [option, *(str(each) for each in values)]
    if len(values) != 1:
        raise UserError(f"'{path}': {option} takes one value, not {len(values)}")
    return [f"{option}={values[0]}"]  # in one word, as a value may begin with a dash
