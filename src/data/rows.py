"""Rows of a split, read from its file and checked."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from src.core.errors import InvalidInput
from src.core.records import Record, digest_of

Text = Annotated[str, Field(min_length=1)]


class Turn(Record):
    """One turn of a conversation."""

    role: Text
    content: str


class EvaluationRow(Record):
    """One row of a split; the last message is the reference answer, those before it the prompt."""

    id: Text
    intent: str | None
    messages: Annotated[list[Turn], Field(min_length=2)]

    def conversation(self) -> list[dict[str, str]]:
        """All messages as plain dicts, as chat templates and digests take them."""
        return [message.model_dump() for message in self.messages]

    def prompt(self) -> list[dict[str, str]]:
        """All messages before the reference answer, as plain dicts."""
        return self.conversation()[:-1]

    def reference(self) -> str:
        """The reference answer, stripped as predictions are."""
        return self.messages[-1].content.strip()


def parse_rows(objects: Iterable[Mapping[str, Any]], *, where: Path, max_rows: int) -> list[EvaluationRow]:
    """The first max_rows rows of a split; all of them if max_rows is 0.

    Raises InvalidInput if there are no rows, or if a row is malformed, has an id that is not the hash of its messages,
    or occurs twice.
    """
    rows = [_parse_row(value, f"{where}:{number}") for number, value in enumerate(objects, start=1)]
    rows = rows[:max_rows] if max_rows else rows
    if not rows:
        raise InvalidInput(f"{where}: no rows to evaluate; give more data or a larger data.evaluation_fraction")
    twice = [name for name, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise InvalidInput(f"{where}: row {twice[0]} is given twice; run `dvc repro data_preprocessing`")
    return rows


def _parse_row(value: Mapping[str, Any], where: str) -> EvaluationRow:
    row = EvaluationRow.parse(value, where=where)
    if row.messages[-1].role != "assistant" or not row.reference():
        raise InvalidInput(f"{where}: does not end with an assistant's answer; run `dvc repro data_preprocessing`")
    if row.id != digest_of(row.conversation())[:16]:
        raise InvalidInput(f"{where}: id {row.id} is not the hash of its messages; run `dvc repro data_preprocessing`")
    return row
