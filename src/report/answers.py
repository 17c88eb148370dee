"""The answers that the report shows: where two models differ most, and each answer beside the expected one. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from src.evaluation.metrics import RowStatistics, row_contributions, row_scores
from src.evaluation.predictions import Prediction

ANSWERS = 10
LONGEST = 1500  # characters shown of a text: 20 rows of four texts stay far below 1 MB
_ALIKE = 0.3  # below this share of common words nearly every word would be marked
_WORDS_COMPARED = 400  # at most, of each side: the time grows with their product
# A word with the space before it; each Chinese or Japanese letter is a word of its own.
_WORDS = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]+)|\s+")


@dataclass(frozen=True)
class Piece:
    """Words of an answer that stand in the expected one too, words that do not, or expected words that it lacks."""

    text: str
    kind: Literal["same", "extra", "missing"]


@dataclass(frozen=True)
class ShownAnswer:
    """One model's answer, compared with the expected one, and the weighted score of that row alone, in [0, 1].

    pieces: empty if the two have little in common, or are too long to compare; remark says which.
    """

    text: str
    pieces: Sequence[Piece]
    remark: str
    score: float
    truncated: bool


@dataclass(frozen=True)
class AnsweredRow:
    """A row with its question, its reference answer and the answers of both models.

    earlier: the number of user turns before the question.
    other: the answer of the other model, None if it did not answer this row.
    change: what this row adds to the gain over the other model; None without one.
    """

    row_id: str
    intent: str | None
    question: str
    earlier: int
    reference: str
    own: ShownAnswer
    other: ShownAnswer | None
    change: float | None


def ranked_answers(predictions: Sequence[Prediction], rival: Sequence[Prediction], weights: Mapping[str, float]
                   ) -> dict[str, list[AnsweredRow]]:
    """Ten rows at each end by heading: the largest wins and losses against the other model, largest first.

    A win or loss is the row's part of the gain (`row_contributions`). Without another model, or if it shares no row,
    these are the best and the worst answers by the score of the row alone. Ids break ties; no row is shown twice.
    """
    others = {row.id: row for row in rival}
    shared = [row for row in predictions if row.id in others]
    if not shared:
        return _best_and_worst(predictions, weights)
    against = [others[row.id] for row in shared]
    changes = row_contributions(_statistics(shared), _statistics(against), weights).tolist()
    own, other = (row_scores(_statistics(rows), weights).tolist() for rows in (shared, against))
    order = sorted(range(len(shared)), key=lambda place: (-changes[place], shared[place].id))
    ends = {"wins": [place for place in order if changes[place] > 0][:ANSWERS],
            "losses": [place for place in reversed(order) if changes[place] < 0][:ANSWERS]}
    return {title: [_row(shared[place], own[place], against[place], other[place], changes[place]) for place in places]
            for title, places in ends.items() if places}


def _best_and_worst(rows: Sequence[Prediction], weights: Mapping[str, float]) -> dict[str, list[AnsweredRow]]:
    scores = row_scores(_statistics(rows), weights).tolist()
    order = sorted(range(len(rows)), key=lambda place: (-scores[place], rows[place].id))
    best = order[:ANSWERS]
    worst = order[len(best):][-ANSWERS:][::-1]
    return {title: [_row(rows[place], scores[place]) for place in places]
            for title, places in (("best answers", best), ("worst answers", worst)) if places}


def _row(row: Prediction, score: float, other: Prediction | None = None, others: float = 0.0,
         change: float | None = None) -> AnsweredRow:
    asked = [message.content for message in row.messages if message.role == "user"]
    return AnsweredRow(row.id, row.intent, shortened(asked[-1] if asked else ""), max(0, len(asked) - 1),
                       shortened(row.reference), _answer(row, score), _answer(other, others) if other else None, change)


def _answer(row: Prediction, score: float) -> ShownAnswer:
    text, expected = shortened(row.prediction), shortened(row.reference)
    if max(len(_WORDS.findall(each)) for each in (text, expected)) > _WORDS_COMPARED:
        return ShownAnswer(text, (), "too long to compare word by word", score, row.truncated)
    pieces = tuple(differences(text, expected))
    remark = "" if pieces else "has little in common with the expected answer"
    return ShownAnswer(text, pieces, remark, score, row.truncated)


def differences(answer: str, expected: str) -> Iterator[Piece]:
    """An answer in pieces, compared with the expected one word by word; none if they have little in common."""
    ours, theirs = _WORDS.findall(answer), _WORDS.findall(expected)
    matcher = SequenceMatcher(None, [word.strip() for word in theirs], [word.strip() for word in ours], autojunk=False)
    if matcher.ratio() < _ALIKE:
        return
    for tag, start, end, first, last in matcher.get_opcodes():
        if first < last:
            yield from _piece("".join(ours[first:last]), "same" if tag == "equal" else "extra")
        if tag != "equal" and start < end:
            yield from _piece(("" if first == last == 0 else " ") + "".join(theirs[start:end]).strip(), "missing")
            if last == 0:
                yield Piece(" ", "same")


def _piece(text: str, kind: Literal["same", "extra", "missing"]) -> Iterator[Piece]:
    """A piece, with the space before it apart, so that it is not marked."""
    words = text.lstrip()
    if text != words:
        yield Piece(text[:len(text) - len(words)], "same")
    if words:
        yield Piece(words, kind)


def shortened(text: str) -> str:
    """A text cut to LONGEST characters, with the number of characters that were cut."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [{len(text) - LONGEST} more characters]"


def _statistics(rows: Sequence[Prediction]) -> RowStatistics:
    return RowStatistics.from_rows([row.stats for row in rows])
