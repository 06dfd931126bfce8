"""Finding a controller by name, folder or Hub repository."""

from __future__ import annotations

import os

from . import files, hub, own_code
from .controller import Controller
from .controllers import CONTROLLERS

PRETRAINED = files.BUNDLED
"""Bundled controllers: one folder each."""


class AutoController:
    """Loads any controller: `AutoController.from_pretrained(name, folder or repository)`."""

    def __init__(self) -> None:
        raise TypeError("AutoController is not made directly; call AutoController.from_pretrained(...)")

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Controller:
        """Load a controller by name, from a folder, or from the Hub.

        A name wins over a folder of the same name (write `./name` for the folder; one warning when both exist), and a
        folder with `config.json` over a repository of the same name.

        Args:
            pretrained_model_name_or_path: a name of [`CONTROLLERS`] (with its default config) or of a bundled
                controller; a folder with `config.json`; a class of your own in a file, "my_rules.py:MyRule"; or a
                repository of the Hub, "user/repo".
            revision: branch, tag, commit or `refs/pr/N` of the repository; all files come from the one commit that
                it is at this moment.
            token: for private and gated repositories; by default that of `hf auth login`.
            cache_dir: where downloads are kept, by default the Hub's cache.
            force_download: download again what is in the cache.
            local_files_only: use only what is in the cache, as with HF_HUB_OFFLINE=1.

        Returns:
            The controller; its `provenance` says where it is from.

        Raises:
            FileNotFoundError: a folder without config.json.
            HubError: the Hub does not give it; the message says why and what helps. It is an OSError.
            OSError: a file cannot be read or written.
            ValueError: nothing of that name; the message lists what was tried and the closest names. Also files that
                are not exactly a controller's.

        Example:
            >>> AutoController.from_pretrained("cosine").controller_type
            'cosine'
        """
        if own_code.is_own(os.fspath(pretrained_model_name_or_path)):
            return own_code.load(os.fspath(pretrained_model_name_or_path))
        return hub.load(
            pretrained_model_name_or_path,
            CONTROLLERS,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )


def known_names() -> list[str]:
    """Names that `AutoController.from_pretrained` knows without a file or network."""
    return hub.known_names(CONTROLLERS)


def resolve_controller(controller: Controller | str | os.PathLike[str]) -> Controller:
    """A controller given as itself, by name, by folder or by repository.

    Raises:
        TypeError: anything else, a class for instance.
        OSError: a folder or repository that cannot be read.
        ValueError: an unknown name, or files that are not a controller's.
    """
    if isinstance(controller, Controller):
        return controller
    if isinstance(controller, str | os.PathLike):
        return AutoController.from_pretrained(controller)
    raise TypeError(
        f"controller must be a Controller or a name, got {controller!r}; a class needs parentheses: Linear()"
    )
