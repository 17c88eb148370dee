"""deploy.py against the loopback hub, whose Spaces really run what was pushed to them."""

import re
import shutil
import time
from collections.abc import Iterator

import httpx2
import pytest

from tests.fakes.space_process import needs_serving
from tests.fakes.space_shop import NAME, Shop, open_shop, shop

__all__ = ["shop"]  # a fixture
pytestmark = needs_serving


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Version 7 was pushed, and answers; the Hub's reply to the commit was lost on the way."""
    with open_shop(tmp_path_factory.mktemp("shop")) as shop:
        shop.hub.fault("/commit/", after=True, close=True)
        ended = shop.push()
        assert ended.code == 0, ended.err
        shop.first = ended.record
        yield shop


@pytest.fixture
def standing(deployed: Shop) -> Iterator[Shop]:
    """As deployed left it, whatever a test does to its folder."""
    changed = (deployed.folder / name for name in ("assets/identity.json", "variables.json", "README.md"))
    kept = {path: path.read_text() for path in changed}
    deployed.hub.spaces.outcomes.clear()
    yield deployed
    deployed.hub.faults.clear()
    deployed.hub.spaces.tells_commit, deployed.hub.spaces.lag = True, 0.0
    for path, text in kept.items():
        path.write_text(text)


def health(shop: Shop) -> dict[str, object]:
    found: dict[str, object] = httpx2.get(f"http://127.0.0.1:{shop.hub.spaces[NAME].port}/healthz").json()
    return found


def tagged(shop: Shop) -> list[str]:
    return [*shop.hub.repos[f"spaces/{NAME}"]["tags"].values()]


def go_back_to(shop: Shop) -> str:
    """A commit before the next one is marked as seen answering."""
    if not shop.made():
        shop.hub.create("spaces", NAME, private=False, sdk="docker", variables={})
    first = shop.hub.repos[f"spaces/{NAME}"]["tags"]["live-first"] = shop.hub.history(NAME, kind="spaces")[-1]
    return first


def test_a_push_makes_the_space_waits_and_sees_it_answer(deployed: Shop) -> None:
    assert (deployed.first["result"], deployed.first["stages"][-1]) == ("deployed", "RUNNING")
    assert deployed.first["commit"] in tagged(deployed)
    assert (deployed.first["health"]["version"], deployed.commits) == (7, ["Champion: tiny-chat v7"])


def test_nothing_new_makes_no_commit(standing: Shop) -> None:
    # The model's repository is of a release from before there was champion.json: its card states the digest.
    standing.hub.put("acme/shop", {"README.md": f"| model digest | `{'ab' * 32}` |".encode()})
    before = standing.head
    ended = standing.push("--champion", "acme/shop")
    assert (ended.code, ended.record["commit"], standing.head) == (0, before, before)


@pytest.mark.parametrize("reached", [False, True])
def test_a_commit_that_was_seen_answering_and_runs_is_left_to_stand(standing: Shop, *, reached: bool) -> None:
    go_back_to(standing)
    before, runs = standing.head, standing.hub.spaces[NAME].process
    ended = standing.push("--url", standing.hub.url if reached else "http://127.0.0.1:9", "--settle", "0")
    assert (ended.code, ended.record["result"], ended.record["commit"]) == (6, "failed", before), ended.err
    assert ("answers 404" if reached else "cannot be reached from here") in ended.record["reason"]
    assert (standing.head, standing.hub.spaces[NAME].process) == (before, runs)


def test_whoever_pushes_meanwhile_is_not_overwritten(shop: Shop) -> None:
    shop.hub.fault("/commit/", intrude={"repo": NAME, "kind": "spaces", "files": {"theirs.txt": "x"}})
    ended = shop.push()
    assert (ended.code, shop.commits) == (75, ["by somebody else"])
    assert "somebody else pushed" in ended.err


def test_a_killed_deployment_is_completed_by_the_next_one(shop: Shop) -> None:
    with shop.start("--push", "--auto") as process:
        while not (shop.made() and shop.commits):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert tagged(shop) == []
    ended = shop.push()
    assert (ended.code, len(shop.commits)) == (0, 1), ended.err
    assert tagged(shop) == [shop.head]


def variables(shop: Shop) -> dict[str, str]:
    return {key: each["value"] for key, each in shop.hub.repos[f"spaces/{NAME}"]["variables"].items()}


def test_a_build_error_is_rolled_back_by_one_commit_variables_included(standing: Shop) -> None:
    files, before = standing.hub.files(NAME, kind="spaces"), len(standing.commits)
    standing.hub.spaces.outcomes, standing.hub.spaces.build_log = ["BUILD_ERROR"], [
        "ModuleNotFoundError: No module named 'transformers.modeling_layers'"]
    standing.identify(version=8)
    (standing.folder / "variables.json").write_text('{"MAX_QUEUE": "9"}')
    ended = standing.push()
    assert (ended.code, ended.record["result"]) == (6, "rolled_back"), ended.err
    assert "ends in BUILD_ERROR" in ended.record["reason"]
    assert "fix_dependencies.py recommends to deploy with --strategy no-lora" in ended.err
    assert len(standing.commits) == before + 2
    assert (standing.hub.files(NAME, kind="spaces"), health(standing)["version"]) == (files, 7)
    assert variables(standing) == {"RATE_PER_MINUTE": "30"}


@pytest.mark.slow
def test_variables_that_keep_it_from_starting_go_back_too(standing: Shop) -> None:
    (standing.folder / "variables.json").write_text('{"MAX_QUEUE": "many"}')
    ended = standing.push()
    assert (ended.code, ended.record["result"]) == (6, "rolled_back"), ended.err
    assert "MAX_QUEUE=many: expected a whole number" in ended.err  # the end of the app's log
    assert variables(standing) == {"RATE_PER_MINUTE": "30"}


@pytest.mark.slow
def test_another_version_that_answers_is_noticed(standing: Shop) -> None:
    standing.hub.spaces.outcomes = ["STALE"]
    standing.identify(version=8)
    ended = standing.push()
    assert (ended.code, ended.record["result"]) == (6, "rolled_back"), ended.err
    assert "another version answers: version 7, not 8" in ended.record["reason"]


def test_a_first_push_that_fails_has_nothing_to_go_back_to_but_the_fallback(shop: Shop) -> None:
    shop.hub.spaces.outcomes = ["BUILD_ERROR", "BUILD_ERROR"]
    ended = shop.push()
    assert (ended.code, ended.record["result"]) == (6, "failed")
    ended = shop.push("--on-failure", "fallback")
    assert (ended.code, ended.record["result"]) == (6, "fallback"), ended.err
    assert shop.commits == ["Champion: fallback for tiny-chat v7", "Champion: tiny-chat v7"]
    assert health(shop) | {"fallback": True, "version": 7} == health(shop)
    said = httpx2.post(f"{ended.record['address']}/v1/chat/completions",
                       json={"messages": [{"role": "user", "content": "where is my order"}]}).json()
    assert "This is the fallback" in said["choices"][0]["message"]["content"]


def edit(shop: Shop) -> None:
    """Another commit of the same version: what answers does not tell them apart."""
    readme = shop.folder / "README.md"
    readme.write_text(f"{readme.read_text()}\nEdited {time.monotonic()}\n")


@pytest.mark.parametrize("way", ["rollback", "fallback"])
def test_a_recovery_does_not_overwrite_whoever_pushed_meanwhile(shop: Shop, way: str) -> None:
    go_back_to(shop)
    shop.hub.spaces.outcomes = ["BUILD_ERROR"]
    shop.hub.fault("/logs/build", intrude={"repo": NAME, "kind": "spaces", "files": {"theirs.txt": "x"}})
    ended = shop.push("--on-failure", way)
    assert (ended.code, shop.commits) == (75, ["by somebody else", "Champion: tiny-chat v7"]), ended.err
    assert "theirs.txt" in shop.hub.files(NAME, kind="spaces")
    assert variables(shop) == {"RATE_PER_MINUTE": "30"}
    assert "somebody else pushed" in ended.record["reason"]


def test_the_commit_before_that_still_runs_is_not_taken_for_this_one(standing: Shop) -> None:
    edit(standing)
    standing.hub.spaces.outcomes = ["OTHER", "STALE"]
    ended = standing.push("--wait", "3")
    assert (ended.code, ended.record["result"]) == (6, "rolled_back"), ended.err
    assert re.search(r"does not run in time, \w{12} still does", ended.record["reason"])
    assert standing.hub.history(NAME, kind="spaces")[1] not in tagged(standing)


def test_where_the_hub_tells_no_commit_what_ran_before_is_not_taken_for_this_one(standing: Shop) -> None:
    edit(standing)
    standing.hub.spaces.outcomes, standing.hub.spaces.tells_commit, standing.hub.spaces.lag = ["STALE"], False, 2.0
    ended = standing.push()
    assert (ended.code, ended.record["stages"]) == (0, ["RUNNING", "BUILDING", "RUNNING"]), ended.err


def test_what_runs_and_cannot_be_reached_from_here_is_neither_taken_back_nor_marked(standing: Shop) -> None:
    edit(standing)
    standing.hub.spaces.outcomes = ["STALE"]
    ended = standing.push("--url", "http://127.0.0.1:9", "--settle", "0")
    assert (ended.code, ended.record["result"], ended.record["commit"]) == (6, "failed", standing.head), ended.err
    assert standing.commits[0] == "Champion: tiny-chat v7"
    assert standing.head not in tagged(standing)


def test_where_the_recovery_fails_too_the_result_names_the_commit_that_stands(shop: Shop) -> None:
    first = go_back_to(shop)
    shop.hub.spaces.outcomes = ["BUILD_ERROR", "BUILD_ERROR"]
    ended = shop.push()
    assert (ended.code, ended.record["result"], ended.record["commit"]) == (6, "failed", shop.head), ended.err
    assert shop.commits == [f"Champion: back to {first[:12]}", "Champion: tiny-chat v7"]
    assert ended.record["reason"].count("ends in BUILD_ERROR") == 2


def test_variables_go_back_where_the_commit_is_refused(shop: Shop) -> None:
    go_back_to(shop)
    theirs = {"RATE_PER_MINUTE": {"value": "5"}, "THEME": {"value": "dark"}}
    shop.hub.repos[f"spaces/{NAME}"]["variables"] |= theirs
    (shop.folder / "variables.json").write_text('{"MAX_QUEUE": "1", "RATE_PER_MINUTE": "30"}')
    shop.hub.fault("/commit/", status=403)
    shop.hub.fault("/variables", method="DELETE", after=True, close=True)
    ended = shop.push()
    assert (ended.code, shop.commits, variables(shop)) == (6, [], {"RATE_PER_MINUTE": "5", "THEME": "dark"}), ended.err
    assert "403" in ended.record["reason"]


def test_the_live_space_is_checked_alone(standing: Shop) -> None:
    ended = standing.run("--verify-only", "--space", NAME)
    assert (ended.code, ended.record["result"]) == (0, "live"), ended.err
    standing.identify(version=9)
    ended = standing.run("--verify-only", "--space", NAME)
    assert (ended.code, ended.out.count("version 7, not 9")) == (5, 1)
    assert standing.run("--verify-only", "--url", "http://127.0.0.1:9").code == 6


def test_the_build_key_changes_on_the_space_by_one_commit(standing: Shop) -> None:
    before, commits = standing.hub.files(NAME, kind="spaces"), len(standing.commits)
    ended = standing.run("--push", "--space", NAME, program="force_cache_bust.py")
    after = standing.hub.files(NAME, kind="spaces")
    assert (ended.code, len(standing.commits)) == (0, commits + 1), ended.err
    assert {path for path in after if after[path] != before[path]} == {"Dockerfile"}
    assert f"ARG BUILD_KEY={ended.out.strip()}\n".encode() in standing.hub.blob(after["Dockerfile"]).read_bytes()
    assert ended.err == (f"commit to {NAME}: build key {ended.out.strip()} (1 files)\n"
                         f"{NAME}: builds every layer again, at {standing.head[:12]}\n")


def test_a_file_that_somebody_else_pushed_is_named_and_deleted_only_on_request(shop: Shop) -> None:
    shop.hub.create("spaces", NAME, private=False, sdk="docker", variables={})
    shop.hub.put(NAME, {"notes/theirs.txt": b"x"}, kind="spaces")
    ended = shop.push()
    assert (ended.code, ended.record["result"], shop.commits) == (7, "failed", ["by somebody else"]), ended.err
    assert ("a push would delete notes/theirs.txt, which somebody else pushed there; copy what is needed, then run it "
            "again with --delete-others") in ended.record["reason"]
    assert variables(shop) == {}
    ended = shop.push("--delete-others")
    assert (ended.code, "notes/theirs.txt" in shop.hub.files(NAME, kind="spaces")) == (0, False), ended.err
    assert f"delete notes/theirs.txt, which somebody else pushed to {NAME}" in ended.err


def test_a_file_of_an_earlier_deployment_is_deleted_without_asking_one_pushed_since_is_not(standing: Shop) -> None:
    extra = standing.folder / "serving/extra.py"
    extra.write_text("")
    assert standing.push().code == 0
    extra.unlink()
    standing.hub.put(NAME, {"theirs.txt": b"x"}, kind="spaces")
    assert standing.run("--push", "--space", NAME, program="force_cache_bust.py").code == 0
    ended = standing.push()
    assert (ended.code, "would delete theirs.txt, which" in ended.record["reason"]) == (7, True), ended.err
    ended = standing.push("--delete-others")
    assert (ended.code, "delete theirs.txt, which" in ended.err) == (0, True), ended.err
    assert not {"theirs.txt", "serving/extra.py"} & {*standing.hub.files(NAME, kind="spaces")}


def test_the_fallback_needs_no_bundle_and_the_same_command_again_pushes_nothing(shop: Shop) -> None:
    shutil.rmtree(shop.folder / "assets")
    ended = shop.push("--strategy", "minimal", PIP_NO_INDEX="1")
    assert (ended.code, ended.record["result"]) == (0, "deployed"), ended.err
    assert health(shop) == {"ok": True, "model": "chat", "version": None, "commit": None, "fallback": True}
    assert "the fallback (stored answers) in place of chat (the model is not running; " in ended.out
    pushed = shop.run("--push", "--space", NAME, program="force_cache_bust.py")
    assert (pushed.code, len(pushed.err.splitlines())) == (2, 1)
    assert f"{NAME}: the Dockerfile there has no line ARG BUILD_KEY=" in pushed.err
    before, app = shop.head, (shop.folder / "app.py").read_bytes()
    ended = shop.push("--strategy", "minimal")
    assert (ended.code, shop.head) == (0, before), ended.err
    assert "strategy minimal is in place already" in ended.err
    assert "(the Space has these files already, nothing was pushed; the model is not running; " in ended.out
    assert app != (shop.folder / "app_minimal_fallback.py").read_bytes()
    assert shop.push().code == 0
