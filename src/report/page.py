"""The report on a deployment as one HTML page, from its records and from the history in MLflow. Pure."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from src.core.errors import InvalidInput
from src.core.params import METRICS, DeploymentParams
from src.core.records import EvaluationReport, FineTunedModel, contributions, weighted_score
from src.decisions.record import is_about
from src.decisions.words import Headline, headline, percent
from src.evaluation.metrics import RowStatistics
from src.evaluation.predictions import Prediction
from src.evaluation.significance import GroupScore, group_score, score_intervals, seed_from
from src.ledger.slots import LedgerView, Slot
from src.model_selection import ScoredRun
from src.report.answers import AnsweredRow, ranked_answers
from src.report.charts import NAMES, SIDES, WEIGHTED, Chart, ComparedModel, Losses, Score, draw
from src.report.history import Entry, entries, promoted_elsewhere

RUNS_LISTED = 20  # of the history; the chart shows all
INTENTS_LISTED = 10  # more of them are folded away
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
class Table:
    """A table of texts. name: its id on the page. strong: the rows that are set in bold, by place."""

    name: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Collection[int] = ()


@dataclass(frozen=True)
class Page:
    """What report.html.j2 shows, in this order.

    rival: the model that the answers are compared with, in words; empty without one.
    intents: the scores by intent, and all of them if the first table shows the weakest alone.
    elsewhere: the versions that have no score under today's contract.
    """

    verdict: Headline
    scores: Sequence[Score]
    gain_over: str
    score_table: Table
    intents: Sequence[Table]
    sides: Table
    compared: Mapping[str, Any]
    charts: Mapping[str, Chart]
    models: Sequence[Entry]
    history: Table | None
    elsewhere: Sequence[int]
    rival: str
    answers: Mapping[str, Sequence[AnsweredRow]]
    identities: Mapping[str, Facts]
    records: Records


def render(records: Records) -> str:
    """The page as HTML; every text from data is escaped."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(page=build(records)) + "\n"


def build(records: Records) -> Page:
    """The content of the page; a decision on another model than the evaluated one is left out."""
    info, compared = (records.info, records.comparison) if records.are_judged else ({}, {})
    weights = compared.get("weights") or records.policy.weighted_scoring.weights
    past, report = records.past, records.report
    models = entries(past.runs, past.ledger, weights, report.model_digest)
    scores, sides, rival = _scores(records, weights), _sides(records, compared, weights), _rival_name(records)
    return Page(
        verdict=headline(report, records.info, compared, is_judged=records.are_judged),
        scores=scores,
        gain_over=_gain_over(compared, past.ledger),
        score_table=_score_table(records, scores),
        intents=_intent_tables(records, weights, rival.partition(",")[0]),
        sides=_side_table(sides),
        compared=compared,
        charts=draw(scores, sides, compared.get("significance"), models, records.losses),
        models=models,
        history=_history_table(models),
        elsewhere=promoted_elsewhere(models, past.ledger) if not past.problem and not past.older else [],
        rival=rival,
        answers=ranked_answers(records.predictions, past.rival or (), weights),
        identities=_identities(records, info),
        records=records,
    )


def _rival_name(records: Records) -> str:
    ledger = records.past.ledger
    slot = rival_slot(ledger, records.report.model_digest)
    if slot is None or records.past.rival is None:
        return ""
    return f"{'champion' if slot is ledger.head else 'previous champion'}, version {slot.version}"


def _gain_over(compared: Mapping[str, Any], ledger: LedgerView) -> str:
    """The best promoted model by its version, if the ledger is known."""
    digest = (compared.get("best_promoted") or {}).get("model_digest")
    versions = {slot.model_digest: slot.version for slot in ledger.slots}
    return f"version {versions[digest]}" if digest in versions else "the best promoted model"


def _scores(records: Records, weights: Mapping[str, float]) -> list[Score]:
    policy, values = records.policy, records.report.metrics.as_dict()
    intervals = score_intervals(
        RowStatistics.from_rows([row.stats for row in records.predictions]), weights=weights,
        confidence=policy.confidence, seed=seed_from(records.report.contract_digest),
    )
    parts, total = contributions(values, weights), float(weighted_score(values, weights))
    return [Score(WEIGHTED, total, *intervals[WEIGHTED], None, total),
            *(Score(name, values[name], *intervals[name], weights[name], parts[name]) for name in METRICS)]


def _score_table(records: Records, scores: Sequence[Score]) -> Table:
    copied = records.report.nearest_neighbour
    others = copied.scores() if copied else {}
    level = percent(records.policy.confidence)
    rows = [(NAMES[each.name], f"{each.value:.4f}", f"{each.low:.3f} to {each.high:.3f}",
             "" if each.weight is None else f"{each.weight:.2f}", f"{each.contribution:.4f}",
             *([f"{others[each.name]:.4f}"] if copied else [])) for each in scores]
    heads = ("Score", "Value", f"{level} interval", "Weight", "Contribution", *(["Copied answers"] if copied else []))
    return Table("score-table", f"This model on {records.report.rows} evaluation rows", heads, rows, strong=(0,))


def _intent_tables(records: Records, weights: Mapping[str, float], rival: str) -> list[Table]:
    """The scores by intent, weakest first; none if the data has fewer than two intents."""
    groups: dict[str, list[Prediction]] = {}
    for row in records.predictions:
        if row.intent:
            groups.setdefault(row.intent, []).append(row)
    if len(groups) < 2:
        return []
    others = {row.id: row for row in records.past.rival or ()}
    found = {name: _intent_score(rows, others, records, weights) for name, rows in groups.items()}
    compared = any(score.gain for score in found.values())
    level = percent(records.policy.confidence)
    over = (f"Gain over the {rival}", f"{level} interval of the gain") if compared else ()
    heads = ("Intent", "Rows", "Score", f"{level} interval", *over)
    ranked = sorted(found.items(), key=lambda pair: (pair[1].score, pair[0]))
    sure = [pair for pair in ranked if pair[1].interval] or ranked
    whole, weak = ([_intent_row(name, score, compared=compared) for name, score in pairs]
                   for pairs in (ranked, sure[:INTENTS_LISTED]))
    every = Table("intents", f"All {len(whole)} intents, lowest score first", heads, whole)
    if len(whole) <= INTENTS_LISTED:
        return [every]
    enough = ", of those with enough rows for an interval" if len(sure) < len(ranked) else ""
    return [Table("weak-intents", f"The {len(weak)} intents with the lowest scores{enough}", heads, weak), every]


def _intent_score(rows: Sequence[Prediction], others: Mapping[str, Prediction], records: Records,
                  weights: Mapping[str, float]) -> GroupScore:
    policy = records.policy
    theirs = [others[row.id].stats for row in rows if row.id in others]
    return group_score(
        RowStatistics.from_rows([row.stats for row in rows]),
        RowStatistics.from_rows(theirs) if len(theirs) == len(rows) else None, weights=weights,
        confidence=policy.confidence, seed=seed_from(records.report.contract_digest))


def _intent_row(name: str, score: GroupScore, *, compared: bool) -> tuple[str, ...]:
    low_high = "{:.3f} to {:.3f}".format(*score.interval) if score.interval else "too few rows"
    shown = (name, str(score.rows), f"{score.score:.3f}", low_high)
    gain = score.gain
    if not compared:
        return shown
    if gain is None:
        return *shown, "not answered", ""
    if score.interval is None:
        return *shown, f"{gain.gain:+.3f}", "too few rows"
    sure = "" if gain.includes_zero else " (better)" if gain.low > 0 else " (worse)"
    return *shown, f"{gain.gain:+.3f}{sure}", f"{gain.low:+.3f} to {gain.high:+.3f}"


def _sides(records: Records, compared: Mapping[str, Any], weights: Mapping[str, float]) -> list[ComparedModel]:
    """This model and those it was compared with, each once, with all its roles."""
    values = records.report.metrics.as_dict()
    own = ComparedModel("this model", records.report.run_id, float(weighted_score(values, weights)), None, values,
                        contributions(values, weights))
    roles: dict[str, list[str]] = {}
    for key in SIDES:
        if compared.get(key):
            roles.setdefault(compared[key]["run_id"], []).append(key)
    versions = {slot.model_digest: slot.version for slot in records.past.ledger.slots}
    others = []
    for run_id, keys in roles.items():
        side = compared[keys[0]]
        version = versions.get(side["model_digest"])
        name = ", ".join(SIDES[key] for key in keys) + (f" (version {version})" if version else "")
        if run_id == own.run_id:
            own = replace(own, name=f"{own.name}: {name}")
        else:
            others.append(ComparedModel(name, run_id, *(side[part] for part in ("score", "delta", "metrics",
                                                                                "contributions"))))
    return [own, *others]


def _side_table(sides: Sequence[ComparedModel]) -> Table:
    compared = len(sides) > 1
    heads = ("Model", "Weighted score", *(["Difference"] if compared else []), *(NAMES[metric] for metric in METRICS),
             "MLflow run")
    rows = [(f"{side.name[:1].upper()}{side.name[1:]}", f"{side.score:.4f}",
             *(["" if side.delta is None else f"{side.delta:+.4f}"] if compared else []),
             *(f"{side.metrics[metric]:.4f}" for metric in METRICS), side.run_id[:8]) for side in sides]
    caption = "Each model once, with its roles" if compared else "This model"
    return Table("side-table", caption, heads, rows, strong=(0,))


def _history_table(models: Sequence[Entry]) -> Table | None:
    if not models:
        return None
    rows = [(f"Version {entry.version}" if entry.version else "Not promoted", f"{entry.score:.4f}",
             f"{entry.time:%Y-%m-%d %H:%M}", entry.remarks, entry.run_id[:8]) for entry in models]
    latest = rows[-RUNS_LISTED:]
    caption = f"The latest {len(latest)} of {len(rows)} models" if len(latest) < len(rows) else "All of them"
    own = [place for place, entry in enumerate(models[-RUNS_LISTED:]) if entry.is_challenger]
    heads = ("Model", "Weighted score", "Date (UTC)", "Remarks", "MLflow run")
    return Table("history-table", f"{caption}, in the order of promotion or evaluation", heads, latest, strong=own)
