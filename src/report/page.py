"""The report on a deployment as one HTML page, from its records and from the history in MLflow. Pure."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from src.core.errors import InvalidInput
from src.core.params import METRICS, DeploymentParams
from src.core.records import EvaluationReport, FineTunedModel, contributions, weighted_score
from src.decisions.record import is_about
from src.decisions.words import Headline, headline
from src.evaluation.metrics import RowStatistics, row_scores
from src.evaluation.predictions import Prediction
from src.evaluation.significance import score_intervals, seed_from
from src.ledger.slots import LedgerView, Slot
from src.model_selection import ScoredRun
from src.report.charts import NAMES, SIDES, WEIGHTED, Chart, ComparedModel, Losses, Point, Score, draw

ANSWERS = 10
LONGEST = 1500  # characters shown of a text: 20 rows of four texts stay far below 1 MB
Facts = Mapping[str, str | int | None]


@dataclass(frozen=True)
class ModelHistory:
    """What MLflow holds about this registered model under this score contract.

    runs: the latest evaluations, oldest first, the challenger's included.
    older: True if there are more evaluations.
    rival: the answers to compare with, None if they cannot be read.
    problem: why MLflow could not be read, or empty.
    """

    runs: Sequence[ScoredRun]
    older: bool
    ledger: LedgerView
    rival: Sequence[Prediction] | None
    problem: str


@dataclass(frozen=True)
class Records:
    """Everything that the page is made from.

    info and comparison: the content of deployment_info.json and model_comparison.json, empty before a decision.
    versions: name to version of the installed software.
    """

    report: EvaluationReport
    model: FineTunedModel
    predictions: Sequence[Prediction]
    info: Mapping[str, Any]
    comparison: Mapping[str, Any]
    losses: Losses | None
    past: ModelHistory
    policy: DeploymentParams
    versions: Mapping[str, str]

    @property
    def are_judged(self) -> bool:
        """True if info records a decision on the evaluated model, not on another one and not a failure."""
        return is_about(self.info, self.report)

    @property
    def deployment_run(self) -> str | None:
        """The id of the decision's MLflow run, None if it was not recorded."""
        run_id = str(self.info["deployment_run"]) if self.are_judged else "none"
        return None if run_id.startswith("none") else run_id


def no_past(problem: str) -> ModelHistory:
    """The history when MLflow cannot be read, with the reason."""
    return ModelHistory((), older=False, ledger=LedgerView(()), rival=None, problem=problem)


def losses_of(text: str, *, where: Path) -> Losses | None:
    """The losses in the text of loss.csv, None if it has no row. Raises InvalidInput for other content."""
    rows = list(csv.DictReader(io.StringIO(text)))
    try:
        train, validation = ([float(row[name]) for row in rows] for name in ("train_loss", "validation_loss"))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{where}: {error!r}; run `dvc repro fine_tuning` to write it afresh") from None
    if not all(math.isfinite(loss) for loss in (*train, *validation)):
        raise InvalidInput(f"{where}: a loss is not finite; run `dvc repro fine_tuning` with a lower learning rate")
    return Losses(train, validation) if rows else None


def rival_slot(ledger: LedgerView, model_digest: str) -> Slot | None:
    """The model whose answers are shown beside the challenger's: the champion, or if it is that, the previous one."""
    is_champion = ledger.head is not None and ledger.head.model_digest == model_digest
    return ledger.previous if is_champion else ledger.head


def rival_run(slot: Slot, runs: Sequence[ScoredRun]) -> str | None:
    """The evaluation run with a model's answers: the latest under today's contract, else the promoted one."""
    known = [run.run_id for run in runs if run.model_digest == slot.model_digest]
    return known[-1] if known else slot.evaluation_run


@dataclass(frozen=True)
class ShownAnswer:
    """One model's answer and the weighted score of that row alone, in [0, 1]."""

    text: str
    score: float
    truncated: bool


@dataclass(frozen=True)
class AnsweredRow:
    """A row with its question, its reference answer and the answers of both models.

    earlier: the number of user turns before the question.
    other: the answer of the other model, None if it did not answer this row.
    """

    row_id: str
    intent: str | None
    question: str
    earlier: int
    reference: str
    own: ShownAnswer
    other: ShownAnswer | None


def ranked_answers(predictions: Sequence[Prediction], rival: Sequence[Prediction], weights: Mapping[str, float]
                   ) -> dict[str, list[AnsweredRow]]:
    """The ten best rows, best first, and the ten worst, worst first, by heading. No row is in both; ids break ties."""
    scores = _row_scores(predictions, weights)
    others = {row.id: (row, score) for row, score in zip(rival, _row_scores(rival, weights), strict=True)}
    order = sorted(range(len(predictions)), key=lambda place: (-scores[place], predictions[place].id))
    best = order[:ANSWERS]
    worst = order[len(best):][-ANSWERS:][::-1]

    def answered(place: int) -> AnsweredRow:
        row = predictions[place]
        asked, other = [message.content for message in row.messages if message.role == "user"], others.get(row.id)
        return AnsweredRow(row.id, row.intent, shortened(asked[-1] if asked else ""), max(0, len(asked) - 1),
                           shortened(row.reference), _answer(row, scores[place]), _answer(*other) if other else None)

    return {title: [answered(place) for place in places]
            for title, places in (("Best answers", best), ("Worst answers", worst)) if places}


def shortened(text: str) -> str:
    """A text cut to LONGEST characters, with the number of characters that were cut."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [{len(text) - LONGEST} more characters]"


def _answer(row: Prediction, score: float) -> ShownAnswer:
    return ShownAnswer(shortened(row.prediction), score, row.truncated)


def _row_scores(rows: Sequence[Prediction], weights: Mapping[str, float]) -> list[float]:
    return row_scores(RowStatistics.from_rows([row.stats for row in rows]), weights).tolist() if rows else []


def _identities(records: Records, info: Mapping[str, Any]) -> dict[str, Facts]:
    """Digests, versions and addresses by group and name; None if the deployment recorded no such value."""
    report, model, hub, champion = records.report, records.model, info.get("hub"), info.get("champion")
    base, contract = report.model, report.contract
    return {
        "Model": {
            "Registered name": info.get("model_name"),
            "Champion's version": champion["version"] if champion else None,
            "Model digest": report.model_digest,
            "Promotion key": info.get("key"),
            "Adapter": base.adapter_sha256,
            "Base model": f"{base.base_name} at revision {base.base_revision}",
            "Base model's weights": base.base_sha256,
            "Precision": base.dtype,
            "On the Hub": f"{hub['repo']} at {hub['commit']}" if hub else None,
        },
        "Data": {name: f"{data.path}, {data.rows} rows, sha256 {data.sha256}"
                 for name, data in (("Training", model.train), ("Evaluation", report.evaluation))},
        "Score contract": {
            "Contract": report.contract_digest,
            "Evaluated rows": contract.rows_sha256,
            "Decoding": f"greedy, at most {contract.generation.max_new_tokens} new tokens",
            "Metric": contract.metric_signature,
        },
        "MLflow": {
            "Tracking server": info.get("tracking_uri") or report.tracking_uri,
            "Evaluation run": info.get("evaluation_run") or report.run_id,
            "Fine-tuning run": model.run_id,
            "Deployment run": info.get("deployment_run"),
            "Decision": info.get("decision_id"),
            "Ledger slot": info.get("ledger_slot"),
        },
        "Origin": {
            "Commit of the training": model.git_commit,
            "Commit of the decision": info.get("git_commit"),
            "Decided by": info.get("actor"),
            "CI run": info.get("ci_url"),
        },
        "Software": records.versions,
    }


@dataclass(frozen=True)
class Page:
    """What report.html.j2 shows, in this order."""

    verdict: Headline
    scores: Sequence[Score]
    sides: Sequence[ComparedModel]
    compared: Mapping[str, Any]
    charts: Mapping[str, Chart]
    promotions: int
    rival: str
    answers: Mapping[str, Sequence[AnsweredRow]]
    identities: Mapping[str, Facts]
    records: Records


def render(records: Records) -> str:
    """The page as HTML; every text from data is escaped."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(page=build(records), names=NAMES, metrics=METRICS) + "\n"


def build(records: Records) -> Page:
    """The content of the page; a decision on another model than the evaluated one is left out."""
    info, compared = (records.info, records.comparison) if records.are_judged else ({}, {})
    weights = compared.get("weights") or records.policy.weighted_scoring.weights
    scores, sides = _scores(records, weights), _sides(records, compared, weights)
    points = _points(records, weights)
    return Page(
        verdict=headline(records.report, records.info, compared, is_judged=records.are_judged),
        scores=scores,
        sides=sides,
        compared=compared,
        charts=draw(scores, sides, compared.get("significance"), points, records.losses),
        promotions=sum(point.promoted is not None for point in points),
        rival=_rival_name(records),
        answers=ranked_answers(records.predictions, records.past.rival or (), weights),
        identities=_identities(records, info),
        records=records,
    )


def _rival_name(records: Records) -> str:
    ledger = records.past.ledger
    slot = rival_slot(ledger, records.report.model_digest)
    if slot is None or records.past.rival is None:
        return ""
    return f"{'champion' if slot is ledger.head else 'previous champion'}, version {slot.version}"


def _scores(records: Records, weights: Mapping[str, float]) -> list[Score]:
    policy, values = records.policy, records.report.metrics.as_dict()
    intervals = score_intervals(
        RowStatistics.from_rows([row.stats for row in records.predictions]), weights=weights,
        confidence=policy.confidence, seed=seed_from(records.report.contract_digest),
    )
    parts, total = contributions(values, weights), float(weighted_score(values, weights))
    return [Score(WEIGHTED, total, *intervals[WEIGHTED], None, total),
            *(Score(name, values[name], *intervals[name], weights[name], parts[name]) for name in METRICS)]


def _sides(records: Records, compared: Mapping[str, Any], weights: Mapping[str, float]) -> list[ComparedModel]:
    values = records.report.metrics.as_dict()
    own = ComparedModel("challenger", records.report.run_id, float(weighted_score(values, weights)), None, values,
                        contributions(values, weights))
    parts = ("run_id", "score", "delta", "metrics", "contributions")
    others = [ComparedModel(name, *(compared[key][part] for part in parts))
              for key, name in SIDES.items() if compared.get(key)]
    return [own, *others]


def _points(records: Records, weights: Mapping[str, float]) -> list[Point]:
    """The history as points: a promotion is marked at its model's first evaluation, the challenger at its last."""
    versions = {slot.model_digest: slot.version for slot in records.past.ledger.slots}
    runs, digest = records.past.runs, records.report.model_digest
    own = max((place for place, run in enumerate(runs) if run.model_digest == digest), default=None)
    return [Point(float(weighted_score(run.metrics.as_dict(), weights)), versions.pop(run.model_digest, None),
                  is_challenger=place == own) for place, run in enumerate(runs)]
