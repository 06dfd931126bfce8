"""The contract: a controller looks at an [`Observation`] and answers with a learning rate or a factor of the base LR.

A controller is an immutable value: config (the dataclass fields) and learned weights (`params`). Everything that
changes during a run is `State`, a dict of tensors and numbers that goes into `decide` and comes out of it. So a
checkpoint is a dict, a test is a function call, and the same `decide` serves one run, hundreds of vectorised runs and
a meta-gradient.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from . import artifacts
from .hub import repo, serialization
from .observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Observation, Outcome

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

State = dict[str, Any]
"""Run state of a controller: a flat dict of CPU tensors and plain numbers, nothing else."""

Answers = Literal["factor", "lr"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controller:
    """Base of every learning-rate controller; subclasses are frozen dataclasses whose fields are the config.

    A subclass sets `controller_type` (its name in config.json), `answers` and `needs`, and implements `decide`.

    Args:
        params: learned weights by name, part of `model.safetensors`, never of config.json; empty for rules.
        provenance: where it was loaded from: `source` (what was asked for: a name, a folder, a repository), `folder`
            its files are in, resolved `commit` and asked `revision` (empty but for a repository), and, once a copy
            differs from these files, `changed`. Empty for one made by hand. Neither compared nor saved.

    Raises:
        ValueError: `needs` names a field that no sensor measures, or `params` does not have exactly the tensors that
            `param_shapes` asks for.

    Example:
        >>> import dataclasses, torch
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class Halving(Controller):
        ...     controller_type = "halving"
        ...     every_steps: int = 10
        ...     def decide(self, obs, state, params=None):
        ...         return torch.tensor(0.5 ** (obs.step // self.every_steps)), state
        >>> Halving().save_pretrained  # doctest: +ELLIPSIS
        <bound method ...>
    """

    controller_type: ClassVar[str] = ""
    answers: ClassVar[Answers] = "factor"
    needs: ClassVar[frozenset[str]] = frozenset()
    needs_horizon: ClassVar[bool] = False
    """Whether `total_steps` must be known."""
    decisions: ClassVar[int | None] = None
    """Decisions per run when the user names no cadence; None for one at every update."""
    learned: ClassVar[bool] = False
    """Whether it is nothing without trained weights, so that its name alone does not make one."""
    random: ClassVar[bool] = False
    """Whether it draws random numbers, so that runs of one batch differ."""
    ignores_base_lr: ClassVar[bool] = False
    """Whether its answers do not depend on the base LR, so that any will do; only for learning-rate answers."""
    fresh_eval: ClassVar[bool] = False
    """Whether every decision must see an evaluation of its own moment, where `needs` has `eval_loss`."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Config changes by preset name: `paper` and `released` where a paper and its released code disagree."""

    params: Mapping[str, Tensor] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = self.needs - OPTIONAL_FIELDS.keys() - OUTCOME_FIELDS.keys()
        if unknown:
            known = ", ".join([*OPTIONAL_FIELDS, *OUTCOME_FIELDS])
            raise ValueError(
                f"{type(self).__name__}.needs names {sorted(unknown)}, which no sensor measures; known: {known}"
            )
        serialization.check_tensors(self.params, self.param_shapes(), f"params of {type(self).__name__}")

    # --- the contract -------------------------------------------------------------------------------------------

    @property
    def lr_range(self) -> tuple[float, float] | None:
        """Smallest and largest learning rate that it was trained for, to which an [`Envelope`] keeps an lr answer.

        None leaves it to the settings. A subclass overrides it, with a config field if it is to be saved.
        """
        return None

    def init(
        self,
        batch_shape: tuple[int, ...] = (),
        *,
        n_groups: int = 1,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> State:
        """State before the first decision.

        Args:
            batch_shape: `()` for one run, `(runs,)` for vectorised runs.
            n_groups: number of parameter groups of the optimizer.
            seed: seed of the controller's own random draws; ignored by deterministic ones.
            device: where state tensors live; CPU in a live run.

        Returns:
            A flat dict of tensors and numbers.
        """
        del batch_shape, n_groups, seed, device
        return {}

    def decide(
        self, obs: Observation, state: State, params: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Answer for update `obs.step`; pure: neither `state` nor the controller changes.

        Args:
            obs: what is known before the update; has every field named in `needs`.
            state: what `init` or the previous `decide` returned.
            params: weights to use instead of `self.params` (evolution and meta-gradients pass their own).

        Returns:
            The answer, of `batch_shape` or `batch_shape + (n_groups,)`: a factor of the base LR or, if
            `answers == "lr"`, the learning rate of group 0; and the next state.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement decide(obs, state, params=None)")

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """Whether it decides at this update, for methods with a rhythm of their own; the user's cadence wins.

        Args:
            update: 0-based index of the update about to be applied.
            total_steps: length of the run, or None when unknown.

        Returns:
            None to leave it to `decisions`.
        """
        del update, total_steps
        return None

    def wants_outcome(self, update: int, total_steps: int | None) -> bool:
        """Whether `learn` is to see the outcome of this update; measuring one costs extra forward passes.

        Args:
            update: 0-based index of the update about to be applied, one at which a decision is due.
            total_steps: length of the run, or None when unknown.
        """
        del update, total_steps
        return True

    def learn(self, outcome: Outcome, state: State) -> State:
        """Learn from what the update did; only for methods that learn inside the run.

        Args:
            outcome: measured after the update; has every [`Outcome`] field named in `needs`.
            state: the state after `decide`.

        Returns:
            The next state; by default the same.
        """
        del outcome
        return state

    def param_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every learned tensor that this config asks for; empty for rules."""
        return {}

    # --- config and files ---------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """The config as plain JSON values: every dataclass field but `params` and `provenance`."""
        return {name: getattr(self, name) for name in serialization.config_names(type(self))}

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Self:
        """A controller with the config of one of `presets`.

        Args:
            preset: its name, for example "released".
            **changes: config fields (or `params`) on top.

        Raises:
            ValueError: no such preset.
        """
        if preset not in cls.presets:
            raise ValueError(f"{cls.__name__} has no preset '{preset}'; it has: {', '.join(cls.presets) or 'none'}")
        return cls(**{**cls.presets[preset], **changes})

    def replace(self, **changes: Any) -> Self:
        """A copy with some config fields (or `params`) changed, checked like a new one.

        If it differs, its provenance says so: it is no longer what that commit holds.
        """
        return dataclasses.replace(self, **{"provenance": self._derived(changes), **changes})

    def _derived(self, changes: Mapping[str, Any]) -> Mapping[str, str]:
        """Provenance of a copy with these changes."""
        changed = {name for name, value in changes.items() if not _same(getattr(self, name, None), value)}
        changed -= {"provenance"}
        if not self.provenance or not changed:
            return self.provenance
        before = set(filter(None, self.provenance.get("changed", "").split(", ")))
        return {**self.provenance, "commit": "", "changed": ", ".join(sorted(before | changed))}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
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
        for name in (artifacts.TRAINING_NAME, artifacts.EVAL_NAME):
            try:
                recorded = self._recorded(name)
            except (OSError, ValueError):  # damaged, which is no reason to lose the controller
                continue
            if recorded is not None and not (out / name).exists():
                text = serialization.to_json(dict(recorded), name)
                artifacts.replace_file(out / name, text)
        return out

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load a controller of this class, strictly; `AutoController` finds the class by itself.

        Args:
            pretrained_model_name_or_path: its name or that of a bundled controller; a folder with `config.json`; or
                a repository of the Hub, "user/repo". The first that there is.
            revision: branch, tag, commit or `refs/pr/N` of the repository; all files come from the one commit that
                it is at this moment.
            token: for private and gated repositories; by default that of `hf auth login`.
            cache_dir: where downloads are kept, by default the Hub's cache.
            force_download: download again what is in the cache.
            local_files_only: use only what is in the cache, as with HF_HUB_OFFLINE=1.

        Returns:
            A new controller; `provenance` says where it is from.

        Raises:
            FileNotFoundError: no such folder, or no config.json in it.
            HubError: the Hub does not give it; the message says why and what helps. It is an OSError.
            OSError: a file cannot be read or written.
            ValueError: nothing of that name; or files that are not exactly a controller's (see `serialization.load`).
        """
        return repo.load(
            pretrained_model_name_or_path,
            {cls.controller_type: cls},
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )

    def push_to_hub(
        self,
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

        What was written between the notes markers of the card there stays. If somebody else commits meanwhile,
        nothing is published.

        Args:
            repo_id: "user/repo".
            commit_message: first line of the commit.
            private: whether a new repository is private; None is the account's default.
            token: a write token; by default that of `hf auth login`.
            revision: branch to commit to, made if missing; by default "main".
            create_pr: open a pull request instead of writing to "main".
            training: how it was trained, `training.json`; by default what lies in the folder it was loaded from.
            eval_results: held-out results, `eval_results.json`, as `hf-adaptive-lr bench --controller FOLDER
                --write-results` writes it; by default likewise.
            without_results: publish without held-out results; the card says so.
            license: of the weights, as the Hub names it ("mit"); by default what the card there states, else this
                library's for what comes with it, and none for others.

        Returns:
            The commit; `.oid` is its hash.

        Raises:
            HubError: the Hub refuses or cannot be reached; nothing is published. It is an OSError.
            ValueError: no held-out results without `without_results`, or files that would not load again.
        """
        from .hub import card

        if self.provenance.get("code"):
            raise ValueError(
                f"'{self.provenance['source']}' is code of yours, which the Hub does not carry and nobody else could "
                "load; publish the file beside your model, or its schedule as a `replay`"
            )
        training = self._recorded(artifacts.TRAINING_NAME) if training is None else training
        eval_results = self._recorded(artifacts.EVAL_NAME) if eval_results is None else eval_results
        if not (eval_results and eval_results.get("results")) and not without_results:
            raise ValueError(self._no_results())
        if eval_results is not None:
            card.check_results(eval_results)  # before the repository is made
        if license is not None:
            card.check_license(license)
        with tempfile.TemporaryDirectory() as folder:
            out = self.save_pretrained(folder)
            serialization.load(out, {self.controller_type: type(self)})  # nobody gets what does not load
            for name, sidecar in ((artifacts.TRAINING_NAME, training), (artifacts.EVAL_NAME, eval_results)):
                if sidecar is not None:
                    (out / name).write_text(serialization.to_json(dict(sidecar), name), encoding="utf-8")
            picture = card.PICTURE_NAME if card.draw_schedules(self, out / card.PICTURE_NAME, training) else None

            def make_card(present: str | None) -> str:
                notes = None if present is None else card.notes_of(present)
                stated = license or (None if present is None else card.license_of(present))
                sidecars = {"training": training, "eval_results": eval_results}
                return card.render(self, repo_id=repo_id, **sidecars, notes=notes, picture=picture, license=stated)

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

    def _recorded(self, name: str) -> Mapping[str, Any] | None:
        """A JSON file beside those it was loaded from; None if there is none, or it is about another controller."""
        folder = self.provenance.get("folder")
        if not folder or self.provenance.get("changed") or not (Path(folder) / name).is_file():
            return None
        value = serialization.read_json(Path(folder) / name)
        if not isinstance(value, dict):
            raise ValueError(f"{Path(folder) / name} must hold a JSON object, got a {type(value).__name__}")
        return value

    def _no_results(self) -> str:
        changed = self.provenance.get("changed")
        why = f"; those of '{self.provenance['source']}' do not count, as {changed} changed" if changed else ""
        return (
            f"no held-out results of this {type(self).__name__}{why}: pass eval_results=..., which "
            f"`hf-adaptive-lr bench --quick --controller FOLDER --write-results` writes, or without_results=True to "
            f"publish it with a card that says so"
        )


def _same(old: Any, new: Any) -> bool:
    return old is new or (not isinstance(old, Mapping) and type(old) is type(new) and bool(old == new))


class ControllerError(RuntimeError):
    """A controller's own code went wrong; the message names the controller and says what was expected."""
