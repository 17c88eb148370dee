"""Answers as records: predictions.jsonl, the score contract, metrics.json and contributions.csv. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

from src.core.params import METRIC_NAMES
from src.core.records import (
    Baseline,
    DatasetRef,
    EvaluationReport,
    GenerationSettings,
    Metrics,
    ModelIdentity,
    Record,
    ScoreContract,
    contributions,
    digest_of,
)
from src.data.prepare import normalise
from src.data.rows import EvaluationRow, Text, Turn
from src.evaluation.metrics import METRIC_VERSION, RowStatistics, row_statistics, signature
from src.evaluation.tokenizers import WordTokens, reads


@dataclass(frozen=True)
class GeneratedAnswer:
    """One generated answer. tokens include the stop token; truncated is True if max_new_tokens ended it."""

    text: str
    tokens: list[int]
    truncated: bool


class Prediction(Record):
    """One line of predictions.jsonl. tokens include the stop token; stats is one row of RowStatistics.to_rows."""

    id: Text
    intent: str | None
    messages: list[Turn]
    reference: str
    prediction: str
    new_tokens: int
    truncated: bool
    tokens: list[int]
    stats: list[int | float]

    def prompt(self) -> list[dict[str, str]]:
        """The messages before the answer, as plain dicts."""
        return [message.model_dump() for message in self.messages]


class AnsweredBatch(Record):
    """The new tokens of the prompts at these places; size is how many were generated together."""

    places: list[int]
    size: Annotated[int, Field(ge=1)]
    tokens: list[Annotated[list[int], Field(min_length=1)]]

    @model_validator(mode="after")
    def _answers_every_place(self) -> Self:
        if len(self.tokens) != len(self.places):
            raise ValueError(f"{len(self.tokens)} answers for {len(self.places)} prompts")
        return self


def score_contract(rows: Sequence[EvaluationRow], *, max_new_tokens: int, tokenizer: str) -> ScoreContract:
    """Everything that must be equal for scores to be comparable: the rows in order, the decoding and the metric."""
    return ScoreContract(
        rows_sha256=digest_of([digest_of(row.conversation()) for row in rows]),
        generation=GenerationSettings(max_new_tokens=max_new_tokens, do_sample=False),
        metric_version=METRIC_VERSION,
        metric_signature=signature(tokenizer),
    )


def as_predictions(rows: Sequence[EvaluationRow], answers: Sequence[GeneratedAnswer],
                   statistics: RowStatistics) -> list[Prediction]:
    """Join rows, answers and statistics, all in the same order, to the lines of predictions.jsonl."""
    return [Prediction(
        id=row.id, intent=row.intent, messages=row.messages[:-1], reference=row.reference(), prediction=answer.text,
        new_tokens=len(answer.tokens), truncated=answer.truncated, tokens=answer.tokens, stats=stats)
        for row, answer, stats in zip(rows, answers, statistics.to_rows(), strict=True)]


@dataclass(frozen=True)
class VerifiedRows:
    """Places of the answers that the release has to give again: those that contribute most, and drawn ones."""

    largest: list[int]
    drawn: list[int]

    @property
    def places(self) -> list[int]:
        """All of them, in order."""
        return sorted([*self.largest, *self.drawn])


def rows_to_verify(contributions: Sequence[float], shuffled: Sequence[int], count: int) -> VerifiedRows:
    """The `count` rows with the largest contributions, and the first `count` of the others in a shuffled order.

    shuffled: all places, in an order that nobody who wrote the answers could know.
    """
    ranked = sorted(range(len(contributions)), key=lambda place: (-contributions[place], place))
    largest = ranked[:count]
    others = [place for place in shuffled if place not in set(largest)]
    return VerifiedRows(largest, others[:count])


def statistics_of(given: Sequence[Prediction], tokenizer: str) -> RowStatistics:
    """The statistics of the answers, computed from their texts; what the file says of them is not read."""
    return row_statistics([row.prediction for row in given], [row.reference for row in given], tokenizer)


def rescored(given: Sequence[Prediction], tokenizer: str) -> list[Prediction]:
    """The answers with `stats` computed again from their texts."""
    rows = statistics_of(given, tokenizer).to_rows()
    return [row.model_copy(update={"stats": stats}) for row, stats in zip(given, rows, strict=True)]


def split_counts(rows: Sequence[EvaluationRow], trained: Sequence[EvaluationRow], tokenizer: str) -> dict[str, int]:
    """What the report states about the evaluation rows themselves, by its keys; trained: the training split.

    overlap_rows, answer_overlap_rows: rows whose question, or reference answer, stands in the training split, both
    normalised. unsplit_rows, with 13a alone: references that it and rouge_score hardly see.
    """
    questions = {_question(row) for row in trained}
    answers = {normalise(turn.content) for row in trained for turn in row.messages if turn.role == "assistant"}
    counts = {"overlap_rows": sum(_question(row) in questions for row in rows),
              "answer_overlap_rows": sum(normalise(row.reference()) in answers for row in rows)}
    if tokenizer == WordTokens.name:
        counts["unsplit_rows"] = sum(not reads(row.reference()) for row in rows)
    return counts


def _question(row: EvaluationRow) -> str:
    return normalise(row.messages[-2].content)


def make_report(identity: ModelIdentity, given: Sequence[Prediction], *, metrics: Metrics, weighted_score: float,
                weights: Mapping[str, float], run_id: str, tracking_uri: str, contract: ScoreContract,
                split: DatasetRef, counts: Mapping[str, int], nearest_neighbour: Baseline | None) -> EvaluationReport:
    """The record of an evaluation; counts are those of `split_counts`."""
    return EvaluationReport(
        run_id=run_id, tracking_uri=tracking_uri, model=identity, model_digest=identity.digest(),
        contract=contract, contract_digest=contract.digest(), metrics=metrics,
        weighted_score=weighted_score, weights=dict(weights), rows=len(given),
        truncated_rows=sum(row.truncated for row in given),
        empty_rows=sum(not row.prediction for row in given), evaluation=split, nearest_neighbour=nearest_neighbour,
        **counts)


def numbers(report: EvaluationReport) -> dict[str, float]:
    """The content of metrics.json: the five metrics and weighted_score in [0, 1], and rows."""
    return {**report.scores(), "rows": report.rows}


def contributions_table(report: EvaluationReport) -> str:
    """The content of contributions.csv, for `dvc plots`: metric, value, weight, contribution."""
    values = report.metrics.as_dict()
    parts = contributions(values, report.weights)
    rows = (f"{name},{values[name]},{report.weights[name]},{parts[name]}\n" for name in values)
    return "metric,value,weight,contribution\n" + "".join(rows)


def summary(report: EvaluationReport) -> str:
    """The score in one line, and beside it the nearest-neighbour baseline in another one."""
    parts = ", ".join(f"{METRIC_NAMES[name]} {value:.3f}" for name, value in report.metrics.as_dict().items())
    found = [(report.truncated_rows, "cut at the token limit"), (report.empty_rows, "empty")]
    odd = "".join(f"; {count} answer{'' if count == 1 else 's'} {what}" for count, what in found if count)
    line = (f"evaluation: score {report.weighted_score:.3f} on {report.rows} rows ({parts}){odd}; MLflow run "
            f"{report.run_id[:8]}")
    return "\n".join(filter(None, [line, report.beside_neighbour()]))
