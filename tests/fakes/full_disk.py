"""A repository whose results/ is a file system of its own, as small as a test asks for."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import tiny_shop
from tests.fakes.faulty_hub import ENOUGH, Resize
from tests.fakes.loopback_hub import LoopbackHub
from tests.fakes.promoted import Shop, set_environment


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Resize]:
    """Gives results/ a file system of this size, or another size to the one that it has."""
    place = tmp_path / "results"
    mounted: list[Path] = []

    def resize(size: str) -> None:
        place.mkdir(exist_ok=True)
        how = ["-o", f"remount,size={size}"] if mounted else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        done = subprocess.run(["mount", *how, str(place)], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(place)

    yield resize
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def weighty_shop(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch, disk: Resize
                 ) -> Iterator[Shop]:
    """A first challenger with true weights, evaluated, on that disk."""
    with LoopbackHub(tmp_path / "hub") as hub:
        set_environment(monkeypatch, tmp_path, hub)
        disk(ENOUGH)
        tiny_shop.make(tmp_path, migrated_store)
        yield Shop(tmp_path, hub)
