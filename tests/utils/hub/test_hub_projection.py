from pathlib import Path

import pytest
from huggingface_hub import HfApi

from src.core.errors import HubError, IntegrityError
from src.core.records import manifest
from src.ledger.ports import HubState
from src.ledger.slots import HubRef
from tests.fakes.loopback.publishing import BRANCH, REPO, Rule, folder, hub, put, release_folder, repository, shown
from tests.fakes.loopback_hub import WRITE, LoopbackHub

__all__ = ["folder", "hub"]  # fixtures, found by their names


@pytest.fixture
def release(hub: LoopbackHub, folder: Path) -> HubRef:
    return put(hub, folder)


def project(release: HubRef, tag: str = "v1") -> None:
    repository().project(release, tag, BRANCH)


def settled(hub: LoopbackHub, folder: Path, release: HubRef) -> None:
    assert shown(hub) == manifest(folder)
    head, _ = hub.history(REPO)
    assert repository().state() == HubState(head, release.tree, {"v1": release.commit}, {"main": head})


def test_project_shows_the_release_on_main_tags_it_removes_the_branch_and_does_nothing_twice(
    hub: LoopbackHub, folder: Path, release: HubRef
) -> None:
    project(release)
    settled(hub, folder, release)
    assert ".gitattributes" in hub.files(REPO)
    hub.log.clear()
    project(release)
    assert {entry["method"] for entry in hub.log} == {"GET"}
    settled(hub, folder, release)


def test_project_needs_no_local_file_and_sends_no_weights(hub: LoopbackHub, folder: Path, release: HubRef) -> None:
    expected = manifest(folder)
    for path in expected:
        (folder / path).unlink()
    hub.log.clear()
    project(release)
    assert shown(hub) == expected
    assert hub.requests("PUT", "/_lfs/") == []


def test_a_rollback_shows_the_older_release_bit_for_bit(
    hub: LoopbackHub, folder: Path, release: HubRef, tmp_path: Path
) -> None:
    project(release)
    newer = put(hub, release_folder(tmp_path / "newer", b"other weights"))
    project(newer, "v2")
    project(release)
    assert shown(hub) == manifest(folder)
    assert repository().state().tags == {"v1": release.commit, "v2": newer.commit}


def test_files_of_somebody_else_on_main_go_in_the_same_commit(hub: LoopbackHub, folder: Path, release: HubRef) -> None:
    hub.put(REPO, {"old-shard.safetensors": b"x", "notes.txt": b"x"})
    project(release)
    assert shown(hub) == manifest(folder)
    assert len(hub.history(REPO)) == 3


def test_a_tag_never_moves(hub: LoopbackHub, release: HubRef) -> None:
    HfApi(endpoint=hub.url, token=WRITE).create_tag(REPO, tag="v1", revision="main")
    with pytest.raises(IntegrityError, match="tags never move"):
        project(release)
    assert shown(hub) == {}
    assert hub.repos[f"models/{REPO}"]["tags"]["v1"] == hub.history(REPO)[0]


def test_a_branch_that_has_moved_on_is_kept(hub: LoopbackHub, release: HubRef) -> None:
    hub.put(REPO, {"notes.txt": b"x"}, BRANCH)
    project(release)
    assert BRANCH in repository().state().branches


def test_a_release_whose_commit_is_gone_is_an_integrity_error(hub: LoopbackHub, release: HubRef) -> None:
    with pytest.raises(IntegrityError, match="is gone"):
        project(HubRef(repo=REPO, commit="0" * 40, tree=release.tree), tag="v2")


def test_a_stale_parent_on_main_is_settled_by_another_look(hub: LoopbackHub, folder: Path, release: HubRef) -> None:
    hub.fault("/commit/main", intrude={"repo": REPO, "files": {"other.txt": "x"}})
    project(release)
    assert shown(hub) == manifest(folder)
    assert [entry["status"] for entry in hub.requests("POST", "/commit/main")] == [412, 200]


@pytest.mark.parametrize("fault", [
    {"reset": True}, {"after": True, "close": True}, {"status": 409, "body": {"error": "Another commit operation"}},
    {"status": 500, "after": True, "times": 2},
], ids=["reset", "lost reply", "409 lock", "500 after the work, twice"])
def test_project_recovers_from_a_fault_at_each_of_its_requests(
    hub: LoopbackHub, folder: Path, release: HubRef, fault: Rule
) -> None:
    content = hub.repos[f"models/{REPO}"]
    before = {key: dict(content[key]) for key in ("commits", "branches", "tags")}
    hub.log.clear()
    project(release)
    for nth in range(1, len(hub.log) + 1):
        hub.repos[f"models/{REPO}"].update({key: dict(value) for key, value in before.items()})
        hub.faults.clear()
        hub.fault("^/(api/models|acme)", nth=nth, **fault)
        project(release)
        settled(hub, folder, release)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_project_stops_where_repeating_is_no_use(hub: LoopbackHub, release: HubRef, status: int) -> None:
    hub.fault("/commit/main", status=status, times=9)
    with pytest.raises(HubError):
        project(release)
    assert len(hub.requests("POST", "/commit/main")) == 1
    assert (shown(hub), repository().state().tags) == ({}, {})


# The mirror.


def test_mirroring_what_is_there_makes_no_commit_and_other_lines_are_refused(hub: LoopbackHub) -> None:
    repository().mirror(["1", "2"])
    hub.log.clear()
    repository().mirror(["1", "2"])
    repository().mirror(["1"])
    assert hub.requests("POST", "/commit/") == []
    with pytest.raises(IntegrityError, match="does not continue"):
        repository().mirror(["1", "other", "3"])
    assert repository().mirrored() == ["1", "2"]


def test_a_lost_reply_leaves_one_commit_on_the_mirror(hub: LoopbackHub) -> None:
    hub.fault("/commit/ledger", after=True, close=True)
    repository().mirror(["1"])
    assert len(hub.history(REPO, "ledger")) == 2
