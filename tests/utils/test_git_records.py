"""The records of a run as a commit on its branch, whatever happens to the branch meanwhile: with real git."""

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import pipeline_script
from src.core.errors import RunAgain
from tests.fakes.promoted import run
from tests.fakes.scratch_git import EVIL, MONA, git, write
from utils import git_utils, github_utils


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runner's clone, one commit deep, of a branch that a colleague works on beside it; a run has left records."""
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    origin, mona = tmp_path / "origin.git", tmp_path / "mona"
    git("init", "-q", "--bare", "-b", "main", str(origin))
    git("clone", "-q", f"file://{origin}", str(mona))
    monkeypatch.chdir(mona)
    for name in ("params.yaml", "code.py", "dvc.lock", "results/a.json"):
        write(name, "old\n")
    write(".gitignore", "/results/adapter\n")
    colleague("first")
    git("clone", "-q", "--depth=1", f"file://{origin}", str(tmp_path / "runner"))
    monkeypatch.chdir(tmp_path / "runner")
    write("dvc.lock", "new\n")
    write("results/b.json", "new\n")
    write("results/adapter/weights", "large")
    write("code.py", "what a stage left behind\n")
    return tmp_path


def colleague(message: str, **author: str) -> None:
    git("add", "-A", "--force", ".")
    git("commit", "-q", "-m", message, **(author or MONA))
    git("push", "-q", "origin", "HEAD:main")


def beside(clone: Path, monkeypatch: pytest.MonkeyPatch, *names: str, **author: str) -> None:
    """Somebody pushes these files while the pipeline runs."""
    monkeypatch.chdir(clone / "mona")
    git("pull", "-q", "--rebase", "origin", "main")
    for name in names:
        write(name, f"theirs {name}\n")
    colleague("meanwhile", **author)
    monkeypatch.chdir(clone / "runner")


def on_main(clone: Path, name: str) -> str:
    return git("-C", str(clone / "origin.git"), "show", f"main:{name}")


def test_the_lock_and_the_small_results_are_committed_and_nothing_else(clone: Path) -> None:
    made = git_utils.commit_records("main", f"Subject\n\n{EVIL}\n")
    changed = git("-C", str(clone / "origin.git"), "show", "--name-only", "--format=%H %an%n%B", "main")
    assert changed.split("\n") == [f"{made} github-actions[bot]", "Subject", "", EVIL, "", "", "dvc.lock",
                                   "results/b.json"]
    assert git_utils.commit_records("main", "Again") is None  # though the clone still stands at the first commit


def test_work_that_came_in_meanwhile_stays(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(clone, monkeypatch, "code.py")
    assert git_utils.commit_records("main", "Records")
    assert (on_main(clone, "code.py"), on_main(clone, "dvc.lock")) == ("theirs code.py", "new")


def test_an_earlier_runs_records_give_way(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, email = git_utils.BOT
    beside(clone, monkeypatch, "dvc.lock", "results/b.json", GIT_AUTHOR_NAME=name, GIT_AUTHOR_EMAIL=email,
           GIT_COMMITTER_NAME=name, GIT_COMMITTER_EMAIL=email)
    assert git_utils.commit_records("main", "Records")
    assert (on_main(clone, "dvc.lock"), on_main(clone, "results/b.json")) == ("new", "new")


def test_records_that_somebody_changed_meanwhile_are_left_to_them(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(clone, monkeypatch, "results/a.json")
    with pytest.raises(RunAgain, match=r"main: somebody changed dvc.lock or results while the pipeline ran"):
        git_utils.commit_records("main", "Records")
    assert on_main(clone, "dvc.lock") == "old"


def test_a_branch_that_is_gone_gets_no_records(clone: Path) -> None:
    assert git_utils.commit_records("other", "Records") is None


def hook(clone: Path, text: str) -> None:
    path = clone / "origin.git/hooks/pre-receive"
    path.write_text(f"#!/bin/sh\nunset GIT_QUARANTINE_PATH GIT_DIR\n{text}\n")
    path.chmod(0o755)


def racing(clone: Path, times: int) -> None:
    """A colleague's push is quicker than ours, so many times."""
    commit = f"git -C {clone}/origin.git commit-tree 'main^{{tree}}' -p main -m race"
    names = " ".join(f"{name}={value}" for name, value in MONA.items())
    hook(clone, f"n=$(ls {clone}/lost-* 2>/dev/null | wc -l)\nif [ $n -lt {times} ]; then touch {clone}/lost-$n; "
                f"unset GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES; "
                f"git -C {clone}/origin.git update-ref refs/heads/main $({names} {commit}); fi; exit 0")


def test_a_lost_race_is_run_again_on_top_of_the_winner(clone: Path) -> None:
    racing(clone, 2)
    assert git_utils.commit_records("main", "Records")
    assert len(list(clone.glob("lost-*"))) == 2
    assert git("-C", str(clone / "origin.git"), "log", "--format=%s", "main").split("\n") == [
        "Records", "race", "race", "first"]


def rewritten(clone: Path) -> None:
    git("-C", str(clone / "mona"), "commit", "-q", "--amend", "-m", "other", **MONA)
    git("-C", str(clone / "mona"), "push", "-q", "--force", "origin", "main")


@pytest.mark.parametrize(("disturb", "said"), [
    (rewritten, "main: was rewritten while the pipeline ran"),
    (lambda clone: racing(clone, 99), "main: moved on 5 times"),
    (lambda clone: hook(clone, "echo 'protected branch' >&2; exit 1"), "push: .*protected branch.*let github-actions"),
], ids=["rewritten", "races without end", "protected"])
def test_a_branch_that_takes_no_records_is_told(clone: Path, disturb: Callable[[Path], None], said: str) -> None:
    disturb(clone)
    with pytest.raises(RunAgain, match=said):
        git_utils.commit_records("main", "Records")


def test_the_token_reaches_git_in_its_environment_alone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghs_secret")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com/")
    said = git("config", "--get-urlmatch", "http.extraheader", "https://github.com/acme/shop",
               **git_utils._credentials())
    assert said == "AUTHORIZATION: basic eC1hY2Nlc3MtdG9rZW46Z2hzX3NlY3JldA=="
    git_utils.commit_records("main", "Records")
    assert not [path for path in (clone / "runner/.git").rglob("*")
                if path.is_file() and (b"ghs_secret" in path.read_bytes() or b"eC1hY2Nl" in path.read_bytes())]


def test_a_run_with_parameters_of_its_own_leaves_no_records(
        clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GITHUB_REF_NAME", "main")
    monkeypatch.setenv(github_utils.THRESHOLD, "0.5")
    write("params.yaml", "profile: pocket\nprofiles: {}\n")
    assert run(pipeline_script, "commit") == 0
    assert capsys.readouterr().out == (
        "records: not committed: run with deployment.min_improvement_threshold=0.5\n")
    assert on_main(clone, "dvc.lock") == "old"


def test_the_commit_says_how_the_run_ended(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("results/deployment/deployment_info.json", '{"result": "kept", "reason": "not_best"}')
    monkeypatch.setenv("GITHUB_REF_NAME", "main")
    assert run(pipeline_script, "commit") == 0
    assert git("-C", str(clone / "origin.git"), "log", "-1", "--format=%s", "main") == (
        "Record the pipeline's run: kept (not_best)")
