from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from src.core.errors import HubError, IntegrityError, InvalidParams
from src.core.records import manifest
from src.ledger.ports import HubState
from tests.fakes.loopback.publishing import REPO, folder, hub, publish, repository
from tests.fakes.loopback_hub import READ, SCOPED, UNKNOWN, WRITE, LoopbackHub

__all__ = ["folder", "hub"]  # fixtures, found by their names


def test_check_without_a_token_is_a_configuration_error(hub: LoopbackHub) -> None:
    with pytest.raises(InvalidParams, match="HF_TOKEN: not set"):
        repository(token=None).check()


@pytest.mark.parametrize(("token", "repo", "words"), [
    (UNKNOWN, REPO, "wrong or has expired"), (READ, REPO, "may not create it .read-only token"),
    (WRITE, "other/shop", "may not create it"), (SCOPED, "acme/scoped", "may not create it"),
])
def test_check_refuses_a_token_that_cannot_publish(hub: LoopbackHub, token: str, repo: str, words: str) -> None:
    with pytest.raises(InvalidParams, match=words) as error:
        repository(token=token, repo=repo).check()
    assert token not in str(error.value)
    assert hub.repos == {}


def test_check_takes_a_token_scoped_to_an_existing_repository(hub: LoopbackHub) -> None:
    hub.put("acme/scoped", {})
    repository(token=SCOPED, repo="acme/scoped").check()


def test_check_believes_the_hub_and_not_the_scopes_alone(hub: LoopbackHub) -> None:
    hub.put(REPO, {})
    hub.fault("/auth-check/write", status=403, body={"error": "resource group"})
    with pytest.raises(HubError, match=f"give it write access to {REPO}"):
        repository().check()


@pytest.mark.parametrize("status", [404, 405])
def test_a_hub_without_the_auth_check_route_leaves_the_verdict_to_the_write(
    hub: LoopbackHub, folder: Path, status: int
) -> None:
    hub.put(REPO, {})
    hub.fault("/auth-check/write", status=status, body={"error": "no such endpoint"}, times=99)
    repository().check()
    hub.fault("/commit/release", status=403, body={"error": "not yours"}, times=99)
    with pytest.raises(HubError, match=f"not yours; the token may not do this; give it write access to {REPO}"):
        publish(folder)


def test_a_repository_that_the_auth_check_denies_is_a_verdict(hub: LoopbackHub) -> None:
    hub.put(REPO, {})
    hub.fault("/auth-check/write", status=404, headers={"X-Error-Code": "RepoNotFound"})
    with pytest.raises(HubError, match="correct the name"):
        repository().check()


def test_check_passes_for_a_repository_that_can_be_created_and_creates_nothing(hub: LoopbackHub) -> None:
    repository().check()
    assert hub.repos == {}


def test_check_without_a_server_ends_with_one_line(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"check the network.*gave up after attempt 4") as error:
        repository().check()
    assert "\n" not in str(error.value)


def test_check_offline_names_the_variable(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="unset HF_HUB_OFFLINE"):
        repository().check()


def test_an_absent_repository_has_no_tree_and_an_empty_state(hub: LoopbackHub) -> None:
    assert repository().tree("main") is None
    assert repository().state() == HubState(head=None, tree=None, tags={}, branches={})
    assert not repository().holds_release()
    assert repository().mirrored() is None


def test_a_repository_that_the_token_may_not_see_is_no_absent_one(hub: LoopbackHub) -> None:
    hub.create("models", REPO, private=True)
    with pytest.raises(HubError, match="401"):
        repository(token=None).state()


def test_a_tree_gives_the_sha256_of_every_file(hub: LoopbackHub, folder: Path) -> None:
    hub.put(REPO, {path: (folder / path).read_bytes() for path in manifest(folder)})
    assert repository().tree("main") == manifest(folder)
    assert repository().tree("no-such-branch") is None


def test_a_file_changed_on_the_way_is_noticed(hub: LoopbackHub) -> None:
    hub.put(REPO, {"config.json": b"{}"})
    hub.fault("/resolve/.*/config.json", status=200, body="tampered")
    with pytest.raises(IntegrityError, match=r"config\.json"):
        repository().tree("main")


@pytest.mark.parametrize(("files", "tag", "held"), [
    ({"other.txt": b"x"}, None, False), ({"manifest.json": b"x"}, None, True), ({}, "v3", True), ({}, "v3-beta", False),
])
def test_a_release_is_known_by_its_manifest_or_its_tag(
    hub: LoopbackHub, files: dict[str, bytes], tag: str | None, held: bool
) -> None:
    hub.put(REPO, files)
    if tag:
        HfApi(endpoint=hub.url, token=WRITE).create_tag(REPO, tag=tag)
    assert repository().holds_release() is held
