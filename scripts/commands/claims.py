"""Check results/evaluations before the gate decides: against the split, against itself and against its MLflow run."""

from contextlib import suppress
from pathlib import Path

from mlflow import MlflowClient

from src.core.errors import InvalidInput
from src.core.params import Params
from src.core.records import DATASETS, DatasetRef, Datasets, EvaluationReport, file_sha256, read_lines, read_object
from src.data.rows import EvaluationRow, parse_rows
from src.evaluation.claims import AGAIN, check_answers, check_scores, disagreements, true_report
from src.evaluation.metrics import tokenizer_of
from src.evaluation.predictions import Prediction, contributions_table, numbers
from src.models.tokens import decode, decode_as_generated
from utils import mlflow_utils
from utils.answers import PREDICTIONS, logged_predictions
from utils.results import Inputs
from utils.tracking import tag


def check_claims(inputs: Inputs, metrics: Path, params: Params) -> list[Prediction]:
    """Check every file of an evaluation; returns its answers, whose statistics are then known to be true.

    metrics: the path of metrics.json; params: what has to be evaluated, and how. Nothing is written. Raises
    InvalidInput, naming the first value that differs.
    """
    report, folder = inputs.report, inputs.evaluations
    path = folder / PREDICTIONS
    given = Prediction.load_lines(path)
    _check_asked(folder / "report.json", report, params)
    rows, trained = split_rows(report, folder, params.evaluation.max_rows)
    check_answers(path, given, rows, max_new_tokens=report.contract.generation.max_new_tokens,
                  tokenizer=tokenizer_of(report.contract),
                  decode=lambda: _texts(Path(inputs.model.base_model.path), given))
    true = true_report(report, given, rows, trained=trained)
    check_scores(metrics, read_object(metrics), numbers(true))
    check_scores(folder / "report.json", report.model_dump(), true.model_dump())
    _check_table(folder / "contributions.csv", true)
    return given


def _check_asked(path: Path, report: EvaluationReport, params: Params) -> None:
    """Another precision would be another model, and another contract one that the champion is not scored under."""
    asked = {"model.release_dtype": (report.model.dtype, params.model.release_dtype),
             "evaluation.max_new_tokens": (report.contract.generation.max_new_tokens, params.evaluation.max_new_tokens),
             "evaluation.tokenizer": (tokenizer_of(report.contract), params.evaluation.tokenizer)}
    for key, (found, wanted) in asked.items():
        if found != wanted:
            raise InvalidInput(f"{path}: was scored with {key} {found}, the parameters ask for {wanted}; run "
                               "`dvc repro evaluation`, or set the parameter back")


def split_rows(report: EvaluationReport, folder: Path, max_rows: int
               ) -> tuple[list[EvaluationRow], list[EvaluationRow]]:
    """The evaluated rows and the training split's, from the files that results/data/datasets.json names.

    Raises InvalidInput if the report states another split or another number of rows than max_rows asks for, or a file
    is not the recorded one.
    """
    splits = Datasets.load(DATASETS)
    for key, stated, recorded in disagreements(report.evaluation.model_dump(), splits.evaluation.model_dump()):
        raise InvalidInput(f"{folder / 'report.json'}: evaluation.{key} is {stated!r:.70}, {DATASETS} says "
                           f"{recorded!r:.70}, so it scores another split; run `dvc repro evaluation`")
    rows = _rows(splits.evaluation)
    asked = rows[:max_rows] if max_rows else rows
    if report.rows != len(asked):
        raise InvalidInput(f"{folder / 'report.json'}: rows is {report.rows}, evaluation.max_rows {max_rows} asks for "
                           f"{len(asked)} of the {len(rows)} in {splits.evaluation.path}; run `dvc repro evaluation`")
    return asked, _rows(splits.train)


def _texts(base: Path, given: list[Prediction]) -> list[str]:
    """The text of each answer's tokens. Those that tokenizer.json alone tells differently, transformers decodes."""
    texts = decode(base, [row.tokens for row in given])
    differing = [place for place, row in enumerate(given) if texts[place] != row.prediction]
    if differing:
        with suppress(InvalidInput):  # no complete tokenizer; the first finding stands
            again = decode_as_generated(base, [given[place].tokens for place in differing])
            for place, text in zip(differing, again, strict=True):
                texts[place] = text
    return texts


def _rows(split: DatasetRef) -> list[EvaluationRow]:
    path = Path(split.path)
    if path.is_absolute() or ".." in path.parts:
        raise InvalidInput(f"{DATASETS}: path {split.path!r:.200} leaves the repository; "
                           "run `dvc repro data_preprocessing`")
    rows = parse_rows(read_lines(path), where=path, max_rows=0)
    if (found := file_sha256(path)) != split.sha256:
        raise InvalidInput(f"{path}: sha256 is {found[:12]}, {DATASETS} says {split.sha256[:12]}; "
                           "run `dvc repro data_preprocessing`")
    return rows


def _check_table(path: Path, true: EvaluationReport) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") != contributions_table(true):
        raise InvalidInput(f"{path}: its contributions are not those of the answers; {AGAIN}")


def check_logged(client: MlflowClient, report: EvaluationReport, given: list[Prediction]) -> None:
    """Check the MLflow run of a checked evaluation; a run that the server lacks claims nothing.

    Raises InvalidInput, naming the first metric, tag or answer that differs, Undecided if the server fails.
    """
    run = mlflow_utils.find_run(client, report.run_id)
    if run is None:
        return
    where = f"MLflow run {report.run_id}"
    tags = {tag.MODEL_DIGEST: report.model_digest, tag.CONTRACT: report.contract_digest}
    for what, claimed, expected in (("tag ", run.data.tags, tags), ("", run.data.metrics, report.logged_metrics())):
        for key, logged, computed in disagreements(claimed, expected):
            raise InvalidInput(f"{where}: {what}{key} is {logged!r:.70}, the answers in results/evaluations give "
                               f"{computed!r:.70}; {AGAIN}")
    logged_rows = logged_predictions(client, report.run_id)
    if logged_rows is None or logged_rows == given:
        return
    differing = (row.id for row, logged in zip(given, logged_rows, strict=False) if row != logged)
    first = next(differing, f"{min(len(given), len(logged_rows)) + 1} of one side alone")
    raise InvalidInput(f"{where}: its {PREDICTIONS} is not the one in results/evaluations, first at row {first}; "
                       f"{AGAIN}")
