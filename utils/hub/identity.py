"""Who a Hub token belongs to and what it may do; trusted publishing with the GitHub OIDC token."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import OIDCError

from src.core.errors import HubError, InvalidParams
from utils.hub.client import endpoint, hub_errors, time_limit

logger = logging.getLogger(__name__)
RESOURCE = "HF_OIDC_RESOURCE"


def no_token() -> str:
    """The message for a missing token."""
    return f"HF_TOKEN: not set; make a token with write access at {endpoint()}/settings/tokens and export it"


@dataclass(frozen=True)
class TokenOwner:
    """Who a token belongs to; role is write, read, fineGrained, or another that the Hub names.

    scopes: of a fine-grained token, the name of a user, organisation or repository to its permissions.
    """

    name: str
    role: str
    organisations: tuple[str, ...]
    scopes: Mapping[str, tuple[str, ...]]

    def may_write(self, repo_id: str, *, creating: bool) -> bool:
        """False if the token certainly may not write there; only the Hub itself can confirm that it may.

        A permission on the repository alone does not include creating it.
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


def who(api: HfApi) -> TokenOwner:
    """Ask the Hub who the token belongs to; raises what the client raises.

    A trusted publisher's token belongs to no user: it may write to the one repository that it was exchanged for.
    """
    if publishes_to := resource(api.token):
        return TokenOwner(name=f"trusted publisher {publishes_to}", role="fineGrained", organisations=(),
                          scopes={publishes_to: ("repo.write",)})
    answer: dict[str, Any] = api.whoami()
    access = answer.get("auth", {}).get("accessToken", {})
    scoped = access.get("fineGrained", {}).get("scoped", [])
    return TokenOwner(name=answer.get("name", "unknown"), role=access.get("role", "unknown"),
                      organisations=tuple(organisation["name"] for organisation in answer.get("orgs", [])),
                      scopes={scope["entity"]["name"]: tuple(scope["permissions"]) for scope in scoped})


def exchange() -> str:
    """Exchange the GitHub OIDC token for a one-hour Hub token (trusted publishing); it is kept in HF_TOKEN.

    Raises InvalidParams if the job has no OIDC token, HubError if the Hub does not trust it or does not answer.
    """
    resource = os.environ[RESOURCE] = os.environ[RESOURCE].strip()
    try:
        with time_limit(60, 20, client_waits=0), hub_errors(resource):
            os.environ["HF_TOKEN"] = str(get_token())  # exchanges the OIDC token, because HF_OIDC_RESOURCE is set
    except OIDCError as error:
        raise InvalidParams(f"{RESOURCE}: {resource}: {' '.join(str(error).split())}") from error
    except HubError as error:
        raise HubError(f"{error}; is this workflow a trusted publisher there (docs/ci.md)?") from error
    return os.environ["HF_TOKEN"]


def resource(token: str | bool | None) -> str | None:
    """The one repository that an exchanged token may write to; None for any other token."""
    if isinstance(token, str) and token.startswith("hf_jwt_"):  # only exchanged tokens do
        return os.environ.get(RESOURCE, "").strip() or None
    return None
