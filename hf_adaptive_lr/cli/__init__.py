"""The command line: `hf-adaptive-lr VERB ...`; one file per verb.

A verb is a module with `add_parser(verbs)`, which registers its arguments without importing anything heavy, and
`run(args) -> int`, the exit code. Mistakes that the user can mend are raised as [`UserError`] and end as one line and
exit code 2; any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .._checks import did_you_mean
from ..artifacts import PROGRAM, library_version, printable
from . import bench, card, config_file, finetune, pull, push, refine, report, train
from . import list as list_verb
from .errors import UserError

VERBS = (finetune, report, refine, train, bench, list_verb, card, push, pull)
"""The modules of all verbs, in the order of the help."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage, and whose help keeps the lines of the examples."""

    verbs: Mapping[str, argparse.ArgumentParser] = {}
    words: Sequence[str] = ()

    def __init__(self, **settings: Any) -> None:
        # The beginning of an option would be another option in the next version.
        given = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **settings}
        super().__init__(**given)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: error: {printable(message)}{self._hint(message)} (see {self._help()})\n")

    def _help(self) -> str:
        """The help that has the answer: the verb's, although argparse reports unknown options from the root parser."""
        at_root = self.prog == PROGRAM and bool(self.words) and self.words[0] in self.verbs
        return f"{self.prog} {self.words[0]} --help" if at_root else f"{self.prog} --help"

    def _hint(self, message: str) -> str:
        """The nearest known name, where the message is about an unknown one; argparse only lists all."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            return did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]), or_all=False)
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        verb = self.verbs.get(self.words[0]) if self.words else None
        if unknown and verb is not None:
            usual = _USUAL.get(unknown[1])
            if usual in verb._option_string_actions:
                return f"; did you mean {usual}?"
            return did_you_mean(unknown[1], verb._option_string_actions, or_all=False)
        return ""


_USUAL = {
    "--lr": "--learning-rate",
    "--steps": "--max-steps",
    "--epochs": "--max-steps",
    "--num-train-epochs": "--max-steps",
    "--output": "--output-dir",
    "--out": "--output-dir",
}
"""Names that other programs have for our options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = _Parser(
        prog=PROGRAM,
        description="Adaptive learning rates for fine-tuning.",
        epilog="example: hf-adaptive-lr finetune --task text",
    )
    parser.add_argument(
        "--version", action="version", version=f"{PROGRAM} {library_version()}", help="show the version"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
        config_file.add_option(verbs.choices[verb.__name__.rpartition(".")[2]])
    words = [*(sys.argv[1:] if argv is None else argv)]
    parser.verbs, parser.words = verbs.choices, words
    for option in (word[:-3] for word in words if re.fullmatch(r"--[\w-]+=--", word)):
        verbs.choices.get(words[0], parser).error(f"argument {option}: expected one argument")  # argparse takes a list
    try:
        args = parser.parse_args(config_file.expand(words, verbs.choices))
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{PROGRAM}: error: {printable(error)}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest when it ends
        return 128 + signal.SIGPIPE
    except OSError as error:  # of the user's files, before anything began: a name that is too long, no permission
        print(f"{PROGRAM}: error: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted", file=sys.stderr)
        return 130
