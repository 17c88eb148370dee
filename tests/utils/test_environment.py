"""What the environment says, as data: who asks, why, from which branch, and whether the Hub is meant."""

import getpass
import json
import socket
from pathlib import Path

import pytest

from src.core.errors import InvalidParams
from src.core.params import DeploymentParams, load_params
from utils.environment import Asked, actor, asked, ci_url, clean_reason, in_ci, may_promote, token, will_push

SHIPPED = Path(__file__).parents[2] / "params.yaml"


def deployment(*, push: bool = False, force_requires_reason: bool = False) -> DeploymentParams:
    hub = {"push_to_hub": push, "model_id": "shop/bot"}
    return load_params(SHIPPED, {"deployment": {
        "huggingface": hub, "force_requires_reason": force_requires_reason}}).deployment


def ask(params: DeploymentParams, *, force: bool = False, reason: str | None = None, skip: bool = False) -> Asked:
    return asked(params, force=force, reason=reason, skip_hf_push=skip)


@pytest.mark.parametrize("name", ["DEPLOY_FORCE", "DEPLOY_SKIP_HF_PUSH"])
@pytest.mark.parametrize("value", ["2", "ja", "true;", "$(id)", "tru e"])
def test_a_switch_neither_true_nor_false_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidParams, match=rf"^{name}: .* is neither true nor false"):
        ask(deployment(push=True))


def test_a_push_without_a_token_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for blank in (None, "", "  \n"):
        if blank is not None:
            monkeypatch.setenv("HF_TOKEN", blank)
        with pytest.raises(InvalidParams, match=r"push_to_hub: true needs HF_TOKEN .*shop/bot.*--skip-hf-push"):
            will_push(deployment(push=True), skip_hf_push=False)


def test_a_forced_promotion_without_the_reason_that_params_ask_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = deployment(force_requires_reason=True)
    for reason in (None, "", " \n\t "):
        with pytest.raises(InvalidParams, match="add --reason TEXT"):
            ask(strict, force=True, reason=reason)
    monkeypatch.setenv("DEPLOY_FORCE", "true")
    with pytest.raises(InvalidParams, match="add --reason TEXT"):
        ask(strict)
    assert ask(strict, reason="a bug in version 3") == Asked(force=True, reason="a bug in version 3", push=False)


@pytest.mark.parametrize("force", [True, False])
def test_otherwise_force_needs_no_reason_and_nothing_is_forced_or_pushed_unless_asked_for(*, force: bool) -> None:
    assert ask(deployment(), force=force) == Asked(force=force, reason="", push=False)


@pytest.mark.parametrize(("value", "forced"), [("1", True), ("true", True), ("YES", True), (" on ", True),
                                               ("0", False), ("false", False), ("No", False), ("", False)])
def test_force_is_taken_from_the_environment(value: str, *, forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_FORCE", value)
    assert ask(deployment()).force is forced
    assert ask(deployment(), force=True).force is True


def test_the_flags_reason_wins_over_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_REASON", "from the environment")
    assert ask(deployment()).reason == "from the environment"
    assert ask(deployment(), reason="from the flag").reason == "from the flag"


def test_skipping_wins_over_push_to_hub_and_needs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(deployment(push=True), skip=True).push is False
    monkeypatch.setenv("DEPLOY_SKIP_HF_PUSH", "1")
    assert ask(deployment(push=True)).push is False


def test_a_token_makes_a_push_possible_and_never_switches_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert ask(deployment(push=True)).push is True
    assert ask(deployment(push=False)).push is False


def test_the_token_is_hf_token_else_the_older_name_without_blanks_around(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token() is None
    monkeypatch.setenv("HUGGINGFACE_HUB_TOKEN", "hf_old\n")
    assert token() == "hf_old"
    monkeypatch.setenv("HF_TOKEN", "")
    assert token() == "hf_old"
    monkeypatch.setenv("HF_TOKEN", " hf_new\n")
    assert token() == "hf_new"


@pytest.mark.parametrize(
    ("given", "kept"),
    [(None, ""), ("", ""), ('"; echo pwned; #', '"; echo pwned; #'), ("$(id) `id` ${HOME}", "$(id) `id` ${HOME}"),
     ("two\nlines\r\nand\ttabs", "two lines and tabs"), ("  many   spaces ", "many spaces"),
     ("bell\x07 escape\x1b[31m null\x00 del\x7f", "bell escape [31m null del"), ("\u202eabc\u2028def\u200b", "abc def"),
     ("surrogate \udcff", "surrogate"), ("caf\u00e9 \u6f22\u5b57", "caf\u00e9 \u6f22\u5b57")],
)
def test_a_reason_is_one_line_of_data(given: str | None, kept: str) -> None:
    assert clean_reason(given) == kept


def test_a_reason_has_at_most_500_characters_and_never_fills_a_ledger_slot() -> None:
    assert clean_reason("x" * 501) == "x" * 500
    longest = clean_reason("\U0001f600" * 10_000)
    assert len(longest) > 200
    assert len(json.dumps(longest)) <= 3002


def test_the_actor_is_githubs_else_user_at_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert actor() == f"{getpass.getuser()}@{socket.gethostname()}"
    monkeypatch.setenv("GITHUB_ACTOR", "octocat")
    assert actor() == "octocat"
    monkeypatch.setenv("GITHUB_ACTOR", "evil\nname\x1b[0m" + "x" * 10_000)
    assert actor().startswith("evil name [0mxx")
    assert len(actor()) == 120


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert actor().partition("@")[0].isdigit()


def test_a_ci_run_has_an_address_once_all_its_parts_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "shop/bot", "GITHUB_RUN_ID": "7"}
    for name in parts:
        monkeypatch.delenv(name, raising=False)
    for name, value in parts.items():
        assert ci_url() is None
        monkeypatch.setenv(name, value)
    assert ci_url() == "https://github.com/shop/bot/actions/runs/7"
    monkeypatch.setenv("GITHUB_RUN_ID", "7\n" + "x" * 9000)
    assert len(ci_url() or "") == 500


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("CI", "1", True), ("CI", "false", False), ("CI", "", False), ("GITHUB_ACTIONS", "true", True)])
def test_ci_is_what_says_so(name: str, value: str, *, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_ci() is False
    monkeypatch.setenv(name, value)
    assert in_ci() is expected


@pytest.mark.parametrize(
    ("patterns", "branch", "allowed"),
    [([], None, True), ([], "anything", True), (["main"], "main", True), (["main"], "Main", False),
     (["main"], "maintenance", False), (["main"], None, False), (["main", "release/*"], "release/2", True),
     (["release/*"], "release", False), (["release/?"], "release/10", False), (["feature"], "feature/x", False),
     (["*"], "x", True)],
)
def test_a_branch_may_promote_where_a_pattern_matches_all_of_it(
    patterns: list[str], branch: str | None, *, allowed: bool
) -> None:
    assert may_promote(patterns, branch) is allowed


def test_githubs_word_for_the_branch_wins_and_a_pull_request_is_its_own_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_REF_NAME", "main")
    assert may_promote(["main"], "detached") is True
    monkeypatch.setenv("GITHUB_HEAD_REF", "fork-branch")
    assert may_promote(["main"], "main") is False
