"""A real Hub on loopback: the unmodified huggingface_hub client creates, uploads, downloads and deletes here.

`Hub` is what a test holds (fixture `hub` of conftest.py). Behind it: `serve` the transport, `git` the objects,
`accounts` who may do what, `api` and `transfer` the endpoints, `listing` the public face of a repository.
Standard library only, but for YAML (which huggingface_hub brings). The protocol as measured is written down in the
project's reference/hub_protocol.md; Xet is left out, so the client must run with HF_HUB_DISABLE_XET.
"""

from .accounts import Repo
from .hub import Hub
from .serve import Fault, Request, Response

__all__ = ["Fault", "Hub", "Repo", "Request", "Response"]
