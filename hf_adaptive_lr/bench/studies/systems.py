"""What a method costs and keeps: time, memory, checkpoints, resuming, ranks, accumulation.

    python -m hf_adaptive_lr.bench.studies.systems

Every method goes through every check (`systems_checks.py`), on tiny models that are made in memory; then the page
`model_cards/SYSTEMS.md` is written. What has run is not run again: an interrupted command goes on where it was. Rows
are of the settings of method and check; a change of how one works that leaves these alone is not noticed: then delete
its rows.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ...artifacts import replace_file
from ...finetune.errors import quiet_logger
from ..markdown import filled, table
from ..method import EVALUATIONS, Method
from ..methods import METHODS
from ..record import versions
from ..rivals import missing_package
from ..rows import Row, RunKey, digest, forget_errors, read_rows
from ..runner import run_all
from . import systems_checks, systems_train
from .command import carry_out, parsed, study_parser
from .systems_checks import CHECKS
from .systems_train import PLAIN, base_lr
from .timing import WARM_UP

COMMAND = "python -m hf_adaptive_lr.bench.studies.systems"
ROWS, PAGE = "bench_systems.jsonl", "SYSTEMS.md"
_TWINS = ("linear_warmup", "cosine_warmup", "rule", "default", "prodigy_half", "prodigy_double", "range_test")
NAMES = tuple(name for name, method in METHODS.items() if method.replay_of is None and name not in _TWINS)
"""Names of the methods: all but replays, and those that are others but for a setting or what is before the run."""

_CHECKED = {"resume": "resume bit for bit", "ranks": "two ranks equal", "accumulation": "accumulation"}
_REASONS = ("max_difference", "weights_equal", "lrs_equal", "updates", "decisions")


@dataclass(frozen=True)
class SystemsRun:
    """One check of one method."""

    method: Method  # any but a replay
    check: str  # a name of [`CHECKS`]

    @property
    def key(self) -> RunKey:
        """Its key in the rows; the check stands where others have a task."""
        return RunKey(self.check, self.method.name, 0, base_lr(self.method))

    @property
    def task_digest(self) -> str:
        """Changes with what is trained and for how long, not with how it is measured."""
        c, t = systems_checks, systems_train
        sizes = [c.TIMED] if self.check == "overhead" else [t.SMALL, t.LARGER]
        numbers = [t.UPDATES, t.HALF, WARM_UP, c.BLOCK, c.BLOCKS, c.PAIRS, t.TRAIN_ROWS, t.HELD_ROWS, EVALUATIONS]
        return digest([self.check, [asdict(size) for size in sizes], numbers])

    @property
    def method_digest(self) -> str:
        """Changes with all that the method is."""
        return self.method.digest

    def execute(self) -> Row:
        """Carry the check out."""
        with quiet_logger("transformers"), warnings.catch_warnings(), TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # of kept learning rates, and deprecated calls in the packages
            found = CHECKS[self.check](self.method, Path(folder))
        return {"check": self.check, **found, "versions": versions()}


# --- the page -----------------------------------------------------------------------------------------------------


def render(rows: Iterable[Row]) -> str:
    """The page; of several rows of a check the last counts."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["task"]] = row
    failures = [
        f"- `{name}`, {check}: {reason}"
        for name, checks in found.items()
        for check in CHECKS
        if (reason := _failure(checks.get(check, {})))
    ]
    shown = [row for checks in found.values() for row in checks.values()]
    numbers = sorted({f"{package} {v}" for row in shown for package, v in row.get("versions", {}).items()})
    head = ["method", "step overhead", "state bytes", "checkpoint bytes", *_CHECKED.values()]
    return filled(
        Path(__file__).with_suffix(".md"),
        results=table(head, [[f"`{name}`", *_cells(checks)] for name, checks in found.items()]),
        failures="Failed:\n\n" + "\n".join(failures) if failures else "No check failed.",
        command=COMMAND,
        count=str(len(shown)),
        versions=", ".join(numbers),
    )


def _cells(checks: dict[str, Row]) -> list[str]:
    kinds = {"overhead": _overhead, "memory": _bytes, "checkpoint": _bytes, **dict.fromkeys(_CHECKED, _verdict)}
    return [
        "-" if (row := checks.get(name)) is None else "failed" if "error" in row else cell(row)
        for name, cell in kinds.items()
    ]


def _overhead(row: Row) -> str:
    low, high = row["quartiles"]
    return f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]"


def _bytes(row: Row) -> str:
    slope, fixed = row["bytes_per_parameter"], row["fixed_bytes"]
    if not slope:
        return f"{fixed:,}"
    return f"{slope:g} per weight" + (f" {'+' if fixed > 0 else '-'} {abs(fixed):,}" if fixed else "")


def _verdict(row: Row) -> str:
    changes = row["lr_changes"]
    moved = any(changes) if isinstance(changes, list) else changes
    said = ("yes" if row["passed"] else "**no**") + ("" if moved else "\\*")
    return f"{said} ({row['lr_difference']:.1g})" if row.get("lr_difference") else said


def _failure(row: Row) -> str:
    """Why a check failed; empty where it did not."""
    if "error" in row or row.get("passed", True):
        return str(row.get("error", ""))
    return ", ".join(f"{what} {row[what]}" for what in _REASONS if what in row)


def plan(methods: Sequence[Method]) -> list[SystemsRun]:
    """The runs, checks that are timed last; the plain trainer comes along."""
    return [SystemsRun(method, check) for check in CHECKS for method in (PLAIN, *methods)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page; 0 when done, 2 when it cannot be, 130 when interrupted."""
    parser = study_parser("systems", __doc__)
    options = parsed(parser, argv)
    return carry_out(parser.prog, lambda: _study(options))


def _study(options: argparse.Namespace) -> None:
    rows, page = options.rows / ROWS, options.output_dir / PAGE
    if not options.render_only:
        _run_missing(options, rows)
    replace_file(page, render(read_rows(rows)))
    print(f"written to {page}, from the rows in {options.rows}")


def _run_missing(options: argparse.Namespace, rows: Path) -> None:
    methods = [METHODS[name] for name in NAMES]
    for method in methods:
        if package := missing_package(method):
            print(f"'{method.name}' is left out for want of {package}; pip install 'hf_adaptive_lr[bench]'")
    if options.retry_failed:
        forget_errors(rows)
    runs = plan([method for method in methods if missing_package(method) is None])
    run_all([run for run in runs if run.check != "overhead"], rows, jobs=options.jobs)
    run_all([run for run in runs if run.check == "overhead"], rows)  # neighbours would be in the figures


if __name__ == "__main__":
    sys.exit(main())
