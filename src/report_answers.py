"""The best and the worst answers of an evaluation, beside another model's answers to the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from src.metrics import RowStatistics, row_scores
from src.predictions import Prediction

ANSWERS = 10
LONGEST = 1500  # characters of a text that are shown: 20 rows of four texts stay far below 1 MB


@dataclass(frozen=True)
class Answer:
    """One model's answer and the weighted score of that row alone, in [0, 1]."""

    text: str
    score: float
    truncated: bool


@dataclass(frozen=True)
class AnsweredRow:
    """A row with what was asked, what was expected and what was answered; other is None where it is not at hand.

    earlier counts the user's turns before the question.
    """

    row_id: str
    intent: str | None
    question: str
    earlier: int
    reference: str
    own: Answer
    other: Answer | None


@dataclass(frozen=True)
class AnswerGroup:
    """Rows under one heading."""

    title: str
    rows: Sequence[AnsweredRow]


def ranked_answers(predictions: Sequence[Prediction], rival: Sequence[Prediction], weights: Mapping[str, float]
                   ) -> list[AnswerGroup]:
    """The ten best rows, best first, and the ten worst, worst first; no row is in both, and ties go by row id."""
    scores = _row_scores(predictions, weights)
    others = dict(zip((row.id for row in rival), zip(rival, _row_scores(rival, weights), strict=True), strict=True))
    order = sorted(range(len(predictions)), key=lambda place: (-scores[place], predictions[place].id))
    best = order[:ANSWERS]
    worst = order[len(best):][-ANSWERS:][::-1]

    def answered(place: int) -> AnsweredRow:
        other = others.get(predictions[place].id)
        return _row(predictions[place], scores[place], _answer(*other) if other else None)

    return [AnswerGroup(title, [answered(place) for place in places])
            for title, places in (("Best answers", best), ("Worst answers", worst)) if places]


def shortened(text: str) -> str:
    """A text of at most LONGEST characters, and how many were left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [{len(text) - LONGEST} more characters]"


def _row(row: Prediction, score: float, other: Answer | None) -> AnsweredRow:
    asked = [message.content for message in row.messages if message.role == "user"]
    return AnsweredRow(row.id, row.intent, shortened(asked[-1] if asked else ""), max(0, len(asked) - 1),
                       shortened(row.reference), _answer(row, score), other)


def _answer(row: Prediction, score: float) -> Answer:
    return Answer(shortened(row.prediction), score, row.truncated)


def _row_scores(rows: Sequence[Prediction], weights: Mapping[str, float]) -> list[float]:
    if not rows:
        return []
    scores: list[float] = row_scores(RowStatistics.from_rows([row.stats for row in rows]), weights).tolist()
    return scores
