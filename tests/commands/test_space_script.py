"""The space stage: off at no cost, and otherwise a bundle that is SAFE or no bundle at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts import space_script
from src.core.errors import IntegrityError, InvalidParams
from src.core.records import CHAMPION_FILE, ChampionFile, SpaceRecord
from tests.fakes.factories import metrics
from tests.fakes.space_process import ROOT

KEY, OTHER_KEY = "cd" * 32, "ef" * 32
RELEASE = Path("results/release")
# Stand-ins for the tools: what they were called with goes to calls.txt; int8 and int4 are as safe as safe.txt says.
PREPARE = """
import pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
bundle = pathlib.Path(flags["--output"])
bundle.mkdir(parents=True, exist_ok=True)
(bundle / "weights").write_text(flags["--weights"])
with open("calls.txt", "a") as file:
    file.write(f"prepare {flags['--weights']} {flags['--version']}\\n")
"""
VALIDATE = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
bundle = pathlib.Path(flags["--bundle"])
weights = (bundle / "weights").read_text().split(",")
safe = pathlib.Path("safe.txt").read_text().split()
serves = [each for each in weights if each in safe]
(bundle / "validation.json").write_text(json.dumps({"serves": serves}))
with open("calls.txt", "a") as file:
    file.write(f"validate {','.join(weights)} {flags['--max-score-drop']}\\n")
sys.exit(0 if serves else 5)
"""


def champion_file(key: str) -> str:
    return ChampionFile(format=1, key=key, model_digest="ab" * 32, model_name="shop", contract="0" * 64,
                        metrics=metrics(0.5)).text()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A champion's release with the stage switched on, and tools that stand in for those of space/."""
    monkeypatch.chdir(tmp_path)
    files = {
        "space/prepare_assets.py": PREPARE, "space/validate_bundle.py": VALIDATE, "safe.txt": "int8",
        str(RELEASE / CHAMPION_FILE): champion_file(KEY),
        "results/deployment/deployment_info.json": json.dumps({"champion": {"key": KEY, "version": 4}}),
        "results/data/evaluation.jsonl": "{}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in (".venv", ".venv-builder"):
        (tmp_path / "space" / name / "bin").mkdir(parents=True)
        (tmp_path / "space" / name / "bin/python").symlink_to(sys.executable)
    switch(tmp_path, enabled=True)
    monkeypatch.setattr(sys, "argv", ["space_script.py"])
    return tmp_path


def switch(root: Path, **changes: object) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["space"] |= changes
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def run() -> SpaceRecord:
    assert space_script.main() == 0
    return SpaceRecord.load(Path("results/space/space.json"))


def calls(root: Path) -> list[str]:
    return (root / "calls.txt").read_text().splitlines() if (root / "calls.txt").exists() else []


def test_it_is_off_as_shipped_says_so_in_one_line_and_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    ended = subprocess.run([sys.executable, "-X", "importtime", str(ROOT / "scripts/space_script.py")], cwd=tmp_path,
                           capture_output=True, text=True, check=True)
    assert ended.stdout == "space: off, space.enabled is false in params.yaml\n"
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "mlflow", "openvino"}
    assert [path.name for path in (tmp_path / "results/space").iterdir()] == ["space.json"]


def test_without_the_champions_release_there_is_nothing_to_make(shop: Path) -> None:
    (shop / RELEASE / CHAMPION_FILE).write_text(champion_file(OTHER_KEY))
    assert run().state == "nothing"
    (shop / RELEASE / CHAMPION_FILE).unlink()
    assert run().state == "nothing"
    (shop / RELEASE / CHAMPION_FILE).write_text(champion_file(KEY))
    (shop / "results/deployment/deployment_info.json").unlink()
    assert run().state == "nothing"
    assert calls(shop) == []


@pytest.mark.parametrize(("key", "state"), [(KEY, "made"), (OTHER_KEY, "nothing")])
def test_a_release_made_before_champion_json_is_known_by_its_card(key: str, state: str, shop: Path) -> None:
    (shop / RELEASE / CHAMPION_FILE).unlink()
    (shop / RELEASE / "README.md").write_text(f"| promotion key | `{key}` |\n")
    assert run().state == state


@pytest.mark.parametrize("name", [".venv", ".venv-builder"])
def test_an_environment_that_is_missing_is_named(name: str, shop: Path) -> None:
    (shop / "space" / name / "bin/python").unlink()
    with pytest.raises(InvalidParams, match=rf"space/{name}/bin/python is missing; run `make space/{name}/\.ready`"):
        run()


def test_what_is_unsafe_gives_way_to_the_weights_as_released(shop: Path) -> None:
    (shop / "safe.txt").write_text("safetensors")
    assert run().serves == ["safetensors"]
    assert calls(shop) == ["prepare int8,int4 4", "validate int8,int4 0.01", "prepare safetensors 4",
                           "validate safetensors 0.01"]


def test_a_release_that_is_unsafe_as_it_was_released_stops_the_pipeline(shop: Path) -> None:
    (shop / "safe.txt").write_text("")
    with pytest.raises(IntegrityError, match="UNSAFE even with the weights as released") as stopped:
        run()
    assert stopped.value.code == 5
    assert not (shop / "results/space/space.json").exists()


def test_a_tool_that_fails_stops_the_pipeline(shop: Path) -> None:
    (shop / "space/validate_bundle.py").write_text("raise SystemExit(2)")
    with pytest.raises(IntegrityError, match=r"validate_bundle\.py ended with 2"):
        run()
    (shop / "space/prepare_assets.py").write_text("raise SystemExit(2)")
    with pytest.raises(IntegrityError, match=r"prepare_assets\.py ended with 2"):
        run()


def test_nothing_is_made_twice_until_what_it_is_made_of_changes(shop: Path) -> None:
    first = run()
    assert (first.state, first.version, first.serves, first.key) == ("made", 4, ["int8"], KEY)
    made = ["prepare int8,int4 4", "validate int8,int4 0.01"]
    assert (run(), calls(shop)) == (first, made)
    (shop / "results/data/evaluation.jsonl").write_text("{}\n{}\n")
    assert run() != first
    assert calls(shop) == made * 2
    (shop / "results/space/bundle/validation.json").unlink()
    run()
    assert calls(shop) == made * 3
    switch(shop, enabled=True, max_score_drop=0.02)
    run()
    assert calls(shop)[-1] == "validate int8,int4 0.02"
