"""Who may do what: users, tokens, repositories, and the refusals as huggingface.co words and numbers them."""

from __future__ import annotations

from dataclasses import dataclass, field

from .git import GitRepo
from .serve import HubError, Request

PLURALS = {"models": "model", "datasets": "dataset", "spaces": "space"}
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass
class User:
    """A person, and the organisations that they may write to."""

    name: str
    orgs: tuple[str, ...] = ()


@dataclass
class Token:
    """A user's token; a "read" one writes nothing."""

    user: User
    role: str

    def may_write(self, namespace: str) -> bool:
        return self.role == "write" and self.is_member(namespace)

    def is_member(self, namespace: str) -> bool:
        return namespace in (self.user.name, *self.user.orgs)


@dataclass
class Repo:
    """A repository and what its settings page says."""

    type: str
    id: str
    git: GitRepo
    created: int
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    """Names of the users that a gated repository lets in, beside the members of its namespace."""
    downloads: int = 0
    likes: int = 0

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]


class Accounts:
    """Users by name, tokens by text."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.tokens: dict[str, Token] = {}

    def add_token(self, name: str, role: str) -> str:
        text = f"hf_{name}_{role}_{len(self.tokens)}"
        self.tokens[text] = Token(self.users[name], role)
        return text

    def caller(self, request: Request) -> Token | None:
        """Whose token the request carries, None for a stranger.

        Raises:
            HubError: 401, a token that nobody has.
        """
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        if not kind:
            return None
        if text not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens[text]

    def check_seen(self, repo: Repo | None, caller: Token | None) -> Repo:
        """The repository, for those who may know of it; to the others a private one is a missing one."""
        if repo is not None and (not repo.private or (caller and caller.is_member(repo.namespace))):
            return repo
        if caller is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def check_bytes(self, repo: Repo, caller: Token | None) -> None:
        """Refuse a gated repository's files to those who were not let in."""
        if not repo.gated:
            return
        if caller and (caller.is_member(repo.namespace) or caller.user.name in repo.granted):
            return
        message = f"Access to {repo.type} {repo.id} is restricted and you are not in the authorized list."
        raise HubError(403 if caller else 401, message, "GatedRepo")

    def check_write(self, namespace: str, caller: Token | None) -> Token:
        if caller is None:
            raise HubError(401, "Invalid username or password.")
        if not caller.may_write(namespace):
            raise HubError(403, f"You don't have the rights to write to the namespace '{namespace}'.")
        return caller
