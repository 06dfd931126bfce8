"""Errors of the Hub in one sentence that says why and what helps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..artifacts import printable


class HubError(OSError):
    """A repository cannot be read or written; the message says why and what helps."""


@contextlib.contextmanager
def clear_errors(repo_id: str, revision: str | None, doing: str = "read") -> Iterator[None]:
    """Turns errors of huggingface_hub and the network into HubError; those of the disk and of arguments stay."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, RuntimeError, errors.EntryNotFoundError, errors.RevisionResolutionError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # a full disk, a folder that may not be written
        raise HubError(_say(error, repo_id, revision, doing)) from error
    except ValueError as error:
        cause = error.__cause__  # with force_download the client wraps the Hub's answer
        if not isinstance(cause, HTTPError | OSError):
            raise
        raise HubError(_say(cause, repo_id, revision, doing)) from error


def _say(error: BaseException, repo_id: str, revision: str | None, doing: str) -> str:
    from httpx2 import HTTPError, HTTPStatusError
    from huggingface_hub import constants, errors

    login = "log in with `hf auth login`, set HF_TOKEN, or pass token= in Python"
    if isinstance(error, errors.GatedRepoError):
        return f"'{repo_id}' is gated; ask for access at {constants.ENDPOINT}/{repo_id}, then {login}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no repository '{repo_id}' that you may see; check the name, or, if it is private, {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{repo_id}' has no revision '{revision or 'main'}'; name a branch, a tag, a commit or refs/pr/N"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (409, 412):
        return (
            f"somebody else committed to '{repo_id}' meanwhile, so nothing was published; look at their change and "
            f"push again ({_first(error)})"
        )
    if status in (401, 403):
        return f"the Hub does not let you {doing} '{repo_id}'; check that the token may, or {login} ({_first(error)})"
    if status is not None:
        return f"the Hub answered {status} to the wish to {doing} '{repo_id}'; try again later ({_first(error)})"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE=1 forbids to {doing} '{repo_id}'; unset it"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError):
        return (
            f"'{repo_id}' at '{revision or 'main'}' is not in the cache, and the Hub was not reached; check the "
            f"network, HF_HUB_OFFLINE and local_files_only ({_first(error)})"
        )
    if isinstance(error, HTTPError | ConnectionError) and not isinstance(error, HTTPStatusError):
        return f"no connection to {constants.ENDPOINT} to {doing} '{repo_id}'; check the network ({_first(error)})"
    return f"the attempt to {doing} '{repo_id}' failed, try again ({_first(error)})"


def _first(error: BaseException) -> str:
    """Its type and the first line that says something, cut."""
    said = [getattr(error, "server_message", None) or "", *str(error).splitlines()]
    lines = [line.strip() for line in said if line.strip() and not line.strip().startswith("(Request ID")]
    text = printable(lines[0], 200) if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
