"""The deployment command as its user meets it: exit codes, one line, and nothing changed outside by a failure."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from src.core.errors import Undecided
from src.core.params import MlflowParams, Params, load_params
from tests.fakes import weightless
from tests.fakes.history_store import answers, challenger, deploy, write_params
from utils import mlflow_utils

ROOT = Path(__file__).parents[2]
NAME = "ecommerce-chatbot"
call = partial(weightless.call, weights=True)
METRICS = Path("results/evaluations/metrics.json")
OUTPUT = Path("results/deployment")


@pytest.fixture
def params(mlflow_params: MlflowParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A shop whose champion answers 20 of 40 rows, and a better challenger in results/ that waits for its decision."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = load_params(write_params(tmp_path, ROOT / "params.yaml"))
    challenger(found, "first", answers(20))
    deploy(Path("params.yaml"))
    challenger(found, "second", answers(30))
    return found


def outside(params: Params) -> object:
    """All that a decision could change in MLflow: slots, versions, aliases, stages."""
    client = mlflow_utils.connect(params.mlflow)
    pinned = client.get_experiment_by_name(f"{NAME}.ledger").tags["champion.ledger_run"]
    versions = [(int(v.version), v.current_stage) for v in client.search_model_versions(f"name = '{NAME}'")]
    aliases = {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}
    return client.get_run(pinned).data.params, versions, aliases


def info() -> dict[str, Any]:
    """What the deployment left on record."""
    return dict(json.loads((OUTPUT / "deployment_info.json").read_text()))


def edit(*keys: str, value: object) -> Callable[[], None]:
    def change() -> None:
        values = yaml.safe_load(Path("params.yaml").read_text())
        section = values
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        Path("params.yaml").write_text(yaml.safe_dump(values))

    return change


def metric(name: str, text: str) -> Callable[[], None]:
    def change() -> None:
        values = {**json.loads(METRICS.read_text()), name: "@"}
        METRICS.write_text(json.dumps(values).replace('"@"', text))

    return change


def setting(name: str, value: str) -> Callable[[], None]:
    return lambda: os.environ.__setitem__(name, value)


WEIGHTS = ("deployment", "weighted_scoring", "weights")
CASES: list[tuple[str, Sequence[str], Callable[[], object], int, str]] = [
    ("row 5, a metric missing", [], lambda: METRICS.write_text('{"bleu1": 0.5}'), 3, "bleu2, bleu3"),
    ("row 6, a NaN", [], metric("bleu4", "NaN"), 3, "NaN"),
    ("row 8, sacrebleu's scale", [], metric("bleu4", "31.2"), 3, "outside [0, 1]"),
    ("row 13, metrics of another model", [], metric("bleu4", "0.123"), 3, "of another model"),
    ("row 14, no model location", ["--model-artifact-path", "absent.json"], lambda: None, 3, "absent.json: missing"),
    ("row 32, no parameters", ["--config", "absent.yaml"], lambda: None, 2, "absent.yaml"),
    ("row 33, weights of 0.95", [], edit(*WEIGHTS, "bleu1", value=0.05), 2, "sum is 0.95, expected 1.0"),
    ("row 34, an unknown metric", [], edit(*WEIGHTS, "meteor", value=0.0), 2, "meteor"),
    ("an unknown parameter", [], edit("deployment", "treshold", value=1), 2, "deployment.treshold: unknown key"),
    ("row 35, a NaN threshold", ["--min-improvement-threshold", "nan"], lambda: None, 2, "finite number"),
    ("row 35, a negative threshold", ["--min-improvement-threshold=-0.1"], lambda: None, 2, "greater than or equal"),
    ("row 35, a threshold of 5", ["--min-improvement-threshold", "5"], lambda: None, 2, "less than or equal to 1"),
    ("row 37, half an id", ["--hf-model-id", "a"], lambda: None, 2, "owner/name"),
    ("row 37, an address", ["--hf-model-id", "https://huggingface.co/a/b"], lambda: None, 2, "owner/name"),
    ("row 38, no reason where one is due", ["--force-deploy"],
     edit("deployment", "force_requires_reason", value=True), 2, "--reason"),
    ("row 39, forced NaN", ["--force-deploy"], metric("bleu4", "NaN"), 3, "NaN"),
    ("row 41, an unknown flag", ["--frce"], lambda: None, 2, "--frce"),
    ("row 41, a value missing", ["--hf-model-id"], lambda: None, 2, "expected one argument"),
    ("row 42, the root as output", ["--output-dir", "/"], lambda: None, 2, "--output-dir"),
    ("row 46, MLflow refuses", [], setting("MLFLOW_TRACKING_URI", "http://127.0.0.1:9"), 4, "MLflow at http"),
    ("row 49, a file store", [], setting("MLFLOW_TRACKING_URI", "./mlruns"), 2, "sqlite:///mlflow.db"),
    ("row 50, a password in the address", [], setting("MLFLOW_TRACKING_URI", "https://me:s3cret@host/x"), 2, "***"),
    ("row 52, no database", [], setting("MLFLOW_TRACKING_URI", "sqlite:///params.yaml"), 4, "not a usable MLflow"),
    ("row 55, no token", [], edit("deployment", "huggingface", "push_to_hub", value=True), 2, "HF_TOKEN"),
    ("a push from a CI machine with a history of its own", [],
     lambda: (edit("deployment", "huggingface", "push_to_hub", value=True)(), setting("CI", "true")(),
              setting("HF_TOKEN", "hf_any")()), 2, "which keeps no history"),
    ("an unclear switch", [], setting("DEPLOY_FORCE", "perhaps"), 2, "neither true nor false"),
]


@pytest.mark.parametrize(("flags", "damage", "code", "said"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_bad_input_ends_in_one_line_and_changes_nothing_outside(
    flags: Sequence[str], damage: Callable[[], object], code: int, said: str,
    *, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = outside(params)
    with patch.dict(os.environ):
        damage()
        found = call(*flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("WARNING")]
    assert (found, len(lines)) == (code, 2), lines
    assert said in lines[0]
    assert lines[1].startswith("PROMOTE result=")
    assert f"code={code}" in lines[1]
    assert "s3cret" not in "".join(lines)
    assert outside(params) == before


def test_a_failure_is_recorded_because_dvc_hides_the_code(params: Params) -> None:
    metric("bleu4", "NaN")()
    call()
    assert (info()["result"], info()["code"]) == ("invalid", 3)


def test_a_server_that_never_answers_is_undecided(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = outside(params)
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:  # the kernel takes connections, nobody answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with patch.dict(os.environ, MLFLOW_TRACKING_URI=address):
            assert call() == 4
    assert outside(params) == before


def test_a_worse_challenger_is_kept_out_by_a_process_that_loads_no_heavy_library(params: Params) -> None:
    challenger(params, "worse", answers(10))
    before = outside(params)
    script, heavy = ROOT / "scripts" / "deployment_script.py", {"torch", "transformers", "huggingface_hub"}
    code = (f"import runpy, sys; sys.argv = ['x', '--fail-on-reject']\ntry: runpy.run_path({str(script)!r}, "
            f"run_name='__main__')\nexcept SystemExit as e: print('CODE', e.code, sorted({heavy} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert "CODE 10 []" in done.stdout, done.stderr
    assert "PROMOTE result=kept code=10 reason=not_best" in done.stderr
    assert outside(params) == before


def test_a_kept_challenger_leaves_the_same_bytes_when_asked_again(params: Params) -> None:
    challenger(params, "worse", answers(10))
    assert call() == 0
    first = {path.name: path.read_bytes() for path in OUTPUT.iterdir()}
    assert call() == 0
    assert {path.name: path.read_bytes() for path in OUTPUT.iterdir()} == first


def logged() -> list[str]:
    """The lines of deployment_logs.txt without their times, of which each has one."""
    lines = (OUTPUT / "deployment_logs.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [A-Z]+ ", line) for line in lines)
    return [line.split(" ", 1)[1] for line in lines]


def test_the_log_holds_every_step_whatever_goes_to_stderr(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    assert weightless.call("--log-level", "warning") == 0
    assert "INFO" not in capsys.readouterr().err
    told, at = logged(), 0
    for said in ("results: score ", "ledger: 1 entry, the champion is version 1", "history: ",
                 "decision: promote (improved), score", "release: assembled and verified",
                 "registry: the model is version 2", "Hub: not pushed",
                 "ledger: wrote entry 2, version 2 is the champion from now on", "alias champion is version 2",
                 "alias previous is version 1", "stage Production is version 2", "registry: agrees with the ledger"):
        at = next((place for place in range(at, len(told)) if said in told[place]), len(told))
        assert at < len(told), said
    *steps, end = told
    assert all(line.startswith("INFO ") for line in steps)
    assert end.startswith("END PROMOTED: ecommerce-chatbot version 2 replaces version 1: score ")
    challenger(params, "worse", answers(10))
    assert weightless.call() == 0
    assert "decision: keep (not_best)" in capsys.readouterr().err
    assert logged()[-1].startswith("END NOT PROMOTED: score ")


def test_the_log_of_a_failed_deployment_ends_with_the_step_that_it_stopped_in(params: Params) -> None:
    with patch("utils.tracking.registry.MlflowRegistry.register", side_effect=Undecided("MLflow at x: no answer")):
        assert weightless.call() == 4
    *_, assembled, error, end = logged()
    assert assembled == "INFO release: assembled and verified"
    assert error == "ERROR MLflow at x: no answer"
    assert end == "END STOPPED while registering the version: undecided, exit 4"
    assert weightless.call() == 0
    assert logged()[-1].startswith("END PROMOTED: ")


def test_the_record_says_what_the_score_was_compared_with(params: Params) -> None:
    assert weightless.call() == 0
    compared = json.loads((OUTPUT / "model_comparison.json").read_text())
    numbers = {name: info()[name] for name in ("threshold", "improvement", "historical_best_score")}
    assert numbers == {name: compared[name] for name in numbers}
    assert numbers["threshold"] == 0.001
    assert info()["weighted_score"] - numbers["historical_best_score"] == pytest.approx(numbers["improvement"])


def test_a_registered_version_says_why_it_was_promoted_and_shows_the_raw_metrics(params: Params) -> None:
    assert weightless.call() == 0
    client, report = mlflow_utils.connect(params.mlflow), json.loads((METRICS.with_name("report.json")).read_text())
    first, second = (client.get_model_version(NAME, str(number)) for number in (1, 2))
    assert {name: float(second.tags[f"champion.metric.{name}"]) for name in report["metrics"]} == report["metrics"]
    said = info()
    assert second.description == (
        f"Score {said['weighted_score']:.3f} on 40 evaluated rows. Gain over the best promoted model: "
        f"{said['improvement']:+.3f} ({second.description.partition('(')[2].partition(')')[0]}). "
        f"Decision: promote (improved), {said['explanation']}. Code at commit {said['git_commit'][:8]}. Evaluated in "
        f"MLflow run {said['evaluation_run']}")
    assert " % interval +" in second.description
    assert "Decision: promote (first_model), no model was promoted before it." in first.description
    assert "Gain" not in first.description


def test_a_run_that_was_killed_between_its_files_and_mlflow_is_recorded_by_the_next(params: Params) -> None:
    challenger(params, "worse", answers(10))
    client = mlflow_utils.connect(params.mlflow)
    assert call() == 0
    cut_off = info()["deployment_run"]
    client.update_run(cut_off, "RUNNING")
    assert call() == 0
    recorded = info()["deployment_run"]
    assert [client.get_run(run).info.status for run in (cut_off, recorded)] == ["KILLED", "FINISHED"]


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_a_dry_run_writes_nothing_at_all_and_says_so(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    before = files()
    assert call("--dry-run") == 0
    said = capsys.readouterr()
    assert "nothing was written; a dry run writes only into --output-dir" in said.out
    assert said.err.splitlines()[-1] == "PROMOTE result=would_promote code=0 reason=improved"
    Path("results/evaluations/report.json").write_text("{}")
    assert call("--dry-run") == 3
    assert files() == {**before, Path("results/evaluations/report.json"): b"{}"}


def test_a_dry_run_is_recorded_as_one_in_the_folder_that_is_given(params: Params) -> None:
    before, told = outside(params), files()
    assert call("--dry-run", "--output-dir", "elsewhere/dry") == 0
    found = json.loads(Path("elsewhere/dry/deployment_info.json").read_text())
    assert (found["result"], found["dry_run"]) == ("would_promote", True)
    assert outside(params) == before
    assert {path: content for path, content in files().items() if path.parts[0] != "elsewhere"} == told


def test_a_dry_run_without_a_store_answers_for_an_empty_history_and_makes_none(
    params: Params, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mlflow.db").unlink()
    Path("mlflow.db.lock").unlink(missing_ok=True)
    before = files()
    assert call("--dry-run") == 4
    assert "but MLflow holds no ledger of it, so the store is lost" in capsys.readouterr().err
    assert files() == before
    shutil.rmtree(OUTPUT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow has put its address there
    before = files()
    assert call("--dry-run") == 0
    said = capsys.readouterr()
    assert "mlflow.db: does not exist yet, so nothing was evaluated or promoted" in said.err
    assert said.err.splitlines()[-1] == "PROMOTE result=would_promote code=0 reason=first_model"
    assert f"MLflow   {params.mlflow.tracking_uri}\n" in said.out
    assert files() == before
    assert not OUTPUT.exists()


def test_a_run_that_the_server_lacks_is_logged_anew(params: Params, tmp_path: Path, migrated_store: Path) -> None:
    challenger(params, "worse", answers(10))
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    challenger_run = json.loads(Path("results/evaluations/report.json").read_text())["run_id"]
    shutil.rmtree(OUTPUT)
    deploy(Path("params.yaml"))
    client = mlflow_utils.connect(params.mlflow)
    home = client.get_experiment_by_name(params.mlflow.experiment_name).experiment_id
    restored = client.search_runs([home], f"tags.restored_from = '{challenger_run}'")
    assert [run.data.tags["kind"] for run in restored] == ["evaluation"]


def test_what_was_decided_stays_recorded_where_the_pruning_after_it_fails(params: Params) -> None:
    with patch("scripts.commands.deploy.Deployer.prune", side_effect=RuntimeError("the store went away")) as prune:
        assert call("--min-improvement-threshold", "0.9") == 1
    assert prune.called
    assert (info()["result"], info()["reason"]) == ("kept", "below_threshold")
