"""`hf-adaptive-lr pull`: fetch a controller from the Hub."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import EVAL_NAME, PROGRAM, TRAINING_NAME, shell_word
from .errors import check_new_folder, user_errors

if TYPE_CHECKING:
    from ..controller import Controller

_BESIDE = (TRAINING_NAME, EVAL_NAME, "README.md")
_EXAMPLES = """\
examples:
  hf-adaptive-lr pull user/controller
  hf-adaptive-lr pull user/controller --revision v1 --output-dir my-copy

The controller is then in the cache: AutoController.from_pretrained("user/controller") needs no network."""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "pull",
        help="fetch a controller from the Hub",
        description="Fetch a controller from the Hub, check that it loads, and say which commit it is.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="also copy it into this folder, new or empty")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch, load, and copy."""
    folder = args.output_dir
    if folder is not None:
        check_new_folder(folder)
    with user_errors():
        from ..auto import AutoController
        from ..hub import repo

        cached, commit = repo.pull(args.repo_id, revision=args.revision)
        controller = AutoController.from_pretrained(cached.absolute())
        if folder is not None:
            _copy(controller, cached, folder)
    where, kind = folder or cached, controller.controller_type
    if args.json:
        facts = {"repo_id": args.repo_id, "commit": commit, "folder": str(where), "controller_type": kind}
        print(json.dumps(facts, indent=2))
        return 0
    print(f"{args.repo_id}: {kind}, commit {commit}")
    print(f"  in {where}")
    name = where if folder or args.revision else args.repo_id
    print(f"  use it: {PROGRAM} finetune --controller {shell_word(name)}")
    return 0


def _copy(controller: Controller, cached: Path, folder: Path) -> None:
    """Save the checked controller, and copy the files beside it as they are, links as the files they point to."""
    controller.save_pretrained(folder)
    for name in _BESIDE:
        if (cached / name).is_file():
            shutil.copyfile(cached / name, folder / name)
