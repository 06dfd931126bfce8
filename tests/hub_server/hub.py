"""The Hub as a test holds it: accounts, repositories, the log of requests, faults to order."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from . import api, listing, transfer
from .accounts import Accounts, Repo, User
from .git import POINTER, GitRepo
from .serve import Fault, Handler, HubError, Request, Response, Server

FIRST_SECOND = 1767225600  # 2026-01-01; every commit is one second later, so that ids are the same in every run
KINDS = [
    "bin",
    "gz",
    "h5",
    "msgpack",
    "npy",
    "npz",
    "onnx",
    "parquet",
    "pickle",
    "pkl",
    "pt",
    "pth",
    "safetensors",
    "zip",
]
ATTRIBUTES = "".join(f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in KINDS)
ROUTES = [*api.ROUTES, *transfer.ROUTES, *listing.ROUTES]  # the first that matches answers


class Hub:
    """Two origins, because storage must not see a token: the Hub on 127.0.0.1, its storage on localhost.

    Attributes:
        repos: the repositories, by (type, id), as ("model", "user/name").
        requests: every request, in order.
        errors: tracebacks of our own mistakes; the client's retries would hide them.
        slept: the waits, in seconds, that the client made between retries.
        lfs_threshold: size in bytes above which a file goes to LFS storage.
        page: items on a page of a listing.
    """

    def __init__(self) -> None:
        self._hub = Server("127.0.0.1", "hub", self._answer)
        self._storage = Server("localhost", "storage", self._answer)
        self.url, self.storage_url = self._hub.url, self._storage.url
        self.lock = threading.RLock()
        self._pid = os.getpid()
        self.reset(None)

    # The server itself

    def start(self) -> None:
        """Listen; nothing happens when it does already."""
        self._hub.start()
        self._storage.start()

    def stop(self) -> None:
        """Refuse all connections: the network is gone, until `start`."""
        if os.getpid() == self._pid:  # a forked child has our sockets, but not our threads
            self._hub.stop()
            self._storage.stop()

    @contextmanager
    def gone(self) -> Iterator[None]:
        """A while in which connections are refused."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def reset(self, folder: Path | None) -> None:
        """Forget everything: users, repositories, requests, faults, knobs. New files go into an empty `folder`."""
        with self.lock:
            self.folder = folder
            self.accounts = Accounts()
            self.repos: dict[tuple[str, str], Repo] = {}
            self.requests: list[Request] = []
            self.errors: list[str] = []
            self.slept: list[float] = []
            self.faults: list[Fault] = []
            self.lfs_threshold, self.page = 10 * 2**20, 1000
            self._seconds = itertools.count(FIRST_SECOND)
            self._serial = itertools.count(1)

    # What a test prepares

    def add_user(self, name: str, orgs: tuple[str, ...] = (), role: str = "write") -> str:
        """A new user; their token."""
        self.accounts.users[name] = User(name, tuple(orgs))
        return self.accounts.add_token(name, role)

    def add_token(self, name: str, role: str = "read") -> str:
        """Another token of a user."""
        return self.accounts.add_token(name, role)

    def add_repo(self, repo_id: str, *, type: str = "model", private: bool = False, gated: bool = False) -> Repo:
        """A new repository with its first commit, as `create_repo` makes it."""
        git = GitRepo(self.folder / "git" / f"{next(self._serial)}.git")
        repo = Repo(type, repo_id, git, self.now(), private, gated)
        self.repos[type, repo_id] = repo
        files = {".gitattributes": git.write("blob", ATTRIBUTES.encode())}
        first = git.write_commit(files, [], repo.namespace, self.now(), "initial commit")
        git.set_ref("refs/heads/main", first)
        return repo

    def put_file(
        self,
        repo_id: str,
        path: str,
        content: bytes | str,
        revision: str = "main",
        *,
        type: str = "model",
        lfs: bool | None = None,
    ) -> str:
        """Commit one file, past all checks of names and contents; makes the repository and branch. The commit's id.

        `lfs` says where the file lives, by default as the server itself would have it.
        """
        with self.lock:
            repo = self.find(type, repo_id) or self.add_repo(repo_id, type=type)
            data = content.encode() if isinstance(content, str) else content
            ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
            parent = repo.git.ref(ref) or repo.git.ref("refs/heads/main")
            files = repo.git.files(repo.git.commit(parent).tree)
            if transfer.is_lfs(self, repo, files, path, data[:512], len(data)) if lfs is None else lfs:
                data = POINTER.format(self.put_object(data), len(data)).encode()
            files[path] = repo.git.write("blob", data)
            commit = repo.git.write_commit(files, [parent], repo.namespace, self.now(), f"Put {path}")
            repo.git.set_ref(ref, commit)
            return commit

    def fault(
        self,
        pattern: str,
        times: int | None = 1,
        status: int | None = 503,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        drop: bool = False,
        after: bool = False,
        cut: int | None = None,
        delay: float = 0,
    ) -> Fault:
        """Let the next `times` requests (None: all) whose "METHOD target" matches go wrong.

        By default they are answered with `status`, `headers` and `body` and otherwise ignored. `drop` hangs up instead
        of answering (with `cut=n` after n bytes of the request's body). `after` carries the request out first, so the
        answer alone is lost. `cut=n` without `drop` answers truly, but hangs up after n bytes of the answer's body.
        `delay` waits that many seconds first; with `status=None` it then answers truly.
        """
        if cut is not None and not drop:
            status = None
        made = Fault(re.compile(pattern), times, status, headers or {}, body, drop, after, cut, delay)
        self.faults.append(made)
        return made

    # What a test looks at

    def find(self, type: str, repo_id: str) -> Repo | None:
        """A repository, whatever the case of its name."""
        wanted = (type, repo_id.lower())
        return next((repo for (t, name), repo in self.repos.items() if (t, name.lower()) == wanted), None)

    def commits(self, repo_id: str, revision: str = "main", *, type: str = "model") -> list[str]:
        """Ids of a revision's commits, newest first."""
        git = self.repos[type, repo_id].git
        start = git.resolve(revision)
        return [commit.oid for commit in git.history(start)] if start else []

    def files(self, repo_id: str, revision: str = "main", *, type: str = "model") -> dict[str, bytes]:
        """What a revision holds: path to content, LFS files included, .gitattributes left out."""
        git = self.repos[type, repo_id].git
        start = git.resolve(revision)
        blobs = git.files(git.commit(start).tree) if start else {}
        return {path: self.content(git, blob) for path, blob in blobs.items() if path != ".gitattributes"}

    def content(self, git: GitRepo, blob: str) -> bytes:
        pointer = git.pointer(blob)
        return self.object_path(pointer.sha256).read_bytes() if pointer else git.read(blob)

    @property
    def calls(self) -> list[str]:
        """The requests as "METHOD path", without their queries."""
        return [f"{request.method} {request.path}" for request in self.requests]

    # What the endpoints use

    def now(self) -> int:
        """The server's clock: a second later at every look."""
        return next(self._seconds)

    def object_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256[:2] / sha256[2:4] / sha256

    def put_object(self, data: bytes) -> str:
        """Keep an LFS object; its sha256. It appears whole or not at all."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.object_path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return sha256

    def sign(self, method: str, path: str) -> str:
        """A storage URL that works for one method."""
        signature = hmac.new(b"storage", f"{method} {path}".encode(), "sha256").hexdigest()
        return f"{self.storage_url}{path}?sig={signature}"

    def _answer(self, handler: Handler) -> None:
        with suppress(ConnectionError):
            self._carry_out(handler)

    def _carry_out(self, handler: Handler) -> None:
        what = f"{handler.command} {handler.path}"
        with self.lock:
            fault = next((f for f in self.faults if f.fires(what)), None)
        early = fault is not None and fault.drop and not fault.after
        body = handler.read_body(fault.cut or 0 if early else None)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, handler.path, headers, body, handler.server.origin)
        with self.lock:
            self.requests.append(request)
        if fault is None:
            handler.reply(self._handle(request))
            return
        time.sleep(fault.delay)
        truly = self._handle(request) if fault.after or (fault.status is None and not fault.drop) else None
        if fault.drop:
            request.status = 0
            handler.drop()
        elif fault.status is None:
            handler.reply(truly, fault.cut)
        else:
            request.status = fault.status
            handler.reply(Response(fault.body, fault.status, dict(fault.headers)))

    def _handle(self, request: Request) -> Response:
        response = self._respond(request)
        request.status = response.status
        response.headers.setdefault("X-Request-Id", f"test-{next(self._serial)}")
        return response

    def _respond(self, request: Request) -> Response:
        try:
            with self.lock:
                endpoint, parts = _route(request)
                return endpoint(self, request, **parts)
        except HubError as error:
            return error.response()
        except Exception:
            self.errors.append(f"{request}\n{traceback.format_exc()}")
            return HubError(500, "Internal error of the test's Hub").response()


def _route(request: Request) -> tuple[Callable[..., Response], dict[str, str | None]]:
    for origin, pattern, endpoint in ROUTES:
        if origin == request.origin and (found := pattern.fullmatch(str(request).partition("?")[0])):
            return endpoint, {name: part and unquote(part) for name, part in found.groupdict().items()}
    raise HubError(404, "Not Found")
