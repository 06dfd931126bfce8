"""The paper study's claims: each paper's, as comparisons written down before any run.

A claim is a line of text and the comparisons that decide it; its word follows mechanically. Controls are what a reader
should ask beyond the paper's own claims: they are judged alike and shown apart, and do not count for the paper's word.
They stand in `claims.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

Measure = Literal["test_loss", "test_metric", "train_loss"]
Relation = Literal["better", "not worse"]

LOWER_IS_BETTER: Mapping[Measure, bool] = {"test_loss": True, "test_metric": False, "train_loss": True}

MARGINS: Mapping[Measure, float] = {"test_loss": 0.02, "test_metric": 0.01, "train_loss": 0.02}
"""How much worse "not worse" may be: hundredths of a nat, one point of accuracy."""


@dataclass(frozen=True)
class Comparison:
    """Whether a method is better than another, or not worse, on one task.

    "better": the interval of the paired difference lies on the good side of 0; "not worse": of the margin.
    """

    task: str
    method: str
    against: str
    measure: Measure = "test_loss"
    relation: Relation = "better"


@dataclass(frozen=True)
class Claim:
    """A line of text, without digits, and the comparisons that decide it.

    It holds when all are met, partly when some are, and fails when none is; without any it is untestable here, and
    `why` says the reason in half a sentence.
    """

    text: str
    comparisons: tuple[Comparison, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper's claims, and how they are judged; its name is the method's, the command's argument and the page's."""

    name: str
    title: str
    link: str
    claim: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]  # beside the baselines
    claims: tuple[Claim, ...]
    controls: tuple[Claim, ...] = ()
    use: str = ""  # what it is good for, what it costs and when to leave it, a sentence each
    notes: str = ""  # the page's first ones, which people may then change


def _paper(name: str, written: dict[str, Any]) -> Paper:
    claims, controls = (
        tuple(
            Claim(
                claim["text"],
                tuple(c for text in claim.get("comparisons", ()) for c in _comparisons(text)),
                claim.get("why", ""),
            )
            for claim in written.get(kind, ())
        )
        for kind in ("claims", "controls")
    )
    tasks, methods = tuple(written["tasks"]), tuple(written["methods"])
    rest = {field: written[field] for field in ("title", "link", "claim", "use", "notes")}
    return Paper(name=name, tasks=tasks, methods=methods, claims=claims, controls=controls, **rest)


def _comparisons(text: str) -> list[Comparison]:
    """Comparisons from "METHOD better than RIVAL, ... on TASK, ... by MEASURE, ...", or "not worse"."""
    found = re.fullmatch(r"(\S+) (better|not worse) than (.+) on (.+) by (.+)", text)
    if found is None:
        raise ValueError(f"no comparison: {text}")
    method, relation, *lists = found.groups()
    rivals, tasks, measures = (names.split(", ") for names in lists)
    return [
        Comparison(task, method, rival, cast(Measure, measure), cast(Relation, relation))
        for task in tasks
        for rival in rivals
        for measure in measures
    ]


PAPERS: Mapping[str, Paper] = {
    name: _paper(name, written)
    for name, written in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}
"""Every paper by the name of its method."""
