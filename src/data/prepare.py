"""Read raw conversations from CSV or JSON Lines, clean them, and split them so that no question is in two parts."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from src.core.errors import InvalidInput
from src.core.params import DataParams
from src.core.records import digest_of

PARTS = ("train", "validation", "evaluation")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")  # lone surrogates cannot be written
_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
_NOT_WORD = re.compile(r"[\W_]+")
_SHOWN = 10


class _BadRow(ValueError):
    """What is wrong with one row; the caller adds the line number."""


@dataclass(frozen=True)
class Row:
    """One conversation, ending with the assistant's answer."""

    intent: str | None
    messages: tuple[tuple[str, str], ...]  # role, content

    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [{"role": role, "content": content} for role, content in self.messages]

    def as_json(self) -> dict[str, Any]:
        """The row as a line of a split file; its id is the hash of its messages."""
        messages = self.conversation()
        return {"id": digest_of(messages)[:16], "intent": self.intent, "messages": messages}

    def questions(self) -> set[str]:
        """The user's turns, each normalised by `normalise`."""
        return {normalise(content) for role, content in self.messages if role == "user"}


@dataclass(frozen=True)
class RawData:
    """The usable rows of a file in its order, without duplicates, and `path:line: problem` for each unusable row."""

    rows: list[Row]
    bad: list[str]
    duplicates: int


def read(path: Path, params: DataParams) -> RawData:
    """Read the conversations in a .csv or .jsonl file.

    Two rows are duplicates if their normalised questions and their answers are equal. Raises InvalidInput for an
    unreadable file, a CSV without the named columns, and more than max_bad_rows unusable rows, which it names.
    """
    rows: dict[object, Row] = {}
    bad: list[str] = []
    usable = 0
    for line, record in _records(path, params):
        try:
            row = _as_row(record, params)
        except _BadRow as problem:
            bad.append(f"{path}:{line}: {problem}")
            continue
        usable += 1
        rows.setdefault((*((role, normalise(content) if role == "user" else content)
                           for role, content in row.messages[:-1]), row.messages[-1]), row)
    if len(bad) > params.max_bad_rows:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InvalidInput(f"{'; '.join(bad[:_SHOWN])}{more}. {len(bad)} unusable rows, data.max_bad_rows allows "
                           f"{params.max_bad_rows}: correct the file or allow more")
    return RawData(list(rows.values()), bad, usable - len(rows))


def split(rows: Sequence[Row], params: DataParams) -> dict[str, list[Row]]:
    """Split the rows into train, validation and evaluation, each in the given order. Only the seed decides the split.

    Rows that share a normalised question (any user turn counts) stay together. These groups are shuffled within their
    intent and dealt out in that order, so that each intent is divided in the configured proportion, to the nearest
    row. Raises InvalidInput if a part would be empty.
    """
    groups = _groups(rows)
    order = list(range(len(groups)))
    Random(params.seed).shuffle(order)  # noqa: S311 - a split, not a secret
    order.sort(key=lambda place: rows[groups[place][0]].intent or "")
    evaluation = _deal([groups[place] for place in order], params.evaluation_fraction)
    rest = [groups[place] for place in order if groups[place][0] not in evaluation]
    validation = _deal(rest, params.validation_fraction / (1 - params.evaluation_fraction))
    parts: dict[str, list[Row]] = {part: [] for part in PARTS}
    for place, row in enumerate(rows):
        part = "evaluation" if place in evaluation else "validation" if place in validation else "train"
        parts[part].append(row)
    if empty := [part for part in PARTS if not parts[part]]:
        raise InvalidInput(f"{params.path}: {len(rows)} rows with {len(groups)} distinct questions leave no row for "
                           f"{' and '.join(empty)}; give more rows")
    return parts


def normalise(text: str) -> str:
    """A question without case, punctuation and spaces ("can't" becomes "cant"); unchanged if nothing would be left."""
    return _NOT_WORD.sub("", unicodedata.normalize("NFKC", text).casefold()) or text


def clean(text: str) -> str:
    """Normalise to NFC and Unix line ends, and remove control characters and trailing spaces; lines stay separate."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _TRAILING.sub("", unicodedata.normalize("NFC", text)).strip()


def _records(path: Path, params: DataParams) -> Iterator[tuple[int, object]]:
    reader = {".csv": _csv_records, ".jsonl": _json_records}.get(path.suffix.lower())
    if reader is None:
        raise InvalidInput(f"{path}: neither .csv nor .jsonl; rename or convert the file that data.path names")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}; correct data.path") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None
    return reader(path, text, params)


def _csv_records(path: Path, text: str, params: DataParams) -> Iterator[tuple[int, object]]:
    """Each record with the line where it starts: a mapping by column, or a _BadRow."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise InvalidInput(f"{path}:1: not CSV: {error}; correct the file") from None
    lacking = [name for name in (params.instruction_column, params.response_column) if header.count(name) != 1]
    if lacking:
        raise InvalidInput(f"{path}:1: expected one column {lacking[0]!r}, found {', '.join(header) or 'nothing'}; "
                           "correct the file or data.instruction_column and data.response_column")
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, _BadRow(f"not CSV: {error}")
            continue
        if fields and len(fields) != len(header):
            yield line, _BadRow(f"{len(fields)} fields, the header names {len(header)}")
        elif fields:
            yield line, dict(zip(header, fields, strict=True))


def _json_records(_path: Path, text: str, _params: DataParams) -> Iterator[tuple[int, object]]:
    for line, record in enumerate(text.split("\n"), start=1):
        if not record.strip():
            continue
        try:
            yield line, json.loads(record)
        except (ValueError, RecursionError) as error:
            yield line, _BadRow(f"not JSON: {error}")


def _as_row(record: object, params: DataParams) -> Row:
    if isinstance(record, _BadRow):
        raise record
    if not isinstance(record, dict):
        raise _BadRow(f"expected a JSON object, found {type(record).__name__}")
    if params.messages_column in record:
        messages = _chat(record[params.messages_column])
    else:
        messages = [("user", _text(record, params.instruction_column)),
                    ("assistant", _text(record, params.response_column))]
    if params.system_prompt.strip() and messages[0][0] != "system":
        messages = [("system", clean(params.system_prompt)), *messages]
    intent = record.get(params.intent_column)
    if not isinstance(intent, str | None):
        raise _BadRow(f"{params.intent_column}: expected text, found {type(intent).__name__}")
    return Row(clean(intent or "") or None, tuple(messages))


def _chat(value: object) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise _BadRow("messages: expected a list of objects with role and content")
    messages = [(_text(message, "role"), _text(message, "content")) for message in value]
    roles = [role for role, _ in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) < 2 or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise _BadRow(f"messages: roles are {', '.join(roles) or 'none'}; expected user and assistant in turn, "
                      "at most one system message before them, and the assistant's answer at the end")
    return messages


def _text(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column)
    if not isinstance(value, str):
        raise _BadRow(f"{column}: " + ("missing" if value is None else f"expected text, found {type(value).__name__}"))
    if not (cleaned := clean(value)):
        raise _BadRow(f"{column}: empty")
    return cleaned


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """Places of rows in groups that share a question, directly or through other rows, ordered by first place."""
    parent = list(range(len(rows)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        for question in sorted(row.questions()):
            one, other = sorted((root(place), root(first.setdefault(question, place))))
            parent[other] = one
    groups: dict[int, list[int]] = {}
    for place in range(len(rows)):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())


def _deal(groups: Sequence[Sequence[int]], fraction: float) -> set[int]:
    """The places of a fraction of all rows, taken evenly along the groups (systematic sampling)."""
    taken: set[int] = set()
    due = 0.5
    for group in groups:
        due += fraction * len(group)
        if due >= len(group):
            taken.update(group)
            due -= len(group)
    return taken
