"""Claims of results/evaluations that are not true: the deployment ends with 3, and nothing outside is changed."""

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from scripts import rollback_script
from scripts.commands import deploy as deployer
from scripts.deployment_script import PARSER
from src.core.errors import IntegrityError
from src.core.params import MlflowParams, Params, load_params
from src.core.records import DATASETS, EvaluationReport, digest_of, file_sha256
from src.model_selection import Verdict
from tests.fakes.history_store import answers, challenger, deploy, write_params, write_split
from tests.fakes.promoted import run
from tests.fakes.weightless import call, save
from utils import json_utils, mlflow_utils
from utils.results import LogBuffer

ROOT = Path(__file__).parents[2]
EVALUATIONS = Path("results/evaluations")
METRICS, REPORT, ANSWERS = (EVALUATIONS / name for name in ("metrics.json", "report.json", "predictions.jsonl"))
Damage = Callable[[Params], object]


@pytest.fixture
def params(mlflow_params: MlflowParams, tmp_path: Path) -> Params:
    return load_params(write_params(tmp_path, ROOT / "params.yaml"))


@pytest.fixture
def worse(params: Params) -> EvaluationReport:
    """A worse challenger in results/, after a champion."""
    challenger(params, "first", answers(20))
    deploy(Path("params.yaml"))
    return challenger(params, "worse", answers(10))


def outside() -> list[str]:
    """The whole store, as SQL."""
    with sqlite3.connect("mlflow.db") as database:
        lines = list(database.iterdump())
    database.close()
    return lines


def change(path: Path, **values: Any) -> None:
    json_utils.write_object(path, {**json.loads(path.read_text()), **values})


def said(capsys: pytest.CaptureFixture[str]) -> str:
    line, ended = [each for each in capsys.readouterr().err.splitlines() if not each.startswith("WARNING")]
    assert ended.startswith("PROMOTE result=invalid code=3 reason=")
    return line


def claim(score: float) -> None:
    """Every metric in both files, as T1 of the findings had it."""
    metrics = dict.fromkeys(json.loads(REPORT.read_text())["metrics"], score)
    change(METRICS, **metrics)
    change(REPORT, metrics=metrics)


FLAGS: tuple[list[str], ...] = ([], ["--dry-run"], ["--force-deploy", "--reason", "a customer needs it"])


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("is_first", [True, False])
def test_metrics_that_the_answers_do_not_give_are_refused(
    params: Params, capsys: pytest.CaptureFixture[str], flags: list[str], *, is_first: bool
) -> None:
    if not is_first:
        challenger(params, "first", answers(20))
        deploy(Path("params.yaml"))
    true = challenger(params, "worse", answers(10)).metrics.bleu1
    claim(0.9)
    before = outside()
    capsys.readouterr()
    assert call(*flags) == 3
    assert f"results/evaluations/metrics.json: bleu1 is 0.9, the answers give {true}; run `dvc repro " in said(capsys)
    assert outside() == before


def rewrite(path: Path, number: int, **values: Any) -> None:
    """Values in one line of a JSON Lines file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[number] |= values
    json_utils.write_lines(path, lines)


def log_metric(params: Params, name: str = "bleu4") -> None:
    mlflow_utils.connect(params.mlflow).log_metric(run_id(), name, 0.9)


def claim_neighbour(score: float | None, **metrics: float) -> None:
    """Another nearest-neighbour baseline in the report."""
    copied = json.loads(REPORT.read_text())["nearest_neighbour"]
    change(REPORT, nearest_neighbour={"weighted_score": copied["weighted_score"] if score is None else score,
                                      "metrics": copied["metrics"] | metrics})


def log_tag(params: Params) -> None:
    mlflow_utils.connect(params.mlflow).set_tag(run_id(), "champion.contract", "e" * 64)


def log_answers(params: Params) -> None:
    home = Path(mlflow_utils.connect(params.mlflow).get_run(run_id()).info.artifact_uri)
    json_utils.write_lines(home / "predictions.jsonl", [row.model_dump() for row in answers(30)])


def log_fewer_answers(params: Params) -> None:
    home = Path(mlflow_utils.connect(params.mlflow).get_run(run_id()).info.artifact_uri)
    json_utils.write_lines(home / "predictions.jsonl", [row.model_dump() for row in answers(10)[:-1]])


def run_id() -> str:
    return str(json.loads(REPORT.read_text())["run_id"])


def change_split(_params: Params) -> None:
    path = DATASETS.with_name("evaluation.jsonl")
    path.write_text(path.read_text() + "\n")


def change_train(_params: Params) -> None:
    """A question of the evaluation among those that were trained on, and every digest made to fit."""
    path, splits = DATASETS.with_name("train.jsonl"), json.loads(DATASETS.read_text())
    path.write_text(DATASETS.with_name("evaluation.jsonl").read_text().splitlines()[0] + "\n")
    splits["train"]["sha256"] = file_sha256(path)
    json_utils.write_object(DATASETS, splits)


def name_another_base(**values: str) -> None:
    """Another base model in the report, every digest made to fit, and no MLflow run that could tell."""
    report = json.loads(REPORT.read_text())
    model = report["model"] | values
    change(REPORT, model=model, model_digest=digest_of(model), run_id="f" * 32)


def break_tokenizer(_params: Params) -> None:
    Path("results/base_model/tokenizer.json").write_text("{")


def remove_tokenizer(_params: Params) -> None:
    Path("results/base_model/tokenizer.json").unlink()


WEIGHTS = {"bleu1": 1e308, "bleu2": 1e308, "bleu3": 0.0, "bleu4": 0.0, "rougeL_precision": 0.0}
DAMAGES: list[tuple[str, Damage, str]] = [
    ("weighted score", lambda _: change(METRICS, weighted_score=0.9), "metrics.json: weighted_score is 0.9"),
    ("weighted score of the report", lambda _: change(REPORT, weighted_score=0.9), "report.json: weighted_score is"),
    ("cut answers", lambda _: change(REPORT, truncated_rows=1), "report.json: truncated_rows is 1, the answers give 0"),
    ("empty answers", lambda _: change(REPORT, empty_rows=1), "report.json: empty_rows is 1, the answers give 0"),
    ("overlap", change_train, "report.json: overlap_rows is 0, the answers give 1"),
    ("score of the baseline", lambda _: claim_neighbour(0.001),
     "report.json: nearest_neighbour.weighted_score is 0.001, the answers give "),
    ("metric of the baseline", lambda _: claim_neighbour(None, bleu2=0.9),
     "report.json: nearest_neighbour.metrics.bleu2 is 0.9, the answers give "),
    ("statistics", lambda _: rewrite(ANSWERS, 12, stats=answers(20)[12].stats), "predictions.jsonl:13: row "),
    ("text", lambda _: rewrite(ANSWERS, 12, prediction="x"), "prediction is 'x', its tokens say 'Your order 12"),
    ("other split", lambda _: change(REPORT, evaluation={"path": "x.jsonl", "sha256": "d" * 64, "rows": 40}),
     "evaluation.path is 'x.jsonl', results/data/datasets.json says"),
    ("changed split", change_split, "results/data/evaluation.jsonl:41: not a JSON object"),
    ("name of the base", lambda _: name_another_base(base_name="pocket2"),
     "report.json: scores base name 'pocket2', but the adapter at hand was trained on 'pocket'"),
    ("revision of the base", lambda _: name_another_base(base_revision="main"), "report.json: scores base revision"),
    ("bytes of the base", lambda _: name_another_base(base_sha256="c" * 64), "report.json: scores base sha256"),
    ("a query for a run", lambda _: change(REPORT, run_id="a' and attributes.status = 'FINISHED"),
     "is no id of an MLflow run"),
    ("weights beyond 1", lambda _: change(REPORT, weights=WEIGHTS), "report.json: weights.bleu1"),
    ("answer twice", lambda _: ANSWERS.write_text(ANSWERS.read_text().replace('{"id"', '{"id": "x", "id"', 1)),
     "predictions.jsonl:1: not a JSON object: key 'id' is given twice; run `dvc repro` to write it afresh"),
    ("broken tokenizer", break_tokenizer, "holds no tokenizer that can be read (EOF while parsing"),
    ("no tokenizer", remove_tokenizer, "run `dvc repro base_model` to write it afresh"),
    ("metric in MLflow", log_metric, "bleu4 is 0.9, the answers in results/evaluations give"),
    ("baseline in MLflow", lambda params: log_metric(params, "nearest_neighbour/weighted_score"),
     "nearest_neighbour/weighted_score is 0.9, the answers in results/evaluations give"),
    ("contract in MLflow", log_tag, "tag champion.contract is"),
    ("answers in MLflow", log_answers, "its predictions.jsonl is not the one in results/evaluations, first at row "),
    ("fewer answers in MLflow", log_fewer_answers, "first at row 40 of one side alone"),
]


@pytest.mark.parametrize(("damage", "words"), [case[1:] for case in DAMAGES], ids=[case[0] for case in DAMAGES])
def test_the_first_false_claim_is_named_and_nothing_outside_is_changed(
    params: Params, worse: EvaluationReport, damage: Damage, words: str, *, capsys: pytest.CaptureFixture[str]
) -> None:
    assert worse.rows == 40
    damage(params)
    before = outside()
    capsys.readouterr()
    assert call("--force-deploy") == 3
    assert words in said(capsys)
    assert outside() == before


def set_max_rows(count: int) -> None:
    values = yaml.safe_load(Path("params.yaml").read_bytes())
    values["evaluation"]["max_rows"] = count
    Path("params.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(("max_rows", "asked"), [(0, 40), (31, 31), (29, 29), (100, 40)])
def test_an_evaluation_of_other_rows_than_the_parameters_ask_for_is_refused(
    params: Params, capsys: pytest.CaptureFixture[str], max_rows: int, asked: int
) -> None:
    challenger(params, "few", answers(20)[:30])  # the best ones, and all that is said of them is true
    change(REPORT, evaluation=write_split(answers(20)).model_dump())
    set_max_rows(max_rows)
    before = outside()
    capsys.readouterr()
    assert call("--force-deploy", "--reason", "a customer needs it") == 3
    assert (f"report.json: rows is 30, evaluation.max_rows {max_rows} asks for {asked} of the 40 in "
            "results/data/evaluation.jsonl; run `dvc repro evaluation`") in said(capsys)
    assert outside() == before


def test_an_evaluation_of_the_first_rows_that_the_parameters_ask_for_is_deployed(params: Params) -> None:
    challenger(params, "few", answers(20)[:30])
    change(REPORT, evaluation=write_split(answers(20)).model_dump())
    set_max_rows(30)
    assert call() == 0


@pytest.mark.parametrize(("key", "value", "found"), [
    ("evaluation.tokenizer", "intl", "13a"), ("evaluation.max_new_tokens", 200, "160"),
    ("model.release_dtype", "bfloat16", "float32")])
def test_an_evaluation_in_another_way_than_the_parameters_ask_for_is_refused(
    params: Params, capsys: pytest.CaptureFixture[str], key: str, value: object, found: str
) -> None:
    challenger(params, "first", answers(20))
    values = yaml.safe_load(Path("params.yaml").read_bytes())
    section, name = key.split(".")
    values[section][name] = value
    Path("params.yaml").write_text(yaml.safe_dump(values))
    before = outside()
    capsys.readouterr()
    assert call() == 3
    assert (f"report.json: was scored with {key} {found}, the parameters ask for {value}; run `dvc repro "
            "evaluation`, or set the parameter back") in said(capsys)
    assert outside() == before


def test_a_report_of_an_earlier_version_that_has_no_baseline_is_deployed(params: Params) -> None:
    challenger(params, "first", answers(20))
    report = json.loads(REPORT.read_text())
    del report["nearest_neighbour"]
    json_utils.write_object(REPORT, report)
    assert call() == 0


def test_a_model_whose_release_is_not_what_was_scored_does_not_stand_in_the_way_of_others(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: object, **__: object) -> None:
        raise IntegrityError("release: row 7 is answered differently from token 3 on than when it was scored")

    challenger(params, "first", answers(10))
    deploy(Path("params.yaml"))
    challenger(params, "forged", answers(40))
    monkeypatch.setitem(sys.modules, "scripts.commands.assemble", SimpleNamespace(assemble=differs))
    assert call(weights=True) == 5
    challenger(params, "honest", answers(20))
    assert deploy(Path("params.yaml")).verdict is Verdict.PROMOTE


def test_a_blocked_model_stays_blocked_under_another_name_of_its_base(params: Params) -> None:
    challenger(params, "first", answers(10))
    deploy(Path("params.yaml"))
    challenger(params, "bad", answers(20))
    deploy(Path("params.yaml"))
    run(rollback_script, "--reason", "it is rude", "--skip-hf-push")
    assert call() == 7
    name_another_base(base_revision="main")
    assert call() == 3


def test_a_run_that_was_logged_anew_serves_only_the_model_and_the_name_it_was_logged_for(
    params: Params, tmp_path: Path
) -> None:
    """report.json keeps the id of a run on another server, whatever is deployed with it."""
    challenger(params, "first", answers(20))
    change(REPORT, run_id="e" * 32)
    assert call() == 0
    write_params(tmp_path, ROOT / "params.yaml", model_registry_name="another-shop")
    assert call() == 0
    client = mlflow_utils.connect(params.mlflow)
    home = client.get_experiment_by_name(params.mlflow.experiment_name)
    made = client.search_runs([home.experiment_id], f"tags.restored_from = '{'e' * 32}'")
    assert sorted(each.data.tags["champion.model_name"] for each in made) == ["another-shop", "ecommerce-chatbot"]


def test_a_run_that_the_server_lacks_is_not_made_for_false_claims(
    params: Params, tmp_path: Path, migrated_store: Path
) -> None:
    challenger(params, "worse", answers(10))
    claim(0.9)
    (tmp_path / "mlflow.db").write_bytes(migrated_store.read_bytes())
    before = outside()
    assert call() == 3
    assert outside() == before


def test_the_baseline_is_judged_by_its_texts_and_not_by_its_statistics(params: Params) -> None:
    first = challenger(params, "first", answers(20))
    deploy(Path("params.yaml"))
    home = Path(mlflow_utils.connect(params.mlflow).get_run(first.run_id).info.artifact_uri)
    worthless = [row.model_dump() | {"stats": answers(0)[0].stats} for row in answers(20)]
    json_utils.write_lines(home / "predictions.jsonl", worthless)
    challenger(params, "second", answers(20, rows=40)[:39] + answers(40)[39:])
    evidence = deploy(Path("params.yaml")).evidence
    assert evidence is not None
    assert evidence.gain < 0.05


def test_the_rows_that_carry_the_gain_and_drawn_ones_are_given_again_and_recorded(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenger(params, "first", answers(20))
    deploy(Path("params.yaml"))
    challenger(params, "second", answers(25))
    asked: list[Any] = []
    monkeypatch.setitem(sys.modules, "scripts.commands.assemble",
                        SimpleNamespace(assemble=lambda *_, **named: asked.append(named["verified"])))
    monkeypatch.setattr(deployer, "_save", save)
    assert call(weights=True) == 0
    recorded = json.loads(Path("results/deployment/model_comparison.json").read_text())["verified_rows"]
    ids = [row.id for row in answers(25)]
    assert set(ids[20:25]) < set(recorded["largest"])
    assert (len(recorded["largest"]), len(recorded["drawn"])) == (16, 16)
    assert sorted(ids[place] for place in asked[0].places) == sorted(recorded["largest"] + recorded["drawn"])
    assert len(asked[0].places) == len(set(asked[0].places))


def test_nobody_knows_before_the_run_which_rows_are_drawn(params: Params) -> None:
    challenger(params, "first", answers(20))
    flags = PARSER.parse_args(["--dry-run"])
    orders = [deployer.challenger_setting(flags, Path(), LogBuffer()).shuffled for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert orders[0] != orders[1]
