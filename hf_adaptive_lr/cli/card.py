"""`hf-adaptive-lr card`: the card of a controller, as a push would publish it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .errors import check_own_file, user_errors

_EXAMPLES = """\
examples:
  hf-adaptive-lr card mlr_snet
  hf-adaptive-lr card my-controller --output my-controller/README.md"""


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "card",
        help="show the card of a controller",
        description="Show the card of a controller, made from its training.json and eval_results.json; the notes of "
        "the README.md beside them stay.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("controller", metavar="CONTROLLER", help="a name, a folder, or user/name on the Hub")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it to this file instead of printing it")
    parser.add_argument(
        "--json", action="store_true", help="print JSON: the card, and whether it has held-out results"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Render the card, and print or write it."""
    if args.output is not None:
        check_own_file(args.output, "library_name: hf_adaptive_lr")
    with user_errors():
        from .. import artifacts
        from ..auto import AutoController
        from ..hub import card, untrusted
        from ..hub.mixin import sidecar

        controller = AutoController.from_pretrained(args.controller)
        folder = controller.provenance.get("folder")
        readme = Path(folder, artifacts.CARD_NAME) if folder else None
        training, eval_results = (sidecar(controller, n) for n in (artifacts.TRAINING_NAME, artifacts.EVAL_NAME))
        text = card.render(
            controller,
            repo_id=args.controller,
            training=training,
            eval_results=eval_results,
            notes=card.notes_of(untrusted.read_text(readme)) if readme and readme.is_file() else None,
        )
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            artifacts.replace_file(args.output, text)
    if args.json:
        facts = {"controller": args.controller, "controller_type": controller.controller_type}
        written = None if args.output is None else str(args.output)
        held_out = bool(eval_results and eval_results["results"])
        print(json.dumps({**facts, "held_out_results": held_out, "written_to": written, "card": text}, indent=2))
    elif args.output is not None:
        print(f"written to {args.output}")
    else:
        print(text, end="")
    return 0
