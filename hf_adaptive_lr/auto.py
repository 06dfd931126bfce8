"""AutoController: a controller by name, folder, Hub repository, or a class of one's own in a Python file.

Only a file that the user names on this machine is run (`my_rules.py:MyRule`), never code from the Hub.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Unpack

import torch
from torch import Tensor

from ._checks import MissingTensorError
from .controller import Controller
from .controllers import CONTROLLERS
from .hub import repo, serialization
from .observation import OPTIONAL_FIELDS, Observation

logger = logging.getLogger(__name__)

PRETRAINED = serialization.BUNDLED
"""Bundled controllers: one folder each."""


class AutoController:
    """Loads any controller: `AutoController.from_pretrained(name, folder or repository)`."""

    def __init__(self) -> None:
        raise TypeError("AutoController is not made directly; call AutoController.from_pretrained(...)")

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str],
        **options: Unpack[repo.HubOptions],
    ) -> Controller:
        """Load a controller by name, from a folder, or from the Hub.

        A name of this library wins over a folder of the same name (write `./name` for the folder; one warning when
        both exist), a folder with `config.json` over the name of a class of your own and over a repository.

        Args:
            pretrained_model_name_or_path: a name of [`CONTROLLERS`] (with its default config) or of a bundled
                controller; a folder with `config.json`; a class of your own in a file, "my_rules.py:MyRule", or what
                it saved, "my_rules.py:MyRule:folder"; or a repository of the Hub, "user/repo".
            **options: of a repository:
                `revision`, a branch, tag, commit or `refs/pr/N`; all files come from the one commit that it is at this
                moment. `token` for private and gated repositories, by default that of `hf auth login`. `cache_dir`
                for downloads, by default the Hub's. `force_download` downloads again what is in the cache.
                `local_files_only` uses only what is in the cache, as HF_HUB_OFFLINE=1 does.

        Returns:
            The controller; its `provenance` says where it is from.

        Raises:
            FileNotFoundError: a folder without config.json.
            HubError: the repository cannot be read; the message says why and what helps. It is an OSError.
            OSError: a file cannot be read or written.
            TypeError: no text and no path.
            ValueError: nothing of that name; the message lists all attempts and the closest names. Also files that
                are not exactly a controller's.

        Example:
            >>> AutoController.from_pretrained("cosine").controller_type
            'cosine'
        """
        repo.check_options(options, _where_settings_go(pretrained_model_name_or_path, options))
        if not isinstance(pretrained_model_name_or_path, str | os.PathLike):
            raise TypeError(
                "from_pretrained takes a name, a folder, FILE.py:CLASS or a repository, got "
                f"{pretrained_model_name_or_path!r}; names are: {', '.join(known_names())}"
            )
        wanted = os.fspath(pretrained_model_name_or_path)
        if is_own(wanted):
            return load_own(wanted)
        return repo.load(pretrained_model_name_or_path, known_classes(), **options)

    @staticmethod
    def register(controller_type: str, controller_class: type[Controller]) -> None:
        """Make a class of your own known by name in this process, so that what it saved loads like any other.

        Where a process is not yours to prepare (the command line), name file and folder: "my_rules.py:MyRule:saved/".

        Args:
            controller_type: the class's own `controller_type`.
            controller_class: a subclass of [`Controller`]; a frozen dataclass.

        Raises:
            TypeError: no controller class.
            ValueError: the name is another's, or not the class's own.

        Example:
            >>> from dataclasses import dataclass
            >>> from hf_adaptive_lr import Constant
            >>> @dataclass(frozen=True, kw_only=True)
            ... class Mine(Constant):
            ...     controller_type = "mine"
            >>> AutoController.register("mine", Mine)  # doctest: +SKIP
            >>> AutoController.from_pretrained("mine").controller_type  # doctest: +SKIP
            'mine'
        """
        found = controller_class
        if not (isinstance(found, type) and issubclass(found, Controller) and found is not Controller):
            raise TypeError(f"register takes a subclass of Controller, got {found!r}")
        _check_class(found.__name__, found)
        if controller_type != found.controller_type:
            raise ValueError(
                f"{found.__name__} has controller_type {found.controller_type!r}, not {controller_type!r}"
            )
        known = known_classes().get(controller_type)
        same_code = known is not None and (known.__module__, known.__qualname__) == (
            found.__module__,
            found.__qualname__,
        )
        if controller_type in CONTROLLERS or (known is not None and not same_code):
            raise ValueError(f"'{controller_type}' is {known!r} already; give your class another controller_type")
        _REGISTERED[controller_type] = found


_REGISTERED: dict[str, type[Controller]] = {}


def known_classes() -> dict[str, type[Controller]]:
    """The classes of this library and those that were registered, by their `controller_type`."""
    return {**CONTROLLERS, **_REGISTERED}


def _where_settings_go(name: object, options: Iterable[str]) -> str:
    """The end of an error about options among which are settings of the controller that has this name, if any."""
    known = bool(options) and isinstance(name, str) and name in known_names()
    cls = type(AutoController.from_pretrained(str(name))) if known else known_classes().get(str(name))
    mine = [] if cls is None else [field.name for field in dataclasses.fields(cls) if field.name in set(options)]
    if cls is None or not mine:
        return ""
    made = f"from_pretrained({name!r}).replace" if cls.learned else cls.__name__
    return f"; settings go to {made}({mine[0]}=...)"


def known_names() -> list[str]:
    """Names that `AutoController.from_pretrained` knows without a file or network."""
    return repo.known_names(known_classes())


def resolve_controller(controller: Controller | str | os.PathLike[str]) -> Controller:
    """A controller given as itself, by name, by folder or by repository; every integration calls this.

    TypeError for anything else, a class for instance; OSError for what cannot be read; ValueError for an unknown name,
    or files that are not a controller's.
    """
    if isinstance(controller, str | os.PathLike):
        controller = AutoController.from_pretrained(controller)
    if isinstance(controller, Controller):
        origin = controller.provenance
        if (controller.controller_type, origin.get("source")) == (
            "universal",
            "universal_1",
        ) and "params" not in origin.get("changed", ""):
            _caution()
        return controller
    raise TypeError(
        f"controller must be a Controller or a name, got {controller!r}; a class needs parentheses: Linear()"
    )


@functools.cache
def _caution() -> None:
    """Warn once, on the first process, of the first version of `universal`."""
    if int(os.environ.get("RANK", "0")):
        return
    logger.warning(
        "controller 'universal_1' is experimental on pretrained encoders: on data sets it was not chosen on, it was "
        "worse than a tuned linear schedule on average and ruined some runs; 'universal' took its place"
    )


_OWN = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)(?::(?P<folder>.+))?", re.DOTALL)


def is_own(text: str) -> bool:
    """Whether this names a class in a Python file, as `rules/my_controller.py:MyController` does."""
    return _OWN.fullmatch(text) is not None


def load_own(text: str) -> Controller:
    """The controller that "FILE.py:CLASS" defines, with its default config; file and hash are its `provenance`.

    "FILE.py:CLASS:FOLDER" has the config and weights that `save_pretrained` wrote.

    FileNotFoundError without the file or folder; ValueError for no such class in it, one that is no controller, or one
    that cannot be made without arguments; also for files that are not exactly this class's.
    """
    match = _OWN.fullmatch(text)
    assert match is not None  # `is_own` says so
    path, name, folder = Path(match["file"]), match["name"], match["folder"]
    if not path.is_file():
        raise FileNotFoundError(
            f"no file '{path}' for the controller '{text}'; write FILE.py:CLASS, or FILE.py:CLASS:FOLDER"
        )
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
    origin = {"source": text, "folder": "", "commit": "", "revision": "", "code": code}
    if folder is not None:
        origin["folder"] = str(Path(folder).absolute())
        made = serialization.load(Path(folder), {found.controller_type: found}, origin)
    else:
        made = _with_defaults(text, found).replace(provenance=origin)
    try_out(made, ())
    return made


def _with_defaults(text: str, found: type[Controller]) -> Controller:
    try:
        return found()
    except TypeError as error:
        raise ValueError(f"'{text}' cannot be made without arguments: {error}; give its fields defaults") from error
    except MissingTensorError as error:
        raise ValueError(f"'{text}' has weights: {error}; name the folder that has them, {text}:FOLDER") from error


def try_out(controller: Controller, batch_shape: tuple[int, ...]) -> None:
    """Call a controller once with made-up signals, so that a mistake in it fails before a run starts.

    `batch_shape` is () as in a run, or (n,) as in meta-training and the benchmark's vectorised tasks. A one-line
    ValueError where it fails, or answers with something else than it should.
    """
    name = type(controller).__name__
    where = "" if not batch_shape else ", with tensors of many runs at once (torch.where instead of if)"
    try:
        state = controller.init(batch_shape, n_groups=1, seed=0, device=None)
        answer, after = controller.decide(_made_up(controller, batch_shape), state)
    except Exception as error:  # whatever it is, it is the user's to mend
        line = traceback.extract_tb(error.__traceback__)[-1]
        at = "" if line.filename == __file__ else f" (line {line.lineno})"
        raise ValueError(
            f"{name} failed when it was tried out{where}: {type(error).__name__}: {error}{at}; it is called as "
            "init(batch_shape, *, n_groups, seed, device) and decide(obs, state, params=None), and obs has the fields "
            f"that needs names, {sorted(controller.needs) or 'none'}"
        ) from error
    if not isinstance(answer, Tensor) or tuple(answer.shape) not in (batch_shape, (*batch_shape, 1)):
        got = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(
            f"{name}.decide must answer with a tensor of obs.lr's shape {batch_shape}{where}, got {got}; a constant "
            "is torch.full_like(obs.lr, 0.5)"
        )
    if not (isinstance(state, dict) and isinstance(after, dict)):
        raise ValueError(f"{name}: init must return the state and decide the next one, each a dict")
    plain = (Tensor, int, float, str, type(None))
    odd = [key for part in (state, after) for key, value in part.items() if not isinstance(value, plain)]
    if odd:
        raise ValueError(f"{name}: '{odd[0]}' of its state is no tensor or number, so a checkpoint could not keep it")


def _made_up(controller: Controller, batch_shape: tuple[int, ...]) -> Observation:
    """An observation of the tenth of a hundred updates."""

    def full(value: float, *more: int) -> Tensor:
        return torch.full((*batch_shape, *more), value, dtype=torch.float64)

    fields = {
        field: full(10.0 if field == "classes" else 0.5, *((1,) if field.startswith("group_") else ()))
        for field in controller.needs & OPTIONAL_FIELDS.keys()
    }
    rates = {"lr": full(1e-3), "base_lr": full(1e-3), "last_lr": full(1e-3), "lrs": full(1e-3, 1)}
    return Observation(step=10, total_steps=100, **rates, base_lrs=full(1e-3, 1), **fields)


def _check_class(text: str, found: type[Controller]) -> None:
    """Fail fast on a class that would run, but not as it was meant.

    ValueError: no name of its own, or settings that a missing decorator leaves unread.
    """
    if "controller_type" not in vars(found):
        raise ValueError(f"'{text}' has no controller_type of its own; add controller_type = \"my_name\" to the class")
    fields = {field.name for field in dataclasses.fields(found)}
    kinds = vars(found).get("__annotations__", {})
    unread = [name for name, kind in kinds.items() if name not in fields and "ClassVar" not in str(kind)]
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
