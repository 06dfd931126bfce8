"""Endpoints about people, repositories as a whole, branches and tags."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import cards
from .accounts import PREFIXES, Repo
from .routes import Route, commit_of, opened, route
from .serve import HubError, Request, Response

if TYPE_CHECKING:
    from .hub import Hub

ROUTES: list[Route] = []


@route(ROUTES, "GET /api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Response:
    caller = hub.accounts.caller(request)
    if caller is None:
        raise HubError(401, "Invalid username or password.")
    name = caller.user.name
    return Response.json(
        {
            "type": "user",
            "id": name,
            "name": name,
            "fullname": name,
            "email": f"{name}@hub.invalid",
            "orgs": [{"name": org, "fullname": org, "roleInOrg": "write"} for org in caller.user.orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": caller.role}},
        }
    )


@route(ROUTES, "POST /api/repos/create")
def create(hub: Hub, request: Request) -> Response:
    asked = request.json()
    caller = hub.accounts.caller(request)
    namespace = asked.get("organization") or (caller.user.name if caller else "")
    hub.accounts.check_write(namespace, caller)
    type, repo_id = asked.get("type") or "model", f"{namespace}/{asked['name']}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}", asked["name"]) or re.search(r"\.\.|--", asked["name"]):
        raise HubError(400, f"Invalid repo name: {asked['name']}")
    url = f"{hub.url}/{PREFIXES[type]}"
    if there := hub.find(type, repo_id):
        error = "You already created this model repo"
        return Response.json({"error": error, "url": url + there.id}, 409, {"X-Error-Message": error})
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    repo = hub.add_repo(repo_id, type=type, private=private)
    return Response.json({"url": url + repo.id, "name": repo.id, "id": repo.id})


@route(ROUTES, "DELETE /api/repos/delete")
def delete(hub: Hub, request: Request) -> Response:
    asked = request.json()
    caller = hub.accounts.caller(request)
    namespace = asked.get("organization") or (caller.user.name if caller else "")
    repo = hub.accounts.check_seen(hub.find(asked.get("type") or "model", f"{namespace}/{asked['name']}"), caller)
    hub.accounts.check_write(repo.namespace, caller)
    del hub.repos[repo.type, repo.id]
    return Response(b"OK")


@route(ROUTES, "PUT /api/{T}/{ID}/settings")
def settings(hub: Hub, request: Request, kind: str, repo_id: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id, write=True)
    asked = request.json()
    if "gated" in asked:
        repo.gated = bool(asked["gated"])
    if "visibility" in asked or "private" in asked:
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    return Response.json({"private": repo.private, "gated": repo.gated})


@route(ROUTES, "GET /api/{T}/{ID}/auth-check")
def auth_check(hub: Hub, request: Request, kind: str, repo_id: str) -> Response:
    hub.accounts.check_bytes(*opened(hub, request, kind, repo_id))
    return Response.json({})


@route(ROUTES, "POST /api/validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Response:
    errors, warnings = cards.faults(request.json()["content"])
    if errors and "text/plain" in request.headers.get("accept", ""):
        return Response("\n".join(f"- Error: {e}" for e in errors).encode(), 400, {"Content-Type": "text/plain"})
    found = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return Response.json(found, 400 if errors else 200)


@route(ROUTES, "GET /api/{T}/{ID}/refs")
def refs(hub: Hub, request: Request, kind: str, repo_id: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id)

    def under(folder: str, prefix: str) -> list[dict[str, str]]:
        found = repo.git.refs(folder).items()
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid} for ref, oid in found]

    found = {"branches": under("refs/heads", "refs/heads/"), "converts": [], "tags": under("refs/tags", "refs/tags/")}
    if request.query.get("include_prs") or request.query.get("include_pull_requests"):
        found["pullRequests"] = under("refs/pr", "refs/")
    return Response.json(found)


@route(ROUTES, "POST /api/{T}/{ID}/branch/{NAME}")
def create_branch(hub: Hub, request: Request, kind: str, repo_id: str, name: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id, write=True)
    asked = request.json() if request.body else {}
    start = commit_of(repo, asked.get("startingPoint") or "main")
    return _new_ref(repo, f"refs/heads/{name}", start.oid)


@route(ROUTES, "DELETE /api/{T}/{ID}/branch/{NAME}")
def delete_branch(hub: Hub, request: Request, kind: str, repo_id: str, name: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id, write=True)
    if name == "main":
        raise HubError(403, "Cannot delete refs/heads/main")
    return _drop_ref(repo, f"refs/heads/{name}")


@route(ROUTES, "POST /api/{T}/{ID}/tag/{REV}")
def create_tag(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id, write=True)
    return _new_ref(repo, f"refs/tags/{request.json()['tag']}", commit_of(repo, revision).oid)


@route(ROUTES, "DELETE /api/{T}/{ID}/tag/{NAME}")
def delete_tag(hub: Hub, request: Request, kind: str, repo_id: str, name: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id, write=True)
    return _drop_ref(repo, f"refs/tags/{name}")


def _new_ref(repo: Repo, ref: str, oid: str) -> Response:
    if re.search(r"[\s~^:?*\[\\\x00-\x1f]|\.\.|//|^/|/$|\.lock$|@\{", ref):
        raise HubError(400, f"Invalid reference name: {ref}")
    if repo.git.ref(ref):
        raise HubError(409, f"Reference {ref} already exists")
    repo.git.set_ref(ref, oid)
    return Response.json({})


def _drop_ref(repo: Repo, ref: str) -> Response:
    if not repo.git.ref(ref):
        raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
    repo.git.set_ref(ref, None)
    return Response.json({})
