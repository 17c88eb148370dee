"""Publishing without a stored token: the workflow's own identity, exchanged for an hour's right to one repository.

The Hub calls it a trusted publisher: huggingface.co/docs/hub/trusted-publishers. HF_OIDC_RESOURCE names the repository
and asks for it; the job needs `permissions: id-token: write`.
"""

import os

from huggingface_hub._oidc import oidc_login
from huggingface_hub.errors import OIDCError

from src.errors import HubError, InvalidParams
from utils.hub_client import endpoint, talking, time_limit

RESOURCE = "HF_OIDC_RESOURCE"
_SECONDS, _REQUEST_SECONDS = 60, 20
_PREFIX = "hf_jwt_"  # of exchanged tokens alone


def exchange() -> str:
    """A token for the repository that HF_OIDC_RESOURCE names; held in HF_TOKEN, so that it is asked for once.

    Raises InvalidParams where the job has no identity, HubError where the Hub does not trust it or does not answer.
    """
    resource = os.environ[RESOURCE].strip()
    try:
        with time_limit(_SECONDS, _REQUEST_SECONDS, client_waits=0), talking(resource):
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
