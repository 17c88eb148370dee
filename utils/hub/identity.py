"""Whose token it is, and what it may do on the Hub."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi

from utils import keyless
from utils.hub_client import endpoint

logger = logging.getLogger(__name__)


def no_token() -> str:
    """What to say where token() gives None."""
    return f"HF_TOKEN: not set; make a token with write access at {endpoint()}/settings/tokens and export it"


@dataclass(frozen=True)
class Identity:
    """Who a token belongs to; role is write, read, fineGrained or what else the Hub says.

    scopes: what a fine-grained token was given, as the name of a user, organisation or repository to permissions.
    """

    name: str
    role: str
    organisations: tuple[str, ...]
    scopes: Mapping[str, tuple[str, ...]]

    def may_write(self, repo_id: str, *, creating: bool) -> bool:
        """False where the token surely may not write there; that it may, only the Hub's own answer proves.

        A right on the repository alone does not reach as far as creating it.
        """
        namespace = repo_id.partition("/")[0]
        if self.role == "fineGrained":
            names = (namespace,) if creating else (namespace, repo_id)
            return any("repo.write" in self.scopes.get(name, ()) for name in names)
        return self.role != "read" and namespace in (self.name, *self.organisations)

    def rights(self) -> str:
        """One phrase on what the token may do."""
        if self.role == "fineGrained":
            given = "; ".join(f"{', '.join(rights)} on {name}" for name, rights in self.scopes.items())
            return f"fine-grained token: {given or 'no repository'}"
        where = ", ".join((self.name, *self.organisations))
        if self.role == "read":
            return f"read-only token: may download from {where}; to publish, make a token with write access"
        return f"{self.role} token: may publish to {where}"


def who(api: HfApi) -> Identity:
    """Ask the Hub whose token this is; raises what the client raises.

    A trusted publisher's is nobody's: it may write to the one repository that it was exchanged for.
    """
    if publishes_to := keyless.resource(api.token):
        return Identity(name=f"trusted publisher {publishes_to}", role="fineGrained", organisations=(),
                        scopes={publishes_to: ("repo.write",)})
    answer: dict[str, Any] = api.whoami()
    access = answer.get("auth", {}).get("accessToken", {})
    scoped = access.get("fineGrained", {}).get("scoped", [])
    return Identity(
        name=answer.get("name", "unknown"),
        role=access.get("role", "unknown"),
        organisations=tuple(organisation["name"] for organisation in answer.get("orgs", [])),
        scopes={scope["entity"]["name"]: tuple(scope["permissions"]) for scope in scoped},
    )
