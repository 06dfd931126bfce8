"""A bare git repository with loose objects: real ids, so that `git fsck` and the client's own hashes agree with it."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n\Z")


@dataclass(frozen=True)
class Commit:
    """One commit, parsed."""

    oid: str
    tree: str
    parents: tuple[str, ...]
    author: str
    when: int
    message: str

    @property
    def title(self) -> str:
        return self.message.split("\n", 1)[0]

    @property
    def body(self) -> str:
        return self.message.partition("\n")[2].strip()


@dataclass(frozen=True)
class Pointer:
    """What a blob says about a file that lives in LFS storage."""

    sha256: str
    size: int


class GitRepo:
    """Objects and refs in a folder laid out as git lays it out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("objects", "refs/heads", "refs/tags"):
            (folder / name).mkdir(parents=True)
        (folder / "HEAD").write_text("ref: refs/heads/main\n")
        (folder / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")

    # Objects

    def write(self, kind: str, body: bytes) -> str:
        """Store an object; its id."""
        whole = f"{kind} {len(body)}\0".encode() + body
        oid = hashlib.sha1(whole).hexdigest()
        path = self._object(oid)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(zlib.compress(whole, 1))
        return oid

    def read(self, oid: str) -> bytes:
        """The body of an object."""
        return zlib.decompress(self._object(oid).read_bytes()).split(b"\0", 1)[1]

    def _object(self, oid: str) -> Path:
        return self.folder / "objects" / oid[:2] / oid[2:]

    def pointer(self, blob: str) -> Pointer | None:
        """The LFS object that a blob stands for, None for an ordinary file."""
        found = _POINTER.match(self.read(blob))
        return Pointer(found[1].decode(), int(found[2])) if found else None

    def write_tree(self, files: Mapping[str, str]) -> str:
        """Trees for a flat map of path to blob id; the id of the root."""
        here: list[tuple[bytes, bytes]] = []
        below: dict[str, dict[str, str]] = {}
        for path, blob in files.items():
            head, slash, rest = path.partition("/")
            if slash:
                below.setdefault(head, {})[rest] = blob
            else:
                here.append((head.encode(), b"100644 " + head.encode() + b"\0" + bytes.fromhex(blob)))
        for name, inside in below.items():  # git sorts a folder as if its name ended in a slash
            tree = bytes.fromhex(self.write_tree(inside))
            here.append((name.encode() + b"/", b"40000 " + name.encode() + b"\0" + tree))
        return self.write("tree", b"".join(entry for _, entry in sorted(here)))

    def entries(self, tree: str) -> Iterator[tuple[str, bool, str]]:
        """(name, is a folder, id) of one tree."""
        body = self.read(tree)
        while body:
            head, rest = body.split(b"\0", 1)
            mode, name = head.split(b" ", 1)
            yield name.decode(), mode == b"40000", rest[:20].hex()
            body = rest[20:]

    def files(self, tree: str, prefix: str = "") -> dict[str, str]:
        """The flat map of path to blob id."""
        found = {}
        for name, is_folder, oid in self.entries(tree):
            found.update(self.files(oid, f"{prefix}{name}/") if is_folder else {prefix + name: oid})
        return found

    def write_commit(self, files: Mapping[str, str], parents: list[str], author: str, when: int, message: str) -> str:
        """Store a commit of these files; its id. No ref is moved."""
        who = f"{author} <{author}@hub.invalid> {when} +0000"
        lines = [f"tree {self.write_tree(files)}", *(f"parent {p}" for p in parents), f"author {who}"]
        return self.write("commit", "\n".join([*lines, f"committer {who}", "", message]).encode())

    def commit(self, oid: str) -> Commit:
        head, _, message = self.read(oid).decode().partition("\n\n")
        values: dict[str, list[str]] = {}
        for line in head.split("\n"):
            key, _, value = line.partition(" ")
            values.setdefault(key, []).append(value)
        author, when = re.fullmatch(r"(.*) <.*> (\d+) \+0000", values["author"][0]).groups()
        return Commit(oid, values["tree"][0], tuple(values.get("parent", ())), author, int(when), message)

    def history(self, oid: str) -> Iterator[Commit]:
        """A commit and those before it, newest first."""
        commit: Commit | None = self.commit(oid)
        while commit:
            yield commit
            commit = self.commit(commit.parents[0]) if commit.parents else None

    # Refs

    def refs(self, under: str) -> dict[str, str]:
        """Full ref name to commit id, for the refs below `refs/heads`, `refs/tags` or `refs/pr`."""
        paths = sorted(p for p in (self.folder / under).rglob("*") if p.is_file())
        return {p.relative_to(self.folder).as_posix(): p.read_text().strip() for p in paths}

    def ref(self, name: str) -> str | None:
        path = self.folder / name
        return path.read_text().strip() if name.startswith("refs/") and path.is_file() else None

    def set_ref(self, name: str, oid: str | None) -> None:
        path = self.folder / name
        if oid is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(oid + "\n")

    def resolve(self, revision: str) -> str | None:
        """The commit that a full ref, branch, tag, commit id or unique short id (7 or more) names."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if oid := self.ref(name):
                return oid
        if not re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return None
        found = [p for p in (self.folder / "objects" / revision[:2]).glob(f"{revision[2:]}*")]
        oids = [revision[:2] + p.name for p in found]
        commits = [o for o in oids if zlib.decompress(self._object(o).read_bytes()).startswith(b"commit ")]
        return commits[0] if len(commits) == 1 else None
