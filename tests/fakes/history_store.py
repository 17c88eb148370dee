"""Challengers without a model behind them, evaluated into a real MLflow store and brought before the whole gate."""

import shutil
from pathlib import Path

import pytest
import yaml

from scripts.commands.deploy import Deployer, challenger_setting
from scripts.deployment_script import PARSER
from src.core.params import Params
from src.core.records import (
    OUTPUT_DIR,
    BaseModelRef,
    DatasetRef,
    EvaluationReport,
    Metrics,
    ModelIdentity,
    digest_of,
    manifest,
    tree_digest,
    weighted_score,
)
from src.data.rows import EvaluationRow, Turn
from src.evaluation.metrics import corpus_scores, row_statistics
from src.evaluation.predictions import Prediction, numbers, score_contract
from src.model_selection import Decision
from src.promotion.protocol import Progress, promote
from tests.fakes import factories
from tests.fakes.weightless import without_weights
from utils import json_utils, mlflow_utils
from utils.results import LogBuffer, check_output_dir
from utils.tracking import runs

BASE = BaseModelRef(name="pocket", revision="none", path="results/base_model", sha256="b" * 64)
SPLIT = DatasetRef(path="results/data/evaluation.jsonl", sha256="d" * 64, rows=40)
ANSWER = "Your order {} was sent on day {} and will arrive within three working days at your door ."


def write_params(root: Path, source: Path, **deployment: object) -> Path:
    """params.yaml of the repository with an sqlite store in `root`, and changes to its deployment section."""
    values = yaml.safe_load(source.read_bytes())
    values["mlflow"]["tracking_uri"] = f"sqlite:///{root}/mlflow.db"
    values["deployment"].update(deployment)
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def answers(right: int, rows: int = 40, *, split: str = "") -> list[Prediction]:
    """`right` of the rows answered word by word, the others a few words short; `split` makes other questions."""
    references = [ANSWER.format(row, row % 7) for row in range(rows)]
    texts = [text if row < right else text.replace("within three working", "in") for row, text in enumerate(references)]
    chats = [[Turn(role="user", content=f"{split}Where is order {row}?"), Turn(role="assistant", content=text)]
             for row, text in enumerate(references)]
    return [
        Prediction(id=digest_of([m.model_dump() for m in chat])[:16], intent=None, messages=chat[:-1],
                   reference=reference, prediction=text, new_tokens=9, truncated=False, tokens=[1, 2], stats=stats)
        for chat, reference, text, stats in zip(chats, references, texts,
                                                row_statistics(texts, references, "13a").to_rows(), strict=True)
    ]


def challenger(params: Params, mark: str, given: list[Prediction], score: float | None = None) -> EvaluationReport:
    """Write results/ as training and evaluation leave it, and log the evaluation; returns its report.

    mark stands for the weights. With a score, every metric is that; else the metrics follow from the answers.
    """
    Path("results/base_model").mkdir(parents=True, exist_ok=True)
    adapter = Path("results/adapter")
    shutil.rmtree(adapter, ignore_errors=True)
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_text(mark)
    sha256 = tree_digest(manifest(adapter))
    json_utils.write_object(Path("results/fine_tuned_model_location.json"), factories.model_values(sha256) | {
        "tracking_uri": params.mlflow.tracking_uri, "base_model": BASE.model_dump()})
    identity = ModelIdentity(adapter_sha256=sha256, base_name=BASE.name, base_revision=BASE.revision,
                             base_sha256=BASE.sha256, dtype="float32", safe_merge=True)
    return evaluate(params, identity, given, score, Path("results/evaluations"))


def evaluate(params: Params, identity: ModelIdentity, given: list[Prediction], score: float | None,
             folder: Path) -> EvaluationReport:
    """Log one evaluation the way scripts/evaluation_script.py does."""
    rows = [EvaluationRow(id=row.id, intent=None, messages=[*row.messages, Turn(role="assistant",
            content=row.reference)]) for row in given]
    contract = score_contract(rows, max_new_tokens=params.evaluation.max_new_tokens, tokenizer="13a")
    found = corpus_scores(row_statistics([row.prediction for row in given], [row.reference for row in given], "13a"))
    metrics = Metrics(**found) if score is None else factories.metrics(score)
    weights = params.deployment.weighted_scoring.weights
    tags = runs.evaluation_tags(params.deployment, identity, contract)
    with mlflow_utils.stage_run(params.mlflow, kind="evaluation", name="evaluation", tags=tags) as run_id:
        report = EvaluationReport(
            run_id=run_id, tracking_uri=params.mlflow.tracking_uri, model=identity, model_digest=identity.digest(),
            contract=contract, contract_digest=contract.digest(), metrics=metrics, weights=weights, rows=len(given),
            weighted_score=float(weighted_score(metrics.as_dict(), weights)), truncated_rows=0, empty_rows=0,
            overlap_rows=0, evaluation=SPLIT)
        json_utils.write_lines(folder / "predictions.jsonl", [row.model_dump() for row in given])
        json_utils.write_object(folder / "report.json", report.model_dump(mode="json"))
        json_utils.write_object(folder / "metrics.json", numbers(report))
        client = mlflow_utils.connect(params.mlflow)
        runs.log_evaluation(client, run_id, numbers(report), sorted(folder.iterdir()))
    return report


def deploy(config: Path, *flags: str) -> Decision:
    """The whole deployment of results/ on the real store; only merging is left out, and a text is registered."""
    asked = PARSER.parse_args(["--config", str(config), *flags])
    with pytest.MonkeyPatch.context() as patch:
        without_weights(patch)
        deployer = Deployer(challenger_setting(asked, check_output_dir(OUTPUT_DIR), LogBuffer()))
        if asked.dry_run:
            return deployer.decide(deployer.ledger.view())
        decision = promote(deployer.ports(), lambda _: None, Progress()).decided()
        deployer.prune()
    return decision
