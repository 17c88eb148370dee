"""The strategies of the Space's requirements: their locks, the table of errors, applying, the build assertion."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.space_process import PYTHON, ROOT, SPACE, needs_serving

pytestmark = pytest.mark.usefixtures("modules_of_space")

ERRORS = ROOT / "tests/fakes/space_errors"  # what pip and Python really printed, paths shortened
SHOWN = ("openvino", "openvino-genai", "torch", "transformers", "peft", "numpy")
FEATURES: dict[str, str] = tomllib.loads((SPACE / "dependencies/strategies.toml").read_text())["features"]
NAMES = ("modern", "conservative", "no-lora", "cpu-only", "minimal")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """What the image's runtime stage copies before pip, and the tool."""
    for name in ("requirements", "dependencies"):
        shutil.copytree(SPACE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "fix_dependencies.py", "verify_deployment.py", "files.py", "packages.py"):
        shutil.copy(SPACE / name, tmp_path)
    return tmp_path


def run(*command: Path | str, python: Path | str = sys.executable, text: str = "", **environment: str) -> Any:
    return subprocess.run([str(python), *map(str, command)], input=text, capture_output=True, text=True, check=False,
                          env={**os.environ, **environment})


def build_check(folder: Path, **environment: str) -> Any:
    """The step of the image's build after pip."""
    return run(folder / "verify_deployment.py", "--build", python=PYTHON, **environment)


def plant(folder: Path, name: str, version: str) -> Path:
    """A distribution that says it is installed; put first on the path it is the one that is found."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


# What each text is traced to: strategy, package, installed, wanted.
TRACED = {
    "cuda_libraries": ("cpu-only", "torch", None, "the CPU build"),
    "hash_mismatch": ("modern", "markupsafe", "3.0.4", "the file that the lock was made of"),
    "hash_missing": ("modern", "markupsafe", ">=2.0", "an exact version with its hash"),
    "hash_required": ("modern", "markupsafe", "3.0.4", "its hash"),
    "hash_unpinned": ("modern", "jinja2", None, "an exact version with its hash"),
    "modeling_layers": ("no-lora", "peft", None, "0.18.1, or transformers>=4.52.1"),
    "no_space": ("modern", "torch", None, None),
    "not_compiled_with_cuda": ("cpu-only", "torch", None, None),
    "numpy_abi": ("conservative", "numpy", "2.4.6", "<2"),
    "numpy_dtype_size": ("conservative", "numpy", None, "<2"),
    "openvino_genai_missing": ("modern", "openvino", None, None),
    "openvino_genai_too_old": ("conservative", "openvino-genai", None, ">=2025.2.0.0"),
    "peft_too_old": ("no-lora", "peft", None, None),
    "pip_check": ("no-lora", "tokenizers", "0.21.0", "<0.24.0,>=0.23.1"),
    "python_too_old": ("minimal", "openvino-genai", None, "2026.4.1.0"),
    "resolver_conflict": ("modern", "huggingface-hub", "0.30.0", "<3.0 and >=1.31.0"),
    "torch_cpu_not_found": ("cpu-only", "torch", None, "2.13.0+cpu"),
    "torch_missing": ("no-lora", "torch", None, None),
    "torchvision_nms": ("cpu-only", "torchvision", None, "nothing: take it out"),
    "transformers_version_check": ("no-lora", "tokenizers", "0.21.0", ">=0.23.1,<0.24.0"),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in ERRORS.iterdir()))
def test_a_real_error_is_traced_to_the_requirement_to_change(name: str) -> None:
    from dependencies.strategies import diagnose

    found = diagnose((ERRORS / f"{name}.txt").read_text())
    assert found
    assert (found.error.strategy, found.package, found.installed, found.wanted) == TRACED[name]
    assert found.line in (ERRORS / f"{name}.txt").read_text()


def test_what_is_no_known_error_is_traced_to_nothing() -> None:
    from dependencies.strategies import diagnose

    assert diagnose("") is None
    assert diagnose("Successfully installed jinja2-3.1.6\nlistening on port 7860") is None


def test_the_tool_recommends_from_stdin_from_a_file_and_from_the_environment(copied: Path) -> None:
    tool, log = copied / "fix_dependencies.py", ERRORS / "modeling_layers.txt"
    piped = run(tool, "--recommend", "--log", "-", text=log.read_text())
    assert piped.stdout == run(tool, "--recommend", "--log", log).stdout
    assert "change: peft (wanted 0.18.1, or transformers>=4.52.1)" in piped.stdout
    assert piped.stdout.splitlines()[-1] == "strategy: no-lora"
    here = run(tool, "--recommend")  # the project's environment has no OpenVINO
    assert "openvino, which is not installed" in here.stdout
    assert here.stdout.splitlines()[-1] == "strategy: modern"


@pytest.mark.parametrize("flags", [["--strategy", "newest", "--apply"], ["--strategy", "modern"], ["--apply"],
                                   ["--list", "--log", "x"], ["--recommend", "--log", "/nowhere"], ["--undo"]], ids=str)
def test_a_flag_that_cannot_be_is_refused_and_changes_nothing(copied: Path, flags: list[str]) -> None:
    before = (copied / "requirements.txt").read_bytes()
    assert run(copied / "fix_dependencies.py", *flags).returncode == 2
    assert (copied / "requirements.txt").read_bytes() == before


def test_applying_can_be_undone_and_applying_twice_keeps_what_was_before(copied: Path) -> None:
    tool, target = copied / "fix_dependencies.py", copied / "requirements.txt"
    target.write_text("written by hand\n")
    for _ in range(2):
        assert run(tool, "--strategy", "cpu-only", "--apply").returncode == 0
        assert target.read_text() == ("# strategy: cpu-only\n--require-hashes\n-r requirements/torch-cpu.lock\n"
                                      "-r requirements/cpu-only.lock\n")
    assert run(tool, "--undo").returncode == 0
    assert target.read_text() == "written by hand\n"
    assert run(tool, "--undo").returncode == 2
    assert sorted(path.name for path in copied.iterdir() if path.is_file()) == [
        "files.py", "fix_dependencies.py", "packages.py", "requirements.txt", "verify_deployment.py"]


def test_the_list_has_every_strategy_and_the_space_takes_one_of_them() -> None:
    from dependencies import strategies

    assert tuple(strategies.load()) == NAMES
    listed = run(SPACE / "fix_dependencies.py", "--list").stdout
    assert [line.partition(":")[0] for line in listed.splitlines()[::2]] == list(NAMES)
    assert strategies.APPLIED.read_text() == strategies.applied().text
    assert not [name for name in strategies.applied().complete if name.startswith(("torch", "transformers", "nvidia"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_has_what_is_asked_for_all_with_hashes_and_torch_in_a_file_of_its_own(name: str) -> None:
    from dependencies import strategies

    strategy = strategies.load()[name]
    assert strategy.direct.items() <= strategy.complete.items()
    for lock in strategy.locks:
        text = (SPACE / "requirements" / lock).read_text()
        assert all(re.match(r"[^\s=]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", each)
                   for each in re.findall(r"^[^\s#-].*\n.*", text, re.MULTILINE))
        assert ("torch==" in text) == (lock == "torch-cpu.lock")


def test_every_strategy_that_an_error_leads_to_exists_and_every_feature_is_explained() -> None:
    from dependencies import strategies

    known = strategies.load()
    assert {error.strategy for error in strategies.errors()} <= {*known}
    assert {feature for each in known.values() for feature in each.works} == {*FEATURES}


def test_the_pages_are_what_the_tables_say() -> None:
    from dependencies import strategies

    dependencies, compatibility = ((ROOT / f"docs/{name}.md").read_text() for name in ("dependencies", "compatibility"))
    summaries = [f"- `{each.name}`: {each.summary}" for each in strategies.load().values()]
    for lines in (summaries, *error_lists()):
        assert "\n".join(lines) + "\n" in dependencies
    assert "\n".join(compatibility_table()) + "\n" in compatibility


def error_lists() -> Iterator[list[str]]:
    """A line for each error, by branch of errors.toml."""
    from dependencies import strategies

    for _, found in groupby(strategies.errors(), key=lambda error: error.branch):
        yield [f"- {error.says}: `{error.strategy}`" for error in found]


def compatibility_table() -> list[str]:
    """What works with each strategy, and the versions that are locked."""
    from dependencies import strategies

    known = strategies.load().values()
    rows = [(meaning, ["yes" if name in each.works else "no" for each in known]) for name, meaning in FEATURES.items()]
    rows += [("Python", [", ".join(each.python) for each in known]),
             ("packages", [str(len(each.complete)) for each in known]),
             ("MB of the environment", [str(each.megabytes) for each in known])]
    rows += [(f"`{name}`", [each.complete.get(name, "-") for each in known]) for name in SHOWN]
    return ["| | " + " | ".join(f"`{each.name}`" for each in known) + " |", "|---" * (len(known) + 1) + "|",
            *(f"| {first} | {' | '.join(rest)} |" for first, rest in rows)]


@needs_serving
@pytest.mark.parametrize(("name", "version", "said"), [
    ("fastapi", "0.1", "build: fastapi: the lock has 0.165.0, installed is 0.1 and 0.165.0"),
    ("torch", "2.14.1", "build: torch: installed is 2.14.1, and the lock has none")])
def test_a_planted_wrong_version_fails_the_build(tmp_path: Path, name: str, version: str, said: str) -> None:
    ended = build_check(SPACE, PYTHONPATH=str(plant(tmp_path, name, version)))
    assert (ended.returncode, ended.stdout.splitlines()) == (1, [said, "1 problem found"])


@needs_serving
def test_what_is_installed_as_locked_builds_and_under_another_strategy_it_does_not(copied: Path) -> None:
    assert build_check(copied).stdout == "the installed packages are the locked ones\n"
    run(copied / "fix_dependencies.py", "--strategy", "conservative", "--apply")
    ended = build_check(copied)
    assert ended.returncode == 1
    assert "build: numpy: the lock has 1.26.4, installed is 2.4.6\n" in ended.stdout
    assert "build: numpy: the ABI of its compiled part is 2, of the lock's 1.26.4 it is another\n" in ended.stdout


@needs_serving
def test_a_torch_for_cuda_fails_the_build_though_its_version_says_cpu(copied: Path, tmp_path: Path) -> None:
    planted = plant(tmp_path / "planted", "torch", "2.13.0+cpu")
    (planted / "torch").mkdir()
    (planted / "torch/__init__.py").write_text("class version: cuda = '13.0'\n__version__ = '2.13.0+cpu'\n")
    run(copied / "fix_dependencies.py", "--strategy", "no-lora", "--apply")
    ended = build_check(copied, PYTHONPATH=str(planted))
    assert ended.returncode == 1
    assert "build: torch: is the build for CUDA 13.0; the CPU build is wanted\n" in ended.stdout
