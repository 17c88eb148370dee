"""One evaluation: read the split, load the challenger or the champion, answer, score, and write the results."""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import evaluate
from mlflow import MlflowClient

from src.core import records
from src.core.errors import IntegrityError, Undecided
from src.core.params import EvaluationParams, ModelParams, Params
from src.core.records import (
    DATASETS,
    Baseline,
    DatasetRef,
    Datasets,
    EvaluationReport,
    ModelIdentity,
    ScoreContract,
    read_lines,
)
from src.data.rows import EvaluationRow, parse_rows
from src.evaluation import generation
from src.evaluation.metrics import row_statistics
from src.evaluation.predictions import (
    GeneratedAnswer,
    Prediction,
    as_predictions,
    contributions_table,
    make_report,
    numbers,
    split_counts,
)
from src.models import merging, placement
from src.models.files import check_sources
from utils import json_utils
from utils.answers import PartialAnswers
from utils.tracking import registry
from utils.tracking.ledger import MlflowLedger

logger = logging.getLogger("champion")

METRIC = Path(__file__).parents[2] / "src" / "evaluation" / "weighted_score.py"
PARTIAL = Path("results/checkpoints")


@dataclass(frozen=True)
class Candidate:
    """A merged model that is to be scored."""

    model: merging.Model
    tokenizer: merging.Tokenizer
    identity: ModelIdentity


@dataclass(frozen=True)
class Scored:
    """A candidate's answers and their score under today's weights; partial is removed once these are written."""

    identity: ModelIdentity
    predictions: Sequence[Prediction]
    metrics: records.Metrics
    weighted_score: float
    weights: Mapping[str, float]
    partial: PartialAnswers

    def report(self, *, run_id: str, tracking_uri: str, contract: ScoreContract, split: DatasetRef,
               counts: Mapping[str, int], nearest_neighbour: Baseline) -> EvaluationReport:
        """The score as a record; counts are those of `split_counts`."""
        return make_report(
            self.identity, self.predictions, metrics=self.metrics, weighted_score=self.weighted_score,
            weights=self.weights, run_id=run_id, tracking_uri=tracking_uri, contract=contract, split=split,
            counts=counts, nearest_neighbour=nearest_neighbour)


def read_split(params: EvaluationParams) -> tuple[DatasetRef, list[EvaluationRow]]:
    """The evaluation split and the rows of it that are scored."""
    split = Datasets.load(DATASETS).evaluation
    path = Path(split.path)
    return split, parse_rows(read_lines(path), where=path, max_rows=params.max_rows)


def read_train() -> list[EvaluationRow]:
    """All rows of the training split."""
    path = Path(Datasets.load(DATASETS).train.path)
    return parse_rows(read_lines(path), where=path, max_rows=0)


def count_rows(rows: Sequence[EvaluationRow], trained: Sequence[EvaluationRow], tokenizer: str) -> dict[str, int]:
    """The `split_counts` of the evaluation rows, which the log shows."""
    counts = split_counts(rows, trained, tokenizer)
    logger.info("evaluation split: of its %d rows, the training split has %d questions and %d reference answers too",
                len(rows), counts["overlap_rows"], counts["answer_overlap_rows"])
    return counts


def challenger(params: ModelParams) -> Candidate:
    """The adapter of the last training merged into its base, in the release precision."""
    fine_tuned = records.FineTunedModel.load(records.MODEL_LOCATION)
    base = records.BaseModelRef.load(records.BASE_MODEL)
    base_folder, adapter = check_sources(fine_tuned, base, root=Path.cwd())
    model, tokenizer = merging.merge(base_folder, adapter, params.release_dtype)
    logger.info("merged %s into %s in %s", fine_tuned.adapter_path, base.path, params.release_dtype)
    return Candidate(model, tokenizer, ModelIdentity(
        adapter_sha256=fine_tuned.adapter_sha256, base_name=base.name, base_revision=base.revision,
        base_sha256=base.sha256, dtype=params.release_dtype, safe_merge=True))


def champion(client: MlflowClient, params: Params, folder: Path) -> Candidate:
    """The model at the head of the ledger, from the registry; raises Undecided if none was promoted yet.

    If several processes evaluate, the first fetches it for all, to a folder that all of them see.
    """
    name = params.deployment.model_registry_name
    head = MlflowLedger(client, name, params.mlflow.experiment_name).view().head
    if head is None:
        raise Undecided(f"{name}: no model was promoted yet, so there is no champion to evaluate")
    local, identity = registry.fetch_version(client, name, head.version, folder)
    if identity.digest() != head.model_digest:
        raise IntegrityError(f"{name} version {head.version}: is not the model that the ledger promoted; "
                             "run `champion status`")
    logger.info("fetched the champion, %s version %d", name, head.version)
    return _load([(local, identity)])


def _load(fetched: Sequence[tuple[Path, ModelIdentity]]) -> Candidate:
    """Load in every process what the first one fetched."""
    [(folder, identity)] = placement.gather(fetched)
    return Candidate(*merging.load(folder, identity.dtype), identity)


def assist(rows: Sequence[EvaluationRow], params: Params, contract: ScoreContract, *, of_champion: bool) -> None:
    """Answer the share of a process that is not the first one.

    It leaves nothing that a signal must not cut off, and so it ends even while it waits outside of Python.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    candidate = _load([]) if of_champion else challenger(params.model)
    _answers(candidate, rows, params.evaluation, contract)


def score(candidate: Candidate, rows: Sequence[EvaluationRow], params: Params, contract: ScoreContract) -> Scored:
    """Generate an answer to every row and score the answers by the metric in src/evaluation/weighted_score.py.

    Answers that an evaluation of the same fingerprint left when it was killed are not generated again.
    """
    weights = params.deployment.weighted_scoring.weights
    answers, partial = _answers(candidate, rows, params.evaluation, contract)
    texts, references = [answer.text for answer in answers], [row.reference() for row in rows]
    tokenizer, metric = params.evaluation.tokenizer, evaluate.load(str(METRIC), keep_in_memory=True)
    found = metric.compute(predictions=texts, references=references, weights=weights, tokenizer=tokenizer)
    predictions = as_predictions(rows, answers, row_statistics(texts, references, tokenizer))
    return Scored(candidate.identity, predictions, metrics=records.Metrics(**{m: float(found[m]) for m in weights}),
                  weighted_score=float(found["weighted_score"]), weights=weights, partial=partial)


def _answers(candidate: Candidate, rows: Sequence[EvaluationRow], params: EvaluationParams,
             contract: ScoreContract) -> tuple[list[GeneratedAnswer], PartialAnswers]:
    started, model, tokenizer = time.monotonic(), candidate.model, candidate.tokenizer
    generation.set_greedy(model, tokenizer, max_new_tokens=params.max_new_tokens)
    prompts = [generation.prompt_tokens(tokenizer, row.prompt()) for row in rows]
    batches = generation.plan([len(prompt) for prompt in prompts], tokens_per_batch=params.tokens_per_batch,
                              max_new_tokens=params.max_new_tokens)
    fingerprint = generation.fingerprint(model, candidate.identity.digest(), contract.digest(),
                                         tokens_per_batch=params.tokens_per_batch)
    partial = PartialAnswers(PARTIAL, fingerprint, process=placement.state().process_index)
    found = generation.run(model, prompts, batches, done=partial.read(), keep=partial.add)
    logger.info("generated %d answers in %.0f s", len(found), time.monotonic() - started)
    return generation.gather(found, model, tokenizer), partial


def write(folder: Path, report: EvaluationReport, predictions: Sequence[Prediction]) -> list[Path]:
    """Write metrics.json, report.json, predictions.jsonl and contributions.csv; returns their paths."""
    if warning := report.tokenizer_warning():
        logger.warning("%s", warning)
    files = [folder / name for name in ("predictions.jsonl", "contributions.csv", "report.json", "metrics.json")]
    json_utils.write_lines(files[0], [row.model_dump() for row in predictions])
    json_utils.write_text(files[1], contributions_table(report))
    json_utils.write_object(files[2], report.model_dump(mode="json"))
    json_utils.write_object(files[3], numbers(report))
    return files
