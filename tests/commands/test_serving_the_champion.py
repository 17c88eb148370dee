"""`make bundle`, which `make serve` begins with: the bundle is the champion's, by name and version, whatever happened.

The store, the gate, the registry's weights and make are real; the weights are a tiny model's, moved a little.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from scripts import champion_script, rollback_script
from scripts.commands import deploy
from scripts.commands.assemble import save_flavour
from src.core.errors import InvalidInput
from src.core.params import load_params
from src.core.records import CHAMPION_FILE, RELEASE_DIR, ChampionFile, manifest
from src.model_selection import Decision, Verdict
from tests.fakes import weightless
from tests.fakes.history_store import answers, challenger, write_params
from tests.fakes.history_store import deploy as deploy_challenger
from tests.fakes.promoted import SOURCE, run
from tests.fakes.space_process import PYTHON, ROOT, SPACE, needs_serving, serve, unpack
from utils import json_utils

pytestmark = pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
NAME = "ecommerce-chatbot"
MOVED = {"one": 0.01, "two": 0.02, "weak": 0.03}


@pytest.fixture
def shop(tmp_path: Path, migrated_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """params.yaml of a repository with MLflow, Makefile and space/, in which no model was deployed."""
    (tmp_path / "mlflow.db").write_bytes(migrated_store.read_bytes())
    config = write_params(tmp_path, SOURCE)
    monkeypatch.chdir(tmp_path)
    tiny = unpack(tmp_path / "model").with_name("tiny-chat")
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(SPACE, tmp_path / "space", ignore=shutil.ignore_patterns(".*", "__pycache__", "assets"))
    (tmp_path / "space/.venv-builder").symlink_to(Path(sys.prefix))  # without optimum: the weights stay as released

    def assemble(deployer: deploy.Deployer, _: Decision) -> None:
        request = deployer._setting.request
        shutil.rmtree(RELEASE_DIR, ignore_errors=True)
        shutil.copytree(tiny, RELEASE_DIR)
        (RELEASE_DIR / "README.md").unlink()
        weights = load_file(RELEASE_DIR / "model.safetensors")
        mark = Path("results/adapter/adapter_model.safetensors").read_text()
        moved = {name: tensor + MOVED[mark] for name, tensor in weights.items()}
        save_file(moved, RELEASE_DIR / "model.safetensors", {"format": "pt"})
        (RELEASE_DIR / CHAMPION_FILE).write_text(ChampionFile(
            format=1, key=request.key, model_digest=request.report.model_digest, model_name=request.model_name,
            contract=request.report.contract_digest, metrics=request.report.metrics).text())
        json_utils.write_object(RELEASE_DIR / "manifest.json", manifest(RELEASE_DIR))

    monkeypatch.setattr(weightless, "_assemble", assemble)
    monkeypatch.setattr(weightless, "save", lambda folder: save_flavour(RELEASE_DIR, folder))
    return config


def bring(config: Path, mark: str, right: int) -> Verdict:
    challenger(load_params(config), mark, answers(right))
    return deploy_challenger(config).verdict


def make(*words: str) -> subprocess.CompletedProcess[str]:
    ready = [f"{name}/.ready" for name in (".venv", "space/.venv", "space/.venv-builder")]
    environments = [word for name in ready for word in ("-o", name)]
    return subprocess.run(["make", *environments, "bundle", *words], capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL)


def bundled() -> tuple[str, int | None, str]:
    """Name, version and mark of the weights that `make serve` would serve now."""
    assert "validate_bundle.py --if-changed --evaluation-rows results/data/evaluation.jsonl" in make("--dry-run").stdout
    rows = Path("results/data/evaluation.jsonl").rename("rows.jsonl")  # the tiny model would answer them for minutes
    made = make()
    rows.rename("results/data/evaluation.jsonl")
    assert made.returncode == 0, made.stderr
    assets = Path("space/assets")
    identity: dict[str, Any] = json.loads((assets / "identity.json").read_text())
    found, tiny = (load_file(path / "model.safetensors") for path in (assets, Path("model/tiny-chat")))
    name = "model.norm.weight"
    moved = float((found[name] - tiny[name]).mean())
    return identity["model"], identity["version"], min(MOVED, key=lambda mark: abs(MOVED[mark] - moved))


@needs_serving
def test_the_champion_is_served_after_a_promotion_a_keep_and_a_rollback(shop: Path) -> None:
    assert bring(shop, "one", 10) is Verdict.PROMOTE
    assert bundled() == (NAME, 1, "one")
    assert bring(shop, "two", 20) is Verdict.PROMOTE
    assert bundled() == (NAME, 2, "two")
    assert bring(shop, "weak", 12) is Verdict.KEEP
    before = Path("space/assets/identity.json").stat().st_mtime_ns
    assert bundled() == (NAME, 2, "two")
    assert Path("space/assets/identity.json").stat().st_mtime_ns == before  # nothing is made twice
    Path("space/assets/identity.json").unlink()
    assert bundled() == (NAME, 2, "two")  # and the kept challenger is not taken for it
    assert run(rollback_script) == 0
    assert bundled() == (NAME, 1, "one")
    shutil.rmtree(RELEASE_DIR)
    assert run(rollback_script, "--to", 2) == 0
    assert bundled() == (NAME, 2, "two")
    app_answers_as(NAME, "v2")


def app_answers_as(name: str, label: str) -> None:
    # The environment of the tests has what the app needs but for this one.
    Path("packages").mkdir()
    found, = PYTHON.parents[1].glob("lib/python*/site-packages/prometheus_client")
    Path("packages/prometheus_client").symlink_to(found)
    with serve(Path("space/app.py").resolve(), sys.executable, PYTHONPATH=str(Path("packages").resolve())) as server:
        model, = server.client.get("/v1/models").json()["data"]
        about = server.client.get("/about").json()  # the header of the page
    assert (model["id"], model["version"]) == (about["model"], about["label"]) == (name, label)


def test_after_a_deployment_that_failed_the_champion_is_known_still(shop: Path) -> None:
    assert bring(shop, "one", 10) is Verdict.PROMOTE
    json_utils.write_object(Path("results/deployment/deployment_info.json"), {"result": "invalid", "code": 3})
    assert bundled() == (NAME, 1, "one")


@pytest.mark.parametrize("odd", [{"champion": {"version": 1}}, {"champion": "x"}, {"last_known": 3},
                                 {"champion": {"key": None, "version": 1}}], ids=str)
def test_a_record_that_does_not_say_the_champions_key_sends_to_the_ledger(
    shop: Path, odd: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bring(shop, "one", 10) is Verdict.PROMOTE
    json_utils.write_object(Path("results/deployment/deployment_info.json"), odd)
    capsys.readouterr()
    assert run(champion_script) == 0
    assert capsys.readouterr().out == "--model results/release --version 1\n"


def test_without_a_champion_it_says_what_to_do(shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput, match="no champion is known here; run `make repro`, or serve another release"):
        run(champion_script)
    made = make()
    assert (made.returncode, Path("space/assets").exists()) == (2, False)
    assert "no champion is known here" in made.stderr


def test_another_release_is_served_on_request(shop: Path) -> None:
    made = make("RELEASE=model/tiny-chat")
    assert made.returncode == 0, made.stderr
    assert json.loads(Path("space/assets/identity.json").read_text())["model"] == "tiny-chat"
