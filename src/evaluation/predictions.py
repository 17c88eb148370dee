"""Answers as records: predictions.jsonl, the score contract, metrics.json and contributions.csv. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from src.core.records import EvaluationReport, GenerationSettings, Record, ScoreContract, contributions, digest_of
from src.data.rows import EvaluationRow, Text, Turn
from src.evaluation.metrics import METRIC_VERSION, RowStatistics, signature

T = TypeVar("T")


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


def spread(rows: Sequence[T], count: int) -> list[T]:
    """At most `count` of the rows, evenly spaced; equal arguments give the same rows."""
    count = min(count, len(rows))
    return [rows[position * len(rows) // count] for position in range(count)]


def numbers(report: EvaluationReport) -> dict[str, float]:
    """The content of metrics.json: the five metrics and weighted_score in [0, 1], and rows."""
    return {**report.metrics.as_dict(), "weighted_score": report.weighted_score, "rows": report.rows}


def contributions_table(report: EvaluationReport) -> str:
    """The content of contributions.csv, for `dvc plots`: metric, value, weight, contribution."""
    values = report.metrics.as_dict()
    parts = contributions(values, report.weights)
    rows = (f"{name},{values[name]},{report.weights[name]},{parts[name]}\n" for name in values)
    return "metric,value,weight,contribution\n" + "".join(rows)


def summary(report: EvaluationReport) -> str:
    """The score in one line."""
    parts = ", ".join(f"{name} {value:.4f}" for name, value in report.metrics.as_dict().items())
    return (f"evaluation: weighted score {report.weighted_score:.4f} on {report.rows} rows ({parts}); "
            f"{report.truncated_rows} truncated, {report.empty_rows} empty; MLflow run {report.run_id}")
