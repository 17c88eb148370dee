"""Whose token it is, and what it may do on the Hub."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub._oidc import oidc_login
from huggingface_hub.errors import OIDCError

from src.core.errors import HubError, InvalidParams
from utils.hub.client import endpoint, hub_errors, time_limit

logger = logging.getLogger(__name__)
RESOURCE = "HF_OIDC_RESOURCE"
_SECONDS, _REQUEST_SECONDS = 60, 20
_PREFIX = "hf_jwt_"  # of exchanged tokens alone


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
    if publishes_to := resource(api.token):
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


def exchange() -> str:
    """A token for the repository that HF_OIDC_RESOURCE names; held in HF_TOKEN, so that it is asked for once.

    Raises InvalidParams where the job has no identity, HubError where the Hub does not trust it or does not answer.
    """
    resource = os.environ[RESOURCE].strip()
    try:
        with time_limit(_SECONDS, _REQUEST_SECONDS, client_waits=0), hub_errors(resource):
            answer = oidc_login(resource=resource, subject_token=os.environ.get("HF_OIDC_ID_TOKEN") or None,
                                endpoint=endpoint())
    except OIDCError as error:
        raise InvalidParams(f"{RESOURCE}: {resource}: {' '.join(str(error).split())}") from error
    except HubError as error:
        raise HubError(f"{error}; is this workflow a trusted publisher there (docs/ci.md)?") from error
    os.environ["HF_TOKEN"] = str(answer["access_token"])
    return os.environ["HF_TOKEN"]


def resource(token: str | bool | None) -> str | None:
    """The one repository that an exchanged token may write to; None for any other token."""
    named = os.environ.get(RESOURCE, "").strip()
    return named or None if isinstance(token, str) and token.startswith(_PREFIX) else None
