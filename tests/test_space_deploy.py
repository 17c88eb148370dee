"""deploy.py against the loopback hub, whose Spaces really run what was pushed to them."""

import json
import os
import pty
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.space_process import needs_serving
from tests.space_shop import NAME, Shop, open_shop

pytestmark = needs_serving


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with open_shop(tmp_path) as shop:
        yield shop


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
    kept = {path: path.read_text() for path in (deployed.folder / "assets/identity.json",
                                                deployed.folder / "variables.json")}
    deployed.hub.spaces.outcomes.clear()
    yield deployed
    deployed.hub.faults.clear()
    for path, text in kept.items():
        path.write_text(text)


def health(shop: Shop) -> dict[str, object]:
    found: dict[str, object] = httpx2.get(f"http://127.0.0.1:{shop.hub.spaces[NAME].port}/healthz").json()
    return found


def made(shop: Shop) -> bool:
    return f"spaces/{NAME}" in shop.hub.repos


# Refused before anything is done.


def test_without_a_terminal_to_ask_on_it_refuses_in_one_line(shop: Shop) -> None:
    ended = shop.run("--push", "--space", NAME)
    assert (ended.code, made(shop)) == (2, False)
    assert ended.err.splitlines() == ["this is no terminal to ask on before each step; --auto does without asking"]


@pytest.mark.parametrize(("flags", "changes", "said"), [
    (["--push", "--auto"], {}, "--push needs --space"),
    (["--push", "--auto", "--space", NAME], {"HF_TOKEN": ""}, "HF_TOKEN: not set"),
    (["--verify-only"], {}, "--verify-only needs --space"),
])
def test_what_is_not_set_is_named(shop: Shop, flags: list[str], changes: dict[str, str], said: str) -> None:
    ended = shop.run(*flags, **changes)
    assert ended.code == 2
    assert said in ended.err


def test_a_bundle_that_is_not_what_was_validated_is_not_deployed(shop: Shop) -> None:
    assets = shop.folder / "assets"
    validation = json.loads((assets / "validation.json").read_text())

    def refusal() -> str:
        ended = shop.push()
        assert (ended.code, ended.record["result"], made(shop)) == (5, "failed", False)
        return ended.err

    (assets / "validation.json").write_text(json.dumps({**validation, "verdict": "UNSAFE"}))
    assert "the verdict is UNSAFE" in refusal()
    (assets / "validation.json").write_text(json.dumps({**validation, "model_digest": "0" * 64}))
    assert "is about another bundle" in refusal()
    (assets / "validation.json").unlink()
    assert "the bundle was not validated" in refusal()
    (assets / "int8/openvino_model.bin").write_bytes(b"other")
    assert "int8/openvino_model.bin: not what identity.json says" in refusal()


def test_a_folder_that_is_not_fit_is_not_deployed(shop: Shop) -> None:
    text = (shop.folder / "README.md").read_text()
    (shop.folder / "README.md").write_text(text.replace("sdk: docker\n", ""))
    ended = shop.push()
    assert (ended.code, made(shop)) == (3, False)
    assert "sdk" in ended.err


def test_a_bundle_of_another_model_than_the_champion_is_not_deployed(shop: Shop) -> None:
    shop.hub.put("acme/shop", {"README.md": f"| model digest | `{'0' * 64}` |".encode()})
    ended = shop.push("--champion", "acme/shop")
    assert (ended.code, made(shop)) == (5, False)
    assert "the champion's digest is 000000000000" in ended.err


def test_an_account_without_a_plan_is_told_the_alternatives_in_one_line(shop: Shop) -> None:
    shop.hub.spaces.unpaid = True
    ended = shop.push()
    assert (ended.code, made(shop)) == (6, False)
    (line,) = [line for line in ended.err.splitlines() if "402" in line]
    for alternative in ("paid plan", "--space", "docker build", "Procfile", "make serve"):
        assert alternative in line


def test_without_push_it_says_what_it_would_do_and_nothing_changes(shop: Shop) -> None:
    elsewhere = (shop.folder / "assets").rename(shop.folder.parent / "bundle")
    ended = shop.run("--space", NAME, "--bundle", str(elsewhere))
    assert (ended.code, ended.record["result"], made(shop)) == (0, "planned", False), ended.err
    assert re.search(r"would push \d+ files, .* for tiny-chat v7", ended.out)
    assert shop.hub.log == []


def test_a_no_stops_before_the_first_effect(shop: Shop) -> None:
    terminal, stdin = pty.openpty()
    with shop.start("--push", stdin=stdin) as process:
        os.write(terminal, b"n\n")
        said = process.communicate(timeout=60)[0]
    assert (process.returncode, made(shop)) == (130, False)
    assert f"create the public Space {NAME}? [y/N]" in said


# Pushed.


def test_a_push_makes_the_space_waits_and_sees_it_answer(deployed: Shop) -> None:
    assert (deployed.first["result"], deployed.first["stages"][-1]) == ("deployed", "RUNNING")
    assert deployed.first["commit"] in deployed.hub.repos[f"spaces/{NAME}"]["tags"].values()
    assert (deployed.first["health"]["version"], deployed.commits) == (7, ["Champion: tiny-chat v7"])


def test_nothing_new_makes_no_commit(standing: Shop) -> None:
    standing.hub.put("acme/shop", {"README.md": f"| model digest | `{'ab' * 32}` |".encode()})
    before = standing.head
    ended = standing.push("--champion", "acme/shop")
    assert (ended.code, ended.record["commit"], standing.head) == (0, before, before)


def test_whoever_pushes_meanwhile_is_not_overwritten(shop: Shop) -> None:
    shop.hub.fault("/commit/", intrude={"repo": NAME, "kind": "spaces", "files": {"theirs.txt": "x"}})
    ended = shop.push()
    assert (ended.code, shop.commits) == (75, ["by somebody else"])
    assert "somebody else pushed" in ended.err


def test_a_killed_deployment_is_completed_by_the_next_one(shop: Shop) -> None:
    with shop.start("--push", "--auto") as process:
        while not (made(shop) and shop.commits):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert not shop.hub.repos[f"spaces/{NAME}"]["tags"]
    ended = shop.push()
    assert (ended.code, len(shop.commits)) == (0, 1), ended.err
    assert [*shop.hub.repos[f"spaces/{NAME}"]["tags"].values()] == [shop.head]


# It does not come up.


def test_a_build_error_is_rolled_back_by_one_commit(standing: Shop) -> None:
    files, before = standing.hub.files(NAME, kind="spaces"), len(standing.commits)
    standing.hub.spaces.outcomes, standing.hub.spaces.build_log = ["BUILD_ERROR"], [
        "ModuleNotFoundError: No module named 'transformers.modeling_layers'"]
    standing.identify(version=8)
    ended = standing.push()
    assert (ended.code, ended.record["result"]) == (6, "rolled_back"), ended.err
    assert "ends in BUILD_ERROR" in ended.record["reason"]
    assert "fix_dependencies.py recommends strategy: " in ended.err
    assert len(standing.commits) == before + 2
    assert (standing.hub.files(NAME, kind="spaces"), health(standing)["version"]) == (files, 7)


def test_variables_that_keep_it_from_starting_go_back_too(standing: Shop) -> None:
    (standing.folder / "variables.json").write_text('{"MAX_QUEUE": "many"}')
    ended = standing.push()
    assert (ended.code, ended.record["result"]) == (6, "rolled_back"), ended.err
    assert "MAX_QUEUE=many: expected a whole number" in ended.err  # the end of the app's log
    variables = standing.hub.repos[f"spaces/{NAME}"]["variables"]
    assert {key: each["value"] for key, each in variables.items()} == {"RATE_PER_MINUTE": "30"}


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


# The build key, and the live Space alone.


def test_the_live_space_is_checked_alone(standing: Shop) -> None:
    ended = standing.run("--verify-only", "--space", NAME)
    assert (ended.code, ended.record["result"]) == (0, "live"), ended.err
    standing.identify(version=9)
    ended = standing.run("--verify-only", "--space", NAME)
    assert (ended.code, ended.out.count("version 7, not 9")) == (5, 1)
    ended = standing.run("--verify-only", "--url", "http://127.0.0.1:9")
    assert ended.code == 6


def test_the_build_key_changes_on_the_space_by_one_commit(standing: Shop) -> None:
    before, commits = standing.hub.files(NAME, kind="spaces"), len(standing.commits)
    ended = standing.run("--push", "--space", NAME, program="force_cache_bust.py")
    after = standing.hub.files(NAME, kind="spaces")
    assert (ended.code, len(standing.commits)) == (0, commits + 1), ended.err
    assert {path for path in after if after[path] != before[path]} == {"Dockerfile"}
    assert f"ARG BUILD_KEY={ended.out.strip()}\n".encode() in standing.hub.blob(after["Dockerfile"]).read_bytes()
