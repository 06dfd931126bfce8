"""`--config FILE` and `--save-config FILE`: the options of any verb in a YAML file.

A file says `learning-rate: 1e-4` for `--learning-rate 1e-4`, `overwrite: true` for `--overwrite`, and a list for
options that take several words. What stands on the command line wins.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import PROGRAM
from .errors import UserError, did_you_mean, keep_strangers_files

_OWN = ("config", "save_config")
_NOT_IN_FILES = (*_OWN, "help")
_MARK = f"# Options of {PROGRAM}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a verb the two options."""
    group = parser.add_argument_group("options in a file")
    group.add_argument(
        "--config", type=Path, metavar="FILE", default=None, help="YAML file of options; the command line wins"
    )
    group.add_argument(
        "--save-config", type=Path, metavar="FILE", default=None, help="write the options given to this YAML file"
    )


def expand(words: Sequence[str], verbs: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """The command line with what `--config` says put before the options that were typed.

    Args:
        words: after the program's name.
        verbs: parser of every verb.

    Raises:
        UserError: a file that cannot be read, or that names something the verb does not have.
    """
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


def save(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Write the options that differ from their defaults, if `--save-config` was given.

    Raises:
        UserError: the file cannot be written, or is there and is none of ours.
    """
    path: Path | None = getattr(args, "save_config", None)
    if path is None:
        return
    import yaml

    said = {}
    for name, action in _named(parser).items():
        value = getattr(args, name, None)
        if value is not None and value != action.default:
            said[name.replace("_", "-")] = _plain(value)
    keep_strangers_files(path, _MARK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{_MARK}\n{yaml.safe_dump(said, sort_keys=False)}", encoding="utf-8")
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror or error}") from error


def _path(words: Sequence[str]) -> Path | None:
    for position, word in enumerate(words):
        if word == "--config" and position + 1 < len(words):
            return Path(words[position + 1])
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _named(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options that a file may set, by name with underscores."""
    return {
        action.dest: action for action in parser._actions if action.option_strings and action.dest not in _NOT_IN_FILES
    }


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        # Scalars stay the words that were written: `1e-4` is no number to YAML 1.1, and `no` is none to us.
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from error
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


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, bool | int | float | str) else str(value)
