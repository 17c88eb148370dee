"""A stage's command as DVC runs it: no value of params.yaml reaches a shell, and every profile is applied."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from scripts import launch_script
from src.core.errors import InvalidParams
from src.core.params import MlflowParams, load_params
from tests.fakes.history_store import answers, challenger, deploy, write_params

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
LAUNCH = "scripts/launch_script.py"
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1",
               "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with params.yaml and the scripts."""
    write_params(tmp_path, ROOT / "params.yaml")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(folder: Path, section: str, **values: object) -> None:
    """Set values in a section of params.yaml, "" for its top."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    place = params
    for name in filter(None, section.split(".")):
        place = place.setdefault(name, {})
    place.update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def run_by_dvc(folder: Path, stage: str) -> "subprocess.CompletedProcess[str]":
    """`dvc repro` of this one stage, without what it depends on."""
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {stage: {"cmd": STAGES[stage]["cmd"]}}}))
    return subprocess.run(["dvc", "repro"], cwd=folder, env=os.environ | ENVIRONMENT, capture_output=True,
                          text=True, check=False)


@pytest.mark.parametrize(
    ("stage", "section", "values", "said"),
    [("deployment", "deployment.huggingface", {"model_id": "a/b; touch PWNED; :"}, "touch PWNED; :' is not a Hub"),
     ("fine_tuning", "", {"launcher": "python; touch PWNED;"}, "launcher: 'python; touch PWNED;' is unknown")],
)
def test_a_value_that_a_shell_would_run_ends_the_stage_in_one_line(
    stage: str, section: str, values: dict[str, str], said: str, folder: Path
) -> None:
    change(folder, section, **values)
    ended = run_by_dvc(folder, stage)
    assert ended.returncode != 0
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("ERROR ") and "failed to" not in line)
    assert said in line
    assert not list(folder.rglob("PWNED"))


@pytest.mark.parametrize(("rows", "reason"), [(15, "within_noise"), (40, "below_threshold")])
def test_the_shipped_profile_production_decides_under_dvc(rows: int, reason: str, mlflow_params: MlflowParams,
                                                          folder: Path) -> None:
    params = load_params(Path("params.yaml"))
    challenger(params, "first", answers(7, rows))
    deploy(Path("params.yaml"))
    challenger(params, "second", answers(8, rows))  # one answer better
    assert deploy(Path("params.yaml"), "--dry-run").reason == "improved"
    change(folder, "", profile="production")
    ended = run_by_dvc(folder, "deployment")
    assert ended.returncode == 0, ended.stderr
    assert f"PROMOTE result=kept code=0 reason={reason}" in ended.stderr
    compared = json.loads(Path("results/deployment/model_comparison.json").read_text())
    assert (compared["threshold"], compared["reason"]) == (0.01, reason)
    assert 0.001 < compared["improvement"] < 0.03


def main(*arguments: str) -> int:
    """The launch script, in this process."""
    with patch.object(sys, "argv", [LAUNCH, *arguments]):
        return launch_script.main()


@pytest.mark.parametrize(
    ("launcher", "said"),
    [("touch PWNED; python", "'touch PWNED; python' is unknown; write python, or accelerate launch and its flags"),
     ("python scripts/launch_script.py --num_processes 2", "for example accelerate launch --num_processes 2"),
     ("accelerate launch '", "is unknown; write python"), ("accelerate launch --nonsense", "arguments: --nonsense;"),
     ("accelerate launch $(touch PWNED)", "'$(touch' is no flag of `accelerate launch`; take it out"),
     ("accelerate launch --num_processes `touch PWNED`", "invalid int value: '`touch'; `accelerate launch --help`")],
)
def test_a_launcher_that_is_neither_python_nor_accelerates_is_refused(launcher: str, said: str, folder: Path) -> None:
    change(folder, "", launcher=launcher)
    with pytest.raises(InvalidParams, match=rf"launcher: .*{re.escape(said)}"):
        main("scripts/fine_tuning_script.py")
    assert not list(folder.rglob("PWNED"))


def test_a_stage_that_is_no_file_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidParams, match=r"^absent\.py: no such script; name a stage's, as dvc\.yaml does$"):
        main("absent.py")


def test_the_launcher_is_that_of_the_profile_in_the_stages_own_file(folder: Path, capfd: pytest.CaptureFixture[str]
                                                                    ) -> None:
    (folder / "stage.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(7)")
    change(folder, "", profile="shared")
    change(folder, "profiles.shared", launcher="accelerate launch --cpu --num_processes 1")
    (folder / "params.yaml").rename("other.yaml")
    assert main("stage.py", "--config", "other.yaml") == 7
    assert capfd.readouterr().out == "['--config', 'other.yaml']\n"


def test_python_runs_the_stage_in_the_process_that_was_started(folder: Path) -> None:
    (folder / "stage.py").write_text("import os, sys\nprint(sys.argv[1:], os.getpid())\nsys.exit(7)")
    with subprocess.Popen([sys.executable, LAUNCH, "stage.py", "--model", "champion"], text=True,
                          env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE) as started:
        said, _ = started.communicate()
    assert (said, started.returncode) == (f"['--model', 'champion'] {started.pid}\n", 7)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_stage_as_if_it_were_started_by_itself(number: int, code: int, folder: Path) -> None:
    (folder / "stage.py").write_text(
        "import os, signal\nfrom utils import process\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start without it\n"
        f"process.run(lambda: os.kill(os.getpid(), {number}) or 0)")
    ended = subprocess.run([sys.executable, LAUNCH, "stage.py"], env=os.environ | ENVIRONMENT, capture_output=True,
                           text=True, check=False)
    assert ended.returncode == code
    assert len(ended.stderr.splitlines()) == 1
