"""The contract: a controller looks at an [`Observation`] and answers with a learning rate or a factor of the base LR.

A controller is an immutable value: config (the dataclass fields) and learned weights (`params`). Everything that
changes during a run is `State`, a dict of tensors and numbers that goes into `decide` and comes out of it. So a
checkpoint is a dict, a test is a function call, and the same `decide` serves one run, hundreds of vectorised runs and
a meta-gradient.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from . import hub
from .observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Observation, Outcome

State = dict[str, Any]
"""Run state of a controller: a flat dict of CPU tensors and plain numbers, nothing else."""

Answers = Literal["factor", "lr"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controller:
    """Base of every learning-rate controller; subclasses are frozen dataclasses whose fields are the config.

    A subclass sets `controller_type` (its name in config.json), `answers` and `needs`, and implements `decide`.

    Args:
        params: learned weights by name, part of `model.safetensors`, never of config.json; empty for rules.

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
    fresh_eval: ClassVar[bool] = False
    """Whether every decision must see an evaluation of its own moment, where `needs` has `eval_loss`."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Config changes by preset name: `paper` and `released` where a paper and its released code disagree."""

    params: Mapping[str, Tensor] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = self.needs - OPTIONAL_FIELDS.keys() - OUTCOME_FIELDS.keys()
        if unknown:
            known = ", ".join([*OPTIONAL_FIELDS, *OUTCOME_FIELDS])
            raise ValueError(
                f"{type(self).__name__}.needs names {sorted(unknown)}, which no sensor measures; known: {known}"
            )
        hub.check_tensors(self.params, self.param_shapes(), f"params of {type(self).__name__}")

    # --- the contract -------------------------------------------------------------------------------------------

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
        """The config as plain JSON values: every dataclass field but `params`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "params"}

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
        """A copy with some config fields (or `params`) changed, checked like a new one."""
        return dataclasses.replace(self, **changes)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write `config.json` and, for learned weights, `model.safetensors`; each file appears whole or not at all.

        Args:
            save_directory: folder, made if missing.

        Returns:
            The folder.
        """
        return hub.save(self, Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str]) -> Self:
        """Load a controller of this class from a local folder, strictly; `AutoController` finds the class by itself.

        Args:
            pretrained_model_name_or_path: folder with `config.json`.

        Returns:
            A new controller.

        Raises:
            FileNotFoundError: no such folder, or no config.json in it.
            ValueError: a missing, unknown or wrong-typed key, a wrong or missing tensor, another controller type, or a
                format newer than this library; the message names the key.
        """
        return hub.load(Path(pretrained_model_name_or_path), {cls.controller_type: cls})


def check_range(owner: object, name: str, value: float, low: float, high: float, *, hint: str) -> None:
    """Refuse a config value outside `[low, high]`.

    Args:
        owner: the controller or scheduler the value belongs to; its class is named.
        name: name of the field.
        value: its value; NaN is refused.
        low: smallest allowed value.
        high: largest allowed value.
        hint: the way out, a half sentence.

    Raises:
        TypeError: `value` is not a number.
        ValueError: `value` is NaN or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(owner).__name__}: {name} must be a number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{type(owner).__name__}: {name}={value} is outside [{low}, {high}]; {hint}")
