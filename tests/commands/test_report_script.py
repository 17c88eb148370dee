import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from scripts import report_script
from src.core.errors import InvalidInput
from src.core.params import MlflowParams, load_params
from src.core.records import canonical_json
from tests.fakes.promoted import run
from tests.fakes.report_example import CONFIG, Example, decided, evaluated, fine_tuned, ledger, write_results
from utils import json_utils, mlflow_utils
from utils.tracking import runs as evaluation_run
from utils.tracking.history import HistoryReader
from utils.tracking.ledger import MlflowLedger
from utils.tracking.tag import KIND

PARAMS = load_params(CONFIG)
NAME, EXPERIMENT = PARAMS.deployment.model_registry_name, PARAMS.mlflow.experiment_name
PAGE = report_script.OUTPUT


@pytest.fixture
def client(mlflow_params: MlflowParams) -> MlflowClient:
    """A store, and params.yaml as it is shipped, in the working directory."""
    Path("params.yaml").write_bytes(CONFIG.read_bytes())
    return mlflow_utils.connect(mlflow_params)


def log(client: MlflowClient, example: Example, folder: Path) -> Example:
    """An evaluation run of a model with its answers; the model with that run's id."""
    report = example.report
    home = mlflow_utils.ensure_experiment(client, EXPERIMENT, {})
    tags = evaluation_run.evaluation_tags(PARAMS.deployment, report.model, report.contract)
    run_id = client.create_run(home.experiment_id, tags={KIND: "evaluation", **tags}).info.run_id
    json_utils.write_lines(folder / "predictions.jsonl", [row.model_dump() for row in example.predictions])
    evaluation_run.log_evaluation(client, run_id, report.metrics.as_dict(), [folder / "predictions.jsonl"])
    client.set_terminated(run_id)
    return Example(report.model_copy(update={"run_id": run_id}), example.predictions)


def write_all(example: Example, told: dict[str, Any], compared: dict[str, Any]) -> None:
    write_results(example, told, compared)
    json_utils.write_object(Path("results/fine_tuned_model_location.json"), fine_tuned(example).model_dump(mode="json"))
    json_utils.write_text(report_script.LOSSES, "epoch,train_loss,validation_loss\n1,0.9,1.1\n2,0.5,0.8\n")


def promoted(client: MlflowClient, tmp_path: Path) -> str:
    """A store and results/ after model 2 took over from model 1; the id of the deployment run."""
    first, second = (log(client, evaluated(number), tmp_path) for number in (1, 2))
    written = MlflowLedger(client, NAME, EXPERIMENT)
    for slot in ledger(first, second).slots:
        assert written.claim(slot)
    told, compared = decided(second, ledger(first), [first])
    home = mlflow_utils.ensure_experiment(client, EXPERIMENT, {})
    run_id = str(client.create_run(home.experiment_id, tags={KIND: "deployment"}).info.run_id)
    write_all(second, {**told, "deployment_run": run_id}, compared)
    return run_id


report = partial(run, report_script)


@pytest.mark.usefixtures("client")
def test_an_evaluation_that_is_missing_is_named_with_the_remedy() -> None:
    with pytest.raises(InvalidInput, match=r"results/evaluations/report\.json: missing; run `dvc repro`"):
        report()


def test_an_unreachable_server_costs_the_history_and_not_the_report(
    mlflow_params: MlflowParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Path("params.yaml").write_bytes(CONFIG.read_bytes())
    second = evaluated(2)
    write_all(second, *decided(second, ledger(evaluated(1)), [evaluated(1)]))
    assert report() == 0
    html = PAGE.read_text(encoding="utf-8")
    assert "The history is not available: MLflow at http://127.0.0.1:9" in html
    assert "There are no answers of an earlier champion" in html
    assert "Promoted to champion" in html


def test_a_failed_deployment_has_a_page_that_stays_out_of_mlflow(client: MlflowClient, tmp_path: Path) -> None:
    run_id = promoted(client, tmp_path)
    failure = {"result": "undecided", "code": 4, "reason": "the server did not answer"}
    json_utils.write_object(Path("results/deployment/deployment_info.json"), failure)
    assert report("--output", "page.html") == 0
    assert "exit code 4 (undecided): the server did not answer" in Path("page.html").read_text(encoding="utf-8")
    assert not PAGE.exists()
    assert not client.list_artifacts(run_id)


def test_the_page_tells_of_the_promotion_and_is_kept_with_its_run(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = promoted(client, tmp_path)
    assert report() == 0
    html = PAGE.read_bytes()
    assert capsys.readouterr().out == f"report: {PAGE} ({len(html):,} bytes)\n"
    for text in (b"ecommerce-chatbot version 2 replaces version 1", b"2 models on the same test set",
                 b"against the previous champion, version 1", b">v1<", b">v2<"):
        assert text in html, text
    assert Path(client.download_artifacts(run_id, "report/index.html")).read_bytes() == html


def test_a_second_report_leaves_the_same_bytes_and_neither_needs_torch(client: MlflowClient, tmp_path: Path) -> None:
    promoted(client, tmp_path)
    report()
    html = PAGE.read_bytes()
    PAGE.unlink()
    code = ("import json, sys\nfrom scripts import report_script\nsys.argv = ['report_script.py']\n"
            "assert report_script.main() == 0\nprint(json.dumps([m for m in ('torch', 'transformers') "
            "if m in sys.modules]))")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(CONFIG.parent)})
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert PAGE.read_bytes() == html


def test_the_latest_evaluations_are_the_last_ones_oldest_first(client: MlflowClient, tmp_path: Path) -> None:
    runs = [log(client, evaluated(number), tmp_path).report for number in (3, 1, 2)]
    reader = HistoryReader(client, experiment=EXPERIMENT, model_name=NAME, contract=runs[0].contract_digest)
    found, older = reader.read_latest(2)
    assert [each.run_id for each in found] == [report.run_id for report in runs[1:]]
    assert older
    assert reader.read_latest(3)[1] is False
    other = HistoryReader(client, experiment=EXPERIMENT, model_name=NAME, contract=canonical_json("other"))
    assert other.read_latest(2) == ([], False)
