"""Collect what a pipeline run left in results/, for the summary and the pull request comment."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from src.core.errors import InvalidInput, InvalidParams
from src.core.params import DeploymentParams, load_params
from src.core.records import CONFIG, EVALUATION_RESULTS, OUTPUT_DIR, EvaluationReport, read_object
from src.evaluation.metrics import RowStatistics
from src.evaluation.predictions import Prediction
from src.evaluation.significance import score_intervals, seed_from
from src.report.summary import OUTCOMES, RunResults, Summary, summary
from utils import environment, github_utils, results
from utils.answers import PREDICTIONS
from utils.hub.client import endpoint

T = TypeVar("T")
PAGE = Path("results/report/index.html")


def outcome(output: Path | None) -> Summary:
    """Summarise the records in results/; a missing or broken record is listed in the summary.

    PIPELINE_OUTCOME says how the pipeline ended, by default `success`: results/deployment is committed, so after a
    failure it holds the files of an earlier run. Raises InvalidParams for an unknown outcome.
    """
    ended = os.environ.get("PIPELINE_OUTCOME", "").strip() or OUTCOMES[0]
    if ended not in OUTCOMES:
        raise InvalidParams(f"PIPELINE_OUTCOME: {ended!r} is none of {', '.join(OUTCOMES)}")
    folder, problems = output or OUTPUT_DIR, list[str]()
    report = _read(EvaluationReport.load, EVALUATION_RESULTS.with_name("report.json"), problems)
    params = _read(load_params, CONFIG, problems)
    info, compared = (_read(read_object, folder / name, problems) or {} for name in (results.INFO, results.COMPARISON))
    return summary(RunResults(
        report=report, info=info, comparison=compared,
        intervals=_intervals(report, compared, params.deployment, problems) if report and params else None,
        confidence=params.deployment.confidence if params else None, problems=problems, outcome=ended,
        ci_url=environment.ci_url(), branch=github_utils.branch(), hub=endpoint(),
        page=f"{PAGE}{', among the artifacts of the run' if environment.ci_url() else ''}" if PAGE.is_file() else None,
    ))


def _read(read: Callable[[Path], T], path: Path, problems: list[str]) -> T | None:
    """What a file holds, or None after its problem was added to `problems`."""
    try:
        return read(path)
    except (InvalidInput, InvalidParams) as error:
        problems.append(str(error))
        return None


def _intervals(report: EvaluationReport, compared: Mapping[str, Any], policy: DeploymentParams, problems: list[str]
               ) -> Mapping[str, tuple[float, float]] | None:
    """The same score intervals as in the report, None if the answers cannot be read."""
    predictions = _read(Prediction.load_lines, EVALUATION_RESULTS.with_name(PREDICTIONS), problems)
    if predictions is None:
        return None
    if len(predictions) != report.rows:
        problems.append(f"{PREDICTIONS}: {len(predictions)} rows, the report has {report.rows}; run `dvc pull`")
        return None
    return score_intervals(
        RowStatistics.from_rows([row.stats for row in predictions]),
        weights=compared.get("weights") or report.weights, confidence=policy.confidence,
        seed=seed_from(report.contract_digest))
