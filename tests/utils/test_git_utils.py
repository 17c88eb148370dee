"""Which commit a working tree stands at, seen by real git repositories."""

from pathlib import Path

import pytest

from tests.fakes import scratch_git
from utils import environment
from utils.environment import GitIdentity


def git(folder: Path, *arguments: str) -> str:
    return scratch_git.git("-C", str(folder), *arguments, **scratch_git.MONA)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--initial-branch", "work")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "first")
    return tmp_path


def test_a_folder_outside_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_identity(tmp_path) == GitIdentity(commit="none", dirty=False, branch=None)


def test_a_machine_without_git_has_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert environment.git_identity(repository) == GitIdentity(commit="none", dirty=False, branch=None)


def test_a_repository_without_commits_has_a_branch(tmp_path: Path) -> None:
    git(tmp_path, "init", "--initial-branch", "work")
    assert environment.git_identity(tmp_path) == GitIdentity(commit="none", dirty=False, branch="work")


def test_a_clean_tree_is_its_commit(repository: Path) -> None:
    assert environment.git_identity(repository) == GitIdentity(git(repository, "rev-parse", "HEAD"), dirty=False,
                                                         branch="work")


def test_a_detached_head_has_no_branch(repository: Path) -> None:
    git(repository, "checkout", "--detach")
    assert environment.git_identity(repository).branch is None


@pytest.mark.parametrize(("name", "dirty"), [
    ("params.yaml", True), ("src/new.py", True), ("results/metrics.json", False), ("dvc.lock", False),
])
def test_only_sources_make_a_tree_dirty(repository: Path, name: str, dirty: bool) -> None:
    path = repository / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("changed\n")
    assert environment.git_identity(repository).dirty is dirty
