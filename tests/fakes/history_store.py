"""Challengers without a model behind them, evaluated into a real MLflow store and brought before the whole gate.

All that the gate checks of an evaluation is true of theirs: the split is on disk, and a byte-level tokenizer in
results/base_model decodes the stored tokens to the answers.
"""

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from scripts.commands.deploy import Deployer, challenger_setting
from scripts.deployment_script import PARSER
from src.core.params import Params
from src.core.records import (
    DATASETS,
    OUTPUT_DIR,
    BaseModelRef,
    DatasetRef,
    Datasets,
    EvaluationReport,
    Metrics,
    ModelIdentity,
    digest_of,
    file_sha256,
    manifest,
    tree_digest,
    weighted_score,
)
from src.data.rows import EvaluationRow, Turn
from src.evaluation.metrics import corpus_scores, row_statistics
from src.evaluation.neighbour import nearest_neighbour
from src.evaluation.predictions import Prediction, make_report, numbers, score_contract, split_counts, statistics_of
from src.model_selection import Decision
from src.promotion.protocol import Progress, promote
from tests.fakes import factories
from tests.fakes.weightless import without_weights
from utils import json_utils, mlflow_utils
from utils.results import LogBuffer, check_output_dir
from utils.tracking import runs

BASE = BaseModelRef(name="pocket", revision="none", path="results/base_model", sha256="b" * 64)
BY_BLEU1 = {"weights": {"bleu1": 1.0, "bleu2": 0.0, "bleu3": 0.0, "bleu4": 0.0, "rougeL_precision": 0.0}}
STOP = 256  # the token after those of the bytes
TRAINED = [{"role": "user", "content": "Do you sell gift cards?"}, {"role": "assistant", "content": "Yes."}]
ANSWER = "Your order {} was sent on day {} and will arrive within three working days at your door ."


def write_params(root: Path, source: Path, **deployment: object) -> Path:
    """params.yaml of the repository with an sqlite store in `root`, and changes to its deployment section."""
    values = yaml.safe_load(source.read_bytes())
    values["mlflow"]["tracking_uri"] = f"sqlite:///{root}/mlflow.db"
    values["deployment"].update(deployment)
    path = root / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@cache
def byte_tokenizer() -> Tokenizer:
    """A token for each byte, and STOP."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["</s>"])
    return made


def answered(chats: Sequence[Sequence[Turn]], texts: Sequence[str]) -> list[Prediction]:
    """Answers to conversations that end with the reference, as an evaluation leaves them."""
    references = [chat[-1].content for chat in chats]
    tokens = [[*encoded.ids, STOP] for encoded in byte_tokenizer().encode_batch(list(texts))]
    return [
        Prediction(id=digest_of([m.model_dump() for m in chat])[:16], intent=None, messages=list(chat[:-1]),
                   reference=reference, prediction=text, new_tokens=len(ids), truncated=False, tokens=ids, stats=stats)
        for chat, reference, text, ids, stats in zip(
            chats, references, texts, tokens, row_statistics(texts, references, "13a").to_rows(), strict=True)]


def answers(right: int, rows: int = 40, *, split: str = "") -> list[Prediction]:
    """`right` of the rows answered word by word, the others a few words short; `split` makes other questions."""
    references = [ANSWER.format(row, row % 7) for row in range(rows)]
    texts = [text if row < right else text.replace("within three working", "in") for row, text in enumerate(references)]
    return answered([_chat(f"{split}Where is order {row}?", text) for row, text in enumerate(references)], texts)


def scored_answers(score: float, *, split: str = "") -> list[Prediction]:
    """Answers whose weighted score is this one, of at most four decimals, where the weights are BY_BLEU1."""
    right = [min(80, max(0, round(score * 10_000) - 80 * row)) for row in range(125)]
    chats = [_chat(f"{split}Spell order {row}.", " ".join("a" * 80)) for row in range(125)]
    return answered(chats, [" ".join("a" * count + "b" * (80 - count)) for count in right])


def _chat(question: str, answer: str) -> list[Turn]:
    return [Turn(role="user", content=question), Turn(role="assistant", content=answer)]


def write_split(given: Sequence[Prediction]) -> DatasetRef:
    """results/data with the rows that were answered; returns the record of the evaluation split."""
    rows = [{"id": row.id, "intent": row.intent, "messages": [
        *(message.model_dump() for message in row.messages), {"role": "assistant", "content": row.reference}]}
        for row in given]
    trained = [{"id": digest_of(TRAINED)[:16], "intent": None, "messages": TRAINED}]
    refs = {}
    for name, lines in (("train", trained), ("evaluation", rows)):
        path = DATASETS.with_name(f"{name}.jsonl")
        json_utils.write_lines(path, lines)
        refs[name] = DatasetRef(path=path.as_posix(), sha256=file_sha256(path), rows=len(lines))
    splits = Datasets(raw=refs["train"], train=refs["train"], validation=refs["train"], evaluation=refs["evaluation"])
    json_utils.write_object(DATASETS, splits.model_dump())
    return splits.evaluation


def challenger(params: Params, mark: str, given: list[Prediction]) -> EvaluationReport:
    """Write results/ as training and evaluation leave it, and log the evaluation; returns its report.

    mark stands for the weights. The metrics follow from the answers.
    """
    Path("results/base_model").mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save("results/base_model/tokenizer.json")
    adapter = Path("results/adapter")
    shutil.rmtree(adapter, ignore_errors=True)
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_text(mark)
    sha256 = tree_digest(manifest(adapter))
    json_utils.write_object(Path("results/fine_tuned_model_location.json"), factories.model_values(sha256) | {
        "tracking_uri": params.mlflow.tracking_uri, "base_model": BASE.model_dump()})
    identity = ModelIdentity(adapter_sha256=sha256, base_name=BASE.name, base_revision=BASE.revision,
                             base_sha256=BASE.sha256, dtype="float32", safe_merge=True)
    return evaluate(params, identity, given, Path("results/evaluations"))


def evaluate(params: Params, identity: ModelIdentity, given: list[Prediction], folder: Path) -> EvaluationReport:
    """Log one evaluation the way scripts/evaluation_script.py does."""
    split = write_split(given)
    rows = [EvaluationRow(id=row.id, intent=row.intent, messages=[*row.messages, Turn(role="assistant",
            content=row.reference)]) for row in given]
    trained = [EvaluationRow.parse({"id": digest_of(TRAINED)[:16], "intent": None, "messages": TRAINED}, where="")]
    tokenizer = params.evaluation.tokenizer
    contract = score_contract(rows, max_new_tokens=params.evaluation.max_new_tokens, tokenizer=tokenizer)
    metrics = Metrics(**corpus_scores(statistics_of(given, tokenizer)))
    weights = params.deployment.weighted_scoring.weights
    tags = runs.evaluation_tags(params.deployment, identity, contract)
    with mlflow_utils.stage_run(params.mlflow, kind="evaluation", name="evaluation", tags=tags) as run_id:
        report = make_report(
            identity, given, metrics=metrics, weights=weights, run_id=run_id, contract=contract, split=split,
            tracking_uri=params.mlflow.tracking_uri, counts=split_counts(rows, trained, tokenizer),
            nearest_neighbour=nearest_neighbour(trained, rows, weights=weights, tokenizer=tokenizer),
            weighted_score=float(weighted_score(metrics.as_dict(), weights)))
        json_utils.write_lines(folder / "predictions.jsonl", [row.model_dump() for row in given])
        json_utils.write_object(folder / "report.json", report.model_dump(mode="json"))
        json_utils.write_object(folder / "metrics.json", numbers(report))
        client = mlflow_utils.connect(params.mlflow)
        runs.log_evaluation(client, run_id, report.logged_metrics(), sorted(folder.iterdir()))
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
