"""The command `champion`: each subcommand is a script that exists, and what is not a script hands its exit code on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from scripts import cli

ROOT = Path(__file__).parents[2]
OF_SCRIPTS = sorted(set(cli.COMMANDS) - {"repro", "serve", "space"})


def champion(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path or os.environ["PATH"]})


def command(*words: str) -> Sequence[str]:
    # Tests that run in the background of a shell ignore Ctrl-C, and what they start inherits that.
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "sys.argv[0] = 'champion'; from scripts.cli import main; main()")
    return [sys.executable, "-c", code, *words]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty DVC repository."""
    monkeypatch.chdir(tmp_path)
    for line in ("git init --quiet", f"{sys.executable} -m dvc init --quiet"):
        subprocess.run(line.split(), check=True)
    return tmp_path


def stage(program: str) -> None:
    Path("dvc.yaml").write_text(f"stages:\n  one:\n    cmd: python -c '{program}'\n    always_changed: true\n")


@pytest.mark.parametrize(("words", "said"), [
    (["histroy"], "champion histroy: there is no such command; did you mean `champion history`?"),
    (["zzz"], "champion zzz: there is no such command; `champion --help` lists the commands"),
    (["--verbose"], "champion --verbose: there is no such command; `champion --help` lists the commands"),
    (["space", "validat"], "champion space validat: there is no such command; did you mean `champion space validate`?"),
    (["history", "--nothing"], "unrecognized arguments: --nothing; see --help"),
    (["serve", "--nothing"], "unrecognized arguments: --nothing; see --help"),
])
def test_an_unknown_command_or_flag_ends_with_2_in_one_line(words: list[str], said: str) -> None:
    ended = champion(*words)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"ERROR {said}\n")


@pytest.mark.parametrize("words", [["repro"], ["serve"], ["space", "deploy"], ["space", "bundle"], ["history"]])
def test_in_another_folder_a_command_says_where_to_go(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ended = champion(*words)
    assert ended.returncode == 2
    assert re.fullmatch(rf"ERROR \S+: not found in {tmp_path}; run it in the repository's folder \(`cd {ROOT}`\).*\n",
                        ended.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_pipeline_hands_its_exit_code_on_and_names_no_next_step(clone: Path) -> None:
    stage("raise SystemExit(4)")
    ended = champion("repro")
    assert (ended.returncode, "Next steps" in ended.stdout) == (255, False)


def test_a_pipeline_runs_in_this_environment_and_ends_with_three_next_steps(clone: Path) -> None:
    stage("import sys; print(sys.prefix)")
    ended = champion("repro", path="/usr/bin:/bin")
    assert (ended.returncode, sys.prefix in ended.stdout) == (0, True)
    steps = ended.stdout.partition("Next steps:\n")[2].splitlines()
    own = Path(sys.executable).with_name("champion")
    assert [line.split()[0] for line in steps] == [
        str(own), str(own), (clone / "results/report/index.html").as_uri()]
    assert {line.split()[1] for line in steps[:2]} <= set(cli.COMMANDS)


def test_arguments_reach_dvc_and_bring_no_next_steps(clone: Path) -> None:
    stage("raise SystemExit(4)")
    ended = champion("repro", "--dry")
    assert (ended.returncode, "Next steps" in ended.stdout) == (0, False)
    assert "Running stage 'one'" in ended.stdout


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_pipeline_is_not_left_running(by: signal.Signals, clone: Path) -> None:
    stage("import os, time; open(\"pid\", \"w\").write(str(os.getpid())); print(\"up\", flush=True); time.sleep(600)")
    running = subprocess.Popen(command("repro"), stdout=subprocess.PIPE, text=True, start_new_session=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert running.stdout
    while running.stdout.readline() != "up\n":
        pass
    os.killpg(running.pid, by)  # as a terminal does; a supervisor sends it to the first process alone
    assert running.wait(timeout=120) != 0
    stage_runs = partial(runs, int((clone / "pid").read_text()))
    for _ in range(300):  # the signal reached it too, and it ends on its own
        if not stage_runs():
            return
        time.sleep(0.1)
    pytest.fail("the stage still runs")


def runs(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("name", OF_SCRIPTS)
def test_the_help_of_a_command_is_its_scripts_under_the_name_of_the_command(name: str) -> None:
    file = f"{cli.COMMANDS[name].args[0]}.py"  # type: ignore[attr-defined]
    by_itself = subprocess.run([sys.executable, ROOT / "scripts" / file, "--help"], capture_output=True, text=True,
                               check=True, cwd=ROOT)
    ended = champion(name, "--help")
    assert by_itself.stdout.startswith(f"usage: {file} ")
    assert ended.stdout.startswith(f"usage: champion {name} ")
    assert [word for word in ended.stdout.split() if word.startswith("--")] == [
        word for word in by_itself.stdout.split() if word.startswith("--")]


@pytest.mark.parametrize("name", sorted(cli.SPACE_COMMANDS))
def test_the_help_of_a_space_command_needs_no_environment_of_its_own(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "space", tmp_path / "space", ignore=shutil.ignore_patterns(".*", "__pycache__", "assets"))
    ended = subprocess.run(command("space", name, "--help"), capture_output=True, text=True, check=True, cwd=tmp_path,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.stdout.startswith(f"usage: champion space {name} ")


def test_a_space_command_runs_in_the_serving_environment_which_is_set_up_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "space", tmp_path / "space", ignore=shutil.ignore_patterns(".*", "__pycache__", "assets"))
    ended = champion("space", "force-cache-bust", path="/nowhere")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "make: not found; install it, for `python3 -m venv space/.venv && " in ended.stderr
    Path("Makefile").write_text("space/.venv/.ready:\n\t@false\n")
    ended = champion("space", "force-cache-bust")
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        2, "ERROR space/.venv: not set up; see what make says above")
    Path("Makefile").write_text("space/.venv/.ready:\n\t@$(PYTHON) -m venv --without-pip space/.venv && touch $@\n")
    before = Path("space/Dockerfile").read_text()
    ended = champion("space", "force-cache-bust")
    assert (ended.returncode, "changed here only" in ended.stderr) == (0, True)
    assert f"ARG BUILD_KEY={ended.stdout.strip()}\n" in Path("space/Dockerfile").read_text() != before
    ended = champion("space", "fix-dependencies", "--strategy", "unknown", "--test")
    assert ended.returncode == 2
    assert "champion space fix-dependencies: error: argument --strategy" in ended.stderr


def test_serve_is_make_serve_with_this_python_and_without_make_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rule = "serve: .venv/.ready\n\t@echo $(PYTHON) of $(RELEASE); exit 3\n.venv/.ready: Makefile\n\t@echo set up\n"
    Path("Makefile").write_text(rule)
    ended = champion("serve", path="/nowhere")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("ERROR make: not found; install it, ")
    ended = champion("serve", "--release", "results/release")
    assert (ended.returncode, ended.stdout) == (2, f"{sys.executable} of results/release\n")  # make's 2


def test_the_help_names_every_command_and_loads_no_library() -> None:
    program = ("import sys; sys.argv = ['champion', '--help']\nfrom scripts.cli import main\ntry: main()\n"
               "except SystemExit as end: print('CODE', end.code, *sorted({'pydantic', 'dotenv', 'mlflow', 'src'} & "
               "{*sys.modules}))")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    page, _, told = ended.stdout.rpartition("CODE ")
    assert told == "0\n"
    assert re.findall(r"^  (\w+)  ", page, re.MULTILINE) == list(cli.COMMANDS)
    assert re.findall(r"^  ([\w-]+)  ", champion("space").stdout, re.MULTILINE) == list(cli.SPACE_COMMANDS)
    for example in re.findall(r"^  champion (\w+) ", page, re.MULTILINE):
        assert example in cli.COMMANDS
    assert max(map(len, page.splitlines())) <= 80


def test_the_version_is_that_of_the_project_which_installs_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert champion("--version").stdout == f"champion {project['version']}\n"
    assert project["scripts"] == {"champion": "scripts.cli:main"}
