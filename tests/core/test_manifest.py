"""A folder as digests of its files."""

import hashlib
import os
from pathlib import Path

import pytest

from src.core.errors import IntegrityError
from src.core.records import file_sha256, manifest, tree_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.json").write_bytes(b"{}")
    (tmp_path / "sub" / "a.bin").write_bytes(b"\x00" * 3_000_000)
    return tmp_path


def test_an_empty_folder_and_an_absent_one_hold_no_file(tmp_path: Path) -> None:
    (tmp_path / "only" / "folders").mkdir(parents=True)
    for path in (tmp_path / "only", tmp_path / "absent"):
        with pytest.raises(IntegrityError, match="holds no file"):
            manifest(path)


@pytest.mark.parametrize("target", ["b.json", "sub", "absent", "/etc/hostname"])
def test_a_link_is_refused_wherever_it_points(folder: Path, target: str) -> None:
    (folder / "sub" / "link").symlink_to(target)
    with pytest.raises(IntegrityError, match="sub/link: is a link"):
        manifest(folder)


def test_any_changed_byte_name_or_place_changes_the_digest(folder: Path) -> None:
    seen = {tree_digest(manifest(folder))}
    for change in (lambda: (folder / "b.json").write_bytes(b"{ }"),
                   lambda: (folder / "b.json").rename(folder / "c.json"),
                   lambda: (folder / "c.json").rename(folder / "sub" / "c.json"), (folder / ".hidden").touch):
        change()
        seen.add(tree_digest(manifest(folder)))
    assert len(seen) == 5


def test_time_mode_and_order_of_writing_change_nothing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "sub").mkdir()
    (other / "sub" / "a.bin").write_bytes(b"\x00" * 3_000_000)
    (other / "b.json").write_bytes(b"{}")
    (other / "b.json").chmod(0o600)
    os.utime(other / "b.json", (1, 1))
    (other / "empty").mkdir()
    assert manifest(folder) == manifest(other)


def test_paths_are_posix_sorted_and_digests_sha256(folder: Path) -> None:
    found = manifest(folder)
    assert list(found) == ["b.json", "sub/a.bin"]
    assert found["b.json"] == hashlib.sha256(b"{}").hexdigest() == file_sha256(folder / "b.json")
    assert tree_digest(found) == tree_digest(dict(reversed(found.items())))


def test_a_name_that_is_not_utf8_has_a_digest_of_its_own(folder: Path) -> None:
    before = tree_digest(manifest(folder))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n.txt")).touch()
    assert tree_digest(manifest(folder)) != before
