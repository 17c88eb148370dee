import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.core.errors import HubError
from src.core.records import manifest, tree_digest
from tests.fakes.loopback.publishing import BRANCH, REPO, ROOT, Rule, commits_since_main, folder, hub, publish, shown
from tests.fakes.loopback_hub import WRITE, LoopbackHub
from utils.hub.repository import Patience

__all__ = ["folder", "hub"]  # fixtures, found by their names


def test_an_upload_in_which_nothing_moves_is_stopped_and_repeated(hub: LoopbackHub, folder: Path) -> None:
    hub.fault("/_lfs/", delay=30)
    started = time.monotonic()
    release = publish(folder, patience=Patience(deadline=20, request=3, stall=1, attempts=3, backoff=0.02))
    assert commits_since_main(hub) == [release.commit]
    assert time.monotonic() - started < 10


def test_an_upload_ends_at_the_deadline(hub: LoopbackHub, folder: Path) -> None:
    hub.fault("/_lfs/", delay=30, times=99)
    started = time.monotonic()
    with pytest.raises(HubError, match="upload not done within"):
        publish(folder, patience=Patience(deadline=1.5, request=3, stall=30, attempts=3, backoff=0.02))
    assert time.monotonic() - started < 4
    assert commits_since_main(hub) == []


@pytest.fixture
def xet(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """A hub with Xet, and a client that may use it."""
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    hub.xet_sizes = {}
    return hub


def test_a_hub_with_xet_gets_the_data_by_xet(xet: LoopbackHub, folder: Path) -> None:
    release = publish(folder)
    assert xet.requests("POST", "/_cas/v1/xorbs/")
    assert xet.requests("PUT", "/_lfs/") == []
    assert release.tree == tree_digest(manifest(folder))


@pytest.mark.slow
def test_xet_tells_its_progress_where_progress_bars_are_turned_off(
    xet: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for number in range(3):  # a second each for more than a second's worth of patience
        (folder / f"model-{number}.safetensors").write_bytes(os.urandom(70_000_000))
    xet.fault("/_cas/v1/xorbs/", delay=1, times=99)
    publish(folder, patience=Patience(deadline=60, request=3, stall=2.5, attempts=2, backoff=0.02))
    assert xet.requests("PUT", "/_lfs/") == []


@pytest.mark.parametrize("fault", [
    {"path": "/xet-write-token/", "status": 404, "times": 9}, {"path": "/_cas/v1/xorbs/", "delay": 30, "times": 9},
], ids=["hub without Xet", "Xet that hangs"])
def test_lfs_stands_in_for_xet(xet: LoopbackHub, folder: Path, caplog: pytest.LogCaptureFixture, fault: Rule) -> None:
    xet.fault(**fault)
    release = publish(folder, patience=Patience(deadline=20, request=3, stall=1.5, attempts=2, backoff=0.02))
    assert "plain LFS instead" in caplog.text
    assert ("this Hub does not offer Xet; plain LFS instead" in caplog.text) == ("status" in fault)
    assert "check the network" not in caplog.text
    assert commits_since_main(xet) == [release.commit]
    assert xet.requests("PUT", "/_lfs/")


# The upload's process.


def test_a_killed_publisher_leaves_no_upload_behind_and_shows_no_token(hub: LoopbackHub, folder: Path) -> None:
    hub.fault("/_lfs/", delay=30)
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT)
    while not hub.requests("PUT", "/_lfs/"):
        assert parent.poll() is None
        time.sleep(0.02)
    child = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()[0])
    assert b"utils.hub.upload" in Path(f"/proc/{child}/cmdline").read_bytes()
    assert WRITE.encode() not in Path(f"/proc/{child}/cmdline").read_bytes()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hub.faults.clear()
    assert commits_since_main(hub) == []
    release = publish(folder)
    assert commits_since_main(hub) == [release.commit]


def test_an_upload_that_dies_is_a_hub_error(hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(HubError, match="process ended with 1"):
        publish(folder)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


SCRIPT = f"""
import os, sys
from pathlib import Path
from utils.hub.repository import HubRepository, Patience
repository = HubRepository(repo_id={REPO!r}, token=os.environ["HF_TOKEN"], private=True,
                           patience=Patience(40, 10, 30, 10, 0.05))
release = repository.publish(Path(sys.argv[1]), {BRANCH!r}, "Release")
repository.project(release, "v1", {BRANCH!r})
"""


def test_three_publishers_of_one_release_make_one_commit_each_place(hub: LoopbackHub, folder: Path) -> None:
    racers = [subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT) for _ in range(3)]
    assert [racer.wait() for racer in racers] == [0] * 3
    assert shown(hub) == manifest(folder)
    assert len(hub.history(REPO)) == 2
    assert len(hub.history(REPO, "v1")) == 2
    assert len(hub.repos[f"models/{REPO}"]["commits"]) == 3
