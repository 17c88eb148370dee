import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError

from tests.fakes.loopback_hub import READ, SCOPED, UNKNOWN, WRITE, LoopbackHub

REPO = "acme/shop"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=WRITE)


def commit(api: HfApi, files: Mapping[str, bytes | Path], *, parent: str | None = None, branch: str = "main") -> str:
    return api.create_commit(REPO, [CommitOperationAdd(path, data) for path, data in files.items()],
                             commit_message="test", parent_commit=parent, revision=branch).oid


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_an_unknown_token_is_told_so(hub: LoopbackHub) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(endpoint=hub.url, token=UNKNOWN).whoami()
    assert status(error) == 401


def test_a_read_only_token_reads_and_does_not_write(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO, private=True)
    reader = HfApi(endpoint=hub.url, token=READ)
    assert reader.list_repo_files(REPO) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError) as error:
        reader.create_tag(REPO, tag="v1")
    assert status(error) == 403


def test_a_scoped_token_writes_to_its_repository_alone(hub: LoopbackHub, api: HfApi) -> None:
    scoped = HfApi(endpoint=hub.url, token=SCOPED)
    for name in (REPO, "acme/scoped"):
        api.create_repo(name)
    scoped.auth_check("acme/scoped", write=True)
    with pytest.raises(HfHubHTTPError) as error:
        scoped.auth_check(REPO, write=True)
    assert status(error) == 403


def test_a_private_repository_is_hidden_from_strangers(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO, private=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info(REPO)


def test_a_stale_parent_is_refused_and_changes_nothing(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    first = api.model_info(REPO).sha
    second = commit(api, {"a.txt": b"a"}, parent=first)
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, {"b.txt": b"b"}, parent=first)
    assert (status(error), hub.history(REPO)) == (412, [second, first])


def test_of_four_writers_on_one_parent_one_wins(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    parent = api.model_info(REPO).sha

    def write(number: int) -> str | int:
        try:
            return commit(api, {f"{number}.txt": b"x"}, parent=parent)
        except HfHubHTTPError as error:
            return error.response.status_code

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(write, range(4)))
    assert sorted(map(str, outcomes))[:3] == ["412"] * 3
    assert len(hub.history(REPO)) == 2


def test_an_lfs_object_that_was_never_sent_cannot_be_committed(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    lines = [{"key": "header", "value": {"summary": "x"}},
             {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}]
    answer = httpx2.post(f"{hub.url}/api/models/{REPO}/commit/main", headers={"Authorization": f"Bearer {WRITE}"},
                         content="\n".join(map(json.dumps, lines)))
    assert answer.status_code == 400


def test_an_lfs_object_with_other_bytes_is_refused(hub: LoopbackHub) -> None:
    assert httpx2.put(f"{hub.url}/_lfs/{'0' * 64}", content=b"other").status_code == 400
    assert not hub.blob("0" * 64).exists()


def test_a_commit_adds_copies_and_deletes(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    first = commit(api, {"a.txt": b"text", "w.safetensors": b"weights"})
    api.create_commit(REPO, [CommitOperationCopy("a.txt", "b.txt", src_revision=first),
                             CommitOperationCopy("w.safetensors", "v.safetensors", src_revision=first),
                             CommitOperationDelete("a.txt"), CommitOperationDelete("w.safetensors")],
                      commit_message="rename")
    files = api.list_repo_files(REPO)
    assert sorted(files) == [".gitattributes", "b.txt", "v.safetensors"]
    assert Path(api.hf_hub_download(REPO, "v.safetensors")).read_bytes() == b"weights"
    assert Path(api.hf_hub_download(REPO, "b.txt")).read_bytes() == b"text"


def test_deleting_an_absent_file_is_an_error(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("none.txt")], commit_message="x")


def test_a_large_file_goes_up_in_parts_and_comes_down_whole(hub: LoopbackHub, api: HfApi, tmp_path: Path) -> None:
    hub.multipart_over, hub.part_size = 1_000_000, 400_000
    data = os.urandom(1_100_000)
    (tmp_path / "w.safetensors").write_bytes(data)
    api.create_repo(REPO)
    oid = commit(api, {"w.safetensors": tmp_path / "w.safetensors"})
    assert len(hub.requests("PUT", "/_lfs/")) == 3
    assert Path(api.hf_hub_download(REPO, "w.safetensors", revision=oid)).read_bytes() == data


def test_what_the_client_lists_is_what_was_committed(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    oid = commit(api, {"folder/a.txt": b"a", "w.safetensors": b"w"})
    tree = {entry.path: getattr(entry, "lfs", None) for entry in api.list_repo_tree(REPO, recursive=True)}
    assert set(tree) == {".gitattributes", "folder", "folder/a.txt", "w.safetensors"}
    assert [lfs.sha256 for lfs in tree.values() if lfs] == [hub.files(REPO)["w.safetensors"]]
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == hub.history(REPO)
    assert api.list_repo_commits(REPO)[0].commit_id == oid


def test_branches_and_tags_are_made_once_and_deleted(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    head = api.model_info(REPO).sha
    api.create_branch(REPO, branch="release/abc")
    api.create_tag(REPO, tag="v1", revision=head)
    for again in (lambda: api.create_branch(REPO, branch="release/abc"), lambda: api.create_tag(REPO, tag="v1"),
                  lambda: api.create_repo(REPO)):
        with pytest.raises(HfHubHTTPError) as error:
            again()
        assert status(error) == 409
    refs = api.list_repo_refs(REPO)
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", head)]
    api.delete_branch(REPO, branch="release/abc")
    assert [ref.name for ref in api.list_repo_refs(REPO).branches] == ["main"]


def test_a_card_with_broken_metadata_is_refused(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    with pytest.raises(ValueError, match="Invalid metadata"):
        commit(api, {"README.md": b"---\na: [\n---\n"})


@pytest.mark.parametrize("repo_type", ["dataset", "space"])
def test_other_kinds_of_repository_are_apart(hub: LoopbackHub, api: HfApi, repo_type: str) -> None:
    api.create_repo(REPO, repo_type=repo_type, space_sdk="static" if repo_type == "space" else None)
    assert api.repo_info(REPO, repo_type=repo_type).sha
    assert not api.repo_exists(REPO)
    api.delete_repo(REPO, repo_type=repo_type)
    assert not api.repo_exists(REPO, repo_type=repo_type)


def test_a_fault_hits_the_requests_that_its_rule_names(hub: LoopbackHub, api: HfApi) -> None:
    hub.fault("/whoami", method="GET", nth=2, times=2, status=503, headers={"Retry-After": "1"}, body={"error": "busy"})
    seen = [httpx2.get(f"{hub.url}/api/whoami-v2", headers={"Authorization": f"Bearer {WRITE}"}) for _ in range(4)]
    assert [answer.status_code for answer in seen] == [200, 503, 503, 200]
    assert seen[1].headers["Retry-After"] == "1"


def test_a_lost_reply_comes_after_the_work(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.fault("/commit/", after=True, close=True)
    with pytest.raises(httpx2.RemoteProtocolError):
        commit(api, {"a.txt": b"a"})
    assert "a.txt" in hub.files(REPO)


def test_a_reset_comes_before_the_work(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.fault("/commit/", reset=True)
    with pytest.raises(httpx2.TransportError):  # which one depends on who is faster
        commit(api, {"a.txt": b"a"})
    assert len(hub.history(REPO)) == 1


def test_an_intruder_makes_the_parent_stale(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    parent = api.model_info(REPO).sha
    hub.fault("/commit/", intrude={"repo": REPO, "files": {"other.txt": "x"}})
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, {"a.txt": b"a"}, parent=parent)
    assert status(error) == 412


def test_a_slow_body_drips(hub: LoopbackHub) -> None:
    hub.fault("/api/", drip=0.02)
    started = time.monotonic()
    assert httpx2.get(f"{hub.url}/api/none").status_code == 404
    assert time.monotonic() - started > 0.2


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """The address of a hub in a process of its own."""
    process = subprocess.Popen([sys.executable, "tests/fakes/loopback_hub.py", "--port", "0", "--root", str(root)],
                               stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_on_its_own_it_keeps_its_content_and_takes_rules_over_http(tmp_path: Path) -> None:
    with serving(tmp_path) as url:
        HfApi(endpoint=url, token=WRITE).create_repo(REPO)
        httpx2.post(f"{url}/_faults", json=[{"path": "/refs", "status": 500}])
        with pytest.raises(HfHubHTTPError):
            HfApi(endpoint=url, token=WRITE).list_repo_refs(REPO)
        assert httpx2.get(f"{url}/_log").json()[-1] == {"method": "GET", "path": f"/api/models/{REPO}/refs",
                                                        "status": 500, "bytes": 0}
        assert httpx2.delete(f"{url}/_faults").json() == []
    with serving(tmp_path) as url:
        assert HfApi(endpoint=url, token=WRITE).list_repo_files(REPO) == [".gitattributes"]


def test_many_requests_at_once_are_all_answered(hub: LoopbackHub, api: HfApi) -> None:
    api.create_repo(REPO)
    barrier = threading.Barrier(16)

    def ask(_: int) -> int:
        barrier.wait()
        return httpx2.get(f"{hub.url}/api/models/{REPO}").status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(16))) == {200}
