"""Controllers on the Hub: find by name, folder or repository; pull one pinned commit; push in one commit.

Built on `HfApi` and `hf_hub_download` rather than on `ModelHubMixin`, which sets attributes on the instance and fills
missing fields with defaults. A repository is untrusted: five files of known names and bounded size are fetched, into
the Hub's cache, and `serialization.load` reads two of them. Retries and resuming are huggingface_hub's.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from ..artifacts import (
    CARD_NAME,
    CONFIG_NAME,
    EVAL_NAME,
    PICTURE_NAME,
    TRAINING_NAME,
    WEIGHTS_NAME,
    library_version,
)
from . import serialization, untrusted
from .errors import HubError, clear_errors

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

    from ..controller import Controller
    from .config import C

CONTROLLER_TAGS = ("adaptive-lr", "learning-rate-scheduler")
"""A repository with both is a controller; a model that one trained has only the first."""

_LIMITS = {
    CONFIG_NAME: serialization.MAX_CONFIG_BYTES,
    WEIGHTS_NAME: serialization.MAX_WEIGHTS_BYTES,
    TRAINING_NAME: untrusted.MAX_SIDECAR_BYTES,
    EVAL_NAME: untrusted.MAX_SIDECAR_BYTES,
    CARD_NAME: untrusted.MAX_SIDECAR_BYTES,
}
_NEEDED = (CONFIG_NAME, WEIGHTS_NAME)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubOptions(TypedDict, total=False):
    """Options for reading a repository of the Hub."""

    revision: str | None
    """Branch, tag, commit or `refs/pr/N`, by default the default branch; all files come from the one commit that it is
    at this moment."""
    token: bool | str | None
    """For private and gated repositories; by default that of `hf auth login`."""
    cache_dir: str | os.PathLike[str] | None
    """Folder for downloads, by default the Hub's cache."""
    force_download: bool
    """Download again what is in the cache."""
    local_files_only: bool
    """Use only what is in the cache, as with HF_HUB_OFFLINE=1."""


def check_options(options: HubOptions, way_out: str = "") -> None:
    """TypeError, with `way_out` at its end, for an option that there is not."""
    unknown = options.keys() - HubOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(HubOptions.__annotations__)
        raise TypeError(f"'{min(unknown)}' is no option for reading from the Hub; there are: {known}{way_out}")


# --- names ------------------------------------------------------------------------------------------------------


def load(
    name_or_path: str | os.PathLike[str],
    classes: Mapping[str, type[C]],
    **options: Unpack[HubOptions],
) -> C:
    """Load a controller of `classes` by name, folder or repository; see [`Controller.from_pretrained`]."""
    check_options(options)
    wanted = os.fspath(name_or_path)
    only_hub = {key: options.get(key) for key in ("revision", "cache_dir", "force_download")}
    given = [f"{key}={value!r}" for key, value in only_hub.items() if value not in (None, False)]
    folder = _bundled(wanted)
    # Nothing of the name of somebody's own class comes with this library: a folder is what the class saved.
    own = wanted in classes and classes[wanted].__module__.partition(".")[0] != __name__.partition(".")[0]
    saved = folder is None and own and (Path(wanted) / CONFIG_NAME).is_file()
    if (folder is not None or wanted in classes) and not saved:
        if (Path(wanted) / CONFIG_NAME).is_file():
            warnings.warn(
                f"'{wanted}' is both a known controller and a folder here; the known one is used, write './{wanted}' "
                f"for the folder",
                UserWarning,
                stacklevel=3,
            )
        _only_for_repositories(given, f"'{wanted}' comes with this library")
        if folder is not None:
            origin = {"source": wanted, "folder": str(folder), "commit": "", "revision": ""}
            return serialization.load(folder, classes, origin)
        if classes[wanted].learned:
            raise ValueError(
                f"no weights of '{wanted}' come with this version; train some with `hf-adaptive-lr train` and name "
                f"their folder"
            )
        return classes[wanted]()
    is_repo = isinstance(name_or_path, str) and is_repo_id(wanted)
    here = Path(wanted)
    if (here / CONFIG_NAME).is_file() or (wanted and here.is_dir() and not is_repo):
        _only_for_repositories(given, f"'{wanted}' is a folder")
        return serialization.load(here, classes)
    if not is_repo:
        if isinstance(name_or_path, os.PathLike):
            return serialization.load(here, classes)  # fails, and names the missing file
        if wanted.endswith(".py"):
            raise ValueError(f"'{wanted}' is a file; name the class in it as well: {wanted}:MyController")
        raise ValueError(
            f"no controller '{wanted}': it is neither a known name nor a folder with {CONFIG_NAME}, and not a "
            f"Hub repository, which is written 'user/name'; {_hint(wanted, classes)}"
        )
    try:
        folder, commit = pull(wanted, **options)
    except HubError as error:
        # Somebody's "repo" is no misspelt "replay".
        near = difflib.get_close_matches(wanted.rpartition("/")[2], known_names(classes), n=1, cutoff=0.8)
        close = f"; did you mean {near[0]}?" if near else ""
        raise HubError(
            f"no controller '{wanted}': it is neither a known name nor a folder with {CONFIG_NAME}, and as a "
            f"Hub repository: {error}{close}"
        ) from error.__cause__
    origin = {"source": wanted, "folder": str(folder), "commit": commit, "revision": options.get("revision") or ""}
    return serialization.load(folder, classes, origin)


def known_names(classes: Mapping[str, type[Controller]]) -> list[str]:
    """Names that `load` knows without a file or network: rules, and bundled controllers."""
    bundled = (
        [p.name for p in serialization.BUNDLED.iterdir() if _bundled(p.name)] if serialization.BUNDLED.is_dir() else []
    )
    return sorted({*(name for name, cls in classes.items() if not cls.learned), *bundled})


def is_repo_id(text: str) -> bool:
    """Whether this can be a repository of the Hub: "user/name"."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII)) and not re.search(r"--|\.\.|\.git$|\.$|-$", text)


def _bundled(name: str) -> Path | None:
    folder = serialization.BUNDLED / name
    return folder if name.isidentifier() and (folder / CONFIG_NAME).is_file() else None


def _only_for_repositories(given: list[str], why: str) -> None:
    if given:
        raise ValueError(f"{', '.join(given)} is for a repository of the Hub, but {why}; leave it out")


def _hint(wanted: str, classes: Mapping[str, type[Controller]]) -> str:
    names = known_names(classes)
    close = difflib.get_close_matches(wanted.rpartition("/")[2], names, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"known names: {', '.join(names)}"


# --- pull -------------------------------------------------------------------------------------------------------


def pull(repo_id: str, **options: Unpack[HubOptions]) -> tuple[Path, str]:
    """Fetch a controller's files, all of one commit, into the Hub's cache; files that are there are not asked for.

    Returns the folder of that commit, with config.json, and, if the repository has them, model.safetensors,
    training.json, eval_results.json and README.md (the last three up to 20 MB), all unread; and the commit's hash.

    Raises:
        HubError: no such repository, revision or config.json, no access, or neither cached nor reachable.
        OSError: the cache cannot be written.
        ValueError: `repo_id` or `revision` cannot be one, or a file is too large for a controller.
    """
    from huggingface_hub import is_offline_mode, try_to_load_from_cache

    check_options(options)
    revision, cache_dir = options.get("revision"), options.get("cache_dir")
    force_download, local_files_only = options.get("force_download", False), options.get("local_files_only", False)
    _check_names(repo_id, revision)
    if force_download and local_files_only:
        raise ValueError("force_download and local_files_only contradict each other; leave one out")
    api, cache = _api(options.get("token")), None if cache_dir is None else Path(cache_dir)
    with clear_errors(repo_id, revision):
        resolved = api.resolve_revision(repo_id, revision=revision, cache_dir=cache, local_files_only=local_files_only)
    commit = resolved.resolved
    if not _COMMIT.fullmatch(commit):
        raise HubError(f"the Hub says that '{repo_id}' is at {commit!r}, which is not a commit")
    known = {name: try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=commit) for name in _LIMITS}
    unknown = [name for name, found in known.items() if found is None or force_download]
    if unknown and not local_files_only and not is_offline_mode():
        try:
            with clear_errors(repo_id, revision):
                _fetch(api, repo_id, commit, unknown, cache, force_download=force_download)
        except HubError:
            if force_download or any(name in _NEEDED for name in unknown):
                raise
    config = try_to_load_from_cache(repo_id, CONFIG_NAME, cache_dir=cache, revision=commit)
    if isinstance(config, str):
        return Path(config).parent, commit
    if config is None:
        raise HubError(f"'{repo_id}' at {commit} is not in the cache, which is all that may be asked offline")
    raise HubError(f"'{repo_id}' has no {CONFIG_NAME} at {revision or commit}; it is not a controller")


def _fetch(
    api: HfApi, repo_id: str, commit: str, names: list[str], cache: Path | None, *, force_download: bool
) -> None:
    """Download these files; the cache remembers those that are not there, and sidecars that are too large stay."""
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    listed = api.get_paths_info(repo_id, names, revision=commit)
    sizes = {item.path: item.size for item in listed if isinstance(item, RepoFile)}
    large = [name for name in names if sizes.get(name, 0) > _LIMITS[name]]
    for name in large:
        if name in _NEEDED:
            raise ValueError(f"'{repo_id}': {name} has {sizes[name]:,} bytes, more than {_LIMITS[name]:,}")
    for name in [name for name in names if name not in large]:
        try:
            path = api.hf_hub_download(repo_id, name, revision=commit, cache_dir=cache, force_download=force_download)
        except LocalEntryNotFoundError:
            raise  # the Hub could not be asked
        except EntryNotFoundError:
            continue
        if Path(path).parent.name != commit:
            raise HubError(f"the Hub sent {name} of another commit of '{repo_id}' than {commit}; try again")


def _api(token: bool | str | None) -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="hf_adaptive_lr", library_version=library_version())


def _check_names(repo_id: str, revision: str | None) -> None:
    if not is_repo_id(repo_id):
        raise ValueError(f"{repo_id!r} is not a repository of the Hub; write 'user/name'")
    if revision is not None and not re.fullmatch(r"(?!.*\.\.)(?!/)[\w./+@-]{1,200}", revision, re.ASCII):
        raise ValueError(f"revision={revision!r} is not a branch, tag, commit or 'refs/pr/N'")


# --- push -------------------------------------------------------------------------------------------------------


def push(
    folder: Path,
    repo_id: str,
    *,
    make_card: Callable[[str | None], str],
    commit_message: str,
    private: bool | None = None,
    token: bool | str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Publish a controller's folder in one commit; controller files that it lacks are deleted from the repository.

    `make_card` makes README.md from the one that is in the repository, or from None. The other arguments are those of
    [`Controller.push_to_hub`], `branch` its `revision`. Files in the folder that are not a controller's are not
    published. The commit's parent is the state from which the card was made: if somebody else commits meanwhile, the
    Hub does not take this one.

    Raises:
        HubError: the Hub does not take it, or cannot be reached; nothing is published.
        ValueError: a name that cannot be one, or `branch` together with `create_pr`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    _check_names(repo_id, branch)
    if branch is not None and create_pr:
        raise ValueError(f"create_pr is against main, so branch={branch!r} does not go with it; leave one out")
    api, names = _api(token), [*_LIMITS, PICTURE_NAME]
    with clear_errors(repo_id, branch, "push to"):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        parent = api.model_info(repo_id, revision=branch).sha
        there = {item.path for item in api.get_paths_info(repo_id, names, revision=parent)}
        present = _read_card(api, repo_id, parent) if CARD_NAME in there else None
    (folder / CARD_NAME).write_text(make_card(present), encoding="utf-8")
    ours = [name for name in names if (folder / name).is_file()]
    operations: list[Any] = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in ours]
    operations += [CommitOperationDelete(path_in_repo=name) for name in names if name in there and name not in ours]
    with clear_errors(repo_id, branch, "push to"):
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            parent_commit=parent,
        )


def _read_card(api: HfApi, repo_id: str, commit: str | None) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = api.hf_hub_download(repo_id, CARD_NAME, revision=commit, cache_dir=scratch)
        return untrusted.read_text(Path(path))


# --- search -----------------------------------------------------------------------------------------------------


def search(limit: int = 20, token: bool | str | None = None) -> list[dict[str, Any]]:
    """At most `limit` controllers on the Hub, those downloaded most first; a token shows one's own private ones, too.

    For each `id`, `commit`, `tags`, `downloads` and `likes`; all but `id` are None where the Hub does not tell.
    HubError: the Hub cannot be reached, or does not answer.
    """
    from huggingface_hub import constants, get_session

    with clear_errors("models", None, "list the Hub's"):
        get_session().head(constants.ENDPOINT, timeout=10)  # fails at once where listing tries again and again
        found = _api(token).list_models(filter=CONTROLLER_TAGS, sort="downloads", limit=limit, full=True)
        return [
            {"id": m.id, "commit": m.sha, "tags": m.tags, "downloads": m.downloads, "likes": m.likes} for m in found
        ]
