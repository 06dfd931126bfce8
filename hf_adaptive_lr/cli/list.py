"""`hf-adaptive-lr list`: the controllers known by name, or those on the Hub."""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..artifacts import printable
from .errors import UserError, user_errors


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "list",
        help="list the controllers",
        description="List the controllers known by name, with their answers and the signals they need. With "
        "--hub, those that people have published on the Hub.",
        epilog="examples:\n  hf-adaptive-lr list --json\n  hf-adaptive-lr list --hub --limit 10",
    )
    parser.add_argument("--hub", action="store_true", help="list the controllers on the Hub, by their tag")
    parser.add_argument("--limit", type=int, help="list at most this many of the Hub (default: 50)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.limit is not None and not (args.hub and args.limit >= 1):
        raise UserError(f"--limit {args.limit}: at least 1" if args.hub else "--limit is for --hub")
    rows = on_the_hub(args.limit or 50) if args.hub else controllers()
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not args.hub:
        print("\n".join(_wrapped(rows, shutil.get_terminal_size((100, 24)).columns)))
        return 0
    shown: list[tuple[str, ...]] = [("repository", "type", "downloads", "likes", "commit")]
    for row in rows:
        numbers = (_shown(row[key]) for key in ("downloads", "likes", "commit"))
        shown.append((printable(row["id"]), _type(row["tags"] or ()), *numbers))
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    if not rows:
        print("no controller on the Hub has the tag of this library yet; `push` publishes one")
        return 0
    for line in shown:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _wrapped(rows: Sequence[Mapping[str, Any]], columns: int) -> list[str]:
    """Each controller's summary and, below it, the signals it needs, as wide as the terminal."""
    name = max(len(row["name"]) for row in rows) + 2
    lines = [f"{'name':{name}}{'answers':9}summary"]
    for row in rows:
        head, indent = f"{row['name']:{name}}{row['answers']:9}", " " * (name + 9)
        needs = f"needs: {', '.join(row['needs'])}" if row["needs"] else ""
        wrapped = textwrap.wrap(row["summary"], max(40, columns - len(indent)))
        wrapped += textwrap.wrap(needs, max(40, columns - len(indent)), subsequent_indent="  ")
        lines += [head + wrapped[0], *(indent + line for line in wrapped[1:])]
    return lines


def on_the_hub(limit: int) -> list[dict[str, Any]]:
    """Finds published controllers by their tag."""
    with user_errors():
        from ..hub import repo

        return repo.search(limit=limit)


def _shown(value: object) -> str:
    return "-" if value is None else printable(value)


def _type(tags: Sequence[str]) -> str:
    """The controller type among a repository's tags, as its card has them."""
    from ..controllers import CONTROLLERS

    return next((tag for tag in tags if tag in CONTROLLERS), "-")


def controllers() -> list[dict[str, Any]]:
    """Every controller known by name, with its default config."""
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
