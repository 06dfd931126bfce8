"""What all verbs share: the program's name and the error that ends as one line."""

from __future__ import annotations

PROGRAM = "hf-adaptive-lr"


class UserError(Exception):
    """A request that cannot be carried out; its message is what the user reads, in one line."""
