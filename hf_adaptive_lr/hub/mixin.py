"""Saving, loading and publishing of a controller, mixed into [`Controller`]."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..artifacts import EVAL_NAME, PICTURE_NAME, TRAINING_NAME, replace_file
from . import repo, serialization
from .untrusted import read_json

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from ..controller import Controller
    from .config import C


class HubMixin:
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of [`Controller`], which alone has it as a base."""

    def save_pretrained(self: Controller, save_directory: str | os.PathLike[str]) -> Path:  # type: ignore[misc]
        """Write `config.json` and, for learned weights, `model.safetensors`; each file appears whole or not at all.

        `training.json` and `eval_results.json` of the folder it was loaded from go along, if nothing was changed.

        Args:
            save_directory: folder, made if missing.

        Returns:
            The folder.

        Raises:
            ValueError: a config value that is not JSON (NaN), or weights that are not floating-point numbers.
        """
        out = serialization.save(self, Path(save_directory))
        for name in (TRAINING_NAME, EVAL_NAME):
            try:
                recorded = sidecar(self, name)
            except (OSError, ValueError):  # damaged, which is no reason to lose the controller
                continue
            if recorded is not None and not (out / name).exists():
                replace_file(out / name, serialization.to_json(recorded, name))
        return out

    @classmethod
    def from_pretrained(  # type: ignore[misc]
        cls: type[C],
        pretrained_model_name_or_path: str | os.PathLike[str],
        **options: Unpack[repo.HubOptions],
    ) -> C:
        """Load a controller of this class, strictly; `AutoController` finds the class by itself.

        Args:
            pretrained_model_name_or_path: its name or that of a bundled controller; a folder with `config.json`; or
                a repository of the Hub, "user/repo". The first that there is.
            **options: `revision`, `token`, `cache_dir`, `force_download` and `local_files_only`, of a repository; see
                [`HubOptions`].

        Returns:
            A new controller; `provenance` says where it is from.

        Raises:
            FileNotFoundError: no such folder, or no config.json in it.
            HubError: the repository cannot be read; the message says why and what helps. It is an OSError.
            OSError: a file cannot be read or written.
            ValueError: nothing of that name; or files that are not exactly a controller's (see `serialization.load`).
        """
        return repo.load(pretrained_model_name_or_path, {cls.controller_type: cls}, **options)

    def push_to_hub(  # type: ignore[misc]
        self: Controller,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        training: Mapping[str, Any] | None = None,
        eval_results: Mapping[str, Any] | None = None,
        without_results: bool = False,
        license: str | None = None,
    ) -> CommitInfo:
        """Publish it on the Hub with a card, in one commit; the repository is made if it does not exist.

        Text between the notes markers of the card there stays. If somebody else commits meanwhile, nothing is
        published.

        Args:
            repo_id: "user/repo".
            commit_message: first line of the commit.
            private: whether a new repository is private; None is the account's default.
            token: a write token; by default that of `hf auth login`.
            revision: branch to commit to, made if missing; by default "main".
            create_pr: open a pull request instead of writing to "main".
            training: how it was trained, `training.json`; by default that of the folder it was loaded from.
            eval_results: held-out results, `eval_results.json`, as `hf-adaptive-lr bench --controller FOLDER
                --write-results` writes it; by default likewise.
            without_results: publish without held-out results; the card says so.
            license: of the weights, as the Hub names it ("mit"); by default the one on the card there, else this
                library's for what comes with it, and none for others.

        Returns:
            The commit; `.oid` is its hash.

        Raises:
            HubError: the Hub does not take it or cannot be reached; nothing is published. It is an OSError.
            ValueError: no held-out results without `without_results`, or files that would not load again.
        """
        from . import card, picture
        from .results import check_results

        if self.provenance.get("code"):
            raise ValueError(
                f"'{self.provenance['source']}' is code of yours, which the Hub does not carry and nobody else could "
                "load; publish the file beside your model, or its schedule as a `replay`"
            )
        training = sidecar(self, TRAINING_NAME) if training is None else training
        eval_results = sidecar(self, EVAL_NAME) if eval_results is None else eval_results
        if not (eval_results and eval_results.get("results")) and not without_results:
            raise ValueError(_no_results(self))
        if eval_results is not None:
            check_results(eval_results)  # before the repository is made
        if license is not None:
            card.check_license(license)
        with tempfile.TemporaryDirectory() as folder:
            out = self.save_pretrained(folder)
            serialization.load(out, {self.controller_type: type(self)})  # nobody gets what does not load
            for name, content in ((TRAINING_NAME, training), (EVAL_NAME, eval_results)):
                if content is not None:
                    (out / name).write_text(serialization.to_json(dict(content), name), encoding="utf-8")
            drawn = PICTURE_NAME if picture.draw_schedules(self, out / PICTURE_NAME, training) else None

            def make_card(present: str | None) -> str:
                notes = None if present is None else card.notes_of(present)
                stated = license or (None if present is None else card.license_of(present))
                files = {"training": training, "eval_results": eval_results}
                return card.render(self, repo_id=repo_id, **files, notes=notes, picture=drawn, license=stated)

            return repo.push(
                out,
                repo_id,
                make_card=make_card,
                commit_message=commit_message or f"{self.controller_type}, by hf_adaptive_lr",
                private=private,
                token=token,
                branch=revision,
                create_pr=create_pr,
            )


def sidecar(controller: Controller, name: str) -> dict[str, Any] | None:
    """A JSON file beside those a controller was loaded from; None without one, or if the controller has changed since.

    OSError: it cannot be read; ValueError: it is no JSON object.
    """
    folder = controller.provenance.get("folder")
    if not folder or controller.provenance.get("changed") or not (Path(folder) / name).is_file():
        return None
    value = read_json(Path(folder) / name)
    if not isinstance(value, dict):
        raise ValueError(f"{Path(folder) / name} must hold a JSON object, got a {type(value).__name__}")
    return value


def _no_results(controller: Controller) -> str:
    changed = controller.provenance.get("changed")
    why = f"; those of '{controller.provenance['source']}' do not count, as {changed} changed" if changed else ""
    return (
        f"no held-out results of this {type(controller).__name__}{why}: pass eval_results=..., which "
        f"`hf-adaptive-lr bench --quick --controller FOLDER --write-results` writes, or without_results=True to "
        f"publish it with a card that says so"
    )
