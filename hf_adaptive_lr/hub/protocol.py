# ruff: noqa: D102 - the members are documented at Controller
"""Members of a controller that saving, loading and the Hub rely on, so that `hub` imports nothing of the contract."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from ..observation import Observation


@dataclass(frozen=True)
class Citation:
    """The paper that a controller follows: number on arXiv ("1608.03983"), title, authors as BibTeX has them, year."""

    arxiv: str
    title: str
    author: str
    year: int

    def bibtex(self, key: str) -> str:
        """The BibTeX entry of that key."""
        fields = {"title": f"{{{self.title}}}", "author": self.author, "year": self.year, "eprint": self.arxiv}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
        return "\n".join([f"@misc{{{key},", *lines, "  archivePrefix = {arXiv}", "}"])


class ControllerLike(Protocol):
    """The part of [`Controller`] that is used here."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    controller_type: ClassVar[str]
    learned: ClassVar[bool]

    def __init__(self, *, params: Mapping[str, Tensor] = ..., provenance: Mapping[str, str] = ..., **config: Any): ...

    @property
    def answers(self) -> Literal["factor", "lr"]: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def needs_horizon(self) -> bool: ...

    @property
    def decisions(self) -> int | None: ...

    @property
    def citation(self) -> Citation | None: ...

    @property
    def params(self) -> Mapping[str, Tensor]: ...

    @property
    def provenance(self) -> Mapping[str, str]: ...

    def config(self) -> dict[str, Any]: ...

    def replace(self, **changes: Any) -> Self: ...

    def init(self, *, seed: int = 0) -> dict[str, Any]: ...

    def decide(self, obs: Observation, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]: ...

    def due(self, update: int, total_steps: int | None) -> bool | None: ...

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path: ...


C = TypeVar("C", bound=ControllerLike)
