"""Finding a controller by name, folder or Hub repository."""

from __future__ import annotations

import difflib
import os
import warnings
from pathlib import Path

from . import hub
from .controller import Controller
from .controllers import CONTROLLERS

PRETRAINED = Path(__file__).parent / "pretrained"
"""Bundled controllers: one folder each."""


class AutoController:
    """Loads any controller: `AutoController.from_pretrained(name, folder or repository)`."""

    def __init__(self) -> None:
        raise TypeError("AutoController is not made directly; call AutoController.from_pretrained(...)")

    @staticmethod
    def from_pretrained(pretrained_model_name_or_path: str | os.PathLike[str]) -> Controller:
        """Load a controller by the name of a method or bundled controller, or from a folder.

        A name wins over a folder of the same name (write `./name` for the folder; one warning when both exist).

        Args:
            pretrained_model_name_or_path: a name of [`CONTROLLERS`] (with its default config), of a bundled
                controller, or a folder with `config.json`.

        Returns:
            The controller.

        Raises:
            ValueError: nothing of that name; the message lists what was tried and the closest names. Also a folder
                whose files are not exactly a controller's.

        Example:
            >>> AutoController.from_pretrained("cosine").controller_type
            'cosine'
        """
        wanted = os.fspath(pretrained_model_name_or_path)
        bundled = PRETRAINED / wanted
        is_bundled = wanted.isidentifier() and (bundled / hub.CONFIG_NAME).is_file()
        if (is_bundled or wanted in CONTROLLERS) and (Path(wanted) / hub.CONFIG_NAME).is_file():
            warnings.warn(
                f"'{wanted}' is both a known controller and a folder here; the known one is used, write './{wanted}' "
                f"for the folder",
                UserWarning,
                stacklevel=2,
            )
        if is_bundled:
            return hub.load(bundled, CONTROLLERS)
        if wanted in CONTROLLERS and CONTROLLERS[wanted].learned:
            raise ValueError(
                f"no weights of '{wanted}' come with this version; train some with `hf-adaptive-lr train` and name "
                f"their folder"
            )
        if wanted in CONTROLLERS:
            return CONTROLLERS[wanted]()
        if Path(wanted).is_dir():
            return hub.load(Path(wanted), CONTROLLERS)
        raise ValueError(_unknown(wanted))


def known_names() -> list[str]:
    """Names that `AutoController.from_pretrained` knows without a file or network."""
    bundled = [p.name for p in PRETRAINED.iterdir() if (p / hub.CONFIG_NAME).is_file()] if PRETRAINED.is_dir() else []
    return sorted({*(name for name, cls in CONTROLLERS.items() if not cls.learned), *bundled})


def _unknown(wanted: str) -> str:
    names = known_names()
    close = difflib.get_close_matches(wanted, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names: {', '.join(names)}"
    return f"no controller '{wanted}': it is neither a known name nor a folder with config.json; {hint}"


def resolve_controller(controller: Controller | str | os.PathLike[str]) -> Controller:
    """A controller given as itself, by name or by folder.

    Raises:
        TypeError: anything else, a class for instance.
        ValueError: an unknown name.
    """
    if isinstance(controller, Controller):
        return controller
    if isinstance(controller, str | os.PathLike):
        return AutoController.from_pretrained(controller)
    raise TypeError(
        f"controller must be a Controller or a name, got {controller!r}; a class needs parentheses: Linear()"
    )
