"""Endpoints that describe: one repository, many, their trees, files and commits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from . import cards
from .accounts import PLURALS, Repo, Token
from .git import Commit
from .routes import Route, commit_of, opened, paged, route
from .serve import HubError, Request, Response

if TYPE_CHECKING:
    from .hub import Hub

ROUTES: list[Route] = []
SMALL_PAGE = 50


@route(ROUTES, "GET /api/{T}")
def search(hub: Hub, request: Request, kind: str) -> Response:
    caller, query = hub.accounts.caller(request), request.query
    found = []
    for repo in hub.repos.values():
        about = _describe(repo, commit_of(repo, "main"))
        if repo.type == PLURALS[kind] and _is_wanted(repo, about, query, caller):
            extra = () if request.flag("full") else ("siblings", "author", "sha", "lastModified")
            extra += () if request.flag("cardData") else ("cardData",)
            asked = query.get("expand", [])
            keep = {"id", "_id", *asked} if asked else about.keys() - extra
            found.append((about, {key: about[key] for key in about if key in keep}))
    sort = query.get("sort", ["lastModified"])[0]
    found.sort(key=lambda pair: pair[0].get(sort, 0), reverse=True)
    limit = int(query.get("limit", [hub.page])[0])
    return paged(hub, request, [shown for _, shown in found], min(limit, hub.page))


def _is_wanted(repo: Repo, about: dict[str, Any], query: dict[str, list[str]], caller: Token | None) -> bool:
    if repo.private and not (caller and caller.is_member(repo.namespace)):
        return False
    if "author" in query and repo.namespace.lower() != query["author"][0].lower():
        return False
    if any(word.lower() not in repo.id.lower() for word in query.get("search", [])):
        return False
    wanted = {tag for value in query.get("filter", []) for tag in value.split(",")}
    return wanted <= set(about["tags"])


@route(ROUTES, "GET /api/{T}/{ID}(?:/revision/{REV})?")
def info(hub: Hub, request: Request, kind: str, repo_id: str, revision: str | None) -> Response:
    repo, _ = opened(hub, request, kind, repo_id)
    commit = commit_of(repo, revision or "main")
    about = _describe(repo, commit)
    if request.flag("blobs"):
        files = repo.git.files(commit.tree)
        about["siblings"] = [{"rfilename": path, **_sizes(repo, blob, "blobId")} for path, blob in files.items()]
    if asked := request.query.get("expand"):
        about = {key: about[key] for key in about if key in {"id", "_id", *asked}}
    return Response.json(about)


def _describe(repo: Repo, commit: Commit) -> dict[str, Any]:
    files = repo.git.files(commit.tree)
    text = repo.git.read(files["README.md"]).decode(errors="replace") if "README.md" in files else ""
    data = cards.front_matter(text)[0] or {}
    about = {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "createdAt": _date(repo.created),
        "lastModified": _date(commit.when),
        "downloads": repo.downloads,
        "likes": repo.likes,
        "tags": cards.tags(text, data, list(files)),
        "cardData": data,
        "siblings": [{"rfilename": path} for path in files],
    }
    if repo.type == "model":
        about |= {"modelId": repo.id, "spaces": [], "config": {}}
        about |= {key: data[key] for key in ("library_name", "pipeline_tag", "model-index") if key in data}
    return about


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _sizes(repo: Repo, blob: str, name: str) -> dict[str, Any]:
    """A file's size and ids, LFS or not; `name` is what the git id is called here."""
    raw, pointer = repo.git.read(blob), repo.git.pointer(blob)
    if pointer is None:
        return {name: blob, "size": len(raw)}
    key = "sha256" if name == "blobId" else "oid"
    lfs = {key: pointer.sha256, "size": pointer.size, "pointerSize": len(raw)}
    return {name: blob, "size": pointer.size, "lfs": lfs}


@route(ROUTES, "GET /api/{T}/{ID}/tree/{REV}(?:/{PATH})?")
def tree(hub: Hub, request: Request, kind: str, repo_id: str, revision: str, path: str | None) -> Response:
    repo, _ = opened(hub, request, kind, repo_id)
    commit = commit_of(repo, revision)
    prefix = f"{path}/" if path else ""
    items = [item for item in _items(repo, commit) if item["path"].startswith(prefix)]
    if path and not items:
        raise HubError(404, f'{path} does not exist on "{revision}"', "EntryNotFound")
    if not request.flag("recursive"):
        items = [item for item in items if "/" not in item["path"].removeprefix(prefix)]
    if request.flag("expand"):
        return paged(hub, request, _expanded(repo, commit, items), min(SMALL_PAGE, hub.page))
    return paged(hub, request, items, hub.page)


@route(ROUTES, "POST /api/{T}/{ID}/paths-info/{REV}")
def paths_info(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id)
    form = parse_qs(request.body.decode())
    commit = commit_of(repo, revision)
    items = [item for item in _items(repo, commit) if item["path"] in form.get("paths", [])]
    expand = form.get("expand", ["false"])[0].lower() == "true"
    return Response.json(_expanded(repo, commit, items) if expand else items)


def _items(repo: Repo, commit: Commit) -> list[dict[str, Any]]:
    """Every file and folder of a commit, as the tree endpoint shows them."""
    found: list[dict[str, Any]] = []

    def walk(oid: str, prefix: str) -> None:
        for name, is_folder, child in repo.git.entries(oid):
            if is_folder:
                found.append({"type": "directory", "oid": child, "size": 0, "path": prefix + name})
                walk(child, f"{prefix}{name}/")
            else:
                found.append({"type": "file", "path": prefix + name, **_sizes(repo, child, "oid")})

    walk(commit.tree, "")
    return found


def _expanded(repo: Repo, commit: Commit, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same items, each with the last commit that changed it."""
    history = [(past, {i["path"]: i["oid"] for i in _items(repo, past)}) for past in repo.git.history(commit.oid)]

    def last(item: dict[str, Any]) -> dict[str, str]:
        same = [past for past, there in history if there.get(item["path"]) == item["oid"]]
        return {"id": same[-1].oid, "title": same[-1].title, "date": _date(same[-1].when)}

    return [{**item, "lastCommit": last(item), "securityFileStatus": None} for item in items]


@route(ROUTES, "GET /api/{T}/{ID}/commits/{REV}")
def commits(hub: Hub, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repo, _ = opened(hub, request, kind, repo_id)
    history = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.body,
            "date": _date(commit.when),
            "authors": [{"user": commit.author}],
        }
        for commit in repo.git.history(commit_of(repo, revision).oid)
    ]
    return paged(hub, request, history, min(SMALL_PAGE, hub.page))


@route(ROUTES, "[A-Z]+ /api/{T}/(?P<rest>.+)")
def unknown(hub: Hub, request: Request, kind: str, rest: str) -> Response:
    """Whatever the rest is: a repository that is not there, an id of one segment too, is missing first of all."""
    opened(hub, request, kind, "/".join(rest.split("/")[:2]))
    raise HubError(404, "Not Found")
