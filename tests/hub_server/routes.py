"""Matching raw paths to endpoints, and what endpoints share: opening a repository, paging."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from .accounts import PLURALS, Repo, Token
from .git import Commit
from .serve import HubError, Request, Response

if TYPE_CHECKING:
    from .hub import Hub

Endpoint = Callable[..., Response]
Route = tuple[str, re.Pattern[str], Endpoint]

# Paths stay percent-encoded until they are matched, so that a revision is one segment: refs%2Fpr%2F1.
_PARTS = {
    "{T}": "(?P<kind>models|datasets|spaces)",
    "{P}": "(?:(?P<kind>datasets|spaces)/)?",
    "{ID}": "(?P<repo_id>[^/]+/[^/]+)",
    "{REV}": "(?P<revision>[^/]+)",
    "{NAME}": "(?P<name>[^/]+)",
    "{PATH}": "(?P<path>.+)",
    "{SHA}": "(?P<sha256>[0-9a-f]{64})",
}


def route(table: list[Route], what: str, origin: str = "hub") -> Callable[[Endpoint], Endpoint]:
    """Enter a function as the endpoint of "METHOD /path/with/{PARTS}"; the method is a regular expression."""
    for part, pattern in _PARTS.items():
        what = what.replace(part, pattern)

    def enter(endpoint: Endpoint) -> Endpoint:
        table.append((origin, re.compile(what), endpoint))
        return endpoint

    return enter


def opened(
    hub: Hub, request: Request, kind: str | None, repo_id: str, *, write: bool = False, pull_request: bool = False
) -> tuple[Repo, Token | None]:
    """The repository of a request and who asks, if they may read it; with `write`, if they may write it.

    A pull request can be opened by everyone who may write somewhere.
    """
    caller = hub.accounts.caller(request)
    repo = hub.accounts.check_seen(hub.find(PLURALS[kind or "models"], repo_id), caller)
    if write:
        hub.accounts.check_write(caller.user.name if pull_request and caller else repo.namespace, caller)
    return repo, caller


def commit_of(repo: Repo, revision: str) -> Commit:
    oid = repo.git.resolve(revision)
    if oid is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return repo.git.commit(oid)


def paged(hub: Hub, request: Request, items: list[Any], size: int) -> Response:
    """One page of `items`, with the address of the next."""
    start = int(request.query.get("cursor", ["0"])[0])
    headers = {}
    if start + size < len(items):
        query = urlencode({**request.query, "cursor": start + size}, doseq=True)
        headers["Link"] = f'<{hub.url}{request.path}?{query}>; rel="next"'
    return Response.json(items[start : start + size], headers=headers)
