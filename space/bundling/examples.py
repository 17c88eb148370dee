"""Choose the questions that the chat page suggests: evaluation questions that the bundle answered best."""

import re
from collections import Counter
from collections.abc import Sequence

from files import JsonLine

_MOST = 4
_LEAST = 0.6  # score of an answer worth showing
_LONGEST = 90  # characters
_ENDS = ("?", ".", "!", "\uff1f", "\u3002", "\u061f", "\u0964")  # of a sentence, in any script
Answer = tuple[str, float]  # with its score, 0..1


def choose(rows: Sequence[JsonLine], *sides: Sequence[Answer]) -> list[str]:
    """Up to four questions, the best answered first; each of another intent, with another answer.

    sides: the answers to the rows, once for each kind of weights that may be served; the lowest score counts, and
    without any nothing is chosen. A row with a system message or more than one question is left out, since the page
    asks without them. Among answers that are about as good, a whole sentence comes first, then a question of common
    words (a rare word may be mistyped), then a short one.
    """
    words = Counter(word for row in rows for word in _words(row["messages"][0]["content"]))
    ranked: list[tuple[float, bool, int, int, int, JsonLine]] = []
    for row, answers in zip(rows if sides else [], zip(*sides, strict=True), strict=True):
        question, score = _question(row), min(score for _, score in answers)
        if question and score >= _LEAST and all(_keeps_the_facts(row, text) for text, _ in answers):
            rare = sum(words[word] == 1 for word in _words(question))
            clumsy = question[0].islower() or not question.endswith(_ENDS)
            ranked.append((-round(score, 1), clumsy, rare, len(question), len(ranked), row))
    chosen: list[JsonLine] = []
    for *_, row in sorted(ranked):
        if len(chosen) < _MOST and not any(_alike(row, other) for other in chosen):
            chosen.append(row)
    return [_question(row) for row in chosen]


def _keeps_the_facts(row: JsonLine, answer: str) -> bool:
    """Whether an answer has the reference's numbers, no others, and the question's words that the reference takes up.

    A score alone does not tell: an answer about red paper to a question about brown paper may differ in one word.
    """
    question, reference, said = (_words(text) for text in (
        row["messages"][0]["content"], row["messages"][-1]["content"], answer))
    return _numbers(reference) | (question & reference) <= said and _numbers(said) <= _numbers(question | reference)


def _numbers(words: set[str]) -> set[str]:
    return {word for word in words if any(sign.isdecimal() for sign in word)}


def _question(row: JsonLine) -> str:
    """What the page would ask; empty if it cannot ask this row."""
    messages = row["messages"]
    text = str(messages[0]["content"]).strip()
    is_plain = [each["role"] for each in messages] == ["user", "assistant"] and "\n" not in text
    return text if is_plain and len(text) <= _LONGEST else ""


def _alike(row: JsonLine, other: JsonLine) -> bool:
    same_intent = row.get("intent") is not None and row.get("intent") == other.get("intent")
    return same_intent or row["messages"][-1] == other["messages"][-1]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))
