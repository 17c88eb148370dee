"""Publishing by the workflow's own identity: the real client's exchange, with GitHub's and the Hub's sides here."""

import json
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from src.core.errors import HubError, InvalidParams
from tests.fakes.local_http import LocalServer
from tests.fakes.loopback_hub import Fault, LoopbackHub
from utils import environment
from utils.hub.repository import HubRepository, Patience

JWT = "hf_jwt_" + "J" * 40
REPO = "acme/shop"


class Exchange(LocalServer):
    """GitHub's id-token endpoint and the Hub's /oauth/token."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.trusts = True

    def answer(self, method: str, path: str, headers: Message, body: bytes) -> tuple[int, object]:
        if method == "GET":
            self.asked.append((path, headers["Authorization"]))
            return 200, {"value": "an.id.token"}
        asked = json.loads(body)
        self.asked.append((path, asked))
        if self.trusts and asked["subject_token"] == "an.id.token":
            return 200, {"access_token": JWT, "expires_in": 3600}
        return 400, {"error": "invalid_grant", "error_description": "no publisher matches"}


@pytest.fixture
def exchange(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exchange]:
    with Exchange() as made:
        for name, value in {"HF_OIDC_RESOURCE": REPO, "HF_ENDPOINT": made.url, "GITHUB_ACTIONS": "true", "HF_TOKEN": "",
                            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{made.url}/id-token",
                            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)  # HF_ENDPOINT is read at the import
        monkeypatch.setattr("huggingface_hub.utils._auth._OIDC_TOKEN_CACHE", None)
        yield made


def test_a_stored_token_is_taken_before_the_identity(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGGINGFACE_HUB_TOKEN", "stored")
    assert (environment.token(), exchange.asked) == ("stored", [])


def test_without_a_resource_no_identity_is_asked_for(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_OIDC_RESOURCE", "")
    assert (environment.token(), exchange.asked) == (None, [])


def test_the_identity_is_exchanged_once_for_one_repository(exchange: Exchange) -> None:
    assert [environment.token(), environment.token()] == [JWT, JWT]
    asked, (path, body) = exchange.asked
    assert asked == (f"/id-token?audience={exchange.url.replace(':', '%3A').replace('/', '%2F')}",
                     "Bearer of-the-runner")
    assert (path, body["resource"], body["subject_token"]) == ("/oauth/token", REPO, "an.id.token")


def test_a_repository_that_does_not_trust_the_workflow_says_so(exchange: Exchange) -> None:
    exchange.trusts = False
    with pytest.raises(HubError, match=r"acme/shop: 400 .*trusted publisher there") as caught:
        environment.token()
    assert "id.token" not in str(caught.value)


def test_a_job_without_an_identity_is_told_which_permission_it_lacks(
        exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL")
    with pytest.raises(InvalidParams, match=r"HF_OIDC_RESOURCE: acme/shop: .*id-token: write"):
        environment.token()


def test_an_exchanged_token_may_publish_where_it_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub need not answer whoami for it; another repository, and one that is not there yet, are out of reach."""
    monkeypatch.setenv("HF_OIDC_RESOURCE", REPO)
    with LoopbackHub(tmp_path) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.tokens[JWT] = {"name": "publisher", "role": "write", "orgs": ["acme"]}
        hub.faults.append(Fault(path="/api/whoami-v2", status=403, times=99))

        def check(name: str) -> None:
            HubRepository(repo_id=name, token=JWT, private=True, patience=Patience.within(20)).check()

        with pytest.raises(InvalidParams, match="may not create it"):
            check(REPO)
        hub.put(REPO, {"README.md": b"made by hand"})
        check(REPO)
        hub.put("acme/other", {"README.md": b"made by hand"})
        with pytest.raises(InvalidParams, match="trusted publisher acme/shop"):
            check("acme/other")
