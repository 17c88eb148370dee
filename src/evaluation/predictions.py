"""Evaluation rows and what a model made of them, as records. No torch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import Field, model_validator

from src.errors import InvalidInput
from src.metrics import METRIC_VERSION, RowStatistics, signature
from src.records import GenerationSettings, Record, ScoreContract, digest_of

if TYPE_CHECKING:
    from src.evaluation import Answer

Text = Annotated[str, Field(min_length=1)]
T = TypeVar("T")


class Message(Record):
    """One turn of a conversation."""

    role: Text
    content: str


class EvaluationRow(Record):
    """One row of a split; the last message is the reference answer, those before it the prompt."""

    id: Text
    intent: str | None
    messages: Annotated[list[Message], Field(min_length=2)]

    def conversation(self) -> list[dict[str, str]]:
        """All messages as plain dicts, as chat templates and digests take them."""
        return [message.model_dump() for message in self.messages]

    def prompt(self) -> list[dict[str, str]]:
        """The messages that the model answers to."""
        return self.conversation()[:-1]

    def reference(self) -> str:
        """The answer to compare with, stripped as predictions are."""
        return self.messages[-1].content.strip()


class Prediction(Record):
    """One line of predictions.jsonl. tokens are those generated, the stop token included; stats as RowStatistics."""

    id: Text
    intent: str | None
    messages: list[Message]
    reference: str
    prediction: str
    new_tokens: int
    truncated: bool
    tokens: list[int]
    stats: list[int | float]

    def prompt(self) -> list[dict[str, str]]:
        """The messages that were answered."""
        return [message.model_dump() for message in self.messages]


class AnsweredBatch(Record):
    """New tokens of the prompts at some places; size: how many of them memory allowed to be generated together."""

    places: list[int]
    size: Annotated[int, Field(ge=1)]
    tokens: list[Annotated[list[int], Field(min_length=1)]]

    @model_validator(mode="after")
    def _answers_every_place(self) -> Self:
        if len(self.tokens) != len(self.places):
            raise ValueError(f"{len(self.tokens)} answers for {len(self.places)} prompts")
        return self


def parse_rows(objects: Iterable[Mapping[str, Any]], *, where: Path, max_rows: int) -> list[EvaluationRow]:
    """The first max_rows rows (0: all of them) of a split.

    Raises InvalidInput for no rows, a malformed one, one whose id is not the hash of its messages, and one given twice.
    """
    rows = [_parse_row(value, f"{where}:{number}") for number, value in enumerate(objects, start=1)]
    rows = rows[:max_rows] if max_rows else rows
    if not rows:
        raise InvalidInput(f"{where}: no rows to evaluate; give more data or a larger data.evaluation_fraction")
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise InvalidInput(f"{where}: row {twice[0]} is given twice; run `dvc repro data_preprocessing`")
    return rows


def score_contract(rows: Sequence[EvaluationRow], *, max_new_tokens: int) -> ScoreContract:
    """What makes scores on these rows comparable: their whole messages in order, the decoding and the metric."""
    return ScoreContract(
        rows_sha256=digest_of([digest_of(row.conversation()) for row in rows]),
        generation=GenerationSettings(max_new_tokens=max_new_tokens, do_sample=False),
        metric_version=METRIC_VERSION,
        metric_signature=signature(),
    )


def as_predictions(
    rows: Sequence[EvaluationRow], answers: Sequence["Answer"], statistics: RowStatistics
) -> list[Prediction]:
    """Rows, answers and per-row statistics, all of the same order, as lines of predictions.jsonl."""
    return [
        Prediction(
            id=row.id, intent=row.intent, messages=row.messages[:-1], reference=row.reference(), prediction=answer.text,
            new_tokens=len(answer.tokens), truncated=answer.truncated, tokens=answer.tokens, stats=stats,
        )
        for row, answer, stats in zip(rows, answers, statistics.to_rows(), strict=True)
    ]


def spread(rows: Sequence[T], count: int) -> list[T]:
    """At most count of the rows, evenly spaced over all of them, the same ones every time."""
    count = min(count, len(rows))
    return [rows[position * len(rows) // count] for position in range(count)]


def _parse_row(value: Mapping[str, Any], where: str) -> EvaluationRow:
    row = EvaluationRow.parse(value, where=where)
    if row.messages[-1].role != "assistant" or not row.reference():
        raise InvalidInput(f"{where}: does not end with an assistant's answer; run `dvc repro data_preprocessing`")
    if row.id != digest_of(row.conversation())[:16]:
        raise InvalidInput(f"{where}: id {row.id} is not the hash of its messages; run `dvc repro data_preprocessing`")
    return row
