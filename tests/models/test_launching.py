"""Training in several processes, by accelerate's launcher: the same losses, one error line, a re-run that resumes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from src.core.errors import InvalidParams, RunAgain
from src.models import merging, placement
from utils import process

ROOT = Path(__file__).parents[2]
STAGE = "tests/fakes/shared_training.py"


def start(folder: Path, base: Path, *more: str, launcher: tuple[str, ...] = (), **changes: Any
          ) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, *launcher, STAGE, str(folder), str(base), json.dumps({"epochs": 2} | changes), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


TWO = ("scripts/launch_script.py", "--num_processes", "2")


def losses(folder: Path, name: str) -> list[float]:
    return [epoch[name] for epoch in json.loads((folder / "curve.json").read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["padded", "end_to_end"])
def test_two_processes_learn_what_one_learns(base: Path, tmp_path: Path, batches: str) -> None:
    one, two = (start(tmp_path / name, base, launcher=launcher, batches=batches)
                for name, launcher in (("one", ()), ("two", TWO)))
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    assert losses(tmp_path / "two", "train_loss") == pytest.approx(losses(tmp_path / "one", "train_loss"), rel=1e-5)
    assert losses(tmp_path / "two", "validation_loss") == pytest.approx(
        losses(tmp_path / "one", "validation_loss"), rel=0.02)
    assert two.stderr.count("epoch 1 of 2") == 1


@pytest.mark.slow
def test_a_killed_process_is_one_line_and_the_rerun_resumes(base: Path, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", base, launcher=TWO, batches="end_to_end")
    killed = start(tmp_path / "killed", base, "killed", launcher=TWO, batches="end_to_end")
    assert killed.returncode == 75
    assert [line for line in killed.stderr.splitlines() if not line.startswith("INFO ")] == [
        "ERROR process 1 of the stage was ended by SIGKILL; run it again, it goes on from what is saved"]
    again = start(tmp_path / "killed", base, launcher=TWO, batches="end_to_end")
    assert (whole.returncode, again.returncode) == (0, 0), whole.stderr + again.stderr
    assert "resuming from" in again.stderr
    assert losses(tmp_path / "killed", "train_loss") == losses(tmp_path / "whole", "train_loss")


@pytest.mark.slow
def test_a_wrong_parameter_is_said_once_with_its_exit_code(base: Path, tmp_path: Path) -> None:
    refused = start(tmp_path, base, launcher=TWO, batch_size=3)
    assert refused.returncode == 2
    (line,) = (line for line in refused.stderr.splitlines() if not line.startswith("INFO "))
    assert line.startswith("ERROR fine_tuning: a step of 3 conversations (batch_size x gradient_accumulation_steps) ca")


@pytest.mark.parametrize("code", [2, 75])
def test_one_process_alone_ends_the_launcher_with_its_own_exit_code(tmp_path: Path, code: int) -> None:
    (tmp_path / "stage.py").write_text(f"raise SystemExit({code})")
    assert placement.launch(["--num_processes", "1", str(tmp_path / "stage.py")]) == code


def test_one_process_alone_that_is_killed_is_to_be_run_again(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text("import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(RunAgain, match=r"^process 0 of the stage was ended by SIGKILL; run it again"):
        placement.launch(["--num_processes", "1", str(tmp_path / "stage.py")])


def test_flags_that_accelerate_refuses_are_an_error_of_the_configuration() -> None:
    with pytest.raises(InvalidParams, match=r"^launcher: You can only use one of .*--use_fsdp.*; `accelerate launch -"):
        placement.launch(["--cpu", "--use_fsdp", "stage.py"])


def test_fsdp_without_gpus_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr("accelerate.utils.is_cuda_available", lambda: False)
    with pytest.raises(InvalidParams, match=r"^launcher: FSDP needs GPUs and this machine has none; take --use"):
        process.set_up()


@pytest.mark.slow
def test_fsdp_without_gpus_ends_the_launched_stage_with_exit_code_2(base: Path, tmp_path: Path) -> None:
    refused = start(tmp_path, base, launcher=(*TWO, "--use_fsdp"))
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "ERROR launcher: FSDP needs GPUs and this machine has none; take --use_fsdp out of it"]


@pytest.mark.gpu
def test_fsdp_on_gpus_writes_the_adapter_that_is_merged(base: Path, tmp_path: Path) -> None:
    flags = ("scripts/launch_script.py", "--num_processes", "1", "--use_fsdp", "--fsdp_version", "2",
             "--fsdp_state_dict_type", "FULL_STATE_DICT", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
    done = start(tmp_path, base, launcher=flags, batches="end_to_end", precision="bfloat16")
    assert done.returncode == 0, done.stderr
    assert LoraConfig.from_pretrained(tmp_path / "adapter").r == 4
    merging.merge(base, tmp_path / "adapter", "float32")
