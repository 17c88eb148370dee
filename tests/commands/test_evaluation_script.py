import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from scripts import evaluation_script
from scripts.commands import evaluate as commands
from src.core.errors import IntegrityError, InvalidInput, InvalidParams, Undecided
from src.core.params import METRICS, DataParams, EvaluationParams, MlflowParams
from src.core.records import (
    DatasetRef,
    Datasets,
    EvaluationReport,
    file_sha256,
    manifest,
    read_lines,
    read_object,
)
from src.data import prepare
from src.evaluation.metrics import RowStatistics, corpus_scores, tokenizer_of
from tests.fakes import tiny_model
from tests.fakes.evaluated_shop import REPOSITORY, kept, promote, write_shop
from tests.fakes.promoted import run
from utils.answers import PartialAnswers
from utils.json_utils import write_lines, write_object


@pytest.fixture
def repository(mlflow_params: MlflowParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_shop(tmp_path, mlflow_params)
    return tmp_path


evaluate = partial(run, evaluation_script)


def test_the_stage_writes_what_it_scored_and_logs_it_under_its_contract(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate() == 0
    folder = repository / "results/evaluations"
    report = EvaluationReport.load(folder / "report.json")
    numbers = read_object(folder / "metrics.json")
    lines = list(read_lines(folder / "predictions.jsonl"))
    table = list(csv.DictReader((folder / "contributions.csv").open()))
    assert numbers == {**report.metrics.as_dict(), "weighted_score": report.weighted_score, "rows": 6}
    assert corpus_scores(RowStatistics.from_rows([line["stats"] for line in lines])) == report.metrics.as_dict()
    assert [line["id"] for line in lines] == [row.id for row in tiny_model.rows()]
    assert lines[0]["messages"] == tiny_model.rows()[0].prompt()
    assert lines[0]["reference"] == "Answer 1: within 1 days."
    assert all(line["new_tokens"] == len(line["tokens"]) == 12 and line["truncated"] for line in lines)
    assert report.truncated_rows == 6
    assert (report.overlap_rows, report.answer_overlap_rows, report.unsplit_rows) == (6, 6, 0)  # it is trained on too
    assert sum(float(row["contribution"]) for row in table) == pytest.approx(report.weighted_score, abs=1e-8)
    assert [row["metric"] for row in table] == list(METRICS)
    assert report.model_digest == report.model.digest()
    assert report.model.adapter_sha256 == tiny_model.fine_tuned(repository).adapter_sha256

    client = MlflowClient(report.tracking_uri)
    logged = client.get_run(report.run_id)
    assert logged.info.status == "FINISHED"
    assert report.nearest_neighbour is not None
    assert logged.data.metrics == numbers | {
        f"nearest_neighbour/{name}": value for name, value in report.nearest_neighbour.scores().items()}
    assert {name: value for name, value in logged.data.tags.items() if not name.startswith("mlflow.")} == {
        "kind": "evaluation", "champion.model_name": "ecommerce-chatbot", "champion.model_digest": report.model_digest,
        "champion.contract": report.contract.digest(), "champion.weights": report.weights_digest(),
        "champion.contract_json": json.dumps(report.contract.model_dump(), sort_keys=True, separators=(",", ":")),
        "champion.adapter_sha256": report.model.adapter_sha256}
    assert {item.path for item in client.list_artifacts(report.run_id)} == {path.name for path in folder.iterdir()}
    said = capsys.readouterr().out
    assert f"evaluation: score {report.weighted_score:.3f} on 6 rows" in said
    assert report.nearest_neighbour.weighted_score == 1.0  # every question stands in the training split
    assert (f"\nscore {report.weighted_score:.3f}; copying the nearest training answer scores 1.000. The model answers "
            "worse than copying the nearest training answer (1.000); it is not worth serving yet.\n") in said


def write_splits(root: Path, rows: dict[str, list[prepare.Row]]) -> None:
    """results/data with these splits."""
    refs = {}
    for name, found in rows.items():
        path = f"results/data/{name}.jsonl"
        write_lines(root / path, [row.as_json() for row in found])
        refs[name] = DatasetRef(path=path, sha256=file_sha256(root / path), rows=len(found))
    write_object(root / "results/data/datasets.json", Datasets(raw=refs["train"], **refs).model_dump())


def test_the_shipped_references_that_stand_among_the_training_answers_are_counted_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = DataParams()
    parts = prepare.split(prepare.read(REPOSITORY / shipped.path, shipped).rows, shipped)
    write_splits(tmp_path, parts)
    _, rows = commands.read_split(EvaluationParams())
    with caplog.at_level(logging.INFO):
        counts = commands.count_rows(rows, commands.read_train(), "13a")
    learnt = {row.messages[-1][1] for row in parts["train"]}
    copied = sum(row.messages[-1][1] in learnt for row in parts["evaluation"])
    assert 0 < copied < len(parts["evaluation"])
    assert counts == {"overlap_rows": 0, "answer_overlap_rows": copied, "unsplit_rows": 0}
    assert (f"evaluation split: of its {len(rows)} rows, the training split has 0 questions and {copied} reference "
            "answers too") in caplog.text


def test_an_answer_counts_in_other_case_and_punctuation_and_in_any_turn_of_a_training_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = prepare.Row(None, (("user", "a"), ("assistant", "On its way!"), ("user", "b"), ("assistant", "Yes.")))
    asked = [prepare.Row(None, (("user", name), ("assistant", text))) for name, text in
             (("c", "on its way"), ("d", "YES"), ("B!", "no"), ("e", "no"))]
    write_splits(tmp_path, {"train": [trained], "validation": [trained], "evaluation": asked})
    counts = commands.count_rows(commands.read_split(EvaluationParams())[1], commands.read_train(), "zh")
    assert counts == {"overlap_rows": 1, "answer_overlap_rows": 2}


CHINESE = ["您的订单已经发货。", "请稍等。", "可以退货。", "谢谢。"]


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
def test_references_that_13a_does_not_split_are_warned_of_and_a_fitting_tokenizer_ends_the_warning(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [prepare.Row(None, (("user", f"{number}?"), ("assistant", text))) for number, text in enumerate(CHINESE)]
    write_splits(repository, dict.fromkeys(("train", "validation", "evaluation"), rows))
    evaluate()
    assert "4 of 4 references (100%) are written mostly in letters that tokenizer 13a and" in caplog.text
    first = EvaluationReport.load(repository / "results/evaluations/report.json")
    assert first.unsplit_rows == 4
    promote(first, repository)
    caplog.clear()
    config = repository / "params.yaml"
    config.write_text(config.read_text().replace("tokenizer: 13a", "tokenizer: zh"))
    assert evaluate("--model", "champion") == 0  # as the gate asks for it: no score of it has today's contract
    evaluate()
    assert "references" not in caplog.text
    second = EvaluationReport.load(repository / "results/evaluations/report.json")
    assert second.unsplit_rows is None
    assert tokenizer_of(second.contract) == "zh"
    assert second.contract_digest != first.contract_digest
    runs = MlflowClient(second.tracking_uri).search_runs(["1"], "tags.kind = 'evaluation'")
    assert [run.data.tags["champion.contract"] for run in sorted(runs, key=lambda run: run.info.start_time)] == [
        first.contract_digest, second.contract_digest, second.contract_digest]


def test_a_tokenizer_that_is_not_installed_stops_the_stage_before_it_loads_a_model(repository: Path) -> None:
    config = repository / "params.yaml"
    config.write_text(config.read_text().replace("tokenizer: 13a", "tokenizer: ko-mecab"))
    shutil.rmtree(repository / "results/base_model")
    with pytest.raises(InvalidParams, match=r"^evaluation\.tokenizer: ko-mecab .* `pip install 'sacrebleu\[ko\]'`"):
        evaluate()


def kill(moment: str, batches: int = 0) -> None:
    """Run the stage in a process of its own that SIGKILL ends."""
    done = subprocess.run([sys.executable, "-m", "tests.fakes.killed_evaluation", moment, str(batches), "0"],
                          env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


KILLS = [("before", 0, 0), ("torn", 0, 0), ("after", 0, 1), ("torn", 1, 2), ("records", 9, 3)]


@pytest.mark.parametrize("kills", [pytest.param(KILLS[2:3], id="once"),
                                   pytest.param(KILLS, id="again_and_again", marks=pytest.mark.slow)])
def test_a_killed_evaluation_goes_on_where_it_was_and_ends_with_the_identical_file(
    repository: Path, caplog: pytest.LogCaptureFixture, kills: list[tuple[str, int, int]]
) -> None:
    answers, partial = repository / "results/evaluations/predictions.jsonl", repository / "results/checkpoints"
    evaluate()
    undisturbed = answers.read_bytes()
    assert list(partial.iterdir()) == []
    whole = 0
    for moment, batches, whole in kills:
        answers.unlink(missing_ok=True)
        kill(moment, batches)
        assert len(kept(repository)) == whole
        assert answers.exists() == (moment == "records")
    answers.unlink(missing_ok=True)
    with caplog.at_level(logging.INFO):
        evaluate()
    assert f"resuming: {whole} of 3 batches were answered before" in caplog.messages
    assert answers.read_bytes() == undisturbed
    assert list(partial.iterdir()) == []


def test_answers_under_other_settings_are_not_gone_on_from(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PartialAnswers, "remove", lambda _: None)
    evaluate()
    assert len(kept(repository)) == 3
    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["evaluation"]["max_new_tokens"] = 11
    (repository / "params.yaml").write_text(yaml.safe_dump(params))
    with caplog.at_level(logging.INFO):
        evaluate()
    assert not any("resuming: " in message for message in caplog.messages)
    lines = read_lines(repository / "results/evaluations/predictions.jsonl")
    assert all(line["new_tokens"] == 11 for line in lines)


def test_a_model_that_does_not_load_is_an_error_and_leaves_no_score(repository: Path) -> None:
    weights = repository / "results/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    tiny_model.write_records(repository)
    with pytest.raises(IntegrityError, match="damaged safetensors"):
        evaluate()
    assert not (repository / "results/evaluations").exists()


def test_an_empty_split_is_an_error(repository: Path) -> None:
    (repository / "results/data/evaluation.jsonl").write_text("")
    with pytest.raises(InvalidInput, match="no rows to evaluate"):
        evaluate()


@pytest.mark.usefixtures("repository")
def test_there_is_no_champion_to_evaluate_before_the_first_promotion() -> None:
    with pytest.raises(Undecided, match="no model was promoted yet"):
        evaluate("--model", "champion")


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # MLflow's, of its own code
def test_the_champion_comes_from_the_registry_and_scores_as_it_did_without_touching_results(repository: Path) -> None:
    evaluate()
    path = repository / "results/evaluations/report.json"
    report = EvaluationReport.load(path)
    promote(report, repository)
    shutil.rmtree(repository / "results/adapter")
    before = manifest(repository / "results")
    assert evaluate("--model", "champion") == 0
    assert manifest(repository / "results") == before

    runs = MlflowClient(report.tracking_uri).search_runs(["1"], "tags.kind = 'evaluation'")
    own, again = sorted(runs, key=lambda run: run.info.start_time)
    assert own.info.run_id == report.run_id
    assert again.data.metrics == own.data.metrics
    chosen = [name for name in own.data.tags if not name.startswith("mlflow.")]
    assert {name: again.data.tags[name] for name in chosen} == {name: own.data.tags[name] for name in chosen}


def test_the_champions_score_has_no_output_folder() -> None:
    with pytest.raises(InvalidParams, match="--output-dir"):
        evaluate("--model", "champion", "--output-dir", "elsewhere")
