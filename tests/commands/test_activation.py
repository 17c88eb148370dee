"""A script in a shell without the environment: one line that says how to activate it, and exit code 2."""

import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*_script.py"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin/python"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("scripts", "space", "src", "utils"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".venv*", "__pycache__", "assets"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def call(python: Path, folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """The exit code, and all that was printed."""
    ended = subprocess.run([str(python), *words], cwd=folder, text=True, check=False, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, env={"PATH": "/usr/bin:/bin", **environment})
    return ended.returncode, ended.stdout


def set_up(file: Path) -> None:
    file.parent.mkdir(parents=True)
    file.touch()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_without_the_environment_says_how_to_activate_it(script: Path, bare: Path) -> None:
    said = f"ERROR this Python ({bare}) lacks Champion's packages; activate them with `. .venv/bin/activate` and run it"
    code, text = call(bare, ROOT, f"scripts/{script.name}")
    first = "run `make repro`, which sets up .venv, and then "  # where the tests run in another environment
    assert (code, text.replace(first, "")) == (2, f"{said} again\n")


def test_without_an_environment_it_says_first_how_to_set_one_up(bare: Path, clone: Path) -> None:
    said = f"ERROR this Python ({bare}) lacks Champion's packages; "
    code, text = call(bare, clone, "scripts/status_script.py")
    then = "activate them with `. .venv/bin/activate` and run it again"
    assert (code, text) == (2, f"{said}run `make repro`, which sets up .venv, and then {then}\n")
    set_up(clone / ".venv/bin/activate")
    code, text = call(bare, clone.parent, f"{clone}/scripts/status_script.py")
    assert (code, text) == (2, f"{said}activate them with `. {clone}/.venv/bin/activate` and run it again\n")


def test_a_clone_on_the_path_is_no_environment_either(bare: Path, clone: Path) -> None:
    code, text = call(bare, clone, "scripts/history_script.py", PYTHONPATH=str(clone))
    assert (code, text.count("\n"), "`. .venv/bin/activate`" in text) == (2, 1, True)


CALLS = [("deploy.py --verify-only --space a/b", "space/.venv", "make serving"),
         ("fix_dependencies.py --recommend", "space/.venv", "make serving"),
         ("force_cache_bust.py --push --space a/b", "space/.venv", "make serving"),
         ("prepare_assets.py --model a/b", "space/.venv-builder", "make space/.venv-builder/.ready"),
         ("validate_bundle.py --model a/b", ".venv", "make repro")]


@pytest.mark.parametrize(("words", "environment", "maker"), CALLS, ids=[row[0].split(".")[0] for row in CALLS])
def test_a_space_script_without_its_packages_says_which_python_to_run_it_with(
    words: str, environment: str, maker: str, bare: Path, clone: Path
) -> None:
    name, *flags = words.split()
    then = f"run it with `{environment}/bin/python space/{name}`"
    code, text = call(bare, clone, f"space/{name}", *flags)
    assert (code, text.count("\n")) == (2, 1), text
    assert text.startswith("ERROR No module named '")
    assert text.endswith(f"' in this Python ({bare}); run `{maker}`, and then {then}\n")
    set_up(clone / environment / ".ready")
    code, text = call(bare, clone / "space", name, *flags)
    assert text.endswith(f"' in this Python ({bare}); {then} in {clone}\n")


def test_in_an_image_the_log_keeps_the_traceback(bare: Path, clone: Path) -> None:
    (clone / "Makefile").unlink()
    code, text = call(bare, clone, "space/deploy.py")
    assert (code, text.splitlines()[0]) == (1, "Traceback (most recent call last):")
