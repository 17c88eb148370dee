"""deploy.py where it stops before anything outside has changed."""

import json
import os
import pty
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.fakes.space_process import PYTHON, SPACE, needs_serving, run_to_end
from tests.fakes.space_shop import NAME, Shop, shop

__all__ = ["shop"]  # a fixture
pytestmark = needs_serving


@pytest.mark.parametrize(("flags", "changes", "said"), [
    (["--push", "--auto"], {}, "--push needs --space"),
    (["--push", "--space", NAME], {}, "deploy.py asks before each step, and this is no terminal; add --auto\n"),
    (["--push", "--auto", "--space", NAME], {"HF_TOKEN": ""}, "HF_TOKEN: not set"),
    (["--verify-only"], {}, "--verify-only needs --space"),
    (["--auto", "--push", "--space", "nonsense"], {}, "--space nonsense: expected OWNER/NAME, such as acme/chat"),
    (["--auto", "--push", "--space", "a/b/c"], {}, "--space a/b/c: expected OWNER/NAME"),
    (["--auto", "--space", NAME, "--champion", "shop"], {}, "--champion shop: expected OWNER/NAME"),
    (["--auto", "--space", NAME, "--strategy", "none"], {}, "--strategy none: expected one of modern, "),
])
def test_what_is_not_set_is_named(shop: Shop, flags: list[str], changes: dict[str, str], said: str) -> None:
    ended = shop.run(*flags, **changes)
    assert (ended.code, len(ended.err.splitlines()), shop.made()) == (2, 1, False)
    assert said in ended.err
    assert shop.hub.log == []


def test_the_build_key_needs_an_owner_and_a_space_that_exists(shop: Shop) -> None:
    before = (shop.folder / "Dockerfile").read_text()
    ended = shop.run("--push", "--space", "nonsense", program="force_cache_bust.py")
    assert (ended.code, shop.hub.log) == (2, [])
    assert ended.err == "--space nonsense: expected OWNER/NAME, such as acme/chat\n"
    assert (shop.folder / "Dockerfile").read_text() == before
    ended = shop.run("--push", "--space", NAME, program="force_cache_bust.py")
    said = f"{NAME}: there is no such Space; deploy it first, or correct --space\n"
    assert (ended.code, ended.err) == (6, said)


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


def walk(names: list[str]) -> list[str]:
    """A way that takes each ordered pair of names, equal ones too, once."""
    steps = {(a, b) for a in names for b in names}
    way, back = [names[0]], list[str]()
    while way:
        if ahead := sorted(step for step in steps if step[0] == way[-1]):
            steps.remove(ahead[0])
            way.append(ahead[0][1])
        else:
            back.append(way.pop())
    return back[::-1]


def test_from_each_strategy_there_is_a_way_to_each_other_and_the_same_again_changes_nothing(shop: Shop) -> None:
    # A stand-in for the download of gigabytes; tests/space/test_strategies.py installs each one.
    with (shop.folder / "dependencies/environment.py").open("a") as file:
        file.write("\n\ndef build(strategy, folder):\n    return 1.0, 1.0\n")
    released = shop.folder.parent / "released"
    shutil.copytree(shop.folder / "assets", released)
    for name in ("int8", "int4"):
        shutil.rmtree(released / name, ignore_errors=True)
    stated = json.loads((released / "identity.json").read_text())
    for key in ("sizes", "sha256"):
        stated[key] = {path: value for path, value in stated[key].items() if not path.startswith("int")}
    (released / "identity.json").write_text(json.dumps({**stated, "weights": ["safetensors"]}))
    validation = json.loads((released / "validation.json").read_text())
    (released / "validation.json").write_text(json.dumps({**validation, "serves": ["safetensors"]}))
    bundles = {"no-lora": released, "cpu-only": released, "minimal": shop.folder.parent / "nothing"}

    names = ["modern", "conservative", "no-lora", "cpu-only", "minimal"]
    way = walk(names)
    assert len({*pairwise(way)}) == len(names) ** 2
    for before, name in pairwise(way):
        bundle = bundles.get(name, shop.folder / "assets")
        ended = shop.run("--auto", "--space", NAME, "--strategy", name, "--bundle", str(bundle))
        assert (ended.code, ended.record["result"]) == (0, "planned"), (before, name, ended.err)
        assert (f"strategy {name} is in place already" in ended.err) == (before == name)
        assert (shop.folder / "requirements.txt").read_text().startswith(f"# strategy: {name}\n")
    assert shop.hub.log == []


def test_a_strategy_that_does_not_serve_the_bundle_is_not_left_in_place(shop: Shop) -> None:
    with (shop.folder / "dependencies/environment.py").open("a") as file:
        file.write("\n\ndef build(strategy, folder):\n    return 1.0, 1.0\n")
    before = (shop.folder / "requirements.txt").read_text()
    ended = shop.run("--auto", "--space", NAME, "--strategy", "no-lora")
    assert (ended.code, "is compressed, which strategy no-lora does not serve" in ended.err) == (3, True), ended.err
    assert (shop.folder / "requirements.txt").read_text() == before


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
