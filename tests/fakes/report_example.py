"""Three models, numbered by how good they are, as the records that a report is made of."""

from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from src.core.params import DeploymentParams, load_params
from src.core.records import (
    DatasetRef,
    EvaluationReport,
    FineTunedModel,
    Metrics,
    ModelIdentity,
    digest_of,
    weighted_score,
)
from src.data.rows import EvaluationRow
from src.decisions.record import Request, comparison, info
from src.evaluation.metrics import RowStatistics, corpus_scores, row_statistics
from src.evaluation.predictions import Prediction, score_contract
from src.evaluation.significance import paired_bootstrap, seed_from
from src.ledger.slots import LedgerView
from src.model_selection import Policy, ScoredRun, decide, scores_to_beat
from src.report.charts import Losses
from src.report.page import ModelHistory, Records
from tests.fakes import factories
from utils import json_utils

CONFIG = Path(__file__).parents[2] / "params.yaml"
POLICY: DeploymentParams = load_params(CONFIG).deployment
DATA = DatasetRef(path="results/data/evaluation.jsonl", sha256="d" * 64, rows=30)
TOPICS = (
    ("Where is my parcel?", "Open Account > Orders > Tracking, where the carrier adds news every evening."),
    ("How do I return shoes that do not fit?", "Press New label under Account > Returns and hand the parcel in."),
    ("I was charged twice, what now?", "Send us both receipts and the second amount goes back within 3 working days."),
    ("Do you ship to Norway?", "Yes, express delivery to Norway takes 4 working days and costs 12 euros."),
    ("May I pay later?", "You can pay within 30 days by invoice if the order stays below 200 euros."),
)


INTENTS = ("tracking", "returns", "refunds", "shipping", "payment")


def rows() -> list[EvaluationRow]:
    """Thirty questions of five intents with their reference answers."""
    made = []
    for number in range(DATA.rows):
        question, answer = TOPICS[number % len(TOPICS)]
        messages = [{"role": "system", "content": "Answer briefly."},
                    {"role": "user", "content": f"{question} It is order {4100 + number}."},
                    {"role": "assistant", "content": answer}]
        made.append(EvaluationRow.parse({"id": digest_of(messages)[:16], "intent": INTENTS[number % len(INTENTS)],
                                         "messages": messages},
                                        where="example"))
    return made


@dataclass(frozen=True)
class Example:
    """One evaluated model."""

    report: EvaluationReport
    predictions: list[Prediction]

    @property
    def scored(self) -> ScoredRun:
        """The model as the gate sees it."""
        report = self.report
        return ScoredRun(report.run_id, report.model_digest, report.contract_digest, report.metrics, 0)

    @property
    def statistics(self) -> RowStatistics:
        """Its answers as the bootstrap takes them."""
        return RowStatistics.from_rows([row.stats for row in self.predictions])


def evaluated(number: int) -> Example:
    """Model 1, 2 or 3: the higher, the more rows it answers as expected."""
    texts = [_answer(row.reference(), place, number) for place, row in enumerate(rows())]
    statistics = row_statistics(texts, [row.reference() for row in rows()], "13a")
    predictions = [
        Prediction(id=row.id, intent=row.intent, messages=row.messages[:-1], reference=row.reference(),
                   prediction=text, new_tokens=12, truncated=place == 9, tokens=[1], stats=stats)
        for place, (row, text, stats) in enumerate(zip(rows(), texts, statistics.to_rows(), strict=True))
    ]
    identity = ModelIdentity.parse({**factories.IDENTITY, "adapter_sha256": f"{number:064x}"}, where="example")
    contract, metrics = score_contract(rows(), max_new_tokens=160, tokenizer="13a"), Metrics(
        **corpus_scores(statistics))
    weights = POLICY.weighted_scoring.weights
    report = EvaluationReport(
        run_id=f"{number:032x}", tracking_uri="sqlite:///mlflow.db", model=identity, model_digest=identity.digest(),
        contract=contract, contract_digest=contract.digest(), metrics=metrics, weights=weights, rows=len(texts),
        weighted_score=float(weighted_score(metrics.as_dict(), weights)), truncated_rows=1, empty_rows=0,
        overlap_rows=0, evaluation=DATA,
    )
    return Example(report, predictions)


def ledger(*promoted: Example) -> LedgerView:
    """The ledger after these promotions, in their order."""
    view = LedgerView(())
    for example in promoted:
        report = example.report
        view = LedgerView((*view.slots, factories.slot(
            view, "", report.weighted_score, key=report.model.key(report.contract_digest), metrics=report.metrics,
            model_digest=report.model_digest, contract=report.contract_digest, evaluation_run=report.run_id)))
    return view


def fine_tuned(example: Example) -> FineTunedModel:
    """The record of a model's training."""
    return FineTunedModel.parse(factories.model_values(example.report.model.adapter_sha256), where="example")


def decided(challenger: Example, before: LedgerView, history: list[Example], *, threshold: str = "0.001",
            significance: bool = True, force: bool = False, dry_run: bool = False
            ) -> tuple[dict[str, Any], dict[str, Any]]:
    """deployment_info.json and model_comparison.json, as the gate writes them of these models."""
    policy = Policy(POLICY.weighted_scoring.weights, Decimal(threshold), require_significance=False)
    question = factories.question(challenger.scored, [each.scored for each in history], before, policy=policy,
                                  force=force)
    best = scores_to_beat(question).best_promoted
    if best and significance:
        baseline = next(e for e in history if e.scored == best)
        question = replace(question, evidence=paired_bootstrap(
            challenger.statistics, baseline.statistics, weights=policy.weights, threshold=float(threshold),
            confidence=0.95, resamples=200, seed=seed_from(challenger.report.contract_digest)))
    decision = decide(question)
    request = Request(report=challenger.report, model=fine_tuned(challenger), policy=policy, force=force,
                      model_name=POLICY.model_registry_name, actor="ci", reason="",
                      git_commit="abc", ci_url=None, tracking_uri="sqlite:///mlflow.db")
    after = ledger(*history, challenger) if decision.verdict == "promote" and not dry_run else before
    run_id = "none: dry run" if dry_run else "e" * 32
    return info(decision, request, after, code=0, run_id=run_id, dry_run=dry_run), comparison(decision, request, after)


def records(**changes: Any) -> Records:
    """Model 3 promoted over model 2, with all that a report can show."""
    first, second, third = models = [evaluated(number) for number in (1, 2, 3)]
    told, compared = decided(third, ledger(first, second), [first, second])
    values: dict[str, Any] = {
        "report": third.report, "model": fine_tuned(third), "predictions": third.predictions, "info": told,
        "comparison": compared, "losses": Losses([0.9, 0.5, 0.3], [1.1, 0.8, 0.9]), "policy": POLICY,
        "past": ModelHistory([model.scored for model in models], older=False, ledger=ledger(*models),
                     rival=second.predictions, problem=""),
        "versions": {"Python": "3.11"},
    }
    return Records(**(values | changes))


def write_results(example: Example, told: dict[str, Any], compared: dict[str, Any]) -> None:
    """The evaluation and the decision as their stages leave them in results/."""
    folder = Path("results/evaluations")
    json_utils.write_object(folder / "report.json", example.report.model_dump(mode="json"))
    json_utils.write_lines(folder / "predictions.jsonl", [row.model_dump() for row in example.predictions])
    json_utils.write_object(Path("results/deployment/deployment_info.json"), told)
    json_utils.write_object(Path("results/deployment/model_comparison.json"), compared)


def _answer(reference: str, place: int, number: int) -> str:
    if place % 10 < 3 + 2 * number:
        return reference
    words, other = reference.split(), TOPICS[(place + 2) % len(TOPICS)][1].split()
    return " ".join(words[: 2 + place % 4] + other[3:])
