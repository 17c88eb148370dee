"""One comment on the pull request, found again and updated, and never a reason to fail."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import summary_script
from src.core.errors import InvalidParams
from src.report.summary import MARKER
from tests.fakes.loopback_github import BOT, REPO, LoopbackGithub, started
from tests.fakes.promoted import run

Comment = Callable[[], str]


@pytest.fixture
def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackGithub]:
    """The API, and a job about branch `feature` in a folder without results."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").touch()
    for name in ("GITHUB_EVENT_PATH", "PIPELINE_OUTCOME", "GITHUB_SERVER_URL", "GITHUB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for github in started():
        for name, value in {**github.environment(), "GITHUB_REF_NAME": "feature"}.items():
            monkeypatch.setenv(name, value)
        yield github


@pytest.fixture
def comment(capsys: pytest.CaptureFixture[str]) -> Comment:
    """Run the script, which succeeds; returns what it says."""

    def commented() -> str:
        assert run(summary_script, "--comment") == 0
        return capsys.readouterr().out.strip()

    return commented


@pytest.mark.usefixtures("github")
@pytest.mark.parametrize("name", ["GITHUB_TOKEN", "GITHUB_REPOSITORY"])
def test_a_missing_variable_is_named(name: str, comment: Comment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(InvalidParams, match=f"^{name}: not set"):
        comment()


@pytest.mark.parametrize(("status", "words"), [(403, "403 Forbidden; .*from a fork"), (404, "404 Not Found; .*write")])
def test_a_comment_that_is_refused_costs_a_warning_and_no_promotion(
    github: LoopbackGithub, comment: Comment, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    github.refuse = status
    assert comment() == ""
    (record,) = caplog.records
    assert (record.levelname, "\n" in record.message) == ("WARNING", False)
    assert re.search(f"comment: not written: .*{words}", record.message)


@pytest.mark.usefixtures("github")
@pytest.mark.parametrize(("setting", "said"), [
    ("GITHUB_API_URL=http://127.0.0.1:9", "check GITHUB_API_URL"), ("GITHUB_API_URL=nowhere", "check GITHUB_API_URL"),
    ("GITHUB_TOKEN=ghs_another-canary", "401 Unauthorized; the token is wrong")])
def test_a_github_that_cannot_be_asked_costs_a_warning_that_shows_no_token(
    setting: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(*setting.split("="))
    assert run(summary_script, "--comment") == 0
    assert "not written" in caplog.text
    assert said in caplog.text
    assert "canary" not in caplog.text


def test_a_branch_without_a_pull_request_has_nothing_to_comment_on(github: LoopbackGithub, comment: Comment,
    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_REF_NAME", "main")
    assert comment() == "comment: no open pull request of branch main, so nothing to comment on"
    assert len(github.asked) == 1


def test_the_second_comment_takes_the_place_of_the_first(github: LoopbackGithub, comment: Comment) -> None:
    github.add("A person's words.", "alice")
    assert comment() == f"comment: https://github.com/{REPO}/pull/7#issuecomment-2"
    github.comments[1]["body"] = f"{MARKER}\nold"
    comment()
    assert [(each["user"]["login"], each["body"][:len(MARKER)]) for each in github.comments] == [
        ("alice", "A person's words."[:len(MARKER)]), (BOT, MARKER)]
    assert "Nothing to summarise" in github.comments[1]["body"]
    assert [line.partition("?")[0] for line in github.asked[-4:]] == [
        f"GET /repos/{REPO}/pulls", "GET /user", f"GET /repos/{REPO}/issues/7/comments",
        f"PATCH /repos/{REPO}/issues/comments/2"]


def test_a_marker_by_somebody_else_is_no_comment_of_ours(github: LoopbackGithub, comment: Comment) -> None:
    github.add(f"{MARKER}\nPromoted, trust me", "mallory")
    github.add(f"{MARKER}\nby an account that is gone", None)
    comment()
    assert [each["user"] for each in github.comments] == [{"login": "mallory"}, None, {"login": BOT}]
    assert github.comments[0]["body"].endswith("trust me")


def test_a_personal_token_finds_its_own_comment(github: LoopbackGithub, comment: Comment) -> None:
    github.login = "alice"
    comment()
    comment()
    assert [each["user"]["login"] for each in github.comments] == ["alice"]


def test_a_comment_behind_a_hundred_others_is_found(github: LoopbackGithub, comment: Comment) -> None:
    for number in range(120):
        github.add(f"talk {number}", "alice")
    github.add(MARKER, BOT)
    comment()
    assert len(github.comments) == 121
    assert "Nothing to summarise" in github.comments[-1]["body"]


def test_a_pull_request_event_names_its_number(github: LoopbackGithub, comment: Comment, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"pull_request": {"number": 7}}))
    monkeypatch.setenv("GITHUB_EVENT_PATH", str(event))
    monkeypatch.setenv("GITHUB_REF_NAME", "7/merge")
    comment()
    assert len(github.comments) == 1
    assert not any("pulls" in line for line in github.asked)
