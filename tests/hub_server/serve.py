"""The transport: HTTP/1.1 with keep-alive on a thread per connection, byte ranges, and faults on demand."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


@dataclass
class Request:
    """One request as it came; `target` is the raw path and query, undecoded."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    origin: str
    """"hub" or "storage"."""
    status: int = 0
    """What was answered; 0 when the connection was dropped instead."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition("?")[2])

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[-1].lower() in ("true", "1")

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error

    def __str__(self) -> str:
        return f"{self.method} {self.target}"


@dataclass
class Response:
    """One answer."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        return cls(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})


class HubError(Exception):
    """A refusal: status, message, and the code by which the client picks its exception."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def response(self) -> Response:
        headers = {"X-Error-Message": str(self), **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        return Response.json({"error": str(self)}, self.status, headers)


@dataclass
class Fault:
    """Something that goes wrong `times` times for requests whose "METHOD target" matches `pattern`."""

    pattern: re.Pattern[str]
    times: int | None = 1
    status: int | None = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drop: bool = False
    after: bool = False
    cut: int | None = None
    delay: float = 0

    def fires(self, what: str) -> bool:
        """Whether it strikes this request; counts it."""
        if self.times == 0 or not self.pattern.search(what):
            return False
        if self.times is not None:
            self.times -= 1
        return True


def ranged(request: Request, data: bytes, headers: Mapping[str, str]) -> Response:
    """A file, or the part of it that the request's `Range` asks for."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not wanted or wanted[0] == "bytes=-":
        return Response(data, 200, headers)
    first, last = wanted.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last), len(data) - 1) if first and last else len(data) - 1
    if start > end:
        return Response(b"", 416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    part = data[start : end + 1]
    return Response(part, 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})


class Server(ThreadingHTTPServer):
    """One origin. Its port is taken at once; nothing listens before `start`, so until then clients are refused."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, host: str, origin: str, answer: Callable[[Handler], None]) -> None:
        self.host, self.origin, self.answer = host, origin, answer
        self.connections: set[socket.socket] = set()
        self._thread: threading.Thread | None = None
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()

    def server_bind(self) -> None:
        # HTTPServer's own version asks for the host's full name, which may wait for a name server.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.server_port}"

    def start(self) -> None:
        """Listen."""
        if self._thread is None:
            self.server_activate()
            self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Hang up on everybody and stop listening, but keep the port: `start` comes back at the same address."""
        if self._thread is None:
            return
        self.shutdown()
        self._thread.join()
        self._thread = None
        self.socket.close()
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        for connection in list(self.connections):
            hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: a client that hangs up is no error of ours."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        self.server.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.server.connections.discard(self.request)
        super().finish()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return lambda: self.server.answer(self)
        raise AttributeError(name)

    def read_body(self, limit: int | None = None) -> bytes:
        """The request's body, or no more than its first `limit` bytes."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        size = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(size if limit is None else min(size, limit))

    def reply(self, response: Response, cut: int | None = None) -> None:
        """Send an answer; with `cut`, only the first bytes of its body, and hang up."""
        self.send_response(response.status)
        for name, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
            self.send_header(name, re.sub(r"[\r\n]", " ", value).encode("latin-1", "replace").decode("latin-1"))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[:cut])
        if cut is not None:
            self.drop()

    def drop(self) -> None:
        """Hang up without another word."""
        self.close_connection = True
        self.wfile.flush()
        hang_up(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `hub.requests` has them all."""


def hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was closed already
