import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from scripts import evaluation_script
from src import merging, release
from src.errors import IntegrityError, InvalidInput, InvalidParams, Undecided
from src.ledger import Slot
from src.manifest import file_sha256, manifest
from src.metrics import RowStatistics, corpus_scores
from src.params import METRICS, MlflowParams
from src.records import DatasetRef, Datasets, EvaluationReport, canonical_json
from tests import tiny_model
from utils import json_utils, mlflow_registry
from utils.mlflow_ledger import MlflowLedger

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def repository(mlflow_params: MlflowParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the stages before leave behind, and a store of its own."""
    tiny_model.write_models(tmp_path)
    json_utils.write_lines(tmp_path / "results/data/evaluation.jsonl", tiny_model.row_objects())
    path = "results/data/evaluation.jsonl"
    split = DatasetRef(path=path, sha256=file_sha256(tmp_path / path), rows=len(tiny_model.QUESTIONS))
    splits = Datasets(raw=split, train=split, validation=split, evaluation=split)
    json_utils.write_object(tmp_path / "results/data/datasets.json", splits.model_dump())
    write_records(tmp_path)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["mlflow"].update(mlflow_params.model_dump())
    params["evaluation"].update(max_new_tokens=12, batch_size=4)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path


def write_records(root: Path) -> None:
    json_utils.write_object(root / "results/base_model.json", tiny_model.base_ref(root).model_dump())
    json_utils.write_object(root / "results/fine_tuned_model_location.json", tiny_model.fine_tuned(root).model_dump())


def evaluate(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluation_script.py", *flags])
    return evaluation_script.main()


def test_the_stage_writes_what_it_scored_and_logs_it_under_its_contract(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(monkeypatch) == 0
    folder = repository / "results/evaluations"
    report = EvaluationReport.parse(json_utils.read_object(folder / "report.json"), where="report.json")
    numbers = json_utils.read_object(folder / "metrics.json")
    lines = list(json_utils.read_lines(folder / "predictions.jsonl"))
    table = list(csv.DictReader((folder / "contributions.csv").open()))
    assert numbers == {**report.metrics.as_dict(), "weighted_score": report.weighted_score, "rows": 6}
    assert corpus_scores(RowStatistics.from_rows([line["stats"] for line in lines])) == report.metrics.as_dict()
    assert [line["id"] for line in lines] == [row.id for row in tiny_model.rows()]
    assert lines[0]["messages"] == tiny_model.rows()[0].prompt()
    assert lines[0]["reference"] == "Answer 1: within 1 days."
    assert all(line["new_tokens"] == len(line["tokens"]) == 12 and line["truncated"] for line in lines)
    assert report.truncated_rows == 6
    assert sum(float(row["contribution"]) for row in table) == pytest.approx(report.weighted_score, abs=1e-8)
    assert [row["metric"] for row in table] == list(METRICS)
    assert report.model_digest == report.model.digest()
    assert report.model.adapter_sha256 == tiny_model.fine_tuned(repository).adapter_sha256

    client = MlflowClient(report.tracking_uri)
    run = client.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == numbers
    assert {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")} == {
        "kind": "evaluation", "champion.model_name": "ecommerce-chatbot", "champion.model_digest": report.model_digest,
        "champion.contract": report.contract.digest(), "champion.weights": report.weights_digest(),
        "champion.contract_json": json.dumps(report.contract.model_dump(), sort_keys=True, separators=(",", ":")),
        "champion.adapter_sha256": report.model.adapter_sha256}
    assert {item.path for item in client.list_artifacts(report.run_id)} == {path.name for path in folder.iterdir()}
    assert f"weighted score {report.weighted_score:.4f} on 6 rows" in capsys.readouterr().out


def test_a_model_that_does_not_load_is_an_error_and_leaves_no_score(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = repository / "results/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    write_records(repository)
    with pytest.raises(IntegrityError, match="damaged safetensors"):
        evaluate(monkeypatch)
    assert not (repository / "results/evaluations").exists()


def test_an_empty_split_is_an_error(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "results/data/evaluation.jsonl").write_text("")
    with pytest.raises(InvalidInput, match="no rows to evaluate"):
        evaluate(monkeypatch)


def test_there_is_no_champion_to_evaluate_before_the_first_promotion(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Undecided, match="no model was promoted yet"):
        evaluate(monkeypatch, "--model", "champion")


def promote(report: EvaluationReport, root: Path) -> int:
    """Register what was scored and put it at the head of the ledger; returns its version."""
    client, name = MlflowClient(report.tracking_uri), "ecommerce-chatbot"
    model, tokenizer = merging.merge(root / "results/base_model", root / "results/adapter", "float32")
    release.assemble_release(model, tokenizer, root / "release", max_new_tokens=12, texts={})

    def save(folder: Path) -> None:
        pins = ["torch", "transformers"]
        mlflow_registry.save_flavour(*merging.load(root / "release", "auto"), folder, pins)

    identity = canonical_json(report.model.model_dump(mode="json"))
    registry = mlflow_registry.MlflowRegistry(client, name, save=save, run_id=lambda: report.run_id,
                                              tags=lambda: {mlflow_registry.IDENTITY: identity})
    key = report.model.key(report.contract_digest)
    version = registry.register(key)
    assert MlflowLedger(client, name, "test-evaluation").claim(Slot(
        number=1, kind="promote", key=key, model_digest=report.model_digest, version=version, score="0.1",
        metrics=report.metrics, contract=report.contract_digest, evaluation_run=report.run_id, hub=None, blocks=[],
        unblocks=[], previous_sha256="0" * 64, actor="test", reason="test", git_commit="none", ci_url=None, time="now"))
    return version


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
def test_the_champion_comes_from_the_registry_and_scores_as_it_did_without_touching_results(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(monkeypatch)
    path = repository / "results/evaluations/report.json"
    report = EvaluationReport.parse(json_utils.read_object(path), where=path)
    promote(report, repository)
    shutil.rmtree(repository / "results/adapter")
    before = manifest(repository / "results")
    assert evaluate(monkeypatch, "--model", "champion") == 0
    assert manifest(repository / "results") == before

    own, again = sorted(
        (run for run in MlflowClient(report.tracking_uri).search_runs(["1"], "tags.kind = 'evaluation'")),
        key=lambda run: run.info.start_time)
    assert own.info.run_id == report.run_id
    assert again.data.metrics == own.data.metrics
    chosen = [name for name in own.data.tags if not name.startswith("mlflow.")]
    assert {name: again.data.tags[name] for name in chosen} == {name: own.data.tags[name] for name in chosen}


def test_the_champions_score_has_no_output_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidParams, match="--output-dir"):
        evaluate(monkeypatch, "--model", "champion", "--output-dir", "elsewhere")
