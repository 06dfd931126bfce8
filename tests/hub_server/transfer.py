"""Endpoints that move bytes: preupload, LFS storage, commit, resolve."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .accounts import PREFIXES, Repo, Token
from .git import POINTER
from .routes import Route, commit_of, opened, route
from .serve import HubError, Request, Response, ranged

if TYPE_CHECKING:
    from .hub import Hub

ROUTES: list[Route] = []
LFS = "/{P}{ID}\\.git/info/lfs/objects"


def is_lfs(hub: Hub, repo: Repo, files: dict[str, str], path: str, sample: bytes, size: int) -> bool:
    """Whether a new file belongs into LFS storage: .gitattributes says so, it is large, or it is binary."""
    if size == 0 or path == ".gitattributes":
        return False
    attributes = repo.git.read(files[".gitattributes"]).decode() if ".gitattributes" in files else ""
    lines = [line.split() for line in attributes.splitlines() if "filter=lfs" in line.split()]
    names = (path, path.rpartition("/")[2])
    listed = any(fnmatch.fnmatchcase(name, line[0]) for line in lines for name in names)
    return listed or size > hub.lfs_threshold or b"\0" in sample


@route(ROUTES, "POST /api/{T}/{ID}/preupload/{REV}")
def preupload(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id, write=True, pull_request=request.flag("create_pr"))
    files = repo.git.files(commit_of(repo, revision).tree)

    def plan(asked: dict[str, Any]) -> dict[str, Any]:
        path = asked["path"]
        lfs = is_lfs(hub, repo, files, path, base64.b64decode(asked.get("sample", "")), asked["size"])
        answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        if path in files:
            pointer = repo.git.pointer(files[path])
            answer["oid"] = pointer.sha256 if pointer else files[path]
        return answer

    return Response.json({"files": [plan(asked) for asked in request.json()["files"]]})


@route(ROUTES, f"POST {LFS}/batch")
def lfs_batch(hub: Hub, request: Request, kind: str | None, repo_id: str) -> Response:
    asked = request.json()
    # With create_pr the client names no branch, and reading is enough.
    repo, _ = opened(hub, request, kind, repo_id, write=True, pull_request="ref" not in asked)

    def plan(thing: dict[str, Any]) -> dict[str, Any]:
        found = {"oid": thing["oid"], "size": thing["size"]}
        if hub.object_path(thing["oid"]).exists():
            return found
        upload = {"href": hub.sign("PUT", f"/lfs/{thing['oid']}")}
        verify = {"href": f"{hub.url}/{PREFIXES[repo.type]}{repo.id}.git/info/lfs/objects/verify"}
        return {**found, "actions": {"upload": upload, "verify": verify}}

    return Response.json({"transfer": "basic", "objects": [plan(thing) for thing in asked["objects"]]})


@route(ROUTES, f"POST {LFS}/verify")
def lfs_verify(hub: Hub, request: Request, kind: str | None, repo_id: str) -> Response:
    opened(hub, request, kind, repo_id)
    asked = request.json()
    path = hub.object_path(asked["oid"])
    if not path.exists() or path.stat().st_size != asked["size"]:
        raise HubError(404, "Object does not exist")
    return Response.json({})


def _check_signature(hub: Hub, request: Request) -> None:
    if "authorization" in request.headers:
        raise HubError(400, "Only one auth mechanism allowed")  # as S3 does: a token must not come here
    method = "GET" if request.method == "HEAD" else request.method
    if hub.storage_url + request.target != hub.sign(method, request.path):
        raise HubError(403, "SignatureDoesNotMatch")


@route(ROUTES, "PUT /lfs/{SHA}", origin="storage")
def store(hub: Hub, request: Request, sha256: str) -> Response:
    _check_signature(hub, request)
    if hashlib.sha256(request.body).hexdigest() != sha256:
        raise HubError(400, "BadDigest")
    return Response(headers={"ETag": f'"{hub.put_object(request.body)}"'})


@route(ROUTES, "(?:GET|HEAD) /lfs/{SHA}", origin="storage")
def fetch(hub: Hub, request: Request, sha256: str) -> Response:
    _check_signature(hub, request)
    if not hub.object_path(sha256).exists():
        raise HubError(404, "NoSuchKey")
    return ranged(request, hub.object_path(sha256).read_bytes(), {"ETag": f'"{sha256}"'})


@route(ROUTES, "POST /api/{T}/{ID}/commit/{REV}")
def commit(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    as_pull_request = request.flag("create_pr")
    repo, caller = opened(hub, request, kind, repo_id, write=True, pull_request=as_pull_request)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    ref, start = _place(repo, revision, header.get("parentCommit"), as_pull_request)
    files = repo.git.files(repo.git.commit(start).tree)
    for line in lines:
        _apply(hub, repo, files, line["key"], line["value"])
    _check_folders(files)
    oid = _write(hub, repo, caller, files, start, header)
    repo.git.set_ref(ref, oid)
    page = f"{hub.url}/{PREFIXES[repo.type]}{repo.id}"
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}", "hookOutput": ""}
    if as_pull_request:
        answer["pullRequestUrl"] = f"{page}/discussions/{ref.rpartition('/')[2]}"
    return Response.json(answer)


def _place(repo: Repo, revision: str, parent: str | None, as_pull_request: bool) -> tuple[str, str]:
    """(the ref to move, the commit to build on); a stale parent is refused."""
    if as_pull_request:
        return f"refs/pr/{len(repo.git.refs('refs/pr')) + 1}", commit_of(repo, parent or revision).oid
    ref = revision if revision.startswith(("refs/pr/", "refs/heads/")) else f"refs/heads/{revision}"
    start = repo.git.ref(ref)
    if start is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    if parent and not start.startswith(parent):
        raise HubError(412, "The branch was updated since you opened this page. Please refresh and try again.")
    return ref, start


def _apply(hub: Hub, repo: Repo, files: dict[str, str], key: str, value: dict[str, Any]) -> None:
    """One line of a commit, applied to the map of path to blob."""
    if key == "header":
        return
    path = value["path"]
    if key in ("file", "lfsFile"):
        if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
            raise HubError(422, f"Invalid path: {path}")
        files[path] = repo.git.write("blob", _content(hub, key, value))
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in files if name == path or name.startswith(f"{path.rstrip('/')}/")]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation: {key}")


def _content(hub: Hub, key: str, value: dict[str, Any]) -> bytes:
    if key == "file":
        return base64.b64decode(value["content"])
    stored = hub.object_path(value["oid"])
    if not stored.exists():
        raise HubError(400, f"LFS object {value['oid']} of {value['path']} was never uploaded")
    return POINTER.format(value["oid"], stored.stat().st_size).encode()


def _check_folders(files: dict[str, str]) -> None:
    for path in files:
        parts = path.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in files:
                raise HubError(422, f"{'/'.join(parts[:end])} is a file and a folder")


def _write(hub: Hub, repo: Repo, caller: Token, files: dict[str, str], start: str, header: dict[str, str]) -> str:
    message = header["summary"] + (f"\n\n{header['description']}" if header.get("description") else "")
    return repo.git.write_commit(files, [start], caller.user.name, hub.now(), message)


@route(ROUTES, "(?:GET|HEAD) /{P}{ID}/resolve/{REV}/{PATH}")
def resolve(hub: Hub, request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> Response:
    repo, caller = opened(hub, request, kind, repo_id)
    hub.accounts.check_bytes(repo, caller)
    commit = commit_of(repo, revision)
    headers = {"X-Repo-Commit": commit.oid}
    blob = repo.git.files(commit.tree).get(path)
    if blob is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers)
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2])}"
    pointer = repo.git.pointer(blob)
    if pointer is None:
        return ranged(request, repo.git.read(blob), {**headers, "ETag": f'"{blob}"'})
    headers |= {"X-Linked-Etag": f'"{pointer.sha256}"', "X-Linked-Size": str(pointer.size)}
    return Response(b"", 302, {**headers, "Location": hub.sign("GET", f"/lfs/{pointer.sha256}")})


@route(ROUTES, "(?:GET|HEAD) /(?P<rest>.+)/resolve/.+")
def resolve_nothing(hub: Hub, request: Request, rest: str) -> Response:
    """An id of one segment: no such repository."""
    hub.accounts.check_seen(None, hub.accounts.caller(request))
    raise AssertionError
