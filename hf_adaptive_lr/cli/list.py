"""`hf-adaptive-lr list`: the controllers there are."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "list",
        help="list the controllers",
        description="List the controllers known by name: what each answers with, which measurements it needs.",
        epilog="example: hf-adaptive-lr list --json",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    rows = controllers()
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    shown = [("name", "answers", "needs", "what it does")]
    shown += [(row["name"], row["answers"], " ".join(row["needs"]) or "-", row["summary"]) for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(3)]
    for row in shown:
        print("  ".join([*(word.ljust(width) for word, width in zip(row, widths, strict=False)), row[3]]))
    return 0


def controllers() -> list[dict[str, Any]]:
    """Every controller known by name, with its default config.

    Returns:
        Rows of `name`, `controller_type`, `answers`, `needs` (sorted field names), `config` and `summary`.
    """
    from ..auto import AutoController, known_names

    rows = []
    for name in known_names():
        controller = AutoController.from_pretrained(name)
        rows.append(
            {
                "name": name,
                "controller_type": controller.controller_type,
                "answers": controller.answers,
                "needs": sorted(controller.needs),
                "config": controller.config(),
                "summary": (inspect.getdoc(type(controller)) or "").partition("\n")[0],
            }
        )
    return rows
