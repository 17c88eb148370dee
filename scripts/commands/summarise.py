"""Collect what a pipeline run left in results/, for the summary and the pull request comment."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

logger = logging.getLogger("champion")

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
    report, policy = _report(problems), _policy(problems)
    info, compared = (_object(folder / name, problems) for name in (results.INFO, results.COMPARISON))
    return summary(RunResults(
        report=report, info=info, comparison=compared,
        intervals=_intervals(report, compared, policy, problems) if report and policy else None,
        confidence=policy.confidence if policy else None, problems=problems, outcome=ended,
        ci_url=environment.ci_url(), branch=github_utils.branch(), hub=endpoint(),
        page=f"{PAGE}{', among the artifacts of the run' if environment.ci_url() else ''}" if PAGE.is_file() else None,
    ))


def _policy(problems: list[str]) -> DeploymentParams | None:
    try:
        return load_params(CONFIG).deployment
    except InvalidParams as error:
        problems.append(str(error))
        return None


def _report(problems: list[str]) -> EvaluationReport | None:
    path = EVALUATION_RESULTS.with_name("report.json")
    try:
        return EvaluationReport.load(path)
    except InvalidInput as error:
        problems.append(str(error))
        return None


def _object(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        return read_object(path)
    except InvalidInput as error:
        problems.append(str(error))
        return {}


def _intervals(report: EvaluationReport, compared: Mapping[str, Any], policy: DeploymentParams, problems: list[str]
               ) -> Mapping[str, tuple[float, float]] | None:
    """The same score intervals as in the report, None if the answers cannot be read."""
    try:
        predictions = Prediction.load_lines(EVALUATION_RESULTS.with_name(PREDICTIONS))
    except InvalidInput as error:
        problems.append(str(error))
        return None
    if len(predictions) != report.rows:
        problems.append(f"{PREDICTIONS}: {len(predictions)} rows, the report has {report.rows}; run `dvc pull`")
        return None
    return score_intervals(
        RowStatistics.from_rows([row.stats for row in predictions]),
        weights=compared.get("weights") or report.weights, confidence=policy.confidence, resamples=policy.resamples,
        seed=seed_from(report.contract_digest))
