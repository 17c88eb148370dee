import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from src.core.errors import HubError, IntegrityError
from src.core.records import manifest, tree_digest
from src.ledger.slots import HubRef
from tests.fakes.loopback.publishing import BRANCH, REPO, commits_since_main, folder, hub, publish, repository, shown
from tests.fakes.loopback_hub import WRITE, LoopbackHub
from utils.hub.repository import Patience

__all__ = ["folder", "hub"]  # fixtures, found by their names
COMMIT = "/commit/release/"


def test_publish_makes_a_private_repository_and_one_commit(hub: LoopbackHub, folder: Path) -> None:
    release = publish(folder)
    assert release == HubRef(repo=REPO, commit=hub.history(REPO, BRANCH)[0], tree=tree_digest(manifest(folder)))
    assert hub.repos[f"models/{REPO}"]["private"]
    assert shown(hub, BRANCH) == manifest(folder)
    assert commits_since_main(hub) == [release.commit]
    assert ".gitattributes" in hub.files(REPO, BRANCH)
    assert shown(hub) == {}


def test_publishing_again_changes_nothing_before_main_shows_it_nor_after(hub: LoopbackHub, folder: Path) -> None:
    release = publish(folder)
    assert publish(folder) == release
    assert len(hub.requests("POST", COMMIT)) == 1
    repository().project(release, "v1", BRANCH)
    assert publish(folder) == release
    assert BRANCH not in repository().state().branches


def test_publish_deletes_stale_files_in_the_same_commit(hub: LoopbackHub, folder: Path) -> None:
    hub.put(REPO, {"model-00002-of-00002.safetensors": b"old", "config.json": b"old"})
    publish(folder)
    assert shown(hub, BRANCH) == manifest(folder)
    assert len(commits_since_main(hub)) == 1


def test_a_release_that_changed_replaces_our_own_commit(hub: LoopbackHub, folder: Path) -> None:
    publish(folder)
    (folder / "README.md").write_text("another verdict")
    publish(folder)
    assert shown(hub, BRANCH) == manifest(folder)
    assert len(commits_since_main(hub)) == 2


def test_a_branch_with_foreign_content_is_refused(hub: LoopbackHub, folder: Path) -> None:
    publish(folder)
    foreign = hub.put(REPO, {"notes.txt": b"mine"}, BRANCH)
    with pytest.raises(HubError, match=f"somebody else, {foreign}.*delete the branch"):
        publish(folder)
    assert hub.history(REPO, BRANCH)[0] == foreign


def test_a_branch_left_at_an_older_main_is_taken_up(hub: LoopbackHub, folder: Path) -> None:
    hub.put(REPO, {"config.json": b"old"})
    HfApi(endpoint=hub.url, token=WRITE).create_branch(REPO, branch=BRANCH)
    hub.put(REPO, {"config.json": b"new"})
    assert publish(folder).tree == tree_digest(manifest(folder))


def test_what_is_read_back_must_be_what_was_sent(hub: LoopbackHub, folder: Path) -> None:
    hub.fault("/revision/[0-9a-f]{40}", status=200, body={"id": REPO, "sha": "0" * 40, "siblings": []})
    with pytest.raises(IntegrityError, match=r"README\.md, config\.json.*differ from the manifest"):
        publish(folder)


RECOVERED: Mapping[str, dict[str, Any]] = {
    "repository 500": {"path": "/repos/create", "status": 500},
    "repository made, answer lost": {"path": "/repos/create", "after": True, "close": True},
    "repository being made": {"path": "/repos/create", "status": 409, "body": {
        "error": "Cannot create repo: another conflicting operation is in progress"}},
    "branch 409": {"path": "/branch/", "status": 409},
    "preupload 503": {"path": "/preupload/", "status": 503},
    "data 500": {"path": "/_lfs/", "status": 500},
    "data reset": {"path": "/_lfs/", "reset": True},
    "commit 500": {"path": COMMIT, "status": 500},
    "commit made, then 500": {"path": COMMIT, "status": 500, "after": True},
    "commit 429": {"path": COMMIT, "status": 429, "headers": {"Retry-After": "1"}},
    "commit reset": {"path": COMMIT, "reset": True},
    "commit made, answer lost": {"path": COMMIT, "after": True, "close": True},
    "commit 409 lock": {"path": COMMIT, "status": 409, "body": {"error": "Another commit operation is in progress"}},
    "read-back 502 page": {"path": "/revision/[0-9a-f]{40}", "status": 502, "body": "<html>bad gateway</html>"},
}


@pytest.mark.parametrize("name", RECOVERED)
def test_publish_recovers_with_exactly_one_commit(
    hub: LoopbackHub, folder: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    rule = hub.fault(**RECOVERED[name])
    release = publish(folder)
    assert rule.seen >= 1
    assert commits_since_main(hub) == [release.commit]
    assert shown(hub, BRANCH) == manifest(folder)
    assert WRITE not in caplog.text


def test_a_stale_parent_on_the_release_branch_is_somebody_elses_commit(hub: LoopbackHub, folder: Path) -> None:
    hub.fault(COMMIT, intrude={"repo": REPO, "branch": BRANCH, "files": {"other.txt": "x"}})
    with pytest.raises(HubError, match="somebody else"):
        publish(folder)
    assert "model.safetensors" not in hub.files(REPO, BRANCH)


@pytest.mark.parametrize(("status", "words"), [
    (400, "correct it"), (401, "wrong or has expired"), (403, f"write access to {REPO}"), (404, "correct the name")])
def test_publish_stops_where_repeating_is_no_use(hub: LoopbackHub, folder: Path, status: int, words: str) -> None:
    hub.fault(COMMIT, status=status, times=9, body={"error": f"token {WRITE} refused"})
    with pytest.raises(HubError, match=words) as error:
        publish(folder)
    assert WRITE not in str(error.value)
    assert "\n" not in str(error.value)
    assert len(hub.requests("POST", COMMIT)) == 1
    assert commits_since_main(hub) == []


def test_a_card_that_the_hub_refuses_is_named(hub: LoopbackHub, folder: Path) -> None:
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(HubError, match=r"Invalid metadata in README\.md"):
        publish(folder)


def test_a_server_that_never_recovers_is_given_up(hub: LoopbackHub, folder: Path) -> None:
    hub.fault(COMMIT, status=503, times=99)
    with pytest.raises(HubError, match=r"503.*gave up after attempt 2"):
        publish(folder, patience=Patience(deadline=20, request=3, stall=3, attempts=2, backoff=0.02))
    assert commits_since_main(hub) == []


def test_a_pause_that_the_server_names_is_kept(hub: LoopbackHub) -> None:
    hub.fault("/revision/", status=429, headers={"Retry-After": "1"})
    started = time.monotonic()
    assert repository().tree("main") is None
    assert time.monotonic() - started >= 1


def test_a_pause_beyond_the_deadline_is_not_waited_for(hub: LoopbackHub) -> None:
    hub.fault("/revision/", status=429, headers={"Retry-After": "3600"}, times=99)
    started = time.monotonic()
    with pytest.raises(HubError, match="429"):
        repository().tree("main")
    assert time.monotonic() - started < 3


def test_a_hung_server_costs_no_more_than_the_deadline(hub: LoopbackHub) -> None:
    hub.fault("/api/models", delay=30, times=99)
    started = time.monotonic()
    with pytest.raises(HubError, match="no answer"):
        repository(patience=Patience(deadline=1, request=0.4, stall=1, attempts=9, backoff=0.02)).state()
    assert time.monotonic() - started < 3
