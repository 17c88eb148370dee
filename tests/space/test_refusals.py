"""deploy.py where it stops before anything outside has changed."""

import json
import os
import pty
import re
from pathlib import Path

import pytest

from tests.fakes.space_process import PYTHON, SPACE, needs_serving, run_to_end
from tests.fakes.space_shop import NAME, Shop, shop

__all__ = ["shop"]  # a fixture
pytestmark = needs_serving


@pytest.mark.parametrize(("flags", "changes", "said"), [
    (["--push", "--auto"], {}, "--push needs --space"),
    (["--push", "--space", NAME], {}, "this is no terminal to ask on before each step; --auto does without asking\n"),
    (["--push", "--auto", "--space", NAME], {"HF_TOKEN": ""}, "HF_TOKEN: not set"),
    (["--verify-only"], {}, "--verify-only needs --space"),
])
def test_what_is_not_set_is_named(shop: Shop, flags: list[str], changes: dict[str, str], said: str) -> None:
    ended = shop.run(*flags, **changes)
    assert (ended.code, len(ended.err.splitlines()), shop.made()) == (2, 1, False)
    assert said in ended.err


def test_a_bundle_that_is_not_what_was_validated_is_not_deployed(shop: Shop) -> None:
    assets = shop.folder / "assets"
    validation = json.loads((assets / "validation.json").read_text())

    def refusal() -> str:
        ended = shop.push()
        assert (ended.code, ended.record["result"], shop.made()) == (5, "failed", False)
        return ended.err

    (assets / "validation.json").write_text(json.dumps({**validation, "verdict": "UNSAFE"}))
    assert "the verdict is UNSAFE" in refusal()
    (assets / "validation.json").write_text(json.dumps({**validation, "model_digest": "0" * 64}))
    assert "is about another bundle" in refusal()
    (assets / "validation.json").unlink()
    assert "the bundle was not validated" in refusal()
    shop.identify(weights=[])
    assert "none of its weights is SAFE" in refusal()
    shop.identify(weights=["int8"])
    (assets / "int8/openvino_model.bin").write_bytes(b"other")
    assert "not what identity.json says: int8/openvino_model.bin was changed" in refusal()


def test_a_folder_that_is_not_fit_is_not_deployed(shop: Shop) -> None:
    readme = shop.folder / "README.md"
    readme.write_text(readme.read_text().replace("sdk: docker\n", ""))
    ended = shop.push()
    assert (ended.code, shop.made()) == (3, False)
    assert "sdk" in ended.err


def test_a_bundle_of_another_model_than_the_champion_is_not_deployed(shop: Shop) -> None:
    shop.hub.put("acme/shop", {"champion.json": json.dumps({"format": 1, "model_digest": "0" * 64}).encode(),
                               "README.md": f"| model digest | `{'ab' * 32}` |".encode()})
    ended = shop.push("--champion", "acme/shop")
    assert (ended.code, shop.made()) == (5, False)
    assert "the champion's digest is 000000000000" in ended.err


def test_an_account_without_a_plan_is_told_the_alternatives_in_one_line(shop: Shop) -> None:
    shop.hub.spaces.unpaid = True
    ended = shop.push()
    assert (ended.code, shop.made()) == (6, False)
    (line,) = [line for line in ended.err.splitlines() if "402" in line]
    for alternative in ("paid plan", "--space", "docker build", "Procfile", "make serve"):
        assert alternative in line


def test_without_push_it_says_what_it_would_do_and_nothing_changes(shop: Shop) -> None:
    elsewhere = (shop.folder / "assets").rename(shop.folder.parent / "bundle")
    ended = shop.run("--space", NAME, "--bundle", str(elsewhere))
    assert (ended.code, ended.record["result"], shop.made()) == (0, "planned", False), ended.err
    assert re.search(r"would push \d+ files, .* for tiny-chat v7", ended.out)
    assert shop.hub.log == []


def test_a_no_stops_before_the_first_effect(shop: Shop) -> None:
    terminal, stdin = pty.openpty()
    with shop.start("--push", stdin=stdin) as process:
        os.write(terminal, b"n\n")
        said = process.communicate(timeout=60)[0]
    assert (process.returncode, shop.made()) == (130, False)
    assert f"create the public Space {NAME}? [y/N]" in said


def test_a_program_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "fix_dependencies.py").write_text("import time\ntime.sleep(60)\n")
    code = ("import sys; from pathlib import Path; from deploying import checks; checks._ADVICE = 0.3; "
            "print(checks.advice(Path(sys.argv[1]), 'a log'))")
    ended = run_to_end(PYTHON, "-c", code, tmp_path, cwd=SPACE)
    assert ended.stdout == "fix_dependencies.py recommends nothing: fix_dependencies.py did not end within 0 s\n"
