"""verify_deployment.py over a copy of space/ with a bundle: it passes, and each thing that is broken is named."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.fakes.space_process import PYTHON, SPACE, needs_serving, unpack
from tests.space.test_dependencies import plant

pytestmark = needs_serving


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "space"
    shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "assets"))
    unpack(folder)
    return folder


@pytest.fixture
def space(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "space"))


def verify(space: Path, *flags: str, **environment: str) -> tuple[int, list[str]]:
    ended = subprocess.run([PYTHON, space / "verify_deployment.py", *flags], capture_output=True, text=True,
                           check=False, env={**os.environ, **environment})
    return ended.returncode, ended.stdout.splitlines() + ended.stderr.splitlines()


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(space: Path) -> None:
        text = (space / name).read_text(encoding="utf-8")
        assert old in text
        (space / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    return change


def lose(name: str) -> Callable[[Path], None]:
    return lambda space: (space / name).unlink()


def overwrite(name: str, other: str) -> Callable[[Path], None]:
    def change(space: Path) -> None:
        shutil.copy(space / other, space / name)
    return change


def append(name: str, text: str) -> Callable[[Path], None]:
    def change(space: Path) -> None:
        with (space / name).open("a") as file:
            file.write(text)
    return change


def weights(*names: str) -> Callable[[Path], None]:
    def change(space: Path) -> None:
        identity = space / "assets/identity.json"
        identity.write_text(json.dumps({**json.loads(identity.read_text()), "weights": names}))
    return change


EMOJI = "emoji: \U0001f6d2"
# Each row is broken together: what one check finds keeps no other from looking.
BROKEN: list[list[tuple[Callable[[Path], None], str]]] = [
    [(lose("assets/identity.json"), "assets: *identity.json: there is no bundle"),
     (replace("README.md", "sdk: docker", "sdk: gradio"), "front matter: README.md: sdk is gradio, expected docker"),
     (replace("Dockerfile", "EXPOSE 7860", "EXPOSE 80"), "ports: *Dockerfile: EXPOSE 80; *have to be one port")],
    [(lose("assets/int8/openvino_model.xml"), "assets: *assets: int8/openvino_model.xml is missing"),
     (append("assets/int8/openvino_model.bin", "x"), "assets: *int8/openvino_model.bin has 13108 bytes, not 13107"),
     (append("assets/adapter_config.json", "{}"), "assets: *assets: is adapter, which strategy modern does not serve"),
     (replace("README.md", EMOJI, "emoji:"), "front matter: README.md: emoji is missing, expected exactly one"),
     (replace("README.md", "app_port: 7860", "app_port: 8000"), "ports: *README.md: app_port 8000; *to be one port")],
    [(weights("safetensors"), "assets: *assets: is safetensors, which strategy modern does not serve"),
     (replace("README.md", EMOJI, EMOJI + "\U0001f6d2"), "front matter: README.md: emoji is *, expected exactly one"),
     (replace("Dockerfile", "PORT=7860", "PORT=5000"), "ports: *Dockerfile: ENV PORT 5000: *have to be one port")],
    [(weights(), "assets: *assets: none of its weights is SAFE"),
     (replace("README.md", EMOJI, "emoji: x"), "front matter: README.md: emoji is x, expected exactly one"),
     (lose("requirements/modern.txt"), "requirements: *modern.txt: cannot be read")],
    [(replace("README.md", "---\n", ""), "front matter: README.md: has no front matter"),
     (lose("Dockerfile"), "ports: *Dockerfile*"),
     (replace("requirements.txt", "strategy: modern", "strategy: none"), "requirements: *names no strategy")],
    [(replace("requirements.txt", "modern", "minimal"), "assets: app_minimal_fallback.py: is missing"),
     (lose("app_minimal_fallback.py"), "1 problem found")],
    [(overwrite("app.py", "app_minimal_fallback.py"),
      "assets: app.py: is the fallback, strategy modern serves the app; git checkout space/app.py")],
]


@pytest.mark.parametrize("row", BROKEN, ids=[row[0][1] for row in BROKEN])
def test_what_is_broken_is_named(space: Path, row: list[tuple[Callable[[Path], None], str]]) -> None:
    for spoil, _ in row:
        spoil(space)
    code, lines = verify(space)
    assert code == 1
    assert [said for _, said in row if not any(fnmatchcase(line, f"{said}*") for line in lines)] == [], lines


def test_a_conflicting_requirement_is_shown_as_a_chain(space: Path, tmp_path: Path) -> None:
    code, lines = verify(space, PYTHONPATH=str(plant(tmp_path / "planted", "starlette", "0.1")))
    assert code == 1
    assert any(line.startswith("requirements: fastapi 0.165.0 has requirement starlette>=")
               and ", but you have starlette 0.1. (fastapi==0.165.0 -> starlette>=" in line for line in lines), lines


def test_a_module_that_does_not_import_is_named_with_its_reason(space: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('it is broken')")
    code, lines = verify(space, PYTHONPATH=str(tmp_path))
    assert code == 1
    said = "imports: uvicorn: does not import: Traceback (most recent call last): ... ImportError: it is broken"
    assert lines == [said, "1 problem found"]


def test_what_is_whole_is_ready_and_verbose_says_what_was_looked_at(space: Path) -> None:
    assert verify(space) == (0, ["ready to be deployed"])
    assert verify(space, "--verbose") == (0, [*(f"{name}: ok" for name in (
        "requirements", "imports", "assets", "front matter", "ports")), "ready to be deployed"])


def test_one_emoji_may_be_of_several_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SPACE))
    from dependencies.checks import is_one_emoji

    assert all(map(is_one_emoji, ("\U0001f6d2", "\u2764\ufe0f", "\U0001f1eb\U0001f1f7", "\U0001f44d\U0001f3fd",
                                  "\U0001f469\u200d\U0001f4bb")))
    assert not any(map(is_one_emoji, ("", "x", "\u200d", "\U0001f6d2\U0001f6d2", "\U0001f6d2 x", ":cart:")))
