"""The report of one deployment: records in, one self-contained HTML page out. Equal records give equal bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from src import charts
from src.ledger import Slot
from src.metrics import RowStatistics
from src.model_selection import contributions, weighted_score
from src.params import METRICS
from src.report_answers import AnswerGroup, ranked_answers
from src.report_charts import NAMES, SIDES, WEIGHTED, Chart, Score, Side, draw
from src.report_identities import Facts, identities
from src.report_records import Past, Records, rival_slot
from src.report_verdict import Verdict, verdict
from src.significance import score_intervals, seed_from


@dataclass(frozen=True)
class Page:
    """What the template shows, in its order."""

    model_name: str
    verdict: Verdict
    confidence: float
    scores: Sequence[Score]
    sides: Sequence[Side]
    compared: Mapping[str, Any]
    significance: Mapping[str, Any] | None
    charts: Mapping[str, Chart]
    past: Past
    promotions: int
    rival: str
    answers: Sequence[AnswerGroup]
    identities: Mapping[str, Facts]
    records: Records


def render(records: Records) -> str:
    """The page as HTML; texts from data are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=build(records), names=NAMES, metrics=METRICS) + "\n"


def build(records: Records) -> Page:
    """The page's content; a comparison of another model than the evaluated one is left out."""
    info, compared = (records.info, records.comparison) if records.are_judged else ({}, {})
    weights = compared.get("weights") or records.policy.weighted_scoring.weights
    scores, sides = _scores(records, weights), _sides(records, compared, weights)
    slot = rival_slot(records.past.ledger, records.report.model_digest)
    points = _points(records, weights)
    return Page(
        model_name=records.policy.model_registry_name,
        verdict=verdict(records.report, records.info, compared, is_judged=records.are_judged),
        confidence=records.policy.confidence,
        scores=scores,
        sides=sides,
        compared=compared,
        significance=compared.get("significance"),
        charts=draw(scores, sides, compared.get("significance"), points, records.losses),
        past=records.past,
        promotions=sum(point.promoted is not None for point in points),
        rival=_rival_name(slot, records),
        answers=ranked_answers(records.predictions, records.past.rival or (), weights),
        identities=identities(records.report, records.model, info, records.versions),
        records=records,
    )


def _rival_name(slot: Slot | None, records: Records) -> str:
    if slot is None or records.past.rival is None:
        return ""
    role = "champion" if slot is records.past.ledger.head else "previous champion"
    return f"{role}, version {slot.version}"


def _scores(records: Records, weights: Mapping[str, float]) -> list[Score]:
    policy, values = records.policy, records.report.metrics.as_dict()
    intervals = score_intervals(
        RowStatistics.from_rows([row.stats for row in records.predictions]), weights=weights,
        confidence=policy.confidence, resamples=policy.resamples, seed=seed_from(records.report.contract_digest),
    )
    parts, total = contributions(values, weights), float(weighted_score(values, weights))
    return [Score(WEIGHTED, total, *intervals[WEIGHTED], None, total),
            *(Score(name, values[name], *intervals[name], weights[name], parts[name]) for name in METRICS)]


def _sides(records: Records, compared: Mapping[str, Any], weights: Mapping[str, float]) -> list[Side]:
    values = records.report.metrics.as_dict()
    own = Side("challenger", records.report.run_id, float(weighted_score(values, weights)), None, values,
               contributions(values, weights))
    others = [Side(name, *(compared[key][part] for part in ("run_id", "score", "delta", "metrics", "contributions")))
              for key, name in SIDES.items() if compared.get(key)]
    return [own, *others]


def _points(records: Records, weights: Mapping[str, float]) -> list[charts.Point]:
    """The history; a promotion is marked at the first evaluation of its model, the challenger at its last."""
    versions = {slot.model_digest: slot.version for slot in records.past.ledger.slots}
    runs, digest = records.past.runs, records.report.model_digest
    own = max((place for place, run in enumerate(runs) if run.model_digest == digest), default=None)
    return [
        charts.Point(float(weighted_score(run.metrics.as_dict(), weights)), versions.pop(run.model_digest, None),
                     is_challenger=place == own)
        for place, run in enumerate(runs)
    ]
