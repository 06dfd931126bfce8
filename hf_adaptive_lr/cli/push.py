"""`hf-adaptive-lr push`: publish a controller on the Hub."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..artifacts import shell_word
from .errors import user_errors

_EXAMPLES = """\
examples:
  hf-adaptive-lr push my-controller user/my-controller
  hf-adaptive-lr push my-controller user/my-controller --private --without-results

The account is the one of `hf auth login`, or of the environment variable HF_TOKEN."""
_IN_PYTHON = ("pass eval_results=..., which", "writes, or without_results=True to publish")
_IN_THE_SHELL = ("run", "first, or pass --without-results to publish")


def add_parser(verbs: argparse._SubParsersAction[Any]) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "push",
        help="publish a controller on the Hub",
        description="Publish a controller on the Hub, with its training, held-out results and card, in one commit.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("controller", metavar="CONTROLLER", help="folder of the controller, or a name")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name; made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument(
        "--revision", "--branch", dest="revision", metavar="BRANCH", help="branch to commit to (default: main)"
    )
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--commit-message", metavar="TEXT", help="message of the commit")
    parser.add_argument(
        "--without-results", action="store_true", help="publish without eval_results.json; the card will say so"
    )
    parser.add_argument("--license", metavar="NAME", help="of the weights: mit, apache-2.0, other, ...")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Publish the controller and print its address."""
    with user_errors():
        from ..auto import AutoController

        controller = AutoController.from_pretrained(args.controller)
        try:
            done = controller.push_to_hub(
                args.repo_id,
                commit_message=args.commit_message,
                private=args.private,
                revision=args.revision,
                create_pr=args.create_pr,
                without_results=args.without_results,
                license=args.license,
            )
        except ValueError as error:
            message = str(error)
            for here, there in zip(_IN_PYTHON, _IN_THE_SHELL, strict=True):
                message = message.replace(here, there)
            raise ValueError(
                message.replace("--controller FOLDER", f"--controller {shell_word(args.controller)}")
            ) from error
    request = getattr(done, "pr_url", None)
    facts = {"repo_id": args.repo_id, "commit": done.oid, "url": done.commit_url, "pull_request": request}
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    if args.create_pr and request is None:
        print(f"{args.repo_id} holds this already, at commit {done.oid}; no pull request was opened")
        return 0
    print(f"pushed {controller.controller_type} to {args.repo_id}, commit {done.oid}")
    print(f"  {request or done.commit_url}")
    if request is None and args.revision is None:
        print(f'  load it: AutoController.from_pretrained("{args.repo_id}"), or --controller {args.repo_id}')
    return 0
