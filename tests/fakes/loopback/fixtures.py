"""A loopback hub that the client and its processes take for the Hub, and a release to publish."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .publishing import release_folder
from .server import LoopbackHub
from .store import WRITE


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
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
