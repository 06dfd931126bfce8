"""The benchmark's systems track: a method's time, memory, checkpoints, resuming, ranks, accumulation.

    python -m hf_adaptive_lr.bench.yardstick_systems

Every method goes through every check, on tiny models that are made in memory. What has run is not run again: an
interrupted command goes on where it was. Rows are of the settings of method and check; a change of how one works that
leaves these alone is not noticed: then delete its rows. See `yardstick_systems_run.py` for the checks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..hub.markdown import table
from .rows import Row, forget_errors, read_rows
from .runner import WorkerError, run_all
from .yardstick_methods import METHODS, Method, missing_package
from .yardstick_systems_run import CHECKS, SystemsRun
from .yardstick_systems_train import PLAIN

COMMAND = "python -m hf_adaptive_lr.bench.yardstick_systems"
ROWS = Path("model_cards/rows/bench_systems.jsonl")
NAMES = tuple(name for name, method in METHODS.items() if method.replay_of is None)
"""Names of the methods: all but replays."""

_SHOWN = 160
_CHECKED = {"resume": "resume bit for bit", "ranks": "two ranks equal", "accumulation": "accumulation"}
_TEXT = """\
Real `Trainer` runs of a tiny BERT on random tokens, on one CPU. *Step overhead* is CPU time per update over a plain
trainer's with a linear schedule, the two taking turns update by update: median and quartiles of blocks of ten updates
with one evaluation each, where a method needs any; the row `plain` is two equal trainers, so it shows the noise.
*State* is the tensors of optimizer, controller and scheduler beyond AdamW's, and *checkpoint* the files beyond a plain
trainer's, both as a line through two model sizes. *Resume*: stopped at update 12 of 24 and resumed in a new trainer,
weights and learning rates are those of a run without a stop. *Ranks*: two processes hold the same weights and learning
rates after 12 updates. *Accumulation*: two micro-batches of 4 give as many updates and decisions as a batch of 8; the
number is the largest relative difference of a learning rate. A star: the learning rate did not move in these updates,
so the check says little about the method. The LR range test before a run is left out.
"""


def plan(methods: Sequence[Method], checks: Sequence[str]) -> list[SystemsRun]:
    """The runs, checks that are timed last; the plain trainer comes along."""
    return [SystemsRun(m, check) for check in CHECKS if check in checks for m in (PLAIN, *methods)]


def section(rows: list[Row]) -> str:
    """The track's part of a page, Markdown without a heading; of several rows of a check the last counts."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["task"]] = row
    if not found:
        return f"No rows yet; they come from `{COMMAND}`.\n"
    known = [PLAIN.name, *METHODS]
    order = sorted(found, key=lambda name: (known.index(name) if name in known else len(known), name))
    head = ["method", "step overhead", "state bytes", "checkpoint bytes", *_CHECKED.values()]
    failures = [f"- `{name}`, {check}: {text}" for name in order for check, text in _failures(found[name])]
    numbers = sorted({f"{k} {v}" for row in rows for k, v in row.get("versions", {}).items()})
    return "\n".join(
        [
            _TEXT,
            table(head, [[f"`{name}`", *_cells(found[name])] for name in order]),
            ("Failed:\n\n" + "\n".join(failures) if failures else "No check failed.") + "\n",
            f"```bash\n{COMMAND}\n```\n",
            f"{len(rows)} rows. {', '.join(numbers)}.\n",
        ]
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


def _failures(checks: dict[str, Row]) -> list[tuple[str, str]]:
    """Check and reason, in the order of the checks."""
    failed = []
    for name in CHECKS:
        row = checks.get(name, {})
        if "error" in row:
            text = row["error"]
            failed.append((name, text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."))
        elif row.get("passed") is False:
            failed.append((name, _reason(row)))
    return failed


def _reason(row: Row) -> str:
    if "decisions" in row:
        (a, b), (c, d) = row["updates"], row["decisions"]
        return f"{b} updates and {d} decisions with accumulation, {a} and {c} without"
    apart = row["max_difference"]
    weights = "are not finite" if apart is None else f"differ by up to {apart:.2g}" if apart else "are equal"
    return f"weights {weights}, learning rates are {'equal' if row['lrs_equal'] else 'not equal'}"


# --- the command --------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").split("\n")[0])
    p.add_argument("--rows", type=Path, metavar="FILE", default=ROWS, help=f"JSON-lines file (default: {ROWS})")
    for what, names in (("method", NAMES), ("check", CHECKS)):
        text = f"{', '.join(names)} (default: all)"
        p.add_argument(f"--{what}s", nargs="+", metavar=what.upper(), default=list(names), help=text)
    p.add_argument("--jobs", type=int, default=1, help="worker processes; overhead is always timed alone (default: 1)")
    p.add_argument("--render-only", action="store_true", help="run nothing, print the table from the rows")
    p.add_argument("--retry-failed", action="store_true", help="run again what ended in an error")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the section; 0 when done, 2 when it cannot be, 130 when interrupted."""
    # Threads that wait by spinning starve the other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = parser().parse_args(argv)
    try:
        _check(options)
        if not options.render_only:
            _run_missing(options)
        print(section(read_rows(options.rows)), end="")
    except (ValueError, WorkerError, OSError) as error:
        print(f"yardstick_systems: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nyardstick_systems: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def _check(options: argparse.Namespace) -> None:
    for what, names, known in (("method", options.methods, NAMES), ("check", options.checks, tuple(CHECKS))):
        for name in names:
            if name not in known:
                raise ValueError(f"no {what} '{name}'; known: {', '.join(known)}")
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: at least 1")


def _run_missing(options: argparse.Namespace) -> None:
    chosen = [METHODS[name] for name in NAMES if name in options.methods]
    for method in chosen:
        if package := missing_package(method):
            print(f"'{method.name}' is left out for want of {package}; pip install 'hf_adaptive_lr[bench]'")
    if options.retry_failed:
        forget_errors(options.rows)
    runs = plan([m for m in chosen if missing_package(m) is None], options.checks)
    run_all([run for run in runs if run.check != "overhead"], options.rows, jobs=options.jobs)
    run_all([run for run in runs if run.check == "overhead"], options.rows)  # neighbours would be in the figures


if __name__ == "__main__":
    sys.exit(main())
