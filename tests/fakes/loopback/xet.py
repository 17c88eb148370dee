"""Xet, as far as an upload goes: the content server takes every block for granted and keeps none.

The client still cuts, hashes and sends the true bytes, and the sha256 in its commit is the one that hf_xet computed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .reading import REPO, route
from .store import XET_TOKEN, Stop

if TYPE_CHECKING:
    from .server import LoopbackHub, Request


@route("GET", REPO + "/xet-write-token/(?P<revision>[^/]+)")
def write_token(hub: LoopbackHub, request: Request, kind: str, name: str, revision: str) -> Any:
    hub.repo(request.token, kind, name, write=True)
    if hub.xet_sizes is None:
        raise Stop(404, f"no Xet here: {revision}")
    return {"accessToken": XET_TOKEN, "exp": int(time.time()) + 3600, "casUrl": f"{hub.url}/_cas"}


@route("POST", "/_cas/v1/xorbs/default/(?P<digest>[0-9a-f]{64})")
def xorb(_hub: LoopbackHub, _request: Request, digest: str) -> Any:
    return {"was_inserted": bool(digest)}


@route("POST", "/_cas/v1/shards")
def shard(_hub: LoopbackHub, _request: Request) -> Any:
    return {"result": 1}
