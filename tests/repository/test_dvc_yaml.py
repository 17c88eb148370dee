"""dvc.yaml declares what its stages read: a changed module or parameter runs the stage again, and so does no other."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.core.records import CONFIG, EVALUATION_RESULTS, MODEL_LOCATION, OUTPUT_DIR
from tests.repository.architecture_rules import closure, undeclared_params, undeclared_sources

ROOT = Path(__file__).parents[2]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = DVC["stages"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one stage, whose script reaches src/far through scripts and utils; it breaks no rule."""
    files = {
        "scripts/one_script.py": "def main():\n    from scripts.commands import deploy\n    print(params.data.path)\n",
        "scripts/commands/deploy.py": "from utils.near import x\n",
        "utils/near.py": "from src.far.y import z\n",
        "src/far/y.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from src import unused\n",
        "src/unused.py": "", "scripts/launch_script.py": "",
        "params.yaml": "profile: a\ndata: {path: x}\nmodel: {name: y}\nprofiles: {big: {data: {path: z}}}\n",
        "dvc.yaml": yaml.safe_dump({"stages": {"one": {
            "cmd": "python scripts/launch_script.py scripts/one_script.py",
            "deps": ["scripts/one_script.py", "scripts/commands/deploy.py", "src/far"],
            "params": ["profile", "data", "profiles.big.data"],
        }}}),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def edit(root: Path, old: str, new: str, file: str = "dvc.yaml") -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("declared", "lacking"),
    [("src/far", "src/far/y.py"), ("scripts/commands/deploy.py", "scripts/commands/deploy.py"),
     ("scripts/one_script.py", "scripts/one_script.py")],
)
def test_code_that_is_reached_and_not_declared_is_found(declared: str, lacking: str, small: Path) -> None:
    edit(small, f"    - {declared}\n", "")
    assert undeclared_sources(small) == [f"one: deps lack {lacking}"]


def test_declared_code_that_is_gone_is_found(small: Path) -> None:
    edit(small, "- src/far", "- src/far\n    - src/fa")
    assert undeclared_sources(small) == ["one: src/fa does not exist"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("    - profile\n", "", "one: params lack profile"), ("    - data\n", "    - model\n", "one: params lack data"),
     ("    - profiles.big.data\n", "", "one: params lack profiles.big.data"),
     ("    - data\n", "    - data\n    - dta\n", "one: params.yaml has no dta")],
)
def test_a_parameter_that_is_missing_or_unknown_is_found(old: str, new: str, said: str, small: Path) -> None:
    edit(small, old, new)
    assert said in undeclared_params(small)


def test_what_is_declared_in_full_is_not_found(small: Path) -> None:
    assert undeclared_sources(small) == undeclared_params(small) == []


def test_the_closure_follows_imports_inside_functions_and_not_those_for_types(small: Path) -> None:
    assert closure(small, small / "scripts/one_script.py") == {
        "scripts/one_script.py", "scripts/commands/deploy.py", "utils/near.py", "src/far/y.py"}


def test_every_stage_declares_its_sources() -> None:
    assert undeclared_sources(ROOT) == []


def test_every_stage_declares_its_parameters() -> None:
    assert undeclared_params(ROOT) == []


def test_the_stages_are_the_documented_ones_in_their_order() -> None:
    assert list(STAGES)[:5] == ["data_preprocessing", "base_model", "fine_tuning", "evaluation", "deployment"]


def test_the_deployment_runs_each_time_and_is_never_restored_from_a_cache() -> None:
    stage = STAGES["deployment"]
    assert stage["always_changed"] is True
    for out in stage["outs"]:
        assert isinstance(out, dict), out
        assert all(options["cache"] is False and options["persist"] is True for options in out.values())


def test_the_deployment_command_is_the_documented_one() -> None:
    command = ("python scripts/deployment_script.py --evaluation-results results/evaluations/metrics.json "
               "--model-artifact-path results/fine_tuned_model_location.json --config params.yaml "
               "--output-dir results/deployment")
    assert " ".join(STAGES["deployment"]["cmd"].split()) == command
    assert all(f" {path}" in command for path in (CONFIG, EVALUATION_RESULTS, MODEL_LOCATION, OUTPUT_DIR))


def test_no_parameter_is_part_of_a_command() -> None:
    assert [stage["cmd"] for stage in STAGES.values() if "${" in stage["cmd"]] == []


def test_a_stage_names_few_folders_of_code() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 140
    for name, stage in STAGES.items():
        code = [dep for dep in stage["deps"] if dep.startswith(("src", "scripts", "space"))]
        assert len(code) <= 8, f"{name}: {code}"


def test_every_interpolated_parameter_exists() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key in re.findall(r"\$\{([^}]+)\}", (ROOT / "dvc.yaml").read_text()):
        section = params
        for name in key.split("."):
            section = section[name]


def test_no_number_of_params_is_written_a_second_time() -> None:
    commands = " ".join(stage["cmd"] for stage in STAGES.values())
    assert re.findall(r"\b\d+(\.\d+)?\b", commands) == []


def test_what_one_stage_reads_another_writes() -> None:
    outs = [out for stage in STAGES.values() for out in [*stage.get("outs", []), *stage.get("metrics", [])]]
    written = {path for out in outs for path in ([out] if isinstance(out, str) else out)}
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            if dep.startswith("results/"):
                assert any(dep == path or dep.startswith(f"{path}/") or path.startswith(f"{dep}/")
                           for path in written), f"{name}: nothing writes {dep}"
