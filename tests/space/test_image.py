"""The Space's image: its Dockerfile read, its COPY steps done by hand, and what comes out of that started."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.fakes.loopback.dockerfile import BuildError, Stage, context, image, stages
from tests.fakes.space_process import PYTHON, SPACE, needs_serving, run_to_end, serve, unpack

DOCKERFILES = ["Dockerfile", "fallback.Dockerfile"]


def read(name: str) -> list[Stage]:
    return stages((SPACE / name).read_text())[1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """space/ with the tiny bundle, and with what must never leave it."""
    folder = tmp_path_factory.mktemp("checkout") / "space"
    shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns(".venv*", "assets", ".*_cache"))
    unpack(folder.parent).rename(folder / "assets")
    for name in (".env", "serving/.env", "secrets.json", "assets/.bundle.1/x", ".venv/bin/python", ".git/config"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("SECRET")
    return folder


@pytest.fixture
def built(checkout: Path, tmp_path: Path) -> Path:
    """The working folder of the image."""
    return image(checkout, tmp_path / "image")[0]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_it_runs_the_app_as_one_process_of_an_unprivileged_user(name: str) -> None:
    final = read(name)[-1]
    assert final.one("CMD").arguments == ["python", "app.py"]
    assert (final.one("USER").text, final.one("EXPOSE").text) == ("1000", "7860")
    words = [step.word for step in final.steps]
    assert "RUN" not in words[words.index("USER"):]
    assert final.environment["PORT"] == "7860"


def test_the_image_is_offline_and_the_packages_are_checked_before_the_app_is_put_in() -> None:
    final = read("Dockerfile")[-1]
    assert {final.environment[name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")} == {"1"}
    lines = [f"{step.word} {step.text}" for step in final.steps]
    parts = ["ARG BUILD_KEY", "requirements.txt", "pip install", "python verify_deployment", "assets/", "app.py "]
    order = [next(number for number, line in enumerate(lines) if part in line) for part in parts]
    assert order == sorted(order)


def test_no_compiler_is_installed() -> None:
    assert not [step for name in DOCKERFILES for stage in read(name) for step in stage.all("RUN")
                if re.search(r"apt|gcc|build-essential|make", step.text)]


def test_one_build_key_stands_before_the_first_stage_and_is_used_by_each() -> None:
    before, found = stages((SPACE / "Dockerfile").read_text())
    assert [step.text.partition("=")[0] for step in before if step.word == "ARG"] == ["PYTHON", "BUILD_KEY"]
    for stage in found:
        words = [f"{step.word} {step.text}" for step in stage.steps]
        assert words.index("ARG BUILD_KEY") < min(place for place, word in enumerate(words) if word.startswith("RUN"))


def test_the_front_matter_is_what_a_docker_space_needs() -> None:
    front = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (front["sdk"], front["app_port"]) == ("docker", 7860)
    assert len(front["emoji"]) == 1
    assert not front["emoji"].isascii()
    assert len(front["short_description"]) <= 60


def test_nothing_leaves_but_what_is_named(checkout: Path) -> None:
    files = context(checkout)
    assert {"app.py", "assets/int8/openvino_model.bin", "serving/api.py", "requirements.txt"} <= {*files}
    assert not [name for name in files if "SECRET" in (checkout / name).read_bytes().decode("latin-1")[:6]]
    assert not [name for name in files if "__pycache__" in name or name.startswith(("deploy.py", "docs"))]


@needs_serving
def test_what_is_pushed_is_what_docker_lets_in_and_the_files_around(checkout: Path) -> None:
    code = ("import json; from pathlib import Path; from deploying import tree; "
            "print(json.dumps([*tree.of_app(Path(), Path('assets'))]))")
    done = subprocess.run([PYTHON, "-c", code], cwd=checkout, capture_output=True, text=True, check=True)
    around = {"Dockerfile", ".dockerignore", "README.md", "Procfile", "variables.json"}
    assert {*json.loads(done.stdout)} - around == {*context(checkout)} - around


def test_a_file_that_the_dockerfile_needs_and_is_not_there_is_noticed(checkout: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkout, broken)
    (broken / "questions.json").unlink()
    with pytest.raises(BuildError, match=r"questions\.json: not found"):
        image(broken, tmp_path / "image")


def test_a_bundle_that_was_changed_ends_the_build(checkout: Path, tmp_path: Path) -> None:
    image(checkout, tmp_path)
    command = next(step.text for step in read("Dockerfile")[0].all("RUN") if "serving.identity" in step.text).split()
    folder = tmp_path / "stage-builder/build"

    def check() -> int:
        return subprocess.run([sys.executable, *command[1:]], cwd=folder, capture_output=True, check=False).returncode

    assert check() == 0
    (folder / "assets/tokenizer.json").write_text("{}")
    assert check() == 5


def healthcheck(port: int | None) -> int:
    """The exit code of the Dockerfile's check."""
    program = json.loads(read("Dockerfile")[-1].one("HEALTHCHECK").text.partition("CMD ")[2])
    return run_to_end(sys.executable, *program[1:], PORT=str(port)).returncode


def started(folder: Path, python: Path | str) -> dict[str, object]:
    """What the app says of its health, once it has answered."""
    with serve(folder / "app.py", python=python) as server:
        assert server.chat(max_tokens=8).status_code == 200
        assert server.client.get("/").status_code == 200
        assert healthcheck(server.client.base_url.port) == 0
        return dict(server.client.get("/healthz").json())


@needs_serving
def test_the_image_s_files_start_and_answer(built: Path) -> None:
    assert started(built, PYTHON)["version"] == 7


def test_they_start_with_the_fallback_as_app_too(built: Path) -> None:
    shutil.copy(built / "app_minimal_fallback.py", built / "app.py")
    health = started(built, sys.executable)
    assert (health["version"], health["fallback"]) == (7, True)


def test_procfile_and_dockerfile_start_the_same(built: Path) -> None:
    kind, _, command = (SPACE / "Procfile").read_text().strip().partition(": ")
    assert (kind, command.split()) == ("web", read("Dockerfile")[-1].one("CMD").arguments)


def test_the_healthcheck_fails_where_nothing_answers() -> None:
    assert healthcheck(9) != 0


@pytest.mark.slow
@needs_serving
def test_its_run_steps_make_an_environment_in_which_it_starts(built: Path, tmp_path: Path) -> None:
    """All but useradd, in a plain virtual environment of the Python that made space/.venv."""
    subprocess.run([PYTHON.resolve(), "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    for step in read("Dockerfile")[-1].all("RUN")[:-1]:
        path = f"{python.parent}:/usr/bin:/bin"
        subprocess.run(["sh", "-c", step.text], cwd=built, env={"PATH": path, "HOME": str(tmp_path)}, check=True)
    size = sum(path.lstat().st_size for path in (tmp_path / "venv").rglob("*") if not path.is_dir()) / 1e6
    print(f"environment: {size:.0f} MB")
    assert size < 1000
    assert started(built, python)["version"] == 7


def test_the_build_key_changes_and_is_committed_alone(tmp_path: Path) -> None:
    for name in ("force_cache_bust.py", "files.py", "packages.py", "Dockerfile"):
        shutil.copy(SPACE / name, tmp_path)
    (tmp_path / "other").write_text("1")

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    run("git", "init", "-q")
    run("git", "config", "user.name", "x")
    run("git", "config", "user.email", "x@x")
    run("git", "add", ".")
    run("git", "commit", "-qm", "first")
    (tmp_path / "other").write_text("2")
    key = run(sys.executable, "force_cache_bust.py", "--commit")
    assert f"ARG BUILD_KEY={key}\n" in (tmp_path / "Dockerfile").read_text()
    assert run("git", "show", "--name-only", "--format=").split() == ["Dockerfile"]
    assert run(sys.executable, "force_cache_bust.py") != key
