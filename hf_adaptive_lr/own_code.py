"""A controller of one's own from a Python file: `my_controller.py:MyController`, wherever a controller is named.

Only a file that the user names on this machine is run; nothing that comes from the Hub ever is.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from .controller import Controller


def is_own(text: str) -> bool:
    """Whether this names a class in a Python file.

    Example:
        >>> is_own("rules/my_controller.py:MyController"), is_own("user/repo")
        (True, False)
    """
    return re.fullmatch(r".+\.py:[A-Za-z_]\w*", text) is not None


def load(text: str) -> Controller:
    """The controller that a file defines, with its default config.

    Args:
        text: "FILE.py:CLASS".

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such class in it, one that is no controller, or one that cannot be made without arguments.

    Returns:
        The controller; its `provenance` has the file and the hash of its text.
    """
    path_text, _, name = text.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}' for the controller '{text}'; write FILE.py:CLASS")
    code = hashlib.sha256(path.read_bytes()).hexdigest()
    module = _module(path, code)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Controller) and found is not Controller):
        known = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Controller) and value.__module__ == module.__name__
        ]
        close = difflib.get_close_matches(name, known, n=1) or known
        hint = f"did you mean {close[0]}?" if close else "it defines none; subclass hf_adaptive_lr.Controller"
        raise ValueError(f"'{path}' has no controller '{name}'; {hint}")
    _check_class(text, found)
    try:
        made = found()
    except TypeError as error:
        raise ValueError(f"'{text}' cannot be made without arguments: {error}; give its fields defaults") from error
    origin = {"source": text, "folder": "", "commit": "", "revision": "", "code": code}
    return made.replace(provenance=origin)


def _check_class(text: str, found: type[Controller]) -> None:
    """Refuse what would run, but not as it was meant.

    Raises:
        ValueError: no name of its own, or settings that a missing decorator leaves unread.
    """
    if "controller_type" not in vars(found):
        raise ValueError(f"'{text}' has no controller_type of its own; add controller_type = \"my_name\" to the class")
    fields = {field.name for field in dataclasses.fields(found)}
    unread = [
        n
        for n, kind in vars(found).get("__annotations__", {}).items()
        if n not in fields and "ClassVar" not in str(kind)
    ]
    if unread:
        raise ValueError(
            f"'{text}': '{unread[0]}' is no setting; put @dataclass(frozen=True, kw_only=True) above the class"
        )


def _module(path: Path, code: str) -> ModuleType:
    """The file as a module, run once for as long as it stays the same."""
    name = f"hf_adaptive_lr_own_{path.stem}_{code[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # for any file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
