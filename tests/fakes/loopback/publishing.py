"""Short-hands of the tests that publish to the loopback hub, and its fixtures, to be imported by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.core.records import manifest, tree_digest
from src.ledger.slots import HubRef
from tests.fakes.loopback.server import LoopbackHub
from tests.fakes.loopback.store import WRITE
from utils.hub.repository import HubRepository, Patience

REPO = "acme/shop"
BRANCH = "release/0123456789ab"
ROOT = Path(__file__).parents[3]
QUICK = Patience(deadline=120, request=30, stall=30, attempts=4, backoff=0.02)
Rule = dict[str, Any]


def release_folder(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    for name, data in {"model.safetensors": weights, "config.json": b"{}", "README.md": b"---\nlicense: mit\n---\nx",
                       "manifest.json": weights}.items():
        (folder / name).write_bytes(data)
    return folder


def repository(*, token: str | None = WRITE, repo: str = REPO, patience: Patience = QUICK) -> HubRepository:
    return HubRepository(repo_id=repo, token=token, private=True, patience=patience)


def publish(folder: Path, patience: Patience = QUICK) -> HubRef:
    return repository(patience=patience).publish(folder, BRANCH, "release 0123456789ab")


def put(hub: LoopbackHub, folder: Path) -> HubRef:
    """What publish leaves, without its process."""
    oid = hub.put(REPO, {path: (folder / path).read_bytes() for path in manifest(folder)}, BRANCH)
    return HubRef(repo=REPO, commit=oid, tree=tree_digest(manifest(folder)))


def shown(hub: LoopbackHub, revision: str = "main") -> dict[str, str]:
    return {path: digest for path, digest in hub.files(REPO, revision).items() if path != ".gitattributes"}


def commits_since_main(hub: LoopbackHub) -> list[str]:
    return [oid for oid in hub.history(REPO, BRANCH) if oid not in hub.history(REPO)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Taken for the Hub by the client and its processes."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # read at import: this concerns the upload's process alone
    monkeypatch.setenv("HF_TOKEN", WRITE)
    with LoopbackHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return release_folder(tmp_path / "release", b"weights")
