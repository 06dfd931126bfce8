"""The contract: a controller looks at an [`Observation`] and answers with a learning rate or a factor of the base LR.

A controller is an immutable value: config (the dataclass fields) and learned weights (`params`). Everything that
changes during a run is `State`, a dict of tensors and numbers that goes into `decide` and comes out of it. So a
checkpoint is a dict, a test is a function call, and the same `decide` serves one run, hundreds of vectorised runs and
a meta-gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from ._checks import check_tensors
from .hub.citation import Citation as Citation
from .hub.config import config_names
from .hub.mixin import HubMixin
from .observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Observation, Outcome
from .report.inline import facts

State = dict[str, Any]
"""Run state of a controller: a flat dict of CPU tensors and plain numbers, nothing else."""

Params = Mapping[str, Tensor] | None
"""Learned weights by name, or None for the controller's own."""

Shape = tuple[int, ...]
Device = torch.device | str | None

Answers = Literal["factor", "lr"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controller(HubMixin):
    """Base of every learning-rate controller; subclasses are frozen dataclasses whose fields are the config.

    A subclass sets `controller_type` (its name in config.json), `answers` and `needs`, and implements `decide`.

    Args:
        params: learned weights by name, part of `model.safetensors`, never of config.json; empty for rules.
        provenance: where it was loaded from: `source` (a name, a folder or a repository, as asked for), `folder`
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
    linear_between: ClassVar[bool] = False
    """Whether the rate falls along a straight line, from each decision to 0 at the end of the run, until the next one.

    Else it stays; and it does where the length of the run is unknown."""
    warmup: ClassVar[float] = 0.0
    """Share of the run over which its rate rises along a straight line, where the user names no warm-up."""
    fresh_eval: ClassVar[bool] = False
    """Whether every decision must see an evaluation of its own moment, where `needs` has `eval_loss`."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Config changes by preset name: `paper` and `released` where a paper and its released code disagree."""

    citation: ClassVar[Citation | None] = None
    """The paper that it follows."""

    params: Mapping[str, Tensor] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = self.needs - OPTIONAL_FIELDS.keys() - OUTCOME_FIELDS.keys()
        if unknown:
            known = ", ".join([*OPTIONAL_FIELDS, *OUTCOME_FIELDS])
            raise ValueError(
                f"{type(self).__name__}.needs names {sorted(unknown)}, which no sensor measures; known: {known}"
            )
        check_tensors(self.params, self.param_shapes(), f"params of {type(self).__name__}")

    # --- the contract -------------------------------------------------------------------------------------------

    @property
    def lr_range(self) -> tuple[float, float] | None:
        """Smallest and largest learning rate that it was trained for, to which an [`Envelope`] keeps an lr answer.

        None leaves it to the settings. A subclass overrides it, with a config field if it is to be saved.
        """
        return None

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
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

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Answer for update `obs.step`; pure: neither `state` nor the controller changes.

        Args:
            obs: signals known before the update; has every field named in `needs`.
            state: from `init` or the previous `decide`.
            params: weights to use instead of `self.params` (evolution and meta-gradients pass their own).

        Returns:
            The answer, of `batch_shape` or `batch_shape + (n_groups,)`: a factor of the base LR or, if
            `answers == "lr"`, the learning rate of group 0; and the next state.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement decide(obs, state, params=None)")

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """Whether it decides at this update, for methods that say so themselves; the user's cadence wins.

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
        """Learn from the outcome of an update; only for methods that learn inside the run.

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

    # --- config -------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """The config as plain JSON values: every dataclass field but `params` and `provenance`."""
        return {name: getattr(self, name) for name in config_names(type(self))}

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

        If it differs, its provenance says so: it is no longer the one of that commit.
        """
        return dataclasses.replace(self, **{"provenance": self._derived(changes), **changes})

    def _repr_html_(self) -> str:
        weights = sum(tensor.numel() for tensor in self.params.values())
        about = {
            "answers": "learning rates" if self.answers == "lr" else "factors of the base learning rate",
            "needs": ", ".join(sorted(self.needs)) or "nothing",
            **({"weights": f"{weights:,}"} if weights else {}),
            **self.config(),
        }
        return facts(f"{type(self).__name__} ({self.controller_type})", about.items())

    def _derived(self, changes: Mapping[str, Any]) -> Mapping[str, str]:
        """Provenance of a copy with these changes."""
        changed = {name for name, value in changes.items() if not _same(getattr(self, name, None), value)}
        changed -= {"provenance"}
        if not self.provenance or not changed:
            return self.provenance
        before = set(filter(None, self.provenance.get("changed", "").split(", ")))
        return {**self.provenance, "commit": "", "changed": ", ".join(sorted(before | changed))}


def _same(old: Any, new: Any) -> bool:
    return old is new or (not isinstance(old, Mapping) and type(old) is type(new) and bool(old == new))


class ControllerError(RuntimeError):
    """A controller's own code failed; the message names the controller and the expected answer."""
