"""The loopback hub refuses what the real one refuses, and its faults come when their rules say."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from tests.fakes.loopback_hub import READ, SCOPED, UNKNOWN, WRITE, LoopbackHub

REPO = "acme/shop"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    api = HfApi(endpoint=hub.url, token=WRITE)
    api.create_repo(REPO, private=True)
    return api


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(HfHubHTTPError) as error:
        call()
    return error.value.response.status_code


def test_a_token_does_what_it_may_and_no_more(hub: LoopbackHub, api: HfApi) -> None:
    unknown, reader, scoped, stranger = (
        HfApi(endpoint=hub.url, token=token) for token in (UNKNOWN, READ, SCOPED, False))
    assert refused(unknown.whoami) == 401
    assert reader.list_repo_files(REPO) == [".gitattributes"]
    assert refused(lambda: reader.create_tag(REPO, tag="v1")) == 403
    for name in ("acme/scoped", "acme/open"):
        api.create_repo(name)
    scoped.auth_check("acme/scoped", write=True)
    assert refused(lambda: scoped.auth_check("acme/open", write=True)) == 403
    assert refused(lambda: stranger.model_info(REPO)) == 401  # private


def test_large_files_are_taken_with_their_own_bytes_alone(hub: LoopbackHub, api: HfApi) -> None:
    lines = [{"key": "header", "value": {"summary": "x"}},
             {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}]
    never_sent = httpx2.post(f"{hub.url}/api/models/{REPO}/commit/main", content="\n".join(map(json.dumps, lines)),
                             headers={"Authorization": f"Bearer {WRITE}"})
    assert never_sent.status_code == 400
    assert httpx2.put(f"{hub.url}/_lfs/{'0' * 64}", content=b"other").status_code == 400
    assert not hub.blob("0" * 64).exists()


def test_repositories_branches_and_tags_are_made_once(api: HfApi) -> None:
    head = api.model_info(REPO).sha
    makes: list[Callable[[], object]] = [lambda: api.create_branch(REPO, branch="release/abc"),
                                         lambda: api.create_tag(REPO, tag="v1")]
    for make in makes:
        make()
        assert refused(make) == 409
    assert refused(lambda: api.create_repo(REPO)) == 409
    assert [(ref.name, ref.target_commit) for ref in api.list_repo_refs(REPO).tags] == [("v1", head)]
    api.delete_branch(REPO, branch="release/abc")
    assert [ref.name for ref in api.list_repo_refs(REPO).branches] == ["main"]


def test_a_fault_hits_the_requests_that_its_rule_names(hub: LoopbackHub) -> None:
    hub.fault("/whoami", method="GET", nth=2, times=2, status=503, headers={"Retry-After": "1"}, body={"error": "busy"})
    seen = [httpx2.get(f"{hub.url}/api/whoami-v2", headers={"Authorization": f"Bearer {WRITE}"}) for _ in range(4)]
    assert [answer.status_code for answer in seen] == [200, 503, 503, 200]
    assert seen[1].headers["Retry-After"] == "1"


@pytest.mark.parametrize(("rule", "done"), [({"after": True, "close": True}, True), ({"reset": True}, False)])
def test_a_lost_reply_comes_after_the_work_and_a_reset_before_it(
    hub: LoopbackHub, api: HfApi, rule: dict[str, bool], done: bool
) -> None:
    hub.fault("/commit/", **rule)
    with pytest.raises(httpx2.TransportError):
        api.create_commit(REPO, [CommitOperationAdd("a.txt", b"a")], commit_message="test")
    assert ("a.txt" in hub.files(REPO)) is done
